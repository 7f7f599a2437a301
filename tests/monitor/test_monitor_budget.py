"""The promise of a monitoring policy: false alerts stay within the budget, and a small shift is seen.

Issue 3, acceptance 7, on the whole way from rows to the verdict of an alert.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mlspec.kinds.monitoring_policy import MonitoringPolicySpec
from mlspec.sensitivity import level, predicted
from mlspec_runtime.monitor import reference
from mlspec_runtime.monitor.judge import Evidence, judge

FEATURES, ROWS = 50, 1_000
POLICY = MonitoringPolicySpec.model_validate({"graph": "g", "alerts": {"drift": {"drift": {}}}})


@pytest.fixture(scope="module")
def trained():
    """Bins of 50 normal features, frozen on 20,000 rows."""
    rng = np.random.default_rng(7)
    table = pa.table({f"f{place}": rng.normal(size=20_000) for place in range(FEATURES)})
    document = reference.build(table, {}, None, {})
    bins = {name: reference.bins(one) for name, one in document["features"].items()}
    return reference.Reference(bins, {})


def verdict(trained, rows, policy=POLICY):
    """The verdict about one window of `rows` [features, rows]."""
    found = {
        f"feature/{name}": np.append(
            np.bincount(np.searchsorted(bins.edges, values, side="right"), minlength=len(bins.counts) - 1), 0
        )
        for (name, bins), values in zip(trained.features.items(), rows, strict=True)
    }
    evidence = Evidence({"m": rows.shape[1]}, {"m": found}, None)
    return judge(policy.alerts["drift"], policy, evidence, {"m": trained})


def test_quiet_data_stays_within_the_budget(trained):
    """1,000 quiet windows of 50 features: 11.1 false alerts are allowed (one in 90), and only chance may add to them."""
    rng = np.random.default_rng(11)
    alarms = sum(verdict(trained, rng.normal(size=(FEATURES, ROWS))).outcome == "bad" for _ in range(1_000))
    expected = 1_000 * level(POLICY)
    assert level(POLICY) == pytest.approx(1 / 90)
    assert 1 <= alarms <= expected + 2 * np.sqrt(expected)


def test_a_fifth_of_a_sigma_in_one_of_fifty_features_is_found(trained):
    """Nine in ten such windows at least; the alert names the feature."""
    rng = np.random.default_rng(13)
    found = 0
    for _ in range(200):
        rows = rng.normal(size=(FEATURES, ROWS))
        rows[17] += 0.2
        seen = verdict(trained, rows)
        found += seen.outcome == "bad" and any(one["feature"] == "f17" and one["drifts"] for one in seen.top)
    assert found >= 190


def test_a_significant_change_that_does_not_matter_is_no_alert(trained):
    """In large windows everything is significant; the materiality gate keeps the pager quiet."""
    rows = np.random.default_rng(17).normal(size=(FEATURES, 50_000))
    rows[3] += 0.05
    seen = verdict(trained, rows)
    assert seen.outcome == "good"
    assert min(one["p"] for one in seen.top) < level(POLICY) / FEATURES


@pytest.mark.parametrize("rows", [300, 1_000, 4_000])
def test_the_plan_predicts_the_visible_shift(trained, rows):
    """`plan` says the smallest shift that a window shows with probability 0.8; the simulation agrees."""
    rng = np.random.default_rng(rows)
    said = predicted(POLICY, FEATURES, rows, 20_000).smallest_visible_shift_sigma
    assert said is not None
    hits = {1.0: 0, 1.25: 0, 0.6: 0}
    frozen = trained.features["f0"]
    quiet = {name: bins.counts for name, bins in trained.features.items()}
    for factor in hits:
        for _ in range(100):
            shifted = np.searchsorted(frozen.edges, rng.normal(said * factor, 1, rows), side="right")
            found = {f"feature/{name}": values for name, values in quiet.items()}
            found["feature/f0"] = np.append(np.bincount(shifted, minlength=len(frozen.counts) - 1), 0)
            evidence = Evidence({"m": rows}, {"m": found}, None)
            hits[factor] += judge(POLICY.alerts["drift"], POLICY, evidence, {"m": trained}).outcome == "bad"
    assert hits[1.0] >= 60
    assert hits[1.25] >= 85
    assert hits[0.6] <= 45


@pytest.mark.parametrize(("rows", "most"), [(1_000, 1.0), (20_000, 0.05)])
def test_the_plan_predicts_false_alerts(rows, most):
    """Within the budget always; near none where the materiality gate exceeds chance."""
    said = predicted(POLICY, FEATURES, rows)
    assert 0 <= said.false_alerts_expected <= most
    assert said.sentence.startswith(
        f"{said.false_alerts_expected:.1f} false alerts expected in 90d, detects shifts of"
    )


def test_too_little_traffic_is_said():
    """A policy that can never judge must not promise anything."""
    assert predicted(POLICY, 3, 50).sentence == "too few rows in a window to judge drift"


def test_the_budget_is_shared_by_alerts_and_windows():
    """Two drift alerts on hourly windows get 1/(2 x 2160) each, so that the policy keeps its one budget."""
    policy = MonitoringPolicySpec.model_validate(
        {
            "graph": "g",
            "window": "1h",
            "alerts": {"a": {"drift": {}}, "b": {"prediction": {}}, "c": {"quality": {}}},
        }
    )
    assert level(policy) == pytest.approx(1 / 4320)
