"""The join as its callers use it: keys, ranges, labels, refusals; and what the step `features` writes."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import worlds
from features.oracle import Row, feature
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.dataset import columns as dataset_columns
from mlspec_runtime.features import join, materialise, values
from mlspec_runtime.features.definition import Window
from mlspec_runtime.features.online import ViewReader
from mlspec_runtime.features.timeline import Timeline
from mlspec_runtime.task import TaskError

HOUR = 3_600_000_000


def view(features: list[dict[str, Any]], **more: Any) -> FeatureViewSpec:
    return FeatureViewSpec.model_validate(
        {"ask": {"dataset": "ask"} | more.pop("ask", {}), "features": features} | more
    )


def numbers(root: Path) -> tuple[dict[str, Any], dict[str, tuple[FeatureSetSpec, Path]]]:
    """One set with the key (key, id modulo 2 as int64) and three rows known when they happen."""
    table = pa.table(
        {
            "id": pa.array([0, 1, 2], pa.int64()),
            "key": ["a", "a", "b"],
            "place": pa.array([7, 8, 7], pa.int64()),
            "event": pa.array([0, HOUR, 2 * HOUR], worlds.TIME),
            "known": pa.array([0, HOUR, 2 * HOUR], worlds.TIME),
            "value": [1.5, 2.5, 3.5],
            "day": [date(2013, 1, 1), None, date(2013, 1, 3)],
        }
    )
    spec = {
        "dataset": "one",
        "key": ["key", "place"],
        "features": {
            "value": "value",
            "n": {"count": "*", "window": "1d"},
            "day": {"max": "day", "window": "1d"},
        },
    }
    folder = worlds.materialise_rows(root, table, spec)
    return spec, {"one": (FeatureSetSpec.model_validate(spec), folder)}


ASKS = pa.table(
    {
        "id": pa.array([5, 3, 3, 9, 4], pa.int64()),
        "key": pa.array(["a", "b", "b", "a", None], pa.string()),
        "place": pa.array([7.0, 7.0, 7.0, 7.5, 7.0], pa.float64()),
        "at": pa.array([3 * HOUR, 3 * HOUR, 3 * HOUR, 3 * HOUR, 3 * HOUR], worlds.TIME),
        "won": [True, False, True, None, True],
    }
)
ASK = DatasetSpec.model_validate(worlds.ASK)


def test_one_row_per_question_in_order(tmp_path: Path) -> None:
    """Rows that are lost, doubled or moved put labels beside the wrong features."""
    _, sets = numbers(tmp_path)
    features = [
        {"row": {"double": "place * 2"}},
        {"set": "one", "names": ["n", "value", "day"], "prefix": "of_"},
    ]
    table = join.join(ASKS, ASK, view(features, label="won"), sets)
    assert table.column_names == ["double", "of_n", "of_value", "of_day", "label", "__at", "__key_id"]
    assert table["double"].to_pylist() == [14.0, 14.0, 14.0, 15.0, 14.0]
    assert table["of_n"].to_pylist() == [1, 1, 1, 0, 0]
    assert table["of_value"].to_pylist() == [1.5, 3.5, 3.5, None, None]
    midnight = datetime(2013, 1, 1, tzinfo=UTC)
    assert [str(one)[:10] for one in table["of_day"].to_pylist()] == [
        str(midnight)[:10],
        "2013-01-03",
        "2013-01-03",
        "None",
        "None",
    ]
    assert table["label"].to_pylist() == [True, False, True, None, True]
    assert table["__key_id"].to_pylist() == [5, 3, 3, 9, 4]
    assert table.schema.field("__at").type == worlds.TIME


def test_requests_get_the_same_as_the_join(tmp_path: Path) -> None:
    """Composite keys, a float for a whole key, dates and row features, each in the same numpy form."""
    _, sets = numbers(tmp_path)
    features = [{"row": {"double": "place * 2", "late": "place > 7"}}, {"set": "one", "maxAge": "1d"}]
    table = join.join(ASKS, ASK, view(features), sets)
    reader = ViewReader(view(features), ASK, sets)
    found, at = reader.read(
        {
            "key": np.array(ASKS["key"].to_pylist(), object),
            "place": np.array(ASKS["place"].to_pylist()),
            "at": ["1970-01-01T03:00:00Z"] * 5,
        },
        5,
    )
    reader.close()
    assert list(found) == list(reader.names) == table.column_names[:5]
    for name, served in found.items():
        trained = values.to_numpy(table[name])
        assert served.dtype == trained.dtype, name
        np.testing.assert_array_equal(served, trained)
    np.testing.assert_array_equal(at, values.to_numpy(table["__at"]))


def test_key_expressions(tmp_path: Path) -> None:
    """`on` says which expression of the asking row is the set's key."""
    _, sets = numbers(tmp_path)
    features = [
        {
            "set": "one",
            "names": ["value"],
            "key": {"key": "lower(upper(key))", "place": "CAST(place AS BIGINT) + 1"},
        }
    ]
    table = join.join(ASKS, ASK, view(features), sets)
    assert table["value"].to_pylist() == [2.5, None, None, None, None]


