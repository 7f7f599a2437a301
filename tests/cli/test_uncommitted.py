"""An uncommitted tree is marked: what nobody can find in git again is not taken for a commit, neither in a plan nor in status."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlspec_reconciler import workspace
from mlspec_reconciler.cli import group
from mlspec_reconciler.show.plan import UNCOMMITTED
from mlspec_reconciler.state import Table

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {function: "load.py:rows"}}
"""
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@t")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository whose project lies in a subfolder, without changes."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "project.yaml").write_text(SPEC)
    (folder / "load.py").write_text("def rows():\n    return [{'a': 1}]\n")
    (folder / ".gitignore").write_text(".mlspec/\n")
    (tmp_path / "notes.md").write_text("Beside the project.\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, *IDENTITY, "commit", "-qm", "Read rows")


def plan(folder: Path, output: str) -> str:
    done = CliRunner().invoke(group, ["plan", str(folder), "--output", output])
    assert done.exit_code == 0, done.output
    return done.stdout


def is_marked(folder: Path) -> bool:
    """Whether a plan says so, the same in every form."""
    text, markdown = plan(folder, "text"), plan(folder, "markdown").splitlines()
    found = {
        UNCOMMITTED in text,
        markdown[-1] == UNCOMMITTED,
        json.loads(plan(folder, "json"))["uncommitted"],
    }
    assert len(found) == 1, text
    return found.pop()


def test_the_plan_of_a_commit_is_not_marked(project: Path) -> None:
    """The usual case says nothing."""
    assert not is_marked(project)


@pytest.mark.parametrize("file", ["project.yaml", "load.py"])
def test_an_edit_marks_the_plan(project: Path, file: str) -> None:
    """Also one that changes nothing: what is reviewed is the commit."""
    with (project / file).open("a") as text:
        text.write("# a remark\n")
    assert is_marked(project)


def test_a_new_file_counts_when_the_project_is_made_of_it(project: Path) -> None:
    """A spec that was not added is planned; the plan that CI writes beside it is not."""
    (project / "plan.json").write_text("{}")
    (project / "plan.md").write_text("...")
    assert not is_marked(project)
    (project / "more.yaml").write_text(SPEC.replace("rows}", "more}"))
    assert is_marked(project)
    commit(project)
    (project / "helper.py").write_text("ROW = {'a': 1}\n")
    assert not is_marked(project), "nobody imports it yet"
    (project / "load.py").write_text("from helper import ROW\n\n\ndef rows():\n    return [ROW]\n")
    git(project, "add", "load.py")
    git(project, *IDENTITY, "commit", "-qm", "Import")
    assert is_marked(project), "the commit lacks a module that its function imports"


def test_a_deleted_file_marks_the_plan(project: Path) -> None:
    """What is missing is a difference too."""
    (project / "more.yaml").write_text(SPEC.replace("rows}", "more}"))
    commit(project)
    (project / "more.yaml").unlink()
    assert is_marked(project)


def test_a_change_beside_the_project_is_none(project: Path) -> None:
    """Of a large repository only the project's folder counts."""
    (project.parent / "notes.md").write_text("Edited.\n")
    assert not is_marked(project)


def test_outside_of_git_nothing_is_marked(tmp_path: Path) -> None:
    """There is no commit that it could differ from."""
    (tmp_path / "project.yaml").write_text(SPEC)
    (tmp_path / "load.py").write_text("def rows():\n    return []\n")
    assert not is_marked(tmp_path)


def test_status_says_that_what_was_applied_was_not_a_commit(project: Path) -> None:
    """At night somebody looks for `at 4f2c1d0` in git, and must know that it is not all."""
    for edit, words in (
        ("", ' "Read rows" - '),
        ("# a remark\n", ' "Read rows", with uncommitted changes - '),
    ):
        (project / "project.yaml").write_text(SPEC + edit)
        opened = workspace.open_project(project, None)
        place = opened.workspace
        record = workspace.stage(opened, place.local).record
        place.session().put([(Table.APPLIED, opened.target_name, record)])
        headline = CliRunner().invoke(group, ["status", "--path", str(project)]).stdout.splitlines()[0]
        assert words in headline
