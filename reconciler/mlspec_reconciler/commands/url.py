"""`mlspec url`: the address of a serving graph, for curl and scripts."""

from __future__ import annotations

from pathlib import Path

import click

from mlspec_reconciler import terminal, workspace


@click.command()
@click.argument("graph", required=False)
@terminal.folder_option
def command(graph: str | None, path: Path) -> int:
    """Print the address of a serving graph, as soon as it is ready; without a name that of the only one.

    \b
    curl -s $(mlspec url)/predict -d @case.json
    curl -s $(mlspec url tumour)/v2/models/tumour
    """
    place = workspace.find(path)
    services = (
        [one for one in place.cluster().list() if one.key.kind == "Service"] if place.home.exists() else []
    )
    known = {one.key.name: one for one in services}
    if graph is None and len(known) == 1:
        graph = next(iter(known))
    if graph is None or graph not in known:
        names = ", ".join(sorted(known)) or "none; start some with: mlspec apply"
        click.echo(f"error[unknown-graph]: name one of the graphs: {names}", err=True)
        return 1
    status = known[graph].status
    if status.get("phase") != "ready":
        click.echo(
            f"error[not-ready]: {graph} is {status.get('phase')}; look with: mlspec logs ServingGraph/{graph}",
            err=True,
        )
        return 1
    click.echo(status["url"])
    return 0
