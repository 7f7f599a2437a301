"""`mlspec propose`: a policy that may not act writes the change that a person would have written."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner

from mlspec_reconciler import asking
from mlspec_reconciler.cli import group
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.remembered import request_row
from mlspec_reconciler.step import observe_and_plan
from mlspec_reconciler.workspace import find, open_project

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


ENDED = "No policy proposes a change to what git says now (1 earlier proposal ended).\n"


def repository(folder: Path, specs: str = SPECS) -> None:
    (folder / "project.yaml").write_text(specs)
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


def recipe(folder: Path) -> str:
    """What git says about the job now."""
    wanted, place = open_project(folder, None).wanted, find(folder)
    assert wanted is not None
    return observe_and_plan(wanted, place.local, place.session()).compiled.lowered["TrainingJob/late"].recipe


def with_proposal(folder: Path, **differences: str) -> None:
    """A policy that has proposed something for what git says now."""
    proposal = {**PROPOSAL, "made_for": recipe(folder), **differences}
    cluster = LocalCluster(folder / ".mlspec")
    made = cluster.create(
        {"apiVersion": "local.mlspec.dev/v1", "kind": "Schedule", "metadata": {"name": "m"}, "spec": {}}, {}
    )
    cluster.store.set_status(made.uid, {"lastResult": {"proposals": [proposal]}})


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
    assert 'from: "2013-03-03", to: "2013-05-25"} # the winter' in text
    assert 'from: "2013-05-25", to: "2013-06-01"}' in text
    log = subprocess.run(
        ["git", "-C", str(tmp_path), "show", "--stat", "--format=%s %D"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.stdout.startswith("retrain late: auc 0.68 < 0.70 for 3 days HEAD -> retrain")
    changed = [line for line, old in zip(text.splitlines(), SPECS.splitlines(), strict=True) if line != old]
    assert len(changed) == 2
    assert propose(tmp_path) == ENDED


def test_a_proposal_ends_with_a_commit_that_changes_what_is_trained(tmp_path: Path) -> None:
    """It was judged on a model that git does not describe any more; a remark in the file is no such change."""
    repository(tmp_path)
    with_proposal(tmp_path)
    spec = tmp_path / "project.yaml"
    spec.write_text(SPECS + "# a remark\n")
    assert "retrain late" in propose(tmp_path)
    spec.write_text(SPECS + "  parameters: {depth: 3}\n")
    assert propose(tmp_path) == ENDED
    spec.write_text(SPECS)
    assert "retrain late" in propose(tmp_path), "a revert brings it back"


def test_a_proposal_ends_when_newer_data_is_trained_on(tmp_path: Path) -> None:
    """Somebody has done it by a request, and nobody shall do it twice."""
    repository(tmp_path)
    with_proposal(tmp_path)
    session = find(tmp_path).session()
    for at, answer in (("2013-05-31", "retrain late"), ("2013-06-02", ENDED)):
        asked = asking.Request(at, "retrain", "late", asking.PERSON, at, made=1.0, made_for=recipe(tmp_path))
        session.put([request_row(asked)])
        assert answer in propose(tmp_path)


def test_where_the_job_reads_the_newest_data_no_file_changes(tmp_path: Path) -> None:
    """Dates in the place of `last` would end what the author of the spec wanted. The command says the same as the proposal."""
    relative = SPECS.replace('from: "2013-01-01", to: "2013-03-25"', "last: 83d, skip: 7d")
    relative = relative.replace('from: "2013-03-25", to: "2013-04-01"', "last: 7d")
    repository(tmp_path, relative)
    with_proposal(tmp_path, at="2013-06-01T06:30:00+00:00")
    assert propose(tmp_path, "--write") == (
        "retrain late: auc 0.68 < 0.70 for 3 days\n"
        "  no file has to change, because late reads last: 83d, last: 7d; a person may ask for it with:\n"
        "  mlspec retrain late --at 2013-06-01T06:30:00Z --window 90d --reason 'auc 0.68 < 0.70 for 3 days'\n"
    )
    assert (tmp_path / "project.yaml").read_text() == relative
