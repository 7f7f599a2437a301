"""Gates: conditions that a run must meet before its model serves, judged from its committed metrics.

Pure, so gates may change without a training, and what they say of a run is computed again whenever somebody looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from mlspec.lifecycle import JSON
from mlspec.resource import Base, Identifier

METRICS: dict[str, Literal["higher", "lower"]] = {
    "auc": "higher",
    "accuracy": "higher",
    "f1": "higher",
    "precision": "higher",
    "recall": "higher",
    "average_precision": "higher",
    "log_loss": "lower",
    "brier": "lower",
    "rmse": "lower",
    "mae": "lower",
    "r2": "higher",
}
"""Metrics that mlspec computes on the evaluation data, and which direction is better."""


class Gate(Base):
    """A condition that a run must meet before its model serves."""

    metric: Identifier
    """A metric of mlspec (see the reference) or one that the function returns."""
    min: float | None = None
    """Smallest acceptable value."""
    max: float | None = None
    """Largest acceptable value."""
    against: Literal["serving"] | None = None
    """Compare with the model that serves now, on the same evaluation data."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """How much worse than the serving model is still accepted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate over one run."""

    passed: bool
    sentence: str
    """`auc 0.755 >= 0.713 (serving model 0.718, tolerance 0.005)`."""


def verdicts(gates: Sequence[Gate], result: JSON) -> list[Verdict]:
    """Judge the gates of a job over the committed result of its `train` step."""
    return [_verdict(gate, result["metrics"], result.get("baseline")) for gate in gates]


def _verdict(gate: Gate, metrics: JSON, baseline: JSON | None) -> Verdict:
    value = metrics.get(gate.metric)
    if value is None:
        return Verdict(False, f"the run has no metric {gate.metric}")
    bounds: list[tuple[Literal["min", "max"], float, str]] = []
    if gate.min is not None:
        bounds.append(("min", gate.min, ""))
    if gate.max is not None:
        bounds.append(("max", gate.max, ""))
    alone = ""
    if gate.against and baseline and baseline.get("metrics") and gate.metric in baseline["metrics"]:
        other = baseline["metrics"][gate.metric]
        about = f" (serving model {other:.4g}, tolerance {gate.tolerance:g})"
        if METRICS.get(gate.metric, "higher") == "higher":
            bounds.append(("min", other - gate.tolerance, about))
        else:
            bounds.append(("max", other + gate.tolerance, about))
    elif gate.against:
        alone = "(no serving model to compare with)"
    broken = [one for one in bounds if not _within(value, one)]
    shown = [_bound(one, one in broken) for one in broken or bounds]
    words = " and ".join(shown) or alone
    return Verdict(not broken, f"{gate.metric} {value:.4g} {words}".rstrip())


def _within(value: float, bound: tuple[str, float, str]) -> bool:
    side, limit, _ = bound
    return value >= limit if side == "min" else value <= limit


def _bound(bound: tuple[str, float, str], broken: bool) -> str:
    side, limit, about = bound
    if broken:
        return f"is {'below' if side == 'min' else 'above'} {limit:.4g}{about}"
    return f"{'>=' if side == 'min' else '<='} {limit:.4g}{about}"
