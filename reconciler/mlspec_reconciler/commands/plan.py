"""`mlspec plan`: what apply would do, and why."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from mlspec_reconciler import checkout, guards, planfile, terminal
from mlspec_reconciler.show import plan as show
from mlspec_reconciler.step import observe_and_plan


@click.command()
@terminal.project_options
@click.option(
    "--output", "-o", type=click.Choice(["text", "json", "markdown"]), default="text", show_default=True
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save the plan for: mlspec apply FILE",
)
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
def command(path: Path, target: str | None, output: str, out: Path | None, detailed_exitcode: bool) -> int:
    """Show what apply would do: each change with its line in git, each run with its reason, and what follows.

    \b
    mlspec plan
    mlspec plan --output markdown        # for a pull request
    mlspec plan --out plan.json && mlspec apply plan.json
    """
    project, wanted = terminal.opened(path, target)
    reached = project.workspace.reach(wanted)
    seen = observe_and_plan(wanted, reached.cluster, reached.session(), now=time.time(), ask=True)
    refusals = guards.refusals(project, seen, reached.cluster)
    rows = terminal.plan_rows(wanted, seen)
    edited = checkout.uncommitted(wanted.project.source)
    match output:
        case "json":
            locate = terminal.locator(wanted)
            click.echo(json.dumps(show.document(seen.plan, locate, project.target_name, edited), indent=2))
        case "markdown":
            click.echo(show.markdown(rows, seen.plan, project.target_name, edited))
        case _:
            click.echo(show.text(rows, seen.plan, project.target_name, terminal.colored(), edited))
    for refusal in refusals:
        click.echo(str(refusal), err=True)
    if out is not None:
        planfile.save(out, project, seen)
        click.echo(f"Saved. Apply exactly this with: mlspec apply {out}", err=True)
    elif output == "text" and not seen.plan.empty and not refusals:
        click.echo(f"Apply with: mlspec apply{terminal.chosen(target)}")
    if refusals or any(write.refusal for change in seen.plan.changes for write in change.writes):
        return 1
    return 2 if detailed_exitcode and not seen.plan.empty else 0
