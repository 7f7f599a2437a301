"""Performance of one window from its joined rows, in plain numpy.

An evaluation starts every minute, and loading scikit-learn (as training's `mlspec_runtime.metrics` does) would cost
2.4 s of CPU each time, three times the rest. The definitions are scikit-learn's; a test holds them equal. A metric
without a formula here is computed as training does, and only policies that watch such a metric pay for it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Joined:
    """Predictions whose outcome is known. `probability` is that of the positive class, when there are two."""

    label: npt.NDArray[Any]
    prediction: npt.NDArray[Any]
    probability: Floats | None

    @property
    def classes(self) -> list[Any]:
        """Labels in their order; the second of two is the positive one."""
        known = np.unique(self.label)
        if known.dtype.kind in "bif" and len(known) and set(known.tolist()) <= {0, 1}:
            return [0, 1]
        return list(known)

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Which rows are of the positive class."""
        return np.asarray(self.label == self.classes[-1])


def measure(rows: Joined, names: list[str]) -> dict[str, float]:
    """Values of the metrics that these rows allow; one that they do not allow (AUC of one class) is absent."""
    result = {}
    for name in names:
        formula = _FORMULAS.get(name)
        value = formula(rows) if formula else _as_in_training(name, rows)
        if value is not None and math.isfinite(value):
            result[name] = value
    return result


def _as_in_training(name: str, rows: Joined) -> float | None:
    """A metric of training's table; the same rows must be there that its entry needs."""
    training = importlib.import_module("mlspec_runtime.metrics")  # scikit-learn
    need, formula = training.TABLE.get(name, ("unknown", None))
    possible = {"labels": True, "numbers": _errors(rows) is not None}.get(need, _two_classes(rows))
    if formula is None or not possible:
        return None
    classes = None if need == "numbers" else tuple(rows.classes)
    return float(formula(training.Outcome(rows.label, rows.prediction, rows.probability, classes)))


def fitting(rows: Joined) -> list[str]:
    """Metrics that are worth a look for such rows."""
    if rows.probability is not None:
        return ["auc", "accuracy", "log_loss"]
    return ["rmse", "mae"] if rows.label.dtype.kind == "f" else ["accuracy"]


def _two_classes(rows: Joined) -> bool:
    return (
        rows.probability is not None and len(rows.classes) == 2 and 0 < rows.positive.sum() < len(rows.label)
    )


def auc(rows: Joined) -> float | None:
    """Area under the ROC curve by the rank sum, ties counted half."""
    if rows.probability is None or not _two_classes(rows):
        return None
    positive = rows.positive
    _, places, sizes = np.unique(rows.probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[places]
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / ones / zeros)


def average_precision(rows: Joined) -> float | None:
    """Precision at each threshold, weighted by the recall it adds."""
    if rows.probability is None or not _two_classes(rows):
        return None
    order = np.argsort(-rows.probability, kind="stable")
    scores, hits = rows.probability[order], np.cumsum(rows.positive[order])
    last = np.append(np.diff(scores) != 0, True)
    precision = (hits / np.arange(1, len(hits) + 1))[last]
    recall = (hits / hits[-1])[last]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def log_loss(rows: Joined) -> float | None:
    """Mean negative log likelihood; probabilities are kept off 0 and 1 by the machine epsilon."""
    if rows.probability is None or len(rows.classes) > 2:
        return None
    tiny = np.finfo(np.float64).eps
    p = np.clip(rows.probability, tiny, 1 - tiny)
    return float(-np.where(rows.positive, np.log(p), np.log1p(-p)).mean())


def brier(rows: Joined) -> float | None:
    """Mean squared error of the probability."""
    if rows.probability is None or len(rows.classes) > 2:
        return None
    return float(np.square(rows.probability - rows.positive).mean())


def accuracy(rows: Joined) -> float | None:
    """Share of right predictions."""
    return float((rows.prediction == rows.label).mean())


def _precision_recall(rows: Joined) -> tuple[float, float, float]:
    """Of the positive class for two classes, else the unweighted mean over classes; 0 where nothing was predicted."""
    classes = rows.classes
    parts = []
    for one in classes[-1:] if len(classes) <= 2 else classes:
        said, true = rows.prediction == one, rows.label == one
        both = float((said & true).sum())
        precision = both / said.sum() if said.any() else 0.0
        recall = both / true.sum() if true.any() else 0.0
        f1 = 2 * both / (said.sum() + true.sum()) if said.any() or true.any() else 0.0
        parts.append((precision, recall, f1))
    precision, recall, f1 = np.mean(np.array(parts), axis=0)
    return float(precision), float(recall), float(f1)


def _errors(rows: Joined) -> Floats | None:
    try:
        return rows.prediction.astype(np.float64) - rows.label.astype(np.float64)
    except ValueError:
        return None


def rmse(rows: Joined) -> float | None:
    """Root of the mean squared error."""
    errors = _errors(rows)
    return None if errors is None else float(np.sqrt(np.square(errors).mean()))


def mae(rows: Joined) -> float | None:
    """Mean absolute error."""
    errors = _errors(rows)
    return None if errors is None else float(np.abs(errors).mean())


def r2(rows: Joined) -> float | None:
    """Share of the variance that is explained."""
    errors = _errors(rows)
    if errors is None:
        return None
    spread = float(np.square(rows.label.astype(np.float64) - rows.label.astype(np.float64).mean()).sum())
    return 1 - float(np.square(errors).sum()) / spread if spread else None


_FORMULAS: dict[str, Callable[[Joined], float | None]] = {
    "auc": auc,
    "accuracy": accuracy,
    "f1": lambda rows: _precision_recall(rows)[2],
    "precision": lambda rows: _precision_recall(rows)[0],
    "recall": lambda rows: _precision_recall(rows)[1],
    "average_precision": average_precision,
    "log_loss": log_loss,
    "brier": brier,
    "rmse": rmse,
    "mae": mae,
    "r2": r2,
}