def test_ranges_and_conditions(tmp_path: Path) -> None:
    """Which rows train: the moment from and to, a condition, and what was known by a moment."""
    _, sets = numbers(tmp_path)
    asks = pa.table(
        {
            "id": pa.array(range(6), pa.int64()),
            "key": ["a"] * 6,
            "place": pa.array([7] * 6, pa.int64()),
            "at": pa.array([hour * HOUR for hour in range(6)], worlds.TIME),
        }
    )
    plain = view([{"set": "one", "names": ["value"]}], ask={"at": "at - INTERVAL 1 HOUR"})

    def ids(**more: Any) -> list[int]:
        found: list[int] = join.join(asks, ASK, plain, sets, **more)["__key_id"].to_pylist()
        return found

    assert ids(start=datetime(1970, 1, 1, 1, tzinfo=UTC), end=datetime(1970, 1, 1, 3, tzinfo=UTC)) == [2, 3]
    assert ids(where="id % 2 = 0") == [0, 2, 4]
    assert ids(as_of=datetime(1970, 1, 1, 3, tzinfo=UTC)) == [0, 1, 2, 3]
    assert ids(share=(0.0, 1.0)) == [0, 1, 2, 3, 4, 5]
    parts = [ids(share=(low / 4, (low + 1) / 4)) for low in range(4)]
    assert sorted(one for part in parts for one in part) == [0, 1, 2, 3, 4, 5]


def test_share_is_stable_when_rows_are_added(tmp_path: Path) -> None:
    """A row that has tested must not train after the next refresh."""
    _, sets = numbers(tmp_path)
    plain = view([{"row": {"one": "1"}}])
    asks = worlds.ask_table([("a", 0)] * 2000)
    few = join.join(asks.slice(0, 500), ASK, plain, sets, share=(0.0, 0.3))["__key_id"].to_pylist()
    many = join.join(asks, ASK, plain, sets, share=(0.0, 0.3))["__key_id"].to_pylist()
    assert [one for one in many if one < 500] == few
    assert 500 < len(many) < 700


