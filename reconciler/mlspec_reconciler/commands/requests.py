"""`mlspec requests`: who asked for what, and what became of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from mlspec import ranges
from mlspec.lifecycle import Request
from mlspec.resource import moment
from mlspec_reconciler import asking, terminal
from mlspec_reconciler.show.runs import WORDS
from mlspec_reconciler.step import Observation


@click.command()
@terminal.folder_option
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(path: Path, target: str | None, output: str) -> int:
    """List the requests of policies, schedules and persons, oldest first: which are in force, which have lapsed and why.

    \b
    mlspec requests
    """
    seen = asking.opened(path, target, looking=True).seen
    asked = sorted(seen.facts.requests, key=lambda one: (one.made, one.order))
    rows = [(one, *_standing(one, seen)) for one in asked]
    if output == "json":
        found = [
            {
                "id": one.id,
                "action": one.action,
                "subject": one.subject,
                "by": one.asker,
                "person": one.person or None,
                "made": datetime.fromtimestamp(one.made, UTC).isoformat(timespec="seconds"),
                "at": one.at,
                "reason": one.reason,
                "standing": word,
                "why": why,
                "run": run or None,
            }
            for one, word, why, run in rows
        ]
        click.echo(json.dumps({"version": 1, "requests": found}, indent=2))
        return 0
    for one, word, why, run in rows:
        click.echo(f"{one.id:<14} {word:<13} {_words(one)}")
        if about := ": ".join(filter(None, (run, why))):
            click.echo(f"{'':14} {'':13} {about}")
    if not rows:
        click.echo("Nobody has asked for anything.")
    return 0


def _words(one: Request) -> str:
    """`retrain late on data up to 2013-06-26, asked for by the policy late: auc 0.68 < 0.70`."""
    data = f" on data up to {ranges.day(moment(one.end or one.at))}" if one.action == "retrain" else ""
    why = f": {one.reason}" if one.reason else ""
    return f"{one.action} {one.subject}{data}, asked for by {one.by}{why}"


def _standing(one: Request, seen: Observation) -> tuple[str, str, str]:
    """Where a request stands, why, and the run that was made for it."""
    if one.withdrawn:
        return "withdrawn", f"by {one.withdrawn}", ""
    for lowered in seen.compiled.lowered.values():
        if lowered.life is None:
            continue
        for candidate in (*lowered.life.candidates, *lowered.life.lapsed):
            if candidate.id == one.id:
                word = WORDS.get(candidate.stage, str(candidate.stage))
                return word, candidate.reason, candidate.run
        if one in lowered.life.switches.values():
            return "in force", f"leads away from {one.run}", ""
    if one.action == "refresh":
        runs = seen.facts.runs_of(f"Dataset/{one.subject}")
        made = [(name, fact) for name, fact in runs.items() if fact.made.request == one.id]
        return (str(made[-1][1].phase), made[-1][1].message, made[-1][0]) if made else ("waiting", "", "")
    return "lapsed", "it concerns nothing that is applied now", ""
