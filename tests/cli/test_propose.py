"""`mlspec propose`: a policy that may not act writes the change that a person would have written."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner

from mlspec_reconciler.cli import group
from mlspec_reconciler.clusters.local.cluster import LocalCluster

SPECS = """\
# The job and its data.
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {csv: rows.csv}, time: {event: at, known: at}}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: late}
spec:
  function: "train.py:train" # plain Python
  data:
    train: {dataset: rows, label: late, from: "2013-01-01", to: "2013-03-25"} # the winter
    test: {dataset: rows, label: late, from: "2013-03-25", to: "2013-04-01"}
"""
PROPOSAL = {
    "id": "1", "action": "retrain", "subject": "late", "job": "late", "at": "2013-06-01T00:00:00+00:00",
    "window": "90d", "run": "late-1", "reason": "auc 0.68 < 0.70 for 3 days",
}  # fmt: skip


def repository(folder: Path) -> None:
    (folder / "project.yaml").write_text(SPECS)
    (folder / "rows.csv").write_text("at,late\n2013-01-01,1\n")
    (folder / "train.py").write_text("def train(train):\n    return None\n")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "Start"],
    ):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    for name, value in (("user.name", "t"), ("user.email", "t@t")):
        subprocess.run(["git", "-C", str(folder), "config", name, value], check=True)


def propose(folder: Path, *arguments: str) -> str:
    done = CliRunner().invoke(group, ["propose", str(folder), *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def with_proposal(folder: Path) -> None:
    cluster = LocalCluster(folder / ".mlspec")
    made = cluster.create(
        {"apiVersion": "local.mlspec.dev/v1", "kind": "Schedule", "metadata": {"name": "m"}, "spec": {}}, {}
    )
    cluster.store.set_status(made.uid, {"lastResult": {"proposals": [PROPOSAL]}})


def test_nothing_is_proposed(tmp_path: Path) -> None:
    """A quiet policy leaves the repository alone."""
    repository(tmp_path)
    assert propose(tmp_path) == "No policy proposes a change.\n"


def test_a_retraining_becomes_a_commit_that_keeps_comments(tmp_path: Path) -> None:
    """The reviewer sees two moved dates and the reason, nothing else."""
    repository(tmp_path)
    with_proposal(tmp_path)
    shown = propose(tmp_path)
    assert (tmp_path / "project.yaml").read_text() == SPECS, "showing changes nothing"
    assert "retrain late: auc 0.68 < 0.70 for 3 days" in shown
    propose(tmp_path, "--branch", "retrain")
    text = (tmp_path / "project.yaml").read_text()
    assert 'from: "2013-03-03T00:00:00+00:00", to: "2013-05-25T00:00:00+00:00"} # the winter' in text
    assert 'from: "2013-05-25T00:00:00+00:00", to: "2013-06-01T00:00:00+00:00"}' in text
    log = subprocess.run(
        ["git", "-C", str(tmp_path), "show", "--stat", "--format=%s %D"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.stdout.startswith("retrain late: auc 0.68 < 0.70 for 3 days HEAD -> retrain")
    changed = [line for line, old in zip(text.splitlines(), SPECS.splitlines(), strict=True) if line != old]
    assert len(changed) == 2
    assert propose(tmp_path) == "The files hold what is proposed already.\n"
