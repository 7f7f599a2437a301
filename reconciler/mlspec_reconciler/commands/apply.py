"""`mlspec apply`: make the target equal to the specs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mlspec_reconciler import checkout, guards, planfile, terminal, workspace
from mlspec_reconciler.drivers.lock import exclusive
from mlspec_reconciler.drivers.once import reconcile
from mlspec_reconciler.plan import Action
from mlspec_reconciler.show import plan as show
from mlspec_reconciler.show import status
from mlspec_reconciler.show.progress import Progress
from mlspec_reconciler.step import Consent, Memory, health, moving, observe_and_plan, step


@click.command()
@click.argument("path", default=".", type=click.Path(exists=True, path_type=Path))
@click.option("--target", "-t", metavar="NAME", help="Target of the Project; by default its first one.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--allow-deletes",
    is_flag=True,
    help="Delete even more than the Project's prune.maxShare, or what only seems to be removed.",
)
@click.option("--allow-replace", is_flag=True, help="Delete and make again what cannot be changed in place.")
@click.option(
    "--allow-other-cluster", is_flag=True, help="The target may be another cluster than the last time."
)
@click.option(
    "--adopt",
    multiple=True,
    metavar="KIND/NAME",
    help="Take over an object that somebody else made; can be repeated.",
)
@click.option(
    "--timeout",
    type=float,
    default=86400.0,
    show_default=True,
    help="Stop waiting after this many seconds; runs continue.",
)
def command(
    path: Path,
    target: str | None,
    yes: bool,
    allow_deletes: bool,
    allow_replace: bool,
    allow_other_cluster: bool,
    adopt: tuple[str, ...],
    timeout: float,
) -> int:
    """Make the target equal to the specs: show the plan, ask, perform it, and wait until everything is there.

    PATH is the project's folder, or a plan saved with: mlspec plan --out FILE

    \b
    mlspec apply
    mlspec apply --yes                   # in a script
    mlspec apply plan.json               # exactly this plan, or nothing
    """
    saved: Mapping[str, Any] | None = None
    if path.is_file():
        read = planfile.read(path)
        if isinstance(read, str):
            click.echo(f"error[not-a-plan]: {read}", err=True)
            return 1
        saved, path, target = read, Path(), read["target"]
    project, wanted = terminal.opened(path, target)
    reached = project.workspace.reach(wanted)
    cluster = reached.cluster
    consent = Consent(replacing=allow_replace, adopt=frozenset(adopt))
    seen = observe_and_plan(wanted, cluster, reached.session(), consent, time.time(), ask=True)
    consent = replace(consent, deletes=frozenset(one.resource for one in seen.plan.of(Action.DELETE)))
    if saved is not None and (reasons := planfile.moved(saved, project, seen)):
        listed = "\n".join(f"  {reason}" for reason in reasons)
        click.echo(
            f"error[stale-plan]: the plan does not hold any more; nothing was changed\n{listed}", err=True
        )
        return 1
    rows = terminal.plan_rows(wanted, seen)
    edited = checkout.uncommitted(wanted.project.source)
    click.echo(show.text(rows, seen.plan, project.target_name, terminal.colored(), edited))
    allowed = {guards.DELETES: allow_deletes, guards.CLUSTER: allow_other_cluster}
    refusals = [one for one in guards.refusals(project, seen, cluster) if not allowed.get(one.allow)]
    if wanted.project.settings.suspend and all(one.code == guards.SUSPENDED for one in refusals):
        wanted = workspace.stage(project, cluster)
        with exclusive(project.workspace.lock):
            step(wanted, cluster, reached.state, consent, time.time(), Memory(), reached.holder)
        click.echo("Recorded: from now on nothing is written, and no run is started. What runs goes on.")
    if refusals:
        click.echo("\n".join(map(str, refusals)), err=True)
        return 1
    if wanted.project.settings.suspend:
        return 0
    replaced = [write for change in seen.plan.changes for write in change.writes if write.forced_by]
    if replaced and not allow_replace:
        names = ", ".join(str(write.key) for write in replaced)
        click.echo(
            f"error[replace]: {names} would be deleted and made again\n"
            "  if this is meant: mlspec apply --allow-replace",
            err=True,
        )
        return 1
    if not seen.plan.empty and saved is None:
        terminal.consent("Apply this?", yes)
    wanted = workspace.stage(project, cluster)
    live = sys.stderr.isatty()
    started = time.monotonic()
    with Progress(wanted.target, click.echo, live) as progress:
        lock = project.workspace.lock
        end = reconcile(
            wanted,
            cluster,
            reached.state,
            lock,
            progress.report,
            consent,
            holder=reached.holder,
            deadline=started + timeout,
            say=_wait,
        )
    told = "\n".join([*progress.failures, *progress.refused])
    failures = [*progress.failures, *progress.refused]
    for line in status.lines(wanted.project.order, end, wanted.target):
        if line.word in ("failed", "degraded") and line.sentence not in told:
            failures.append(line.sentence)
            click.echo(f"  x {line.resource}: {line.sentence}\n    {line.way}")
    if failures:
        click.echo(
            "Not everything is as the specs say. What does not depend on the failures is done.", err=True
        )
        return 1
    if late := [one for one in moving(end, wanted.target) if time.monotonic() > started + timeout]:
        names = ", ".join(f"{one.key.name} ({health(one, wanted.target).sentence})" for one in late[:3])
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        click.echo(
            f"Not done after {show.duration(timeout)}: still under way are {names}{more}.\n"
            f"The runs go on; this goes on from there: mlspec apply{terminal.chosen(target)}",
            err=True,
        )
        return 1
    if not seen.plan.empty:
        click.echo(
            f"Done in {show.duration(time.monotonic() - started)}. Look with: mlspec status{terminal.chosen(target)}"
        )
    return 0


def _wait(sentence: str) -> None:
    click.echo(f"  ! {sentence}", err=True)
