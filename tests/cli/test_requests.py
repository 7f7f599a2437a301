"""`mlspec requests`: whoever is on call reads who asked for what, and whether it is acted on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlspec.lifecycle import PERSON, Request
from mlspec_reconciler import remembered, workspace
from mlspec_reconciler.cli import group
from mlspec_reconciler.state import Table
from mlspec_reconciler.step import observe_and_plan

SPECS = """\
apiVersion: mlspec.dev/v1alpha1
kind: Project
metadata: {name: shop}
spec: {suspend: false}
---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {csv: rows.csv}, time: {event: at, known: at}}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: late}
spec:
  function: "train.py:train"
  data:
    train: {dataset: rows, label: late, from: "2013-01-01", to: "2013-03-25"}
    test: {dataset: rows, label: late, from: "2013-03-25", to: "2013-04-01"}
"""


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(group, [*arguments, "--path", str(folder)])


def record(folder: Path, specs: str) -> str:
    """Remember a project as applied, as the first step of an apply does; what git says about its job."""
    (folder / "project.yaml").write_text(specs)
    (folder / "rows.csv").write_text("at,late\n2013-01-01,1\n")
    (folder / "train.py").write_text("def train(train):\n    return None\n")
    opened = workspace.open_project(folder, None)
    place = opened.workspace
    desired = workspace.stage(opened, place.local)
    place.session().put([(Table.APPLIED, opened.target_name, desired.record)])
    return observe_and_plan(desired, place.local, place.session()).compiled.lowered["TrainingJob/late"].recipe


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two requests: of a policy that is gone, made last, and of a person."""
    said = record(tmp_path, SPECS)
    by_ada = Request(
        "b", "retrain", "late", PERSON, "2013-06-26T19:00:00+00:00", 1.0, made_for=said, person="ada"
    )
    by_policy = Request("a", "retrain", "late", "MonitoringPolicy/gone", "2013-05-01", 2.0, made_for=said)
    rows = [remembered.request_row(one) for one in (by_policy, by_ada)]
    workspace.find(tmp_path).session().put(rows)
    return tmp_path


def test_requests_are_listed_as_they_were_made(project: Path) -> None:
    """By their ids, nobody would find the newest one at the end."""
    assert run(project, "requests").output.splitlines() == [
        "b              waiting       retrain late on data up to 2013-06-26 19:00, asked for by ada",
        "a              lapsed        retrain late on data up to 2013-05-01, asked for by the policy gone",
        "                             MonitoringPolicy/gone is not in git any more",
    ]


def test_programs_get_the_same(project: Path) -> None:
    """Without parsing sentences."""
    found = json.loads(run(project, "requests", "--output", "json").output)["requests"]
    assert [(one["id"], one["standing"], one["person"], one["made"]) for one in found] == [
        ("b", "waiting", "ada", "1970-01-01T00:00:01+00:00"),
        ("a", "lapsed", None, "1970-01-01T00:00:02+00:00"),
    ]


def test_a_suspended_project_can_be_looked_at_and_not_asked(project: Path) -> None:
    """Suspending must not take the view away from whoever has suspended it to look."""
    record(project, SPECS.replace("suspend: false", "suspend: true"))
    looked, asked = run(project, "requests"), run(project, "retrain", "late")
    assert looked.exit_code == 0
    assert "asked for by ada" in looked.output
    assert asked.exit_code == 1
    assert "error[suspended]" in asked.output
