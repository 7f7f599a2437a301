"""`mlspec status`: what the one on call reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mlspec_reconciler import terminal, workspace
from mlspec_reconciler.reconcile import Round, look
from mlspec_reconciler.show import status as show


@click.command()
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("resource", required=False)
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(path: Path, resource: str | None, output: str) -> int:
    """Say how everything is: one sentence for each resource, and the next command for what needs attention.

    Exits with 1 when something needs attention.

    \b
    mlspec status
    mlspec status . MonitoringPolicy/late-arrival
    """
    place = workspace.find(path)
    wanted = workspace.open_applied(place)
    document = workspace.applied(place)
    if wanted is None or document is None:
        click.echo("Nothing is applied here. Start with: mlspec apply")
        return 0
    cluster = place.cluster()
    seen = look(wanted, cluster, retry=False)
    rows = show.lines(wanted.project.order, seen, wanted.target)
    if resource is not None:
        rows = [row for row in rows if row.resource == resource]
        objects = [one for one in seen.objects if one.annotations.get("mlspec.dev/resource") == resource]
        if not rows and not objects:
            known = ", ".join(row.resource for row in show.lines(wanted.project.order, seen, wanted.target))
            click.echo(f"error[unknown-resource]: {resource} is not applied; there are {known}", err=True)
            return 1
        click.echo(show.text(rows, resource, terminal.colored()))
        for one in objects:
            click.echo(
                json.dumps({"object": str(one.key), "status": dict(one.status)}, indent=2, default=str)
            )
        return 0
    if output == "json":
        click.echo(json.dumps(_document(rows, seen), indent=2, default=str))
    else:
        needy = show.attention(rows)
        at = f", at {document['commit']}" if document.get("commit") else ""
        state = f"{needy} of {len(rows)} needs attention" if needy else "all is well"
        headline = f"{wanted.project.name} on {document['target']}{at} - {state}"
        if not cluster.awake:
            headline += "\n  the supervisor is not running: nothing moves; start it with: mlspec apply"
        click.echo(show.text(rows, headline, terminal.colored()))
    return 1 if show.attention(rows) else 0


def _document(rows: list[show.Line], seen: Round) -> dict[str, Any]:
    objects = [
        {"kind": one.key.kind, "name": one.key.name, "spec": one.body["spec"], "status": one.status}
        for one in seen.objects
    ]
    return {"version": 1, "resources": [dataclasses.asdict(row) for row in rows], "objects": objects}
