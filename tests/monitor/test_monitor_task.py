"""The task of a policy: what its evaluations are told about the models that its graph serves and about git."""

from __future__ import annotations

from typing import Any

import pytest

from mlspec.kind import Context, Lowered
from mlspec.kinds.monitoring_policy import lower
from mlspec.project import build
from mlspec.workload import Facts, Schedule

HEAD = "apiVersion: mlspec.dev/v1alpha1\nkind: "
SPECS = f"""
{HEAD}Dataset
metadata: {{name: flights}}
spec:
  source: {{parquet: flights.parquet}}
  key: [flight]
  time: {{event: departure, known: arrival}}
---
{HEAD}TrainingJob
metadata: {{name: late}}
spec:
  function: "train.py:train"
  data:
    train: {{dataset: flights, label: "delay > 15", to: "2013-03-01"}}
    test: {{dataset: flights, label: "delay > 15", from: "2013-03-01"}}
---
{HEAD}TrainingJob
metadata: {{name: price}}
spec:
  function: "train.py:train"
  data:
    train: {{dataset: flights, label: "price", to: "2013-03-01"}}
    test: {{dataset: flights, label: "price", from: "2013-03-01"}}
---
{HEAD}TrainingJob
metadata: {{name: elsewhere}}
spec:
  function: "train.py:train"
  data:
    train: {{dataset: flights, label: "delay", to: "2013-03-01"}}
    test: {{dataset: flights, label: "delay", from: "2013-03-01"}}
---
{HEAD}Model
metadata: {{name: champion}}
spec: {{job: price}}
---
{HEAD}Model
metadata: {{name: pinned}}
spec: {{job: late, promotion: pinned, run: late-1}}
---
{HEAD}ServingGraph
metadata: {{name: g}}
spec:
  steps: STEPS
---
{HEAD}MonitoringPolicy
metadata: {{name: p}}
spec:
  graph: g
  truth: {{dataset: flights, key: [flight], label: "/* minutes */ delay > 15 -- late"}}
  alerts: {{accuracy: {{metric: auc, below: 0.7}}}}
  actions: ACTIONS
"""


def task(steps: str, actions: str, models: dict[str, list[str]]) -> dict[str, Any]:
    """The document of the policy's step, when the models of the graph have had these runs."""
    built = build({"a.yaml": SPECS.replace("STEPS", steps).replace("ACTIONS", actions)})
    assert built.project is not None, built.diagnostics
    jobs = {("TrainingJob", name): Lowered(recipe=f"s-{name}") for name in ("late", "price", "elsewhere")}
    graph = Lowered(output={"models": {name: {"history": runs} for name, runs in models.items()}})
    data = Lowered(output={"path": "datasets/flights/s1", "spec": {}})
    lowered = jobs | {("ServingGraph", "g"): graph, ("Dataset", "flights"): data}
    resource = built.project.catalog.resources["MonitoringPolicy", "p"]
    (schedule,) = lower(resource, Context(built.project.catalog, Facts(), lowered)).workloads
    assert isinstance(schedule, Schedule)
    return dict(schedule.step.document)


ONE = "{m: {model: late}}"
TWO = "{a: {model: late}, b: {model: champion}, m: {ensemble: {combine: mean}, after: [a, b]}}"


@pytest.mark.parametrize(
    ("steps", "actions", "models", "runs", "made_for"),
    [
        (ONE, "[]", {"late": ["late-1"]}, {"late-1": "late"}, ["late"]),
        (ONE, "[]", {"late": ["late-1", "late-2"]}, {"late-1": "late", "late-2": "late"}, ["late"]),
        (
            ONE,
            "[{when: accuracy, retrain: {job: late}}, {when: accuracy, switch: {}}]",
            {"late": ["late-1"]},
            {"late-1": "late"},
            ["late"],
        ),
        (
            TWO,
            "[{when: any, retrain: {job: price}}]",
            {"late": ["late-1"], "champion": ["price-1", "price-2"]},
            {"late-1": "late", "price-1": "price", "price-2": "price"},
            ["late", "price"],
        ),
        ("{m: {model: pinned}}", "[]", {"pinned": ["late-1"]}, {"late-1": "late"}, ["late"]),
        ("{m: {model: champion}}", "[]", {"champion": []}, {}, ["price"]),
    ],
)
def test_a_policy_knows_the_job_of_every_run_and_what_git_says_of_every_job(
    steps: str, actions: str, models: dict[str, list[str]], runs: dict[str, str], made_for: list[str]
) -> None:
    """A request that did not say for which state of git it was made could never end."""
    found = task(steps, actions, models)
    assert found["runs"] == runs
    assert found["made_for"] == {job: f"s-{job}" for job in made_for}
    assert list(found["references"]) == sorted(runs)


def test_the_task_holds_the_normal_form_of_the_label() -> None:
    """`delay > 15 -- late` was valid, and every evaluation failed."""
    assert task(ONE, "[]", {"late": ["late-1"]})["spec"]["truth"]["label"] == "delay > 15"
