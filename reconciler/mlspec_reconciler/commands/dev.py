"""`mlspec dev`: validate and plan on every save."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mlspec_reconciler import terminal, watch
from mlspec_reconciler.show import plan as show
from mlspec_reconciler.step import observe_and_plan


@click.command()
@terminal.project_options
def command(path: Path, target: str | None) -> int:
    """Watch the folder; on every save print what is wrong, or what apply would do. Ctrl-C ends it.

    \b
    mlspec dev
    """
    _once(path, target)
    for burst in watch.changes(path.absolute()):
        names = ", ".join(sorted(Path(name).name for name in burst))
        click.echo(f"\n--- {time.strftime('%H:%M:%S')} {names}")
        _once(path, target)
    return 0


def _once(path: Path, target: str | None) -> None:
    try:
        project, wanted = terminal.opened(path, target)
    except click.exceptions.Exit:
        return
    reached = project.workspace.reach(wanted)
    seen = observe_and_plan(wanted, reached.cluster, reached.session(), now=time.time())
    rows = terminal.plan_rows(wanted, seen)
    click.echo(show.text(rows, seen.plan, project.target_name, terminal.colored()))
