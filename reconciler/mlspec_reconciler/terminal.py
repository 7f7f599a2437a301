"""What every command shares: opening the project, printing diagnostics, asking for consent."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlspec import report
from mlspec.diagnostics import Mark
from mlspec.resource import Path as FieldPath
from mlspec_reconciler import imports
from mlspec_reconciler.notes import notes, titles
from mlspec_reconciler.show import plan as show
from mlspec_reconciler.step import DesiredState, Observation
from mlspec_reconciler.workspace import Opened, open_project

Command = Callable[..., Any]


def project_options(command: Command) -> Command:
    """`[PATH]` and `--target`, as every command takes them."""
    command = click.option(
        "--target", "-t", metavar="NAME", help="Target of the Project; by default its first one."
    )(command)
    return click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))(
        command
    )


def folder_option(command: Command) -> Command:
    """`--path` and `--target`, for commands whose argument is something else."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    command = click.option(
        "--target", "-t", metavar="NAME", help="Target of the Project; by default the one applied last."
    )(command)
    return click.option("--path", default=".", type=kind, help="Folder of the project.")(command)


def chosen(target: str | None) -> str:
    """The option that says the same target in a command that is recommended."""
    return f" --target {target}" if target else ""


def colored() -> bool:
    """Whether standard output wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def opened(path: Path, target: str | None) -> tuple[Opened, DesiredState]:
    """Open the project; with errors print them all and exit with 1."""
    project = open_project(path, target)
    if project.diagnostics:
        texts = {**project.texts, **code_texts(project)}
        click.echo(report.text(project.diagnostics, texts, colour=colored()), err=True)
    if project.wanted is None:
        if not project.diagnostics:
            click.echo(f"error: no specs in {path}; write some with: mlspec init", err=True)
        raise click.exceptions.Exit(1)
    return project, project.wanted


def code_texts(project: Opened) -> dict[str, str]:
    """The texts of the Python files in which something is wrong."""
    root = project.workspace.root
    paths = {one.mark.path for one in project.diagnostics if one.mark.path.endswith(".py")}
    return {path: imports.text((root / path).read_bytes()) for path in paths if (root / path).is_file()}


def locator(wanted: DesiredState) -> show.Locate:
    """Where a field of a resource's spec stands in git."""
    project = wanted.project
    resources = {resource.id: resource for resource in [*project.catalog.of("Project"), *project.order]}

    def place(resource: str, path: FieldPath) -> Mark | None:
        found = resources.get(resource)
        if found is None:
            return None
        return project.locate(found, ("spec", *path)) if path else found.mark

    return place


def plan_rows(wanted: DesiredState, seen: Observation) -> list[show.Line]:
    """The lines of a plan, as every command shows them."""
    return show.lines(
        seen.plan, locator(wanted), titles(seen.compiled), notes(wanted.project, seen, wanted.target.choice)
    )


def consent(question: str, yes: bool) -> None:
    """Ask; without a terminal and without `--yes` the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        click.echo(
            "error: apply asks before it changes anything; answer with --yes when there is no terminal",
            err=True,
        )
        raise click.exceptions.Exit(1)
    click.confirm(question, abort=True)
