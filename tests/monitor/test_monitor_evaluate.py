"""Whole evaluations over a real request log: late rows, delayed truth, actions and their caps."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlspec_runtime.monitor.evaluate import evaluate, run
from mlspec_runtime.task import TaskError
from monitor.log_writer import TRUTH, WALL, World, wall

ACCURACY = {"metric": "auc", "below": 0.7, "for": 3}
RETRAIN = {"when": "accuracy", "retrain": {"job": "late-arrival", "window": "90d"}}


@pytest.fixture
def world(tmp_path):
    """A storage root with one trained model."""
    return World(tmp_path)


def events(result, alert):
    """(state, window) of an alert's transitions."""
    return [(one["state"], one["window"][5:10]) for one in result["events"] if one["alert"] == alert]


def test_nothing_logged_yet(world):
    """The first minutes of a policy are no failure."""
    result = run(world.task({"alerts": {"drift": {"drift": {}}}}), world.root)
    assert result["summary"] == "no request has been logged yet"
    assert result["watermark"] is None
    assert result["alerts"] == {}


def test_lost_accuracy_fires_after_three_days_and_asks_for_one_retraining(world):
    """The story of the issue: the model goes bad, three days later the alert fires, one trigger is recorded for good."""
    for day in range(12):
        world.day(day, skill=1.0 if day < 4 else 0.0)
    task = world.task({"truth": TRUTH, "alerts": {"accuracy": ACCURACY}, "actions": [RETRAIN]})
    result = evaluate(task, world.root, wall(12))
    assert events(result, "accuracy") == [("pending", "06-14"), ("firing", "06-16")]
    alert = result["alerts"]["accuracy"]
    assert alert["state"] == "firing"
    assert alert["sentence"].startswith("auc 0.")
    assert alert["sentence"].endswith("< 0.70 for 7 days, since Jun 14")
    (trigger,) = result["triggers"]
    assert trigger["action"] == "retrain"
    assert (trigger["job"], trigger["window"], trigger["run"]) == ("late-arrival", "90d", "flights-1")
    assert "2013-06-17T00:00:00" <= trigger["at"] < "2013-06-17T12"
    again = evaluate(task, world.root, wall(12))
    assert again == result
    assert json.loads(json.dumps(result)) == result


def test_the_verdict_does_not_depend_on_when_somebody_looked(world):
    """Replay in one go and day by day: the same windows, events and triggers, so a replay can be trusted."""
    spec = {
        "truth": TRUTH,
        "alerts": {"accuracy": ACCURACY, "drift": {"drift": {}}},
        "actions": [RETRAIN, {"when": "drift", "retrain": {"job": "other"}}],
    }
    for day in range(10):
        world.day(day, skill=1.0 if day < 3 else 0.0, shift=1.0 if day > 5 else 0.0, delay=40_000)
        one_by_one = evaluate(world.task(spec, policy="slow"), world.root, wall(day + 1))
    at_once = evaluate(world.task(spec, policy="fast"), world.root, wall(10))
    for part in ("performance", "drift", "events", "alerts", "windows"):
        keep = {"fingerprint"}
        slow, fast = one_by_one[part], at_once[part]
        if part == "alerts":
            slow, fast = (
                {n: {k: v for k, v in a.items() if k not in keep} for n, a in p.items()} for p in (slow, fast)
            )
        assert slow == fast, part
    assert [t["at"] for t in one_by_one["triggers"]] == [t["at"] for t in at_once["triggers"]]


def test_truth_counts_only_once_it_is_known(world):
    """The dataset may hold the future; a window is judged when its outcomes could have been known, not before."""
    world.day(0, delay=36 * 3600)
    world.day(1, delay=36 * 3600)
    task = world.task({"truth": TRUTH | {"completeness": 0.9}, "alerts": {"accuracy": ACCURACY}})
    assert evaluate(task, world.root, wall(2))["performance"] == []
    world.day(2.2, rows=5, span=3600)
    assert evaluate(task, world.root, wall(2.3))["performance"] == []
    world.day(2.6, rows=5, span=3600)
    (first,) = evaluate(task, world.root, wall(2.7))["performance"]
    assert first["known"] == 270
    assert "2013-06-12T08" < first["final"] < "2013-06-12T12"


