"""The command as people and scripts meet it: exit codes, help, faults without a traceback, machine output, quickness."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlspec_reconciler import workspace
from mlspec_reconciler.cli import COMMANDS
from mlspec_reconciler.state import Table

ROOT = Path(__file__).parents[2]
MLSPEC = (sys.executable, "-m", "mlspec_reconciler.cli")
GOLDEN = ROOT / "tests" / "golden" / "help"
HEAVY = ("kubernetes", "duckdb", "numpy", "pandas", "pyarrow", "mlflow")
SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {function: "load.py:rows"}}
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `mlspec ARGUMENTS` in a project folder, without a terminal."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "specs.yaml").write_text(SPEC)
    (project / "load.py").write_text("def rows():\n    return None\n")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
        command = [*MLSPEC, *arguments]
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip

    return call


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder in which `run` runs."""
    return tmp_path / "project"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_screen_and_has_an_example(run: Run, name: str) -> None:
    """Help that scrolls away or shows no example sends people to a search engine; a change of it is read in review."""
    if name and not (ROOT / "reconciler" / "mlspec_reconciler" / "commands" / f"{name}.py").exists():
        pytest.skip("not written yet")
    done = run(*([name] if name else []), "--help")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 40
    assert f"mlspec {name}".strip() in done.stdout.split("\n", 1)[1]
    golden = GOLDEN / f"{name or 'mlspec'}.txt"
    found = re.sub(r"^Usage: .*? (?=\[OPTIONS\])", f"Usage: {f'mlspec {name}'.strip()} ", done.stdout)
    if os.environ.get("MLSPEC_RECORD"):
        golden.write_text(found)
    assert found == golden.read_text()


def test_exit_codes_of_plan(run: Run) -> None:
    """0 is success, 2 with --detailed-exitcode says that there are changes, 1 is an error: pipelines decide by them."""
    assert run("plan").returncode == 0
    assert run("plan", "--detailed-exitcode").returncode == 2
    assert run("plan", "--detailed-exitcode", "--target", "mars").returncode == 1


def test_plan_without_a_terminal_is_plain_text(run: Run) -> None:
    """Colour codes in a log are noise."""
    done = run("plan")
    assert "+ Dataset/rows" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_plan_as_json_is_versioned(run: Run) -> None:
    """Programs read the plan; the version tells them when a field changes its meaning."""
    document = json.loads(run("plan", "--output", "json").stdout)
    assert document["version"] == 1
    assert [one["action"] for one in document["changes"]] == ["create", "run"]
    assert document["changes"][0]["place"] == "specs.yaml:1"


def test_runs_as_json_is_versioned(run: Run) -> None:
    """Also before anything ran."""
    run("plan")
    done = run("runs", "--output", "json")
    assert json.loads(done.stdout)["version"] == 1


def test_apply_without_consent_changes_nothing(run: Run, project: Path) -> None:
    """Nobody is there to say yes, so the answer is no."""
    done = run("apply")
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert workspace.applied(workspace.find(project)) is None


def damage(name: str, project: Path) -> list[str]:
    """Break something; the arguments of the command that meets it."""
    match name:
        case "missing folder":
            return ["plan", "nowhere"]
        case "empty folder":
            (project / "empty").mkdir()
            return ["plan", "empty"]
        case "broken yaml":
            (project / "specs.yaml").write_text(SPEC + "a: [1\nb: }")
        case "no spec is left":
            (project / "specs.yaml").write_text("a: 1\n")
        case "unknown target":
            return ["plan", "--target", "mars"]
        case "home is a file":
            (project / ".mlspec").write_text("")
        case "store is a folder":
            (project / ".mlspec" / "state.db").mkdir(parents=True)
        case "corrupt store":
            (project / ".mlspec").mkdir()
            (project / ".mlspec" / "state.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 2000)
        case "not a plan":
            (project / "plan.json").write_text('{"format": "mlspec-plan/1"}')
            return ["apply", "plan.json"]
        case "plan is a spec":
            return ["apply", "specs.yaml"]
        case "plan cannot be saved":
            return ["plan", "--out", "nowhere/plan.json"]
        case "spec is a folder":
            (project / "specs.yaml").unlink()
            (project / "specs.yaml").mkdir()
        case "binary spec":
            (project / "specs.yaml").write_bytes(b"\xff\xfe\x00\x01" * 10)
        case "corrupt revision":
            record = {"kind": "local", "target": "local", "revision": "gone", "project": "p", "at": 1.0}
            place = workspace.find(project)
            place.session().put([(Table.APPLIED, "local", {**record, "files": {}, "cluster": "local"})])
            return ["status"]
        case "missing code":
            (project / "load.py").unlink()
        case "unknown resource":
            return ["logs", "Dataset/mars"]
        case "unknown run":
            return ["reproduce", "mars"]
    return ["plan"]


@pytest.mark.parametrize(
    "name",
    [
        "missing folder", "empty folder", "broken yaml",
        "no spec is left", "unknown target", "home is a file", "store is a folder",
        "corrupt store", "not a plan", "plan is a spec", "plan cannot be saved", "spec is a folder", "binary spec",
        "corrupt revision", "missing code", "unknown resource", "unknown run",
    ],
)  # fmt: skip
def test_a_fault_is_told_without_a_traceback(run: Run, project: Path, name: str) -> None:
    """Every fault of the surroundings has one message and an exit code, and is not called a mistake of mlspec."""
    done = run(*damage(name, project))
    shown = done.stdout + done.stderr
    assert done.returncode in (1, 2), shown
    assert "rror" in done.stderr, shown
    assert "Traceback" not in shown
    assert "error[internal]" not in shown, shown


def test_a_saved_plan_is_refused_when_something_moved(run: Run, project: Path) -> None:
    """What was reviewed is what is applied, or nothing; also for what has no objects yet."""
    assert run("plan", "--out", "plan.json").returncode == 0
    (project / "specs.yaml").write_text(
        SPEC.replace('"load.py:rows"}', '"load.py:rows", parameters: {year: 1}}')
    )
    done = run("apply", "plan.json")
    assert done.returncode == 1
    assert "error[stale-plan]" in done.stderr
    assert "Dataset/rows" in done.stderr
    assert workspace.applied(workspace.find(project)) is None


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "examples/minimal"]], ids=" ".join)
def test_a_quick_command_imports_no_client(arguments: list[str]) -> None:
    """Editors and commit hooks call them on every save; `benchmarks/startup.py` measures what they cost."""
    command = [sys.executable, "-X", "importtime", *MLSPEC[1:], *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    imported = {
        line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line
    }
    assert not imported & set(HEAVY)
