"""`mlspec status`: what the one on call reads."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlspec.compile import readings
from mlspec.kinds.project import Target
from mlspec_reconciler import checkout, terminal, workspace
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.clusters.local.store import CONTROLLER, Failing
from mlspec_reconciler.show import status as show
from mlspec_reconciler.step import CONTROLLER_CONSENT, health, observe_and_plan


@click.command()
@click.argument("resource", required=False)
@terminal.folder_option
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(resource: str | None, path: Path, target: str | None, output: str) -> int:
    """Say how everything is: one sentence for each resource, and the next command for what needs attention.

    With a resource also its objects, and for a MonitoringPolicy its windows and messages. Exits with 1 when something
    needs attention, the controller included.

    \b
    mlspec status
    mlspec status MonitoringPolicy/late-arrival
    """
    found = workspace.connect(path, target)
    if found is None:
        click.echo("Nothing is applied here. Start with: mlspec apply")
        return 0
    wanted, cluster = found.wanted, found.cluster
    seen = observe_and_plan(wanted, cluster, found.reached.session(), CONTROLLER_CONSENT, time.time())
    rows = show.lines(wanted.project.order, seen, wanted.target, wanted.project.settings.suspend)
    objects = list(seen.objects)
    failing = cluster.failing if isinstance(cluster, LocalCluster) else None
    if resource is not None:
        known = ", ".join(row.resource for row in rows)
        here = f"mlspec status {resource}"
        rows = [
            dataclasses.replace(row, next="" if row.next == here else row.next)
            for row in rows
            if row.resource == resource
        ]
        objects = [one for one in objects if one.annotations.get("mlspec.dev/resource") == resource]
        if not rows and not objects:
            click.echo(f"error[unknown-resource]: {resource} is not applied; there are {known}", err=True)
            return 1
    if output == "json":
        click.echo(json.dumps(_document(rows, objects, wanted.target, failing), indent=2, default=str))
    elif resource is not None:
        click.echo(show.text(rows, resource + _failing(failing), terminal.colored()))
        click.echo("\n".join(show.details(objects, wanted.target)))
    else:
        headline = _headline(found, show.attention(rows), len(rows), failing) + _failing(failing)
        if isinstance(cluster, LocalCluster) and not cluster.awake:
            headline += "\n  the supervisor is not running: nothing moves; start it with: mlspec apply"
        click.echo(show.text(rows, headline, terminal.colored()))
    return 1 if show.attention(rows) or failing is not None else 0


def _headline(found: workspace.Connected, needy: int, count: int, failing: Failing | None) -> str:
    at = f", at {found.commit}" if found.commit else ""
    if checkout.uncommitted(found.wanted.project.source):
        at += ", with uncommitted changes"
    verb = "needs" if needy == 1 else "need"
    well = "all is well" if failing is None else "the controller needs attention"
    state = f"{needy} of {count} {verb} attention" if needy else well
    if found.wanted.project.settings.suspend:
        state = "suspended: nothing is written" + (f"; {state}" if needy or failing else "")
    return f"{found.wanted.project.name} on {found.target_name}{at} - {state}"


def _failing(failing: Failing | None) -> str:
    """A line below the headline: without its controller a target stays as it is, whatever comes due or is asked for."""
    if failing is None:
        return ""
    return f"\n  the {CONTROLLER} keeps failing: {failing.message}; see: mlspec logs {CONTROLLER}"


def _document(
    rows: Sequence[show.Line], objects: Sequence[Object], target: Target, failing: Failing | None
) -> dict[str, Any]:
    found = [
        {
            "kind": one.key.kind,
            "name": one.key.name,
            "spec": one.body.get("spec"),
            "status": one.status,
            "health": dataclasses.asdict(health(one, target)),
            "result": show.result_of(one, readings(target.choice)) or None,
        }
        for one in objects
    ]
    return {
        "version": 1,
        "controller": None if failing is None else dataclasses.asdict(failing),
        "resources": [dataclasses.asdict(row) for row in rows],
        "objects": found,
    }
