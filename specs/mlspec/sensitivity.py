"""What a monitoring policy will detect and how many false alerts it will raise, before it runs.

`plan` prints this beside a MonitoringPolicy; `mlspec_runtime.monitor` judges windows at the same `level`. The formulas
are normal approximations of the tests in `mlspec_runtime/monitor/counts.py`, and a test holds them to simulations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from mlspec.kinds.monitoring_policy import Alert, MonitoringPolicySpec
from mlspec.resource import seconds

DECISION_BINS = 10
"""Bins of equal reference mass on which a numeric column is judged. More bins see finer shapes with less power."""
POWER = 0.8
"""A shift counts as visible when one window finds it with this probability."""
REFERENCE_ROWS = 50_000.0
_RANK_EFFICIENCY = 3 / math.pi
"""Of the rank test against the t-test on normal data: Lehmann, Nonparametrics (1975), section 2.4."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """`smallest_visible_shift_sigma` is None when windows have too few rows to be judged or no alert looks at drift."""

    false_alerts_expected: float
    smallest_visible_shift_sigma: float | None
    per: str

    @property
    def sentence(self) -> str:
        """`0.4 false alerts expected in 90d, detects shifts of 0.11 standard deviations or more`."""
        if self.smallest_visible_shift_sigma is None:
            return "too few rows in a window to judge drift"
        alerts = f"{self.false_alerts_expected:.1f} false alerts expected in {self.per}"
        shift = f"{self.smallest_visible_shift_sigma:.2f} standard deviations"
        return f"{alerts}, detects shifts of {shift} or more"


def level(policy: MonitoringPolicySpec) -> float:
    """Probability that one drift alert is false in one quiet window: the budget, spread over windows and alerts."""
    alerts = sum(1 for alert in policy.alerts.values() if alert.drift or alert.prediction)
    windows = seconds(policy.false_alarms.per) / seconds(policy.window)
    return min(0.5, policy.false_alarms.budget / max(windows, 1e-9) / max(alerts, 1))


def predicted(
    policy: MonitoringPolicySpec,
    features: int,
    rows_per_window: float,
    reference_rows: float = REFERENCE_ROWS,
) -> Sensitivity:
    """False drift alerts expected on quiet data within `falseAlarms.per`, and the smallest visible shift of one feature.

    `features` is the number of inputs of the model; an alert that lists its features looks at these only.
    """
    watching = [alert for alert in policy.alerts.values() if alert.drift or alert.prediction]
    if not watching or rows_per_window < policy.min_rows:
        return Sensitivity(0.0, None, policy.false_alarms.per)
    windows = seconds(policy.false_alarms.per) / seconds(policy.window)
    effective = rows_per_window * reference_rows / (rows_per_window + reference_rows)
    expected = 0.0
    shifts = []
    for alert in watching:
        columns, gate = _scope(alert, features)
        each = level(policy) / max(columns, 1) / 2  # two tests per column share its level
        expected += level(policy) * windows * _passes(each, effective, gate)
        shifts.append(_visible(each, effective, gate))
    return Sensitivity(expected, min(shifts), policy.false_alarms.per)


def rows_per_window(policy: MonitoringPolicySpec, history: Mapping[str, float]) -> float:
    """Rows of a typical window from those of past windows (start -> rows): their median, 0 without any."""
    rows = sorted(history.values())
    return rows[len(rows) // 2] if rows else 0.0


def _scope(alert: Alert, features: int) -> tuple[int, float]:
    if alert.drift:
        chosen = features if alert.drift.features == "all" else len(alert.drift.features)
        return chosen, alert.drift.min_effect
    return 1, alert.prediction.min_effect if alert.prediction else 0.0


def _visible(each: float, effective: float, gate: float) -> float:
    """Shift in standard deviations that the rank test finds and that is large enough to matter."""
    found = (_NORMAL.inv_cdf(1 - each / 2) + _NORMAL.inv_cdf(POWER)) / math.sqrt(effective * _RANK_EFFICIENCY)
    matters = 2 * _NORMAL.inv_cdf(
        (1 + min(gate, 0.999)) / 2
    )  # distance of N(0,1) and N(d,1) is 2 Phi(d/2) - 1
    return max(found, matters)


def _passes(each: float, effective: float, gate: float) -> float:
    """Probability that a chance rejection also has the effect that matters: near 1 in small windows, 0 in large ones."""
    free = DECISION_BINS - 1
    normal = _NORMAL.inv_cdf(1 - each)
    statistic = (
        free * (1 - 2 / (9 * free) + normal * math.sqrt(2 / (9 * free))) ** 3
    )  # Wilson and Hilferty (1931)
    half_normal = math.sqrt(2 / math.pi) / 2
    by_shape = half_normal * math.sqrt(statistic / effective)
    shift = _NORMAL.inv_cdf(1 - each / 2) / math.sqrt(effective * _RANK_EFFICIENCY)
    noise = half_normal * math.sqrt(free / effective)
    by_rank = math.hypot(2 * _NORMAL.cdf(shift / 2) - 1, noise)
    spread = math.sqrt((math.pi / 2 - 1) / DECISION_BINS)
    return sum(_NORMAL.cdf((mean - gate) / (mean * spread)) for mean in (by_shape, by_rank)) / 2
