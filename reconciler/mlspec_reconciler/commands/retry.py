"""`mlspec retry`: start one failed run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from mlspec_reconciler import apply, terminal, workspace
from mlspec_reconciler.plan import Reason
from mlspec_reconciler.reconcile import Consent, exclusive, look


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
    seen = look(wanted, cluster, Consent(retry=True))
    failed = {change.run: change for change in seen.plan.changes if change.reason is Reason.RETRY}
    if run not in failed:
        names = ", ".join(sorted(failed)) or "none"
        click.echo(
            f"error[unknown-run]: {run} has not failed, or is not wanted any more; these have: {names}",
            err=True,
        )
        return 1
    terminal.consent(f"Start {run} again?", yes)
    live = next((one for one in seen.objects if one.key.name == run), None)
    if live is None or not cluster.retry(live):
        with exclusive(found.workspace.lock):
            outcomes = apply.perform(replace(seen.plan, changes=(failed[run],)), wanted.project, cluster)
        if errors := [one.error for one in outcomes if one.error]:
            click.echo(f"error[refused]: {'; '.join(errors)}", err=True)
            return 1
    cluster.wake()
    click.echo(f"Started {run} again. Look with: mlspec status{terminal.chosen(target)}")
    return 0
