"""`mlspec stop`: end a run before its time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from mlspec.compile import readings
from mlspec.workload import RunFact
from mlspec_reconciler import remembered, terminal, workspace


@click.command()
@click.argument("run")
@terminal.folder_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def command(run: str, path: Path, target: str | None, yes: bool) -> int:
    """End a run that is under way. It counts as failed, and the next mlspec apply starts it again.

    \b
    mlspec status
    mlspec stop late-arrival-7c1e9a02
    """
    found = workspace.connect(path, target)
    if found is None:
        click.echo("Nothing is applied here.")
        return 0
    reads = readings(found.wanted.target.choice)
    under_way = {}
    for one in found.cluster.list():
        read = reads.get(one.key.kind)
        if read is None or read.run is None or one.deleting:
            continue
        if read.run(one.live).phase in ("pending", "running"):
            under_way[one.key.name] = one
    if run not in under_way:
        names = ", ".join(sorted(under_way)) or "none"
        click.echo(f"error[unknown-run]: {run} is not under way; these are: {names}", err=True)
        return 1
    terminal.consent(f"Stop {run}?", yes)
    if (end := found.cluster.cancel(under_way[run])) is not None:
        session = found.reached.session()
        before = remembered.runs(session).get(run, RunFact("pending"))
        ended = replace(before, phase=end.phase, message=end.message, ended=time.time())
        session.put([remembered.run_row(run, ended)])
    click.echo(f"Stopped {run}. Start it again with: mlspec apply{terminal.chosen(target)}")
    return 0
