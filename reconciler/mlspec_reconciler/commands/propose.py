"""`mlspec propose`: what monitoring policies in `mode: propose` ask for, as a change in git."""

from __future__ import annotations

import difflib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click

from mlspec.compile import readings
from mlspec.kinds.project import Target
from mlspec.kinds.training_job import TrainingJobSpec, moved
from mlspec_reconciler import edit, terminal
from mlspec_reconciler.cluster import Cluster
from mlspec_reconciler.show.status import result_of


@click.command()
@terminal.project_options
@click.option("--write", is_flag=True, help="Change the files.")
@click.option(
    "--branch", metavar="NAME", help="Change the files and commit them on a new branch of this name."
)
def command(path: Path, target: str | None, write: bool, branch: str | None) -> int:
    """Show the change of the specs that monitoring policies propose, or make it.

    A proposed retraining moves the data of its job to the moment at which the alert fired.

    \b
    mlspec propose
    mlspec propose --branch retrain && git push origin retrain
    """
    project, wanted = terminal.opened(path, target)
    files: dict[str, str] = {}
    reasons: list[str] = []
    for proposal in _open(project.workspace.cluster(wanted), wanted.target):
        reasons.append(f"{proposal['action']} {proposal['subject']}: {proposal['reason']}")
        job = (
            wanted.project.catalog.find("TrainingJob", proposal["subject"])
            if proposal["action"] == "retrain"
            else None
        )
        if job is None:
            click.echo(
                f"{reasons[-1]}\n  revert the commit that brought run {proposal['run']}, then: mlspec apply"
            )
            continue
        name = job.mark.path
        data = moved(cast(TrainingJobSpec, job.spec).data, proposal["at"], proposal["window"])
        files[name] = edit.move_data(files.get(name, project.texts[name]), job.name, data)
    changed = {name: text for name, text in files.items() if text != project.texts[name]}
    if not changed:
        click.echo(
            "No policy proposes a change." if not reasons else "The files hold what is proposed already."
        )
        return 0
    click.echo("\n".join(reasons))
    for name, text in changed.items():
        before, after = project.texts[name].splitlines(True), text.splitlines(True)
        click.echo("".join(difflib.unified_diff(before, after, name, name)), nl=False)
    if branch is not None and not _git(path, "switch", "--create", branch):
        return 1
    if not write and branch is None:
        click.echo("Make it with: mlspec propose --write, or on a branch with: mlspec propose --branch NAME")
        return 0
    for name, text in changed.items():
        (path / name).write_text(text)
    if branch is not None and not _git(
        path, "commit", "--quiet", "--message", "; ".join(reasons), "--", *changed
    ):
        return 1
    click.echo(f"Changed {', '.join(changed)}. Look with: mlspec plan")
    return 0


def _open(cluster: Cluster, target: Target) -> Iterator[Mapping[str, Any]]:
    """The newest proposal of each subject, of all policies."""
    newest: dict[str, Mapping[str, Any]] = {}
    for one in cluster.list():
        for proposal in result_of(one, readings(target.choice)).get("proposals", []):
            subject = f"{proposal['action']} {proposal['subject']}"
            if subject not in newest or proposal["at"] > newest[subject]["at"]:
                newest[subject] = proposal
    yield from newest.values()


def _git(folder: Path, *arguments: str) -> bool:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        click.echo(f"error[git]: {(done.stderr or done.stdout).strip()}", err=True)
    return done.returncode == 0
