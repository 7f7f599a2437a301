"""Row expressions of requests equal those of the join, whichever way they are evaluated."""

from __future__ import annotations

import threading
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlspec.expressions import parse
from mlspec_runtime.features import rowwise, values

COLUMNS = {"t": "timestamp", "i": "int64", "x": "double", "s": "string", "b": "boolean", "d": "date"}
TEXTS = [
    "t", "i", "x", "s", "b", "d", "(t)", "t - INTERVAL 2 HOUR", "t + INTERVAL 90 MINUTE", "t - INTERVAL '3 days'",
    "t + INTERVAL 2 WEEK", "t - INTERVAL 1 MONTH", "extract(hour FROM t)", "hour(t)", "minute(t)", "dayofweek(t)",
    "isodow(t)", "extract(dow FROM t)", "extract(hour FROM t - INTERVAL 5 HOUR)", "extract(minute FROM t)", "year(t)",
    "extract(epoch FROM t)", "extract(hour FROM t AT TIME ZONE 'America/New_York')", "date_trunc('day', t)",
    "CAST(t AS DATE)", "i + 1", "i / 3", "i // 3", "x * 1.1", "x > 1", "i > 15 AND b", "coalesce(x, i, 0)", "upper(s) || '!'",
    "s IN ('a', 'é')", "CASE WHEN x IS NULL THEN i END", "d + INTERVAL 1 DAY", "date_diff('day', d, CAST(t AS DATE))", "hash(s, i)",
    "1.5", "NULL", "'text'", "length(s)", "ln(nullif(abs(x), 0))", "CAST(i AS DECIMAL(18, 2)) / 7",
]  # fmt: skip
EDGE = 4_000_000_000_000_000
ROW = st.fixed_dictionaries(
    {
        "t": st.none()
        | st.integers(-EDGE, EDGE)
        | st.integers(-30, 30).map(lambda hour: hour * 3_600_000_000),
        "i": st.none() | st.integers(-1000, 1000),
        "x": st.none() | st.floats(-1e6, 1e6),
        "s": st.none() | st.sampled_from(["", "a", "é", "😀"]),
        "b": st.none() | st.booleans(),
        "d": st.none() | st.integers(-40_000, 40_000),
    }
)
WANTED = {text: parse(text) for text in TEXTS}
READER = rowwise.Rows(WANTED, COLUMNS)


def plain(array: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_date(array.type):
        array = array.cast(pa.int32())
    found: list[Any] = array.to_pylist()
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=5))
def test_requests_equal_batches(rows: list[dict[str, Any]]) -> None:
    """A row feature must not depend on whether the row came in a request or in a table."""
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    live = READER.evaluate(columns, len(rows))
    stored = {
        "timestamp": pa.int64(),
        "date": pa.int32(),
    }
    table = pa.table(
        {
            name: pa.array(columns[name], stored.get(kind, values.TYPES[kind])).cast(values.TYPES[kind])
            for name, kind in COLUMNS.items()
        }
    )
    batch = values.evaluate(table, WANTED)
    for text in TEXTS:
        assert live[text] == plain(batch[text]), text
        assert READER.types[text] == batch[text].type, text


@pytest.mark.parametrize(
    ("given", "micro"),
    [
        ("2013-01-01T10:00:00Z", 1_357_034_400_000_000),
        ("2013-01-01T05:00:00-05:00", 1_357_034_400_000_000),
        ("2013-01-01 05:00:00", 1_357_034_400_000_000),
        ("2013-01-01T10:00:00.000001+00:00", 1_357_034_400_000_001),
        (1_357_034_400_000_000, 1_357_034_400_000_000),
        ("1969-12-31T23:59:59.999999Z", -1),
        (None, None),
        (float("nan"), None),
    ],
)
def test_times_of_requests(given: Any, micro: int | None) -> None:
    """ISO text and microseconds are the same moment; text without an offset is of the dataset's zone."""
    assert rowwise.read_column([given], "timestamp", ZoneInfo("America/New_York"), "t") == [micro]


def test_datetime64_of_requests() -> None:
    """Arrays of times keep their moment in any unit."""
    moments = np.array(["2013-01-01T10:00:00", "NaT"], "datetime64[ns]")
    assert rowwise.read_column(moments, "timestamp", ZoneInfo("UTC"), "t") == [1_357_034_400_000_000, None]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            "tomorrow",
            "timestamp",
            "t must be a time in ISO 8601 or as microseconds since 1970, not 'tomorrow'",
        ),
        ("3", "int64", "t must be a whole number, not '3'"),
        (3.5, "int64", "t must be a whole number, not 3.5"),
        (3, "string", "t must be text, not 3"),
    ],
)
def test_values_that_do_not_fit_are_named(given: Any, kind: str, message: str) -> None:
    """The caller of a service learns which value of which column is wrong."""
    with pytest.raises(ValueError, match="must be") as raised:
        rowwise.read_column([None, given], kind, ZoneInfo("UTC"), "t")
    assert str(raised.value) == message


def test_threads_share_one_reader() -> None:
    """A server evaluates requests in several threads."""
    rows = rowwise.Rows({"y": parse("x * 2 + length(s)")}, COLUMNS)
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(50):
            if rows.evaluate({"x": [float(number)], "s": ["a" * turn]}, 1)["y"] != [number * 2.0 + turn]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
