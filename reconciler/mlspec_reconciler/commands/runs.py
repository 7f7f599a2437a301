"""`mlspec runs`: every run that was made here, with its result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import click

from mlspec.lifecycle import Memory, State
from mlspec.workload import RunFact
from mlspec_reconciler import remembered, terminal, workspace
from mlspec_reconciler.show import runs as show
from mlspec_reconciler.step import CONTROLLER_CONSENT, observe_and_plan


@click.command()
@click.argument("what", required=False)
@terminal.folder_option
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(what: str | None, path: Path, target: str | None, output: str) -> int:
    """List the runs that were made here, newest last; also those whose objects are gone. WHAT is a resource, or one run,
    of which all is said: its data and who decided it, its gates, what it was compared with.

    \b
    mlspec runs
    mlspec runs TrainingJob/late-arrival
    mlspec runs late-arrival-7c1e9a02
    """
    facts, lives, memories = _known(path, target)
    found = show.collect(facts, lives, memories)
    if what is not None:
        chosen = [one for one in found if what in (one.name, one.fact.made.resource)]
        if not chosen:
            known = sorted({one.fact.made.resource for one in found} - {""})
            words = f"there is no run {what} here, and no run of a resource of this name"
            click.echo(
                f"error[unknown-run]: {words}; there are runs of: {', '.join(known) or 'none'}", err=True
            )
            return 1
        found = chosen
    if output == "json":
        click.echo(json.dumps({"version": 1, "runs": show.document(found)}, indent=2, default=str))
        return 0
    if what is not None and len(found) == 1 and found[0].name == what:
        click.echo(show.page(found[0]))
        return 0
    for one in found:
        click.echo(show.row(one))
    if not found:
        click.echo("No runs yet.")
    return 0


def _known(
    path: Path, target: str | None
) -> tuple[Mapping[str, RunFact], Mapping[str, State], Mapping[str, Memory]]:
    """Runs, models as the applied revision judges them, and what is remembered; the latter outlives a destroy."""
    connected, place = workspace.connect(path, target), workspace.find(path)
    if connected is None:
        session = place.session()
        kept = {**place.local.runs(), **remembered.runs(session)}
        return kept, {}, remembered.memories(session)
    session = connected.reached.session()
    seen = observe_and_plan(connected.wanted, connected.cluster, session, CONTROLLER_CONSENT, time.time())
    lives = {name: one.life for name, one in seen.compiled.lowered.items() if one.life is not None}
    return seen.facts.runs, lives, seen.facts.memories
