"""Requests of persons: `mlspec retrain`, `switch`, `refresh` and `withdraw` remember one row; whoever drives the target acts on
it, as on the request of a policy or a clock.
"""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click

from mlspec.lifecycle import PERSON, Request, Stage
from mlspec.resource import seconds
from mlspec_reconciler import remembered, terminal, workspace
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import CONTROLLER_CONSENT, Observation, observe_and_plan

EXPIRES = "7d"
"""After which a request that nobody could act on lapses."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is applied, as of now, and where a request is remembered."""

    found: workspace.Connected
    session: Session
    seen: Observation
    now: float


def opened(path: Path, target: str | None, *, looking: bool = False) -> Asked:
    """What is applied here; exits with 1 and a sentence when nothing is, or when it is suspended and not only `looking`."""
    found = workspace.connect(path, target)
    if found is None:
        click.echo("error[not-applied]: nothing is applied here; start with: mlspec apply", err=True)
        raise click.exceptions.Exit(1)
    if found.wanted.project.settings.suspend and not looking:
        click.echo(
            "error[suspended]: the Project says suspend: true; nothing starts until it does not", err=True
        )
        raise click.exceptions.Exit(1)
    session, now = found.reached.session(), time.time()
    seen = observe_and_plan(found.wanted, found.cluster, session, CONTROLLER_CONSENT, now)
    return Asked(found, session, seen, now)


def applied(asked: Asked, kind: str, name: str) -> str:
    """The name of an applied resource, given as `NAME` or `Kind/NAME`; exits with 1 when there is none."""
    name = name.removeprefix(f"{kind}/")
    if f"{kind}/{name}" not in asked.seen.compiled.lowered:
        known = [one.name for one in asked.found.wanted.project.order if one.kind == kind]
        words = f"no {kind} {name} is applied here; there are: {', '.join(known) or 'none'}"
        click.echo(f"error[unknown-resource]: {words}", err=True)
        raise click.exceptions.Exit(1)
    return name


def request(
    asked: Asked,
    action: Literal["retrain", "switch", "refresh"],
    subject: str,
    made_for: str,
    reason: str,
    *,
    at: str = "",
    window: str | None = None,
    run: str | None = None,
) -> Request:
    """A request of the person who types, made now. Of two for the same data the later one counts: ids sort by time."""
    return Request(
        id=f"{int(asked.now):08x}{uuid.uuid4().hex[:4]}",
        action=action,
        subject=subject,
        asker=PERSON,
        at=at or datetime.fromtimestamp(asked.now, UTC).isoformat(timespec="seconds"),
        made=asked.now,
        made_for=made_for,
        window=window,
        run=run,
        reason=reason,
        expires=seconds(EXPIRES),
        person=getpass.getuser(),
    )


def remember(asked: Asked, one: Request) -> None:
    """Make a request durable, and say what follows."""
    asked.session.put([remembered.request_row(one)])
    asked.found.cluster.wake()
    target = asked.found.wanted.target
    way = "mlspec status" if target.local is not None else f"mlspec apply --target {asked.found.target_name}"
    verb = "Look with" if target.local is not None else "It is acted on by"
    click.echo(
        f"Request {one.id}: {one.action} {one.subject}. {verb}: {way}; take it back with: mlspec withdraw {one.id}"
    )


def held_back(asked: Asked, one: Request) -> str:
    """Why a request to retrain that was just remembered trains nothing now; empty when it does."""
    found = asked.found
    seen = observe_and_plan(
        found.wanted, found.cluster, found.reached.session(), CONTROLLER_CONSENT, time.time()
    )
    life = seen.compiled.lowered[f"TrainingJob/{one.subject}"].life
    mine = [candidate for candidate in life.candidates if candidate.id == one.id] if life else []
    return mine[0].reason if mine and mine[0].stage in (Stage.WAITING, Stage.HELD) else ""


def withdraw(asked: Asked, one: Request) -> None:
    """Take a request back. It stays remembered as withdrawn, so that a policy that repeats it does not bring it back."""
    asked.session.put([remembered.request_row(replace(one, withdrawn=getpass.getuser()))])
    asked.found.cluster.wake()


def options(command: Callable[..., int]) -> Callable[..., int]:
    """`--reason`, `--path` and `--target`."""
    command = click.option("--reason", metavar="TEXT", default="", help="Why, for those who read it later.")(
        command
    )
    decorated: Callable[..., int] = terminal.folder_option(command)
    return decorated
