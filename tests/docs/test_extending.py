"""docs/extending.md is executed: its files and table lines are written into a copy of the source tree, which is then used.

So "one file and one line" is a fact. The document's blocks are found by their first line, a path below the repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/extending.md"
BLOCK = re.compile(r"```(python|diff|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Tree:
    """A copy of the sources, extended."""

    folder: Path

    def run(self, *command: str, within: Path) -> subprocess.CompletedProcess[str]:
        """A Python command that sees the copy before the installed packages."""
        path = os.pathsep.join(str(self.folder / one) for one in ("specs", "reconciler", "runtime"))
        environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"}
        line = [sys.executable, *command]
        return subprocess.run(
            line, cwd=within, env=environment, capture_output=True, text=True, timeout=180, check=False
        )

    def mlspec(self, *arguments: str, within: Path) -> subprocess.CompletedProcess[str]:
        """The command of the copy."""
        return self.run("-m", "mlspec_reconciler.cli", *arguments, within=within)


def section(title: str) -> list[tuple[str, str, str]]:
    """The blocks (language, path, text) below `## title`."""
    text = PAGE.read_text().split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return BLOCK.findall(text)


def patched(text: str, diff: str) -> str:
    """`text` with the hunks of `diff`, each of which must fit exactly one place."""
    for hunk in re.split(r"(?m)^\.\.\.\n", diff):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, f"the page and the source differ:\n{hunk}"
        text = text.replace(before, after)
    return text


def extended(folder: Path, title: str) -> Tree:
    """A copy of the source tree with the changes of one section."""
    for part in ("specs", "reconciler", "runtime"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for language, name, text in section(title):
        path = folder / name
        if language == "python":
            assert not path.exists(), f"{name} is a new file no more"
            path.write_text(text)
        if language == "diff":
            path.write_text(patched(path.read_text(), text))
    return Tree(folder)


def added(title: str) -> tuple[int, int]:
    """New files and new lines of tables; imports do not count."""
    blocks = section(title)
    lines = [line for language, _, text in blocks if language == "diff" for line in text.splitlines()]
    entries = [line for line in lines if re.match(r'\+ .*":|\+ .*: \{', line)]
    return sum(language == "python" for language, _, _ in blocks), len(entries)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The smallest example, to be changed."""
    ignore = shutil.ignore_patterns(".mlspec", "__pycache__")
    return Path(shutil.copytree(ROOT / "examples/minimal", tmp_path / "project", ignore=ignore))


@pytest.mark.parametrize(
    ("title", "expected"), [("A kind", (1, 1)), ("An engine", (1, 1)), ("A metric", (0, 2))]
)
def test_the_promise_is_kept(title: str, expected: tuple[int, int]) -> None:
    """The page may not grow a third file in silence."""
    assert added(title) == expected


@pytest.mark.slow
def test_a_new_kind(tmp_path: Path, project: Path) -> None:
    """Validation, schema, explanation, plan and the run itself follow from one file and one line."""
    tree = extended(tmp_path / "tree", "A kind")
    spec = next(text for language, _, text in section("A kind") if language == "yaml")

    (project / "export.yaml").write_text(spec.replace("where:", "wher:"))
    wrong = tree.mlspec("validate", within=project)
    assert wrong.returncode == 1
    assert "export.yaml:5" in wrong.stdout + wrong.stderr
    assert 'did you mean "where"?' in wrong.stdout + wrong.stderr

    (project / "export.yaml").write_text(spec.replace("tumours", "tumourz"))
    wrong = tree.mlspec("validate", within=project)
    assert 'did you mean "tumours"?' in wrong.stdout + wrong.stderr

    (project / "export.yaml").write_text(spec)
    right = tree.mlspec("validate", within=project)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "+ Export/look" in tree.mlspec("plan", within=project).stdout
    assert "Which rows." in tree.mlspec("explain", "Export", within=project).stdout

    written = tree.mlspec("schema", "--write", "--folder", str(tmp_path / "schemas"), within=project)
    assert written.returncode == 0, written.stderr
    schema = json.loads((tmp_path / "schemas/jsonschema/export.json").read_text())
    assert schema["properties"]["spec"]["required"] == ["rows"]
    assert (tmp_path / "schemas/crds/exports.mlspec.dev.yaml").exists()

    (project / "project.yaml").write_text(
        (project / "project.yaml").read_text().split("---")[0]
    )  # the data alone
    try:
        applied = tree.mlspec("apply", "--yes", within=project)
        assert applied.returncode == 0, applied.stdout + applied.stderr
        (rows,) = (project / ".mlspec/store/runs").glob("export-look-*/frames/rows.parquet")
        counted = tree.run(
            "-c",
            f"import pyarrow.parquet as p; print(p.read_metadata({str(rows)!r}).num_rows)",
            within=project,
        )
        assert 0 < int(counted.stdout) < 569
        assert "ok" in tree.mlspec("status", within=project).stdout
        assert "Nothing changes" in tree.mlspec("plan", within=project).stdout
    finally:
        tree.mlspec("destroy", "--yes", within=project)


def test_a_new_engine(tmp_path: Path) -> None:
    """`render` shows its objects, for a kind that has never heard of it."""
    ignore = shutil.ignore_patterns(".mlspec", "__pycache__")
    flights = Path(shutil.copytree(ROOT / "examples/flights", tmp_path / "flights", ignore=ignore))
    tree = extended(tmp_path / "tree", "An engine")
    rendered = tree.mlspec("render", "--target", "prod", within=flights)
    assert rendered.returncode == 0, rendered.stderr
    bodies = list(yaml.safe_load_all(rendered.stdout))
    (cron_job,) = [body for body in bodies if body["kind"] == "CronJob"]
    pod = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][0] == "monitor"
    assert cron_job["metadata"]["labels"]["mlspec.dev/kind"] == "MonitoringPolicy"
    assert "CronWorkflow" not in {body["kind"] for body in bodies}


METRIC_PROGRAM = """
import numpy as np
from sklearn.metrics import balanced_accuracy_score
from mlspec_runtime import metrics
from mlspec_runtime.monitor import metrics as watched
labels, said = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
right = balanced_accuracy_score(labels, said)
values, _ = metrics.compute(metrics.Outcome(labels, said, None, (0, 1)))
assert values["balanced_accuracy"] == right
assert watched.measure(watched.Joined(labels, said, None), ["balanced_accuracy"]) == {"balanced_accuracy": right}
"""


@pytest.mark.slow
def test_a_new_metric(tmp_path: Path, project: Path) -> None:
    """A gate may name it, training computes it, and monitoring can watch it."""
    tree = extended(tmp_path / "tree", "A metric")
    spec = (project / "project.yaml").read_text()
    gate = "- {metric: balanced_accuracy, min: 0.9}"
    changed = spec.replace("- {metric: auc, min: 0.95}", gate).split(
        "---\napiVersion: mlspec.dev/v1alpha1\nkind: ServingGraph"
    )[0]
    assert gate in changed
    (project / "project.yaml").write_text(changed)
    done = tree.run("-c", METRIC_PROGRAM, within=project)
    assert done.returncode == 0, done.stderr
    try:
        applied = tree.mlspec("apply", "--yes", within=project)
        assert applied.returncode == 0, applied.stdout + applied.stderr
        (result,) = (project / ".mlspec/store/runs").glob("tumour-*/train/result.json")
        assert json.loads(result.read_text())["metrics"]["balanced_accuracy"] > 0.9
    finally:
        tree.mlspec("destroy", "--yes", within=project)
