"""Who decides what is in the file of a Dataset: git, or the world? Only what git decides is part of what a job is trained for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlspec.compile import compile
from mlspec.workload import Facts
from mlspec_reconciler.workspace import open_project

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {csv: PATH}}
"""


def repository(folder: Path, path: str, ignore: str) -> None:
    folder.mkdir()
    (folder / "project.yaml").write_text(SPEC.replace("PATH", path))
    (folder / ".gitignore").write_text(ignore)
    subprocess.run(["git", "-C", str(folder), "init", "-q"], check=True)


def recipe(folder: Path) -> str:
    """What git says about the rows."""
    wanted = open_project(folder, None).wanted
    assert wanted is not None
    facts = Facts(code={}, files=wanted.files)
    return compile(wanted.project, wanted.target, facts).lowered["Dataset/rows"].recipe


@pytest.mark.parametrize(
    ("ignore", "same"),
    [("", False), ("rows.csv\n", True), ("exports/\n", False)],
    ids=["nothing", "the file", "something else"],
)
def test_a_file_that_git_ignores_changes_with_the_world(tmp_path: Path, ignore: str, same: bool) -> None:
    """An export that grows every day must not train every day, unless the job says so (rule 5)."""
    folder = tmp_path / "project"
    repository(folder, "rows.csv", ignore)
    (folder / "rows.csv").write_text("at\n1\n")
    before = recipe(folder)
    (folder / "rows.csv").write_text("at\n1\n2\n")
    assert (recipe(folder) == before) is same


def test_a_file_that_was_committed_is_git_s_although_it_is_ignored(tmp_path: Path) -> None:
    """What counts is what git does, not what a pattern says."""
    folder = tmp_path / "project"
    repository(folder, "rows.csv", "rows.csv\n")
    (folder / "rows.csv").write_text("at\n1\n")
    subprocess.run(["git", "-C", str(folder), "add", "--force", "rows.csv"], check=True)
    before = recipe(folder)
    (folder / "rows.csv").write_text("at\n1\n2\n")
    assert recipe(folder) != before


def test_a_file_outside_of_the_repository_changes_with_the_world(tmp_path: Path) -> None:
    """Nobody can commit it."""
    repository(tmp_path / "project", "../rows.csv", "")
    (tmp_path / "rows.csv").write_text("at\n1\n")
    before = recipe(tmp_path / "project")
    (tmp_path / "rows.csv").write_text("at\n1\n2\n")
    assert recipe(tmp_path / "project") == before


def test_without_git_the_folder_is_the_repository(tmp_path: Path) -> None:
    """Whoever tries mlspec on a laptop and edits a file there expects a new model."""
    (tmp_path / "project.yaml").write_text(SPEC.replace("PATH", "rows.csv"))
    (tmp_path / "rows.csv").write_text("at\n1\n")
    before = recipe(tmp_path)
    (tmp_path / "rows.csv").write_text("at\n1\n2\n")
    assert recipe(tmp_path) != before
