"""The verdict of one alert about one window: a pure function of counts, reference, performance and the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlspec import sensitivity
from mlspec.kinds.monitoring_policy import Alert, Drift, MonitoringPolicySpec, Prediction, Quality
from mlspec_runtime.monitor import counts
from mlspec_runtime.monitor.counts import Comparison
from mlspec_runtime.monitor.reference import Bins, Counts, Reference
from mlspec_runtime.task import Document

Outcome = Literal["good", "bad", "insufficient"]
_NOISE = 4.0
"""Standard errors by which a share of NULL must exceed training before its increase is believed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one alert says about one window. `text` is the condition in words, without time."""

    outcome: Outcome
    text: str
    value: float | None = None
    top: tuple[Document, ...] = ()
    """Largest contributors: `{feature, model, against, effect, p}` (drift) or `{feature, model, share}` (quality)."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one window."""

    rows: Mapping[str, int]
    """Answered rows by model."""
    counts: Mapping[str, Mapping[str, Counts]]
    """Model -> column -> counts."""
    performance: Document | None


def judge(
    alert: Alert, policy: MonitoringPolicySpec, evidence: Evidence, references: Mapping[str, Reference | None]
) -> Verdict:
    """Judge one window. Windows with fewer than `minRows` rows are `insufficient`, neither good nor bad."""
    if alert.metric:
        return _metric(alert, alert.metric, policy.min_rows, evidence.performance)
    if sum(evidence.rows.values()) < policy.min_rows:
        return Verdict("insufficient", f"fewer than {policy.min_rows} rows")
    columns = [
        (model, name, references_of(known)[name], found)
        for model, by_name in evidence.counts.items()
        if (known := references[model]) and evidence.rows.get(model, 0) >= policy.min_rows
        for name, found in by_name.items()
    ]
    if not columns:
        return Verdict("insufficient", "no model with reference bins")
    level = sensitivity.level(policy)
    if alert.drift:
        return _drift(alert.drift, level, columns)
    if alert.prediction:
        return _prediction(alert.prediction, level, columns)
    return _quality(alert.quality or Quality(), columns)


Column = tuple[str, str, Bins, Counts]
"""Model, column as counted (`feature/x`), bins, counts of the window."""


def references_of(reference: Reference) -> dict[str, Bins]:
    """Bins under the names of the counts."""
    features = {f"feature/{name}": bins for name, bins in reference.features.items()}
    return features | {f"prediction/{name}": bins for name, bins in reference.predictions.items()}


def _metric(alert: Alert, name: str, least: int, performance: Document | None) -> Verdict:
    if performance is None or performance["known"] < least:
        return Verdict("insufficient", f"fewer than {least} outcomes")
    value = performance["metrics"].get(name)
    if value is None:
        return Verdict("insufficient", f"{name} cannot be computed")
    if alert.below is not None and value < alert.below:
        return Verdict("bad", f"{name} {_versus(value, '<', alert.below)}", value)
    if alert.above is not None and value > alert.above:
        return Verdict("bad", f"{name} {_versus(value, '>', alert.above)}", value)
    limits = [("<=", alert.above), (">=", alert.below)]
    sign, limit = next(((sign, one) for sign, one in reversed(limits) if one is not None), ("", None))
    return Verdict("good", f"{name} {_versus(value, sign, limit)}" if limit is not None else name, value)


def _versus(value: float, sign: str, limit: float) -> str:
    """`0.68 < 0.70`, with as many digits as it takes to see the difference."""
    digits = max(2, len(f"{limit:.10f}".rstrip("0").split(".")[1]))
    while digits < 6 and f"{value:.{digits}f}" == f"{limit:.{digits}f}" and value != limit:
        digits += 1
    return f"{value:.{digits}f} {sign} {limit:.{digits}f}"


