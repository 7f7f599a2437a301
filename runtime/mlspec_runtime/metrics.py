"""The standard metrics of a model on labelled rows: every name of `mlspec.kinds.training_job.METRICS`, one table.

Adding a metric is one entry here and one line there (docs/extending.md). Classification metrics with a threshold (`f1`,
`precision`, `recall`) are of the positive class when there are two classes, else macro averages; `auc` of more classes is
one-vs-rest, macro.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn import metrics as sk

from mlspec_runtime.model import Array

Need = Literal["labels", "probability", "binary probability", "numbers"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Labels [rows], predictions [rows], and for classifiers their classes and `probability` as a model returns it."""

    labels: Array
    prediction: Array
    probability: Array | None = None
    classes: tuple[Any, ...] | None = None

    @property
    def binary(self) -> bool:
        """Whether there are exactly two classes."""
        return self.classes is not None and len(self.classes) == 2

    @property
    def truth(self) -> Array:
        """1 where the label is the positive (second) class."""
        assert self.classes is not None
        return np.asarray(self.labels == self.classes[1], dtype=np.int8)

    @property
    def matrix(self) -> Array:
        """Probabilities [rows, classes]."""
        assert self.probability is not None
        p = self.probability
        return np.column_stack([1 - p, p]) if p.ndim == 1 else p


def _auc(o: Outcome) -> float:
    if o.binary:
        return float(sk.roc_auc_score(o.truth, o.probability))
    return float(sk.roc_auc_score(o.labels, o.matrix, multi_class="ovr", labels=list(o.classes or ())))


def _averaged(metric: Callable[..., Any]) -> Callable[[Outcome], float]:
    def compute(o: Outcome) -> float:
        if o.binary:
            assert o.classes is not None
            return float(metric(o.truth, (o.prediction == o.classes[1]).astype(np.int8), zero_division=0))
        return float(metric(o.labels, o.prediction, average="macro", zero_division=0))

    return compute


TABLE: dict[str, tuple[Need, Callable[[Outcome], float]]] = {
    "auc": ("probability", _auc),
    "accuracy": ("labels", lambda o: float(np.mean(o.labels == o.prediction))),
    "f1": ("labels", _averaged(sk.f1_score)),
    "precision": ("labels", _averaged(sk.precision_score)),
    "recall": ("labels", _averaged(sk.recall_score)),
    "average_precision": (
        "binary probability",
        lambda o: float(sk.average_precision_score(o.truth, o.probability)),
    ),
    "log_loss": (
        "probability",
        lambda o: float(sk.log_loss(o.labels, o.matrix, labels=list(o.classes or ()))),
    ),
    "brier": ("binary probability", lambda o: float(np.mean((o.probability - o.truth) ** 2))),
    "rmse": ("numbers", lambda o: float(np.sqrt(np.mean((o.labels - o.prediction) ** 2)))),
    "mae": ("numbers", lambda o: float(np.mean(np.abs(o.labels - o.prediction)))),
    "r2": ("numbers", lambda o: float(sk.r2_score(o.labels, o.prediction))),
}


def fitting(outcome: Outcome) -> list[str]:
    """The metrics that can be computed for this outcome."""
    offers: set[Need] = {"numbers"}
    if outcome.classes is not None:
        offers = {"labels"}
        if outcome.probability is not None:
            offers.add("probability")
            if outcome.binary:
                offers.add("binary probability")
    return [name for name, (need, _) in TABLE.items() if need in offers]


def compute(outcome: Outcome, names: Sequence[str] | None = None) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics `names` (by default all that fit) and, for those that have no value, why.

    A metric has no value when it does not fit the model, or when the rows do not determine it (AUC of one class).
    """
    fit = fitting(outcome)
    values: dict[str, float] = {}
    absent: dict[str, str] = {}
    present = set(np.unique(outcome.labels).tolist()) if outcome.classes is not None else set()
    for name in fit if names is None else names:
        if name not in TABLE:
            continue  # the function may return it
        if name not in fit:
            absent[name] = "it does not fit " + (
                "a classifier" if outcome.classes is not None else "a regression"
            )
            if outcome.classes is not None and TABLE[name][0] != "numbers":
                absent[name] = "the model returns no fitting probabilities"
        elif TABLE[name][0].endswith("probability") and name != "log_loss" and len(present) < 2:
            absent[name] = "the evaluation rows have one class only"
        elif name == "auc" and not outcome.binary and len(present) < len(outcome.classes or ()):
            absent[name] = "a class does not occur in the evaluation rows"
        else:
            values[name] = TABLE[name][1](outcome)
    return {name: value for name, value in values.items() if np.isfinite(value)}, absent


def plain(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that a function returned, as floats. Raises TypeError or ValueError naming the one that is no number."""
    result: dict[str, float] = {}
    for name, value in values.items():
        try:
            result[str(name)] = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} is {type(value).__name__}, not a number") from None
    return result