def test_windows_without_outcomes_are_insufficient_after_max_delay(world):
    """Missing truth is neither good nor bad, and it is said."""
    world.day(0, known=0.3)
    world.day(1)
    world.day(4)
    task = world.task({"truth": TRUTH, "alerts": {"accuracy": ACCURACY | {"for": 1}}})
    result = evaluate(task, world.root, wall(5))
    assert result["performance"][0]["known"] < 200
    assert result["performance"][0]["final"] == "2013-06-13T00:00:00+00:00"
    assert events(result, "accuracy") == []


def test_a_newer_snapshot_completes_a_window(world):
    """A dataset that was refreshed late must not lose its windows for good."""
    world.day(0, skill=0.0, delay=0)
    world.day(4)
    complete = list(world.truth)
    world.truth = []
    world.publish("s0")
    early = world.task({"truth": TRUTH, "alerts": {"accuracy": ACCURACY | {"for": 1}}})
    early["truth"]["path"] = "datasets/flights/s0"
    assert evaluate(early, world.root, wall(5))["alerts"]["accuracy"]["state"] == "inactive"
    world.truth = complete
    world.publish("s1")
    late = world.task({"truth": TRUTH, "alerts": {"accuracy": ACCURACY | {"for": 1}}})
    result = evaluate(late, world.root, wall(5))
    assert result["performance"][0]["known"] == 300


def test_late_rows_add_and_the_window_is_judged_again(world):
    """Rows that arrive after the verdict correct it; the alert is raised by them, never taken back."""
    spec = {"minRows": 200, "alerts": {"drift": {"drift": {}}}}
    world.day(0, rows=100, shift=1.0)
    world.day(1, rows=10, span=3600)
    first = evaluate(world.task(spec), world.root, wall(1.1))
    assert first["alerts"]["drift"]["sentence"] == "not judged: fewer than 200 rows"
    world.day(0, rows=200, shift=1.0, received=wall(1.1))
    second = evaluate(world.task(spec), world.root, wall(1.1))
    assert second["alerts"]["drift"]["state"] == "firing"
    world.day(0, rows=20_000, received=wall(1.1))
    third = evaluate(world.task(spec), world.root, wall(1.1))
    assert third["drift"][0]["effect"] < 0.05
    assert third["alerts"]["drift"]["state"] == "firing"
    world.day(2, rows=300)
    world.day(3, rows=10, span=3600)
    fourth = evaluate(world.task(spec), world.root, wall(3.1))
    assert events(fourth, "drift") == [("firing", "06-10"), ("resolved", "06-12")]


def test_a_good_window_resolves_and_a_gap_does_not(world):
    """Windows without rows do not exist: a night without traffic ends no alert."""
    spec = {"alerts": {"drift": {"drift": {}}}}
    world.day(0, shift=1.0)
    world.day(3, rows=10)
    assert evaluate(world.task(spec), world.root, wall(4))["alerts"]["drift"]["state"] == "firing"
    world.day(4)
    world.day(5, rows=10)
    result = evaluate(world.task(spec), world.root, wall(6))
    assert events(result, "drift") == [("firing", "06-10"), ("resolved", "06-14")]


def test_quality_sees_null_and_unseen(world):
    """The most common breakages of inputs: a column that is empty, a category that nobody trained on."""
    spec = {"alerts": {"inputs": {"quality": {}}}}
    world.day(0, change={"wind": np.where(np.arange(300) % 2, np.nan, 10.0)})
    world.day(1, change={"carrier": np.array(["ZZ"] * 60 + ["AA"] * 240)})
    world.day(2, change={"wind": pa.nulls(300)})
    world.day(3)
    world.day(4, rows=3)
    result = evaluate(world.task(spec), world.root, wall(5))
    sentences = [one["sentence"] for one in result["events"]]
    assert sentences == [
        "wind is null in 50% of rows (training 0%) for 1 day, since Jun 10",
        "inputs keep their contract since Jun 13",
    ]
    assert result["windows"] == 5


