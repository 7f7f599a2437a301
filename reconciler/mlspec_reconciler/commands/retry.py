"""`mlspec retry`: start one failed run again."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from mlspec_reconciler import apply, guards, terminal, workspace
from mlspec_reconciler.drivers.lock import exclusive
from mlspec_reconciler.plan import Reason
from mlspec_reconciler.step import Consent, making, observe_and_plan


@click.command()
@click.argument("run")
@terminal.folder_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def command(run: str, path: Path, target: str | None, yes: bool) -> int:
    """Start one run that has failed again; mlspec apply starts all of them. Steps that have succeeded are not repeated.

    \b
    mlspec runs
    mlspec retry late-arrival-7c1e9a02
    """
    found = workspace.connect(path, target)
    if found is None:
        click.echo("Nothing is applied here.")
        return 0
    cluster, wanted = found.cluster, found.wanted
    session, now = found.reached.session(), time.time()
    seen = observe_and_plan(wanted, cluster, session, Consent(retry=True), now)
    failed = {change.run: change for change in seen.plan.changes if change.reason is Reason.RETRY}
    if run not in failed:
        names = ", ".join(sorted(failed)) or "none"
        click.echo(
            f"error[unknown-run]: {run} has not failed, or is not wanted any more; these have: {names}",
            err=True,
        )
        return 1
    # What the run needs may be gone meanwhile (its code): it is made again before, as an apply does.
    resource = failed[run].resource
    changes = tuple(one for one in seen.plan.changes if one.resource == resource and one.run in ("", run))
    seen = replace(seen, plan=replace(seen.plan, changes=changes))
    stops = [
        # As the specs stand now: an apply that is suspended stages no revision that would say so.
        *guards.suspended(workspace.open_project(path, found.target_name).wanted or wanted, seen),
        *guards.other_cluster(found.workspace, found.target_name, cluster),
        *guards.forbidden(seen, cluster),
    ]
    if stops:
        click.echo("\n".join(map(str, stops)), err=True)
        return 1
    terminal.consent(f"Start {run} again?", yes)
    live = next((one for one in seen.objects if one.key == failed[run].writes[0].key), None)
    if len(changes) > 1 or live is None or not cluster.retry(live):
        with exclusive(found.workspace.lock):
            outcomes = apply.perform(
                seen.plan, wanted.project, cluster, session, making=making(seen.compiled), now=now
            )
        if errors := [one.error for one in outcomes if one.error]:
            click.echo(f"error[refused]: {'; '.join(errors)}", err=True)
            return 1
    cluster.wake()
    click.echo(f"Started {run} again. Look with: mlspec status{terminal.chosen(target)}")
    return 0
