"""`mlspec propose`: what monitoring policies in `mode: propose` ask for, as a change in git."""

from __future__ import annotations

import difflib
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click

from mlspec import ranges
from mlspec.compile import Compiled, readings
from mlspec.kinds.project import Target
from mlspec.kinds.training_job import TrainingJobSpec
from mlspec.lifecycle import Stage
from mlspec.resource import Resource, moment
from mlspec_reconciler import edit, terminal
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.show.status import result_of
from mlspec_reconciler.step import CONTROLLER_CONSENT, DesiredState, observe_and_plan

JSON = Mapping[str, Any]


@click.command()
@terminal.project_options
@click.option("--write", is_flag=True, help="Change the files.")
@click.option(
    "--branch", metavar="NAME", help="Change the files and commit them on a new branch of this name."
)
def command(path: Path, target: str | None, write: bool, branch: str | None) -> int:
    """Show the change of the specs that monitoring policies propose, or make it.

    A proposed retraining moves the dates of its job's data to the moment at which the alert fired. A proposal ends when git
    changes what is trained, or when newer data was trained on.

    \b
    mlspec propose
    mlspec propose --branch retrain && git push origin retrain
    """
    project, wanted = terminal.opened(path, target)
    reached = project.workspace.reach(wanted)
    seen = observe_and_plan(wanted, reached.cluster, reached.session(), CONTROLLER_CONSENT, time.time())
    made = list(_made(seen.objects, wanted.target))
    files: dict[str, str] = {}
    reasons: list[str] = []
    advice = False
    for proposal in _newest(one for one in made if _holds(one, seen.compiled)):
        reason = f"{proposal['action']} {proposal['subject']}: {proposal['reason']}"
        if way := _by_hand(proposal, wanted):
            click.echo(f"{reason}\n  {way}")
            advice = True
            continue
        reasons.append(reason)
        job = wanted.project.catalog.find("TrainingJob", proposal["subject"])
        assert job is not None
        name = job.mark.path
        data = ranges.shifted(_data(job), proposal["at"], proposal["window"])
        files[name] = edit.move_data(files.get(name, project.texts[name]), job.name, data)
    changed = {name: text for name, text in files.items() if text != project.texts[name]}
    if not changed:
        if reasons:
            click.echo("The files hold what is proposed already.")
        elif not advice:
            click.echo(_nothing(made))
        return 0
    click.echo("\n".join(reasons))
    for name, text in changed.items():
        before, after = project.texts[name].splitlines(True), text.splitlines(True)
        click.echo("".join(difflib.unified_diff(before, after, name, name)), nl=False)
    if branch is not None and not _git(path, "switch", "--create", branch):
        return 1
    if not write and branch is None:
        click.echo("Make it with: mlspec propose --write; on a branch with: mlspec propose --branch NAME")
        return 0
    for name, text in changed.items():
        (path / name).write_text(text)
    if branch is not None and not _git(
        path, "commit", "--quiet", "--message", "; ".join(reasons), "--", *changed
    ):
        return 1
    click.echo(f"Changed {', '.join(changed)}. Look with: mlspec plan")
    return 0


def _made(objects: Iterable[Object], target: Target) -> Iterator[JSON]:
    """Every proposal that a policy has made."""
    for one in objects:
        yield from result_of(one, readings(target.choice)).get("proposals", [])


def _holds(proposal: JSON, compiled: Compiled) -> bool:
    """Whether a proposal was made for what git says now, and nothing has answered it since."""
    lowered = compiled.lowered.get(f"TrainingJob/{proposal['job']}")
    if lowered is None or lowered.life is None or lowered.recipe != proposal["made_for"]:
        return False
    life = lowered.life
    if proposal["action"] == "switch":
        return proposal["run"] == life.serves and proposal["subject"] not in life.switches
    at = moment(proposal["at"])
    return not any(
        one.request is not None
        and moment(one.request.at) >= at
        and one.stage not in (Stage.REFUSED, Stage.FAILED)
        for one in life.candidates
    )


def _newest(proposals: Iterable[JSON]) -> list[JSON]:
    """The newest proposal of each subject."""
    newest: dict[str, JSON] = {}
    for one in proposals:
        subject = f"{one['action']} {one['subject']}"
        if subject not in newest or moment(one["at"]) > moment(newest[subject]["at"]):
            newest[subject] = one
    return list(newest.values())


def _by_hand(proposal: JSON, wanted: DesiredState) -> str:
    """What a person does about a proposal for which no file has to be written; empty when one has."""
    subject = proposal["subject"]
    if proposal["action"] == "switch":
        return f"revert the commit that brought run {proposal['run']}; until then: mlspec switch {subject}"
    job = wanted.project.catalog.find("TrainingJob", subject)
    data = _data(job) if job is not None else {}
    lengths = dict.fromkeys(f"last: {use.last}" for use in data.values() if use.last)
    if not lengths:
        return ""
    window = f" --window {proposal['window']}" if proposal["window"] else ""
    command = f"mlspec retrain {subject} --at {ranges.written(moment(proposal['at']))}{window}"
    reason = shlex.quote(proposal["reason"])
    return (
        f"no file has to change, because {subject} reads {', '.join(lengths)}; a person may ask for it with:\n"
        f"  {command} --reason {reason}"
    )


def _data(job: Resource) -> ranges.Uses:
    return cast(TrainingJobSpec, job.spec).data


def _nothing(made: Sequence[JSON]) -> str:
    if not made:
        return "No policy proposes a change."
    count = f"{len(made)} earlier proposal{'' if len(made) == 1 else 's'}"
    return f"No policy proposes a change to what git says now ({count} ended)."


def _git(folder: Path, *arguments: str) -> bool:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        click.echo(f"error[git]: {(done.stderr or done.stdout).strip()}", err=True)
    return done.returncode == 0
