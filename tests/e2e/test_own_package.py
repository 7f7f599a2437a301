"""A package of one's own in `src/`, as most Python projects have it: what runs is what the plan saw."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from e2e.project import MLSPEC, Project

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: d}
spec: {source: {function: "load.py:rows"}}
"""
LOAD = "import ourpkg\n\n\ndef rows():\n    return [{'x': ourpkg.X, 'file': ourpkg.__file__}]\n"
BY_NAME = (
    "import importlib, os\n\n\ndef rows():\n    return importlib.import_module(os.environ['PLUGIN']).rows()\n"
)


class Own:
    """A repository with `src/` on PYTHONPATH, and a folder beside it that is on PYTHONPATH too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.beside = folder / "project", folder / "beside"
        (self.folder / "src/ourpkg").mkdir(parents=True)
        self.beside.mkdir()
        (self.beside / "plugin.py").write_text("def rows():\n    return [{'x': 1}]\n")
        self.write("project.yaml", SPEC)
        self.write("load.py", LOAD)
        self.write("src/ourpkg/__init__.py", "X = 1.0\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, *arguments: str, code: int = 0) -> str:
        """The command, as from a shell that knows both folders; its output."""
        path = os.pathsep.join([str(self.folder / "src"), str(self.beside)])
        variables = {**os.environ, "PYTHONPATH": path, "PLUGIN": "plugin", "NO_COLOR": "1"}
        done = subprocess.run(
            [*MLSPEC, *arguments], cwd=self.folder, env=variables, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def rows(self) -> dict[float, str]:
        """`x` of every snapshot -> the file of the package that made it."""
        tables = [pq.read_table(path) for path in self.folder.glob(".mlspec/store/datasets/d/*/data.parquet")]
        return {row["x"]: row["file"] for table in tables for row in table.to_pylist()}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    made = Own(tmp_path)
    yield made
    subprocess.run(
        [*MLSPEC, "destroy", "--yes"], cwd=made.folder, capture_output=True, timeout=60, check=False
    )
    for process in Project.processes_of(made.folder):
        process.send_signal(signal.SIGKILL)


def test_an_edit_of_an_own_package_runs_its_code_once(own: Own) -> None:
    """The stale result of the usual layout: the plan sees the edit, the run imports the bundle, and the controller agrees."""
    own.run("apply", "--yes")
    own.write("src/ourpkg/__init__.py", "X = 99.0\n")
    assert "code changed" in own.run("plan")
    own.run("apply", "--yes")
    rows = own.rows()
    assert set(rows) == {1.0, 99.0}
    assert all(file.startswith(f"{own.folder}/.mlspec/store/code/") for file in rows.values())

    # Another checkout of the same commit, and another environment: no change, and nothing has run meanwhile.
    for path in [*own.folder.glob("*.py"), *own.folder.glob("*.yaml"), *own.folder.glob("src/*/*.py")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    shutil.move(own.folder / "src/ourpkg", own.folder / "ourpkg")
    assert "Nothing changes" in own.run("plan")
    assert len(own.run("runs").splitlines()) == 2


def test_a_module_that_only_the_callers_shell_knows_does_not_run(own: Own) -> None:
    """Its name is known only when the code runs, so no plan can refuse it; the run does, before it gives another result."""
    own.write("load.py", BY_NAME)
    output = own.run("apply", "--yes", code=1)
    assert "load.py:5: the module plugin is not installed" in output
    assert own.rows() == {}