def test_predictions_drift_against_the_evaluation_data(world):
    """A model whose scores pile up is seen without any truth."""
    spec = {"alerts": {"scores": {"prediction": {}}}}
    world.day(0)
    task = world.task(spec)
    name = world.root / "logs/flights" / "piled.parquet"
    table = pq.read_table(world.root / "logs/flights" / world.day(1))
    (world.root / "logs/flights/000002.parquet").unlink()
    place = table.schema.get_field_index("probability")
    pq.write_table(table.set_column(place, "probability", pa.array([0.9] * 300)), name)
    world.day(2, rows=5)
    result = evaluate(task, world.root, wall(3))
    assert events(result, "scores") == [("firing", "06-11")]


# --- actions ----------------------------------------------------------------------------------------------------------


def daily(world, spec, days, **more):
    """Log and evaluate day by day; returns the last result."""
    for day in days:
        world.day(day, **more)
        result = evaluate(world.task(spec), world.root, wall(day + 1))
    return result


def test_retraining_is_capped_in_the_time_of_the_data(world):
    """An alert that stays asks again after the cap's time, not with every window."""
    spec = {
        "alerts": {"drift": {"drift": {}}},
        "actions": [{"when": "any", "retrain": {"job": "late-arrival"}, "limit": {"count": 1, "per": "7d"}}],
    }
    result = daily(world, spec, range(18), shift=1.0)
    assert [one["at"][:10] for one in result["triggers"]] == ["2013-06-11", "2013-06-18", "2013-06-25"]
    assert len({one["id"] for one in result["triggers"]}) == 3


def test_no_second_retraining_while_the_first_is_under_way(world):
    """With room under the cap, the next trigger still waits until a new model has served a full window."""
    spec = {
        "alerts": {"drift": {"drift": {}}},
        "actions": [
            {"when": "drift", "retrain": {"job": "late-arrival"}, "limit": {"count": 5, "per": "30d"}}
        ],
    }
    assert len(daily(world, spec, range(4), shift=1.0)["triggers"]) == 1
    world.train("flights-2")
    world.day(4, rows=150, span=43_000, shift=1.0)
    world.day(4.5, rows=150, span=43_000, shift=1.0, model="flights-2")
    mixed = evaluate(world.task(spec), world.root, wall(5))
    assert len(mixed["triggers"]) == 1
    result = daily(world, spec, range(5, 8), shift=1.0, model="flights-2")
    assert [(one["at"][:10], one["run"]) for one in result["triggers"]] == [
        ("2013-06-11", "flights-1"),
        ("2013-06-16", "flights-2"),
    ]


def test_proposals_are_recorded_apart(world):
    """`propose` says what it would do and does nothing."""
    spec = {
        "alerts": {"drift": {"drift": {}}},
        "actions": [{"when": "drift", "retrain": {"job": "late-arrival"}, "mode": "propose"}],
    }
    result = daily(world, spec, range(3), shift=1.0)
    assert result["triggers"] == []
    assert [one["job"] for one in result["proposals"]] == ["late-arrival"]


def test_a_switch_leads_back_once_and_not_to_and_fro(world):
    """After the switch the previous model serves; a second switch would bring the bad model back."""
    spec = {
        "alerts": {"drift": {"drift": {}}},
        "actions": [{"when": "drift", "switch": {"to": "previous"}, "limit": {"count": 9, "per": "1d"}}],
    }
    world.train("flights-2")
    daily(world, spec, [0], model="flights-1")
    switched = daily(world, spec, range(1, 3), model="flights-2", shift=1.0)
    (trigger,) = switched["triggers"]
    assert (trigger["action"], trigger["graph"], trigger["run"]) == ("switch", "flights", "flights-2")
    assert len(daily(world, spec, range(3, 8), model="flights-1", shift=1.0)["triggers"]) == 1
    world.train("flights-3")
    assert len(daily(world, spec, range(8, 11), model="flights-3", shift=1.0)["triggers"]) == 2


def test_an_ensemble_is_judged_by_the_features_of_its_parts(world):
    """Models that answer together are logged as `a+b`; a switch names the part that came last."""
    world.train("flights-2")
    spec = {"alerts": {"drift": {"drift": {}}}, "actions": [{"when": "drift", "switch": {"to": "previous"}}]}
    world.day(0, model="flights-1")
    result = daily(world, spec, range(1, 3), model="flights-1+flights-2", shift=1.0)
    assert result["problems"] == []
    assert [one["run"] for one in result["triggers"]] == ["flights-2"]


