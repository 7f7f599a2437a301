"""`mlspec features`: does the service give the features that training would have seen?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from mlspec_reconciler import terminal, workspace


@click.command()
@click.argument("graph")
@terminal.folder_option
@click.option(
    "--rows", default=2000, show_default=True, help="Newest rows of the request log that are checked."
)
def command(graph: str, path: Path, target: str | None, rows: int) -> int:
    """Answer logged requests of GRAPH again with the point-in-time join of training, and compare cell by cell.

    Exits with 1 when a single value differs.

    \b
    mlspec features late-arrival
    """
    place = workspace.find(path)
    connected = workspace.connect(path, target)
    if connected is not None and connected.wanted.target.kubernetes is not None:
        words = (
            "the request log of a Kubernetes target is in its storage; run this where the storage is mounted"
        )
        click.echo(f"error[not-here]: {words}", err=True)
        return 1
    objects = connected.cluster.list() if connected is not None else ()
    live = next((one for one in objects if one.key.kind == "Service" and one.key.name == graph), None)
    if live is None:
        click.echo(f"error[unknown-graph]: no graph {graph} is applied here; see: mlspec status", err=True)
        return 1
    document = json.dumps(live.body["spec"]["step"]["document"])
    arguments = ["--document", document, "--root", str(place.storage), "--rows", str(rows)]
    return subprocess.run(
        [sys.executable, "-m", "mlspec_runtime.features", *arguments], check=False
    ).returncode
