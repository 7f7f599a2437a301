"""`mlspec status MonitoringPolicy/NAME`: what an evaluation found, in the words of the field, and what became of its messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlspec.kinds.project import ProjectSpec
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.show import status
from mlspec_runtime.monitor.evaluate import evaluate
from monitor.log_writer import TRUTH, World, wall

TARGET = ProjectSpec().targets["local"]


def shown(folder: Path, result: dict[str, Any]) -> list[str]:
    """The lines about an evaluation, without those about objects."""
    cluster = LocalCluster(folder / ".mlspec")
    body = {"apiVersion": "local.mlspec.dev/v1", "kind": "Schedule", "metadata": {"name": "m"}, "spec": {}}
    cluster.store.set_status(cluster.create(body, {}).uid, {"lastResult": result})
    return [line.strip() for line in status.details(cluster.list(), TARGET)[2:]]


def test_a_real_evaluation_is_told_in_the_words_of_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody should have to ask what `known`, `distance 0.95 p 0` or `told` means."""
    monkeypatch.delenv("HOOK", raising=False)
    world = World(tmp_path / "root")
    spec = {
        "truth": TRUTH,
        "alerts": {
            "drift": {"drift": {}},
            "scores": {"prediction": {}},
            "accuracy": {"metric": "auc", "below": 0.5},
        },
        "actions": [
            {"when": "drift", "notify": "oncall"},
            {"when": "drift", "retrain": {"job": "late-arrival"}},
        ],
    }
    for day in range(2):
        world.day(day, shift=1.0, known=0.9, delay=0)
    task = world.task(spec, receivers={"oncall": {"webhook": {"url": {"env": "HOOK"}}}})
    lines = shown(tmp_path, evaluate(task, world.root, wall(4.5) + 3 * 86_400))
    known = [line for line in lines if line.startswith("window 2013-06-10")]
    assert known[0].partition("  auc ")[0].startswith("window 2013-06-10  outcome known for 2")
    assert "of 300" in known[0]
    assert any(
        line.startswith("drifts  wind  distance from training data 0.") and " (0 to 1), p = " in line
        for line in lines
    )
    assert any(
        line.startswith("steady  probability  distance from evaluation data 0.") for line in lines
    )  # fmt: skip
    notice = next(line for line in lines if line.startswith("notification"))
    assert notice.startswith(
        "notification to oncall: not sent, HOOK is not set (1 of 3 features drifts, most wind"
    )
    assert any(line.startswith("asked for: retrain at 2013-06-11T00:00, because 1 of 3") for line in lines)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "p < 1e-300"),
        (4.9e-324, "p < 1e-300"),
        (1e-300, "p = 1e-300"),
        (3.334e-67, "p = 3e-67"),
        (0.0185, "p = 0.02"),
        (1.0, "p = 1"),
    ],
)
def test_a_p_value_is_never_zero(tmp_path: Path, p: float, text: str) -> None:
    """`p 0` claims a certainty that no test gives."""
    one = {"feature": "x", "drifts": True, "effect": 0.949, "p": p}
    assert shown(tmp_path, {"drift": [one]}) == [
        f"drifts  x  distance from training data 0.95 (0 to 1), {text}"
    ]


@pytest.mark.parametrize(
    ("state", "attempts", "problem", "text"),
    [
        ("delivered", 1, "", "notified oncall: auc is low"),
        ("waiting", 0, "", "notification to oncall: not sent yet (auc is low)"),
        ("waiting", 3, "HOOK is not set", "notification to oncall: not sent, HOOK is not set (auc is low)"),
        (
            "waiting",
            1,
            "the receiver answered 500",
            "notification to oncall: not sent, the receiver answered 500 (auc is low)",
        ),
        (
            "failed",
            9,
            "the receiver answered 400",
            "notification to oncall: given up after 9 attempts, the receiver answered 400 (auc is low)",
        ),
    ],
)
def test_a_notification_says_whether_it_was_sent_and_why_not(
    tmp_path: Path, state: str, attempts: int, problem: str, text: str
) -> None:
    """The one who was not notified must be able to see it."""
    message = {"receiver": "oncall", "state": state, "attempts": attempts, "problem": problem}
    assert shown(tmp_path, {"messages": [message | {"sentence": "auc is low"}]}) == [text]