def test_a_model_that_is_gone_is_not_retrained_for(world):
    """Truth comes late: what the old model did wrong is no reason to replace its successor."""
    spec = {"truth": TRUTH, "alerts": {"accuracy": ACCURACY | {"for": 1}}, "actions": [RETRAIN]}
    world.train("flights-2")
    world.day(0, skill=0.0, delay=40 * 3600)
    world.day(1, model="flights-2")
    world.day(2, model="flights-2")
    result = evaluate(world.task(spec), world.root, wall(3))
    assert ("firing", "06-10") in events(result, "accuracy")
    assert result["triggers"] == []


# --- odd input --------------------------------------------------------------------------------------------------------


def test_a_broken_file_waits_and_the_others_are_read(world):
    """A half-written or damaged file must neither stop the monitor nor be lost."""
    name = world.day(0)
    whole = (world.root / "logs/flights" / name).read_bytes()
    (world.root / "logs/flights" / name).write_bytes(whole[:500])
    world.day(1)
    task = world.task({"alerts": {"drift": {"drift": {}}}})
    result = evaluate(task, world.root, wall(2))
    assert result["rows"] == 300
    assert result["problems"] == [f"cannot read {name} of the request log yet"]
    (world.root / "logs/flights" / name).write_bytes(whole)
    assert evaluate(task, world.root, wall(2))["rows"] == 600


def test_failed_requests_are_counted_apart(world):
    """An answer that nobody got has no prediction to judge."""
    world.day(0)
    world.day(0, rows=50, status=502)
    result = evaluate(world.task({"alerts": {"drift": {"drift": {}}}}), world.root, wall(1))
    assert (result["rows"], result["failed"]) == (300, 50)


def test_a_model_without_reference_and_a_log_without_keys_are_said(world):
    """What cannot be judged is reported, never silently green."""
    table = pq.read_table(world.root / "logs/flights" / world.day(0, model="imported"))
    pq.write_table(table.drop_columns(["input.flight"]), world.root / "logs/flights/000001.parquet")
    world.day(1.5, rows=3, model="imported")
    spec = {"truth": TRUTH, "alerts": {"accuracy": ACCURACY, "drift": {"drift": {}}}}
    result = evaluate(world.task(spec), world.root, wall(2))
    assert result["alerts"]["drift"]["sentence"] == "not judged: no model with reference bins"
    assert result["problems"] == [
        "the request log lacks input.flight, so predictions cannot be joined with the truth",
        "no reference bins of model imported: its drift is not judged",
    ]


def test_a_wrong_label_is_an_error_with_a_way_out(world):
    """The user sees the column that is wrong, not a traceback."""
    world.day(0)
    world.day(1)
    spec = {"truth": TRUTH | {"label": "arr_dellay > 15"}, "alerts": {"accuracy": ACCURACY}}
    with pytest.raises(TaskError, match="arr_dellay") as caught:
        evaluate(world.task(spec), world.root, wall(2))
    assert "truth.label" in caught.value.hint


def test_a_changed_alert_starts_afresh_and_old_windows_raise_no_storm(world):
    """Tightening a limit must not fire for last month; other windows are counted again from the log."""
    spec = {"truth": TRUTH, "alerts": {"accuracy": ACCURACY}, "actions": [RETRAIN]}
    daily(world, spec, range(8))
    strict = spec | {"alerts": {"accuracy": ACCURACY | {"below": 0.999, "for": 2}}}
    result = evaluate(world.task(strict), world.root, wall(8))
    assert events(result, "accuracy") == [("pending", "06-15"), ("firing", "06-16")]
    half = spec | {"window": "12h"}
    assert evaluate(world.task(half), world.root, wall(8))["windows"] == 16


def test_the_clock_is_that_of_the_log(world):
    """A stray future timestamp of a client does not turn the clock ahead of the wall."""
    world.day(0)
    result = evaluate(world.task({"alerts": {"drift": {"drift": {}}}}), world.root, wall(1))
    assert result["watermark"].startswith("2013-06-1")
    ahead = World(world.root / "other")
    ahead.day(0, received=WALL - 10**9)
    result = evaluate(ahead.task({"alerts": {"drift": {"drift": {}}}}), ahead.root, WALL - 10**9)
    assert result["watermark"].startswith("1995")
