"""examples/minimal through the whole path with real processes: the promises of the first minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sklearn.datasets import load_breast_cancer

from e2e.project import Project, ask


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project("minimal", tmp_path_factory.mktemp("minimal") / "tumours")
    made.run("apply", "--yes")
    yield made
    made.stop()
    assert not made.processes(), "destroy leaves no process"


def tumour(number: int) -> dict[str, float]:
    frame = load_breast_cancer(as_frame=True).data
    return {name.replace(" ", "_"): float(value) for name, value in frame.iloc[number].items()}


def test_second_apply_changes_nothing_and_says_so(project: Project) -> None:
    """Idempotence is what makes apply safe to call from a loop."""
    assert "Nothing changes" in project.run("apply", "--yes")
    assert project.changed() == []
    assert project.run("plan", "--detailed-exitcode").startswith("Nothing changes")


def test_a_prediction_over_http(project: Project) -> None:
    """The model that passed its gates answers, over the open protocol and over the human one."""
    url = project.url("tumour")
    status, answer = ask(f"{url}/predict", tumour(0))
    assert status == 200
    assert answer["predictions"][0]["prediction"] == 0
    tensors = [
        {"name": name, "datatype": "FP64", "shape": [1], "data": [value]}
        for name, value in tumour(20).items()
    ]
    status, answer = ask(f"{url}/v2/models/tumour/infer", {"inputs": tensors})
    assert status == 200
    assert {output["name"]: output["data"] for output in answer["outputs"]}["prediction"] == [1]


def test_comment_and_key_order_change_nothing(project: Project) -> None:
    """A plan speaks of meaning, not of bytes."""
    project.edit("project.yaml", "spec:\n  steps:", "# a remark\nspec:\n  steps:")
    project.edit("project.yaml", "  parameters: {strength: 1.0}\n  gates:", "  gates:")
    project.edit("project.yaml", "  function: {code:", "  parameters: {strength: 1.0}\n  function: {code:")
    assert project.changed() == []


def test_one_line_of_code_retrains_and_rolls_and_a_revert_reuses(project: Project) -> None:
    """The plan names the job, its new run and the graph that follows; going back trains nothing."""
    first = set(project.runs())
    project.edit("train.py", "StandardScaler(), ", "StandardScaler(with_mean=True), ")
    changes = project.plan()["changes"]
    assert [(one["action"], one["resource"]) for one in changes] == [
        ("run", "TrainingJob/tumour"),
        ("follow", "ServingGraph/tumour"),
    ]
    run = changes[0]["run"]
    assert run not in first
    project.run("apply", "--yes")
    assert set(project.runs()) == first | {run}
    assert project.objects()["Service tumour"]["status"]["phase"] == "ready"
    project.edit("train.py", "StandardScaler(with_mean=True), ", "StandardScaler(), ")
    assert {action for action, _ in project.changed()} == {"update"}
    project.run("apply", "--yes")
    assert set(project.runs()) == first | {run}, "nothing trained"
    assert project.changed() == []


def test_a_gate_that_fails_keeps_the_model_and_trains_nothing(project: Project) -> None:
    """Gates are judged from committed metrics. What was accepted goes on (rule 7), and everybody is told."""
    before = set(project.runs())
    project.edit("project.yaml", "min: 0.95", "min: 0.9999")
    output = project.run("apply", "--yes")
    assert "no longer passes its gates: auc" in output
    assert set(project.runs()) == before
    status = project.run("status")
    assert "warns" in status
    assert "no longer passes its gates: auc 0.998 is below 0.9999" in status
    assert ask(f"{project.url('tumour')}/predict", tumour(0))[0] == 200
    project.edit("project.yaml", "min: 0.9999", "min: 0.95")
    project.run("apply", "--yes")


def test_saved_plan_refuses_what_moved(project: Project) -> None:
    """What a reviewer approved is what happens, or nothing."""
    project.edit("project.yaml", "strength: 1.0", "strength: 0.5")
    project.run("plan", "--out", "saved.json")
    project.edit("project.yaml", "strength: 0.5", "strength: 0.25")
    output = project.run("apply", "saved.json", code=1)
    assert "stale-plan" in output
    assert "TrainingJob/tumour" in output
    project.edit("project.yaml", "strength: 0.25", "strength: 0.5")
    project.run("apply", "saved.json")
    assert project.changed() == []


def test_reproduce_gives_the_same_model(project: Project) -> None:
    """A finished run can be made again, to the byte."""
    run = next(name for name, one in project.runs().items() if name.startswith("tumour-"))
    assert "the same model to the byte, the same metrics" in project.run("reproduce", run)


def test_a_failing_function_is_reported_in_the_users_terms(project: Project) -> None:
    """The user's line, no traceback of ours, and the old model goes on."""
    project.edit("train.py", "    model = ", "    raise ValueError('no luck')\n    model = ")
    output = project.run("apply", "--yes", code=1)
    assert "ValueError: no luck" in output
    assert "train.py:9" in output
    assert "Traceback" not in output
    assert ask(f"{project.url('tumour')}/predict", tumour(0))[0] == 200
    project.edit("train.py", "    raise ValueError('no luck')\n", "")
    project.run("apply", "--yes")
