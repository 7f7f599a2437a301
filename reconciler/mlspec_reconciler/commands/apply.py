"""`mlspec apply`: make the target equal to the specs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mlspec_reconciler import planfile, terminal, workspace
from mlspec_reconciler.plan import Action, Plan
from mlspec_reconciler.reconcile import look, reconcile
from mlspec_reconciler.show import plan as show
from mlspec_reconciler.show import status
from mlspec_reconciler.show.progress import Progress


@click.command()
@click.argument("path", default=".", type=click.Path(exists=True, path_type=Path))
@click.option("--target", "-t", metavar="NAME", help="Target of the Project; by default its first one.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--allow-deletes", is_flag=True, help="Delete even more than the Project's prune.maxShare.")
@click.option(
    "--timeout",
    type=float,
    default=86400.0,
    show_default=True,
    help="Seconds to wait; runs go on without us.",
)
def command(path: Path, target: str | None, yes: bool, allow_deletes: bool, timeout: float) -> int:
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
    cluster = project.workspace.cluster()
    seen = look(wanted, cluster)
    if saved is not None and (reasons := planfile.moved(saved, project, seen)):
        listed = "\n".join(f"  {reason}" for reason in reasons)
        click.echo(
            f"error[stale-plan]: the plan does not hold any more; nothing was changed\n{listed}", err=True
        )
        return 1
    rows = terminal.plan_rows(wanted, seen)
    click.echo(show.text(rows, seen.plan, project.target_name, terminal.colored()))
    refused = _too_many_deletes(seen.plan, wanted.project.settings.prune.max_share)
    if refused and not allow_deletes:
        click.echo(
            f"error[many-deletes]: {refused}\n  if this is meant: mlspec apply --allow-deletes", err=True
        )
        return 1
    if not seen.plan.empty and saved is None:
        terminal.consent("Apply this?", yes)
    workspace.stage(project)
    live = sys.stderr.isatty()
    started = time.monotonic()
    with Progress(wanted.target, click.echo, live) as progress:
        end = reconcile(wanted, cluster, project.workspace.lock, progress.report, deadline=started + timeout)
    told = "\n".join(progress.failures)
    for line in status.lines(wanted.project.order, end, wanted.target):
        if line.word in ("failed", "degraded") and line.sentence not in told:
            progress.failures.append(line.sentence)
            click.echo(f"  x {line.resource}: {line.sentence}\n    {line.next}")
    if progress.failures:
        click.echo(
            "Not everything is as the specs say. What does not depend on the failures is done.", err=True
        )
        return 1
    if not seen.plan.empty:
        click.echo(f"Done in {show.duration(time.monotonic() - started)}. Look with: mlspec status")
    return 0


def _too_many_deletes(plan: Plan, share: float) -> str:
    deletes, known = len(plan.of(Action.DELETE)), len(plan.inventory.entries)
    if deletes <= max(1, share * known):
        return ""
    return f"this would delete {deletes} of {known} resources, more than prune.maxShare {share:.0%} allows"