REFUSALS = {
    "unknown column": (view([{"row": {"x": "nothing + 1"}}]), {}, "there is no column nothing"),
    "cast": (view([{"row": {"x": "CAST(key AS BIGINT)"}}]), {}, "cannot be evaluated"),
    "key type": (view([{"set": "one", "key": {"key": "place"}}]), {}, "key key of one is of type string"),
    "moment": (view([{"set": "one"}], ask={"at": "key"}), {}, "the moment of the question is of type string"),
    "feature": (view([{"set": "one", "names": ["vlaue"]}]), {}, "one has no feature vlaue"),
    "twice": (view([{"set": "one"}, {"set": "one"}]), {}, "two features called day"),
    "key column": (view([{"set": "one", "key": {"kee": "key"}}]), {}, "kee is no key column of one"),
    "where": (view([{"set": "one"}]), {"where": "id + 1"}, "not true or false"),
    "subquery": (view([{"row": {"x": "(SELECT 1)"}}]), {}, "a query is not allowed"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path: Path, case: str) -> None:
    """A user's fault is a sentence with a way out, not a traceback."""
    _, sets = numbers(tmp_path)
    spec, more, message = REFUSALS[case]
    with pytest.raises(TaskError, match=message) as raised:
        join.join(ASKS, ASK, spec, sets, **more)
    assert raised.value.hint


def test_many_keys_over_a_long_time() -> None:
    """Where key and moment do not fit into 64 bits together, moments become ranks; the answers stay."""
    dice = random.Random(5)
    far = 2**61
    rows = sorted((dice.randrange(4), dice.choice([-far, 0, far]) + dice.randrange(50)) for _ in range(200))
    code = np.array([dice.randrange(-1, 5) for _ in range(300)])
    moment = np.array([dice.choice([-far, 0, far]) + dice.randrange(60) for _ in range(300)])
    event_code, event = (np.array(one) for one in zip(*rows, strict=True))
    line = Timeline(event_code, event, event + 3, code, moment, np.ones(300, np.bool_))
    counts = line.spread(line.totals(np.ones(200, np.int64), line.ranges(Window(20))), 0)
    newest = line.spread(line.newest(), -1)
    found = [Row(str(key), at, at + 3, index) for index, (key, at) in enumerate(rows)]
    for place in range(300):
        key, at = str(code[place]), int(moment[place])
        assert counts[place] == feature(found, key, at, "rows", 20)
        last = feature(found, key, at, "last", None)
        assert newest[place] == (-1 if last is None else last)


def test_events_are_what_counts(tmp_path: Path) -> None:
    """Only rows that pass `where` and have key, event and arrival are events, sorted by key and time."""
    rows = [
        Row("b", 2, 2, 1.0), Row("a", 5, 5, 1.0), Row("a", 3, None, 1.0), Row(None, 3, 3, 1.0), Row("a", 1, 9, 2.0), Row("a", 0, 0, None),
    ]  # fmt: skip
    spec = {
        "dataset": "one",
        "key": ["key"],
        "where": "value < 2",
        "features": {"x": "value", "y": "value * 2"},
    }
    folder = worlds.materialise_rows(tmp_path, worlds.rows_table(rows, pa.float64()), spec)
    events = pq.read_table(folder / "events.parquet")
    assert events.select(["key", "__event", "__known", "v0", "v1"]).to_pylist() == [
        {"key": "a", "__event": 5, "__known": 5, "v0": 1.0, "v1": 2.0},
        {"key": "b", "__event": 2, "__known": 2, "v0": 1.0, "v1": 2.0},
    ]
    assert sorted(item.name for item in folder.iterdir()) == ["events.parquet", "meta.json", "online.sqlite"]
    again = worlds.materialise_rows(tmp_path, worlds.rows_table(rows, pa.float64()), spec)
    assert (again, [item.name for item in folder.parent.iterdir()]) == (folder, ["v1"])


def test_equal_rows_without_a_key_are_different_events(tmp_path: Path) -> None:
    """Two equal purchases in one second are two; the same row of a keyed dataset, delivered twice, is one."""
    spec = {"dataset": "one", "key": ["key"], "features": {"n": {"count": "*", "window": "1h"}}}
    table = worlds.rows_table([Row("a", 5, 5, 1.0)], pa.float64())
    twice = pa.concat_tables([table, table])
    keyed = worlds.materialise_rows(tmp_path / "keyed", twice, spec)
    plain = worlds.materialise_rows(tmp_path / "plain", twice, spec, key=[])
    for ask in (worlds.offline, worlds.online):
        assert ask(keyed, spec, [("a", 9)]) == [{"n": 1}]
        assert ask(plain, spec, [("a", 9)]) == [{"n": 2}]


def test_delay_stands_for_arrival(tmp_path: Path) -> None:
    """With `delay: 1h` a row counts one hour after its event, and not one microsecond earlier."""
    folder = tmp_path / "datasets/one/s"
    folder.mkdir(parents=True)
    pq.write_table(worlds.rows_table([Row("a", 0, None, 1.0)], pa.float64()), folder / "data.parquet")
    spec = {"dataset": "one", "key": ["key"], "features": {"x": "value"}}
    dataset = {"source": worlds.SOURCE, "time": {"event": "event", "delay": "1h"}}
    task = {
        "set": "one",
        "version": "v",
        "spec": spec,
        "dataset": {"path": "datasets/one/s", "spec": dataset},
    }
    path = tmp_path / materialise.run(task, tmp_path)["path"]
    for ask in (worlds.offline, worlds.online):
        assert ask(path, spec, [("a", HOUR), ("a", HOUR + 1)]) == [{"x": None}, {"x": 1.0}]


FAULTS = {
    "no arrival": ({}, {"event": "event"}, "does not say when its rows were known"),
    "no column": ({"key": ["carrier"]}, None, "has no column carrier"),
    "text": ({"features": {"m": {"mean": "key", "window": "1h"}}}, None, "mean needs numbers"),
    "no window": ({"features": {"m": {"mean": "value"}}}, None, "mean needs a window"),
    "condition": ({"where": "value"}, None, "not true or false"),
    "aggregate": ({"features": {"m": "avg(value)"}}, None, "several rows"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_materialise_refuses(tmp_path: Path, case: str) -> None:
    """The run's error is the user's page of the manual."""
    more, time, message = FAULTS[case]
    folder = tmp_path / "datasets/one/s"
    folder.mkdir(parents=True)
    pq.write_table(worlds.rows_table([Row("a", 0, 0, 1.0)], pa.float64()), folder / "data.parquet")
    spec = {"dataset": "one", "key": ["key"], "features": {"x": "value"}} | more
    dataset = {"source": worlds.SOURCE, "time": time or {"event": "event", "known": "known"}}
    task = {
        "set": "one",
        "version": "v",
        "spec": spec,
        "dataset": {"path": "datasets/one/s", "spec": dataset},
    }
    with pytest.raises(TaskError, match=message) as raised:
        materialise.run(task, tmp_path)
    assert raised.value.hint
    assert not list((tmp_path / "features").glob("*/.*"))


def test_clock_changes(tmp_path: Path) -> None:
    """A window of 3 h is three hours of time, also in the night in which the wall clock jumps."""
    walls = [datetime(2013, 3, 10, hour, 30) for hour in (0, 1, 3, 4)]  # 2:30 does not exist in New York
    naive = pa.table(
        {
            "id": pa.array(range(4), pa.int64()),
            "key": ["a"] * 4,
            "event": pa.array(walls, pa.timestamp("us")),
            "known": pa.array(walls, pa.timestamp("us")),
            "value": [1.0, 2.0, 4.0, 8.0],
        }
    )
    local = {
        "source": worlds.SOURCE,
        "time": {"event": "event", "known": "known", "timezone": "America/New_York"},
    }
    table, _ = dataset_columns.cast("one", naive, DatasetSpec.model_validate(local))
    spec = {"dataset": "one", "key": ["key"], "features": {"sum": {"sum": "value", "window": "3h"}}}
    folder = worlds.materialise_rows(tmp_path, table, spec)
    five = int(datetime(2013, 3, 10, 8, 30, tzinfo=UTC).timestamp()) * 1_000_000  # 4:30 EDT
    for ask in (worlds.offline, worlds.online):
        assert ask(folder, spec, [("a", five), ("a", five + 1)]) == [{"sum": 7.0}, {"sum": 14.0}]


def test_dense_keys_cost_no_more_than_sparse_ones() -> None:
    """One key with 200,000 events and as many questions, all in one window: 4e10 pairs for a join by pairs, which would not end."""
    count = 200_000
    event = np.arange(count) * 10
    zeros = np.zeros(count, np.int64)
    line = Timeline(zeros, event, event + 25, zeros, event, np.ones(count, np.bool_))
    ranges = line.ranges(Window(10 * count))
    counts = line.spread(line.totals(np.ones(count, np.int64), ranges), 0)
    greatest = line.spread(line.greatest(np.arange(count), ranges), -1)
    assert counts.tolist() == [max(0, row - 2) for row in range(count)]
    assert greatest.tolist() == [max(-1, row - 3) for row in range(count)]
