"""`mlspec url`: the address of a serving graph, for curl and scripts."""

from __future__ import annotations

from pathlib import Path

import click

from mlspec.compile import readings
from mlspec.health import Health, State
from mlspec_reconciler import terminal, workspace


@click.command()
@click.argument("graph", required=False)
@terminal.folder_option
def command(graph: str | None, path: Path, target: str | None) -> int:
    """Print the address of a serving graph, as soon as it is ready; without a name that of the only one.

    \b
    curl -s $(mlspec url)/predict -d @case.json
    curl -s $(mlspec url tumour)/v2/models/tumour
    """
    found = workspace.connect(path, target)
    known: dict[str, tuple[Health, str]] = {}
    for one in found.cluster.list() if found is not None else ():
        read = readings(found.wanted.target.choice).get(one.key.kind) if found is not None else None
        if read is not None and read.url is not None:
            known[one.key.name] = (read.health(one.live), read.url(one.live))
    if graph is None and len(known) == 1:
        graph = next(iter(known))
    if graph is None or graph not in known:
        names = ", ".join(sorted(known)) or "none; start some with: mlspec apply"
        click.echo(f"error[unknown-graph]: name one of the graphs: {names}", err=True)
        return 1
    health, url = known[graph]
    if health.state not in (State.READY, State.DEGRADED):
        click.echo(
            f"error[not-ready]: {graph} is {health.state}: {health.sentence}; look with: mlspec logs ServingGraph/{graph}",
            err=True,
        )
        return 1
    click.echo(url)
    return 0
