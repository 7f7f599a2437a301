"""Metrics: all that the spec language names, right on cases that a person can check."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlspec.gates import METRICS
from mlspec_runtime import metrics
from mlspec_runtime.metrics import Outcome

BINARY = Outcome(
    labels=np.array([False, True, True, False]),
    prediction=np.array([False, True, False, False]),
    probability=np.array([0.1, 0.9, 0.4, 0.3]),
    classes=(False, True),
)


def test_the_table_is_the_spec_languages_table() -> None:
    """A gate that validates must be computable."""
    assert set(metrics.TABLE) == set(METRICS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auc", 1.0), ("accuracy", 0.75), ("precision", 1.0), ("recall", 0.5), ("f1", 2 / 3), ("average_precision", 1.0),
        ("brier", (0.01 + 0.01 + 0.36 + 0.09) / 4), ("log_loss", -np.mean(np.log([0.9, 0.9, 0.4, 0.7]))),
    ],
)  # fmt: skip
def test_binary_metrics_by_hand(name: str, value: float) -> None:
    """Four rows, worked out on paper."""
    assert metrics.compute(BINARY, [name])[0][name] == pytest.approx(value)


def test_text_classes_give_the_same_values() -> None:
    """The positive class is the second one, whatever it is called."""
    named = Outcome(
        np.where(BINARY.labels, "late", "early").astype(object),
        np.where(BINARY.prediction, "late", "early"),
        BINARY.probability,
        ("early", "late"),
    )
    assert metrics.compute(named)[0] == pytest.approx(metrics.compute(BINARY)[0])


def test_regression_and_many_classes_choose_their_metrics() -> None:
    """Without `metrics` in the spec, those that fit the label."""
    features, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(features, labels)
    outcome = Outcome(
        labels, model.predict(features), model.predict_proba(features), tuple(model.classes_.tolist())
    )
    assert set(metrics.compute(outcome)[0]) == {"auc", "accuracy", "f1", "precision", "recall", "log_loss"}
    features, labels = load_diabetes(return_X_y=True)
    model = LinearRegression().fit(features, labels)
    values, _ = metrics.compute(Outcome(labels, model.predict(features)))
    assert set(values) == {"rmse", "mae", "r2"}
    assert values["r2"] == pytest.approx(model.score(features, labels))


def test_what_has_no_value_says_why() -> None:
    """A gate on it fails with this sentence."""
    one = Outcome(np.array([True, True]), np.array([True, True]), np.array([0.9, 0.8]), (False, True))
    values, absent = metrics.compute(one)
    assert "auc" not in values
    assert absent["auc"] == "the evaluation rows have one class only"
    assert values["accuracy"] == 1.0
    assert metrics.compute(BINARY, ["rmse"])[1] == {"rmse": "it does not fit a classifier"}