def _drift(drift: Drift, level: float, columns: Sequence[Column]) -> Verdict:
    chosen = [
        column
        for column in columns
        if column[1].startswith("feature/")
        and (drift.features == "all" or column[1].removeprefix("feature/") in drift.features)
    ]
    if not chosen:
        return Verdict("insufficient", "no feature of this alert is logged")
    drifted, top = _tested(chosen, level, drift.min_effect)
    names = {one["feature"] for one in drifted}
    number = len({name for _, name, _, _ in chosen})
    if not drifted:
        return Verdict("good", f"none of {number} features drifts", 0.0, top)
    most = drifted[0]
    verb = "drifts" if len(names) == 1 else "drift"
    text = f"{len(names)} of {number} features {verb}, most {most['feature']} (distance {most['effect']:.2f})"
    return Verdict("bad", text, float(len(names)), top)


def _prediction(alert: Prediction, level: float, columns: Sequence[Column]) -> Verdict:
    names = {name for _, name, _, _ in columns}
    name = "prediction/probability" if "prediction/probability" in names else "prediction/prediction"
    chosen = [column for column in columns if column[1] == name]
    if not chosen:
        return Verdict("insufficient", "no prediction of a model with reference bins is logged")
    drifted, top = _tested(chosen, level, alert.min_effect)
    if drifted:
        return Verdict(
            "bad", f"predictions drift (distance {drifted[0]['effect']:.2f})", drifted[0]["effect"], top
        )
    return Verdict("good", "predictions do not drift", top[0]["effect"], top)


def _tested(
    columns: Sequence[Column], level: float, gate: float
) -> tuple[list[Document], tuple[Document, ...]]:
    """Holm over all columns of the window, then the effect that matters; returns what drifts, and the top ten."""
    found = [counts.compare(bins, rows, level / len(columns)) for _, _, bins, rows in columns]
    rejected = counts.holm([one.p for one in found], level)
    documents = [
        _document(column, one, falls and one.effect >= gate)
        for column, one, falls in zip(columns, found, rejected, strict=True)
    ]
    documents.sort(key=lambda one: (not one["drifts"], -one["effect"], one["feature"]))
    return [one for one in documents if one["drifts"]], tuple(documents[:10])


def _document(column: Column, found: Comparison, drifts: bool) -> Document:
    model, name, _, _ = column
    kind, short = name.split("/", 1)
    return {
        "feature": short,
        "model": model,
        "against": "training data" if kind == "feature" else "evaluation data",
        "effect": round(found.effect, 4),
        "p": found.p,
        "drifts": drifts,
    }


def _quality(quality: Quality, columns: Sequence[Column]) -> Verdict:
    broken: list[tuple[float, str, Document]] = []
    for model, column, bins, found in columns:
        if not column.startswith("feature/"):
            continue
        name = column.removeprefix("feature/")
        rows, before = int(found.sum()), int(bins.counts.sum())
        if not rows or not before:
            continue
        null, null_before = found[-1] / rows, bins.counts[-1] / before
        pooled = (found[-1] + bins.counts[-1]) / (rows + before)
        noise = math.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / before))
        increase = float(null - null_before)
        if increase > quality.null_rate and increase > _NOISE * noise:
            text = f"{name} is null in {null:.0%} of rows (training {null_before:.0%})"
            broken.append((increase, text, _share(name, model, "null", null)))
        unseen = float(found[bins.unseen] / rows) if bins.unseen is not None else 0.0
        if unseen > quality.unseen and bins.kind == "categorical":
            text = f"{name} has categories never seen in training in {unseen:.0%} of rows"
            broken.append((unseen, text, _share(name, model, "unseen", unseen)))
    broken.sort(key=lambda one: (-one[0], one[1]))
    if not broken:
        return Verdict("good", "inputs keep their contract", 0.0)
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return Verdict("bad", broken[0][1] + more, float(len(broken)), tuple(one[2] for one in broken[:10]))


def _share(name: str, model: str, what: str, share: Any) -> Document:
    return {"feature": name, "model": model, "what": what, "share": round(float(np.float64(share)), 4)}
