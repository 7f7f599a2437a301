"""Performance metrics equal scikit-learn's, and a window's metrics depend on the data, not on when somebody looked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlspec.gates import METRICS
from mlspec_runtime import metrics as training
from mlspec_runtime.monitor import metrics
from mlspec_runtime.monitor.truth import final_time

ORACLE = {
    "auc": lambda y, z, p: sk.roc_auc_score(y, p),
    "accuracy": lambda y, z, p: sk.accuracy_score(y, z),
    "f1": lambda y, z, p: sk.f1_score(y, z, zero_division=0),
    "precision": lambda y, z, p: sk.precision_score(y, z, zero_division=0),
    "recall": lambda y, z, p: sk.recall_score(y, z, zero_division=0),
    "average_precision": lambda y, z, p: sk.average_precision_score(y, p),
    "log_loss": lambda y, z, p: sk.log_loss(y, p),
    "brier": lambda y, z, p: sk.brier_score_loss(y, p),
    "rmse": lambda y, z, p: sk.root_mean_squared_error(y, z),
    "mae": lambda y, z, p: sk.mean_absolute_error(y, z),
    "r2": lambda y, z, p: sk.r2_score(y, z),
}


def test_every_metric_of_the_language_can_be_watched():
    """A metric that gates know and alerts do not would be a trap."""
    assert set(ORACLE) == set(metrics._FORMULAS) <= set(METRICS)
    label, chance = np.array([0, 1, 1, 0]), np.array([0.2, 0.9, 0.4, 0.6])
    rows = metrics.Joined(label, (chance > 0.5).astype(float), chance)
    assert set(metrics.measure(rows, list(METRICS))) == set(METRICS)


def test_a_metric_without_a_formula_here_is_that_of_training(monkeypatch):
    """So adding a metric is one entry in the runtime, for gates and alerts alike."""
    label, chance = np.array([0, 1, 1, 0]), np.array([0.2, 0.9, 0.4, 0.6])
    rows = metrics.Joined(label, (chance > 0.5).astype(float), chance)
    known = metrics.measure(rows, list(ORACLE))
    monkeypatch.setattr(metrics, "_FORMULAS", {})
    assert metrics.measure(rows, list(ORACLE)) == pytest.approx(known)
    one = metrics.Joined(np.zeros(3, int), np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert set(metrics.measure(one, list(training.TABLE))) == {
        "accuracy",
        "f1",
        "precision",
        "recall",
        "rmse",
        "mae",
        "r2",
    }


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 20).map(lambda n: n / 20)), min_size=2, max_size=60
    ).filter(lambda rows: len({label for label, _ in rows}) == 2)
)
@settings(max_examples=150, deadline=None)
def test_metrics_equal_scikit_learn(rows):
    """Ties included: AUC of a window is exact, not binned."""
    label, chance = (np.array(column) for column in zip(*rows, strict=True))
    said = (chance > 0.5).astype(float)
    found = metrics.measure(metrics.Joined(label, said, chance), list(ORACLE))
    for name, oracle in ORACLE.items():
        assert found[name] == pytest.approx(oracle(label, said, chance), rel=1e-9, abs=1e-12), name


def test_metrics_of_more_classes_and_of_texts():
    """Macro averages, as scikit-learn's; what has no meaning is absent instead of wrong."""
    label = np.array(["a", "b", "c", "a", "b", "a"])
    said = np.array(["a", "c", "c", "b", "b", "a"])
    found = metrics.measure(metrics.Joined(label, said, None), list(ORACLE))
    assert set(found) == {"accuracy", "f1", "precision", "recall"}
    assert found["f1"] == pytest.approx(sk.f1_score(label, said, average="macro"))


def test_one_class_has_no_auc():
    """A quiet night without late flights is insufficient, not an alert."""
    rows = metrics.Joined(np.zeros(5, int), np.zeros(5), np.linspace(0, 1, 5))
    assert set(metrics.measure(rows, ["auc", "average_precision", "accuracy"])) == {"accuracy"}


@pytest.mark.parametrize(
    ("known", "rows", "expected", "reason"),
    [
        ([10, 20, 30, 40], 4, 100, "all known before the end: final with the window"),
        ([10, 120, 130, 140], 4, 130, "final when three of four (0.75) are known"),
        ([10, 120], 4, 200, "never complete: at the latest maxDelay after the end"),
        ([10, 20, 300, 400], 4, 200, "complete too late"),
        ([], 0, 100, "nothing to wait for"),
    ],
)
def test_final_time(known, rows, expected, reason):
    """Window [0, 100), maxDelay 100, completeness 0.75."""
    assert final_time(np.array(known, dtype=np.int64), rows, 100, 0, 100, 0.75) == expected, reason
