"""Declared types: what is cast, what is refused, and how timestamps get their zone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from mlspec_runtime.task import TaskError


def column(storage: Any, result: dict[str, Any], name: str) -> list[Any]:
    return pq.read_table(storage.root / result["path"] / "data.parquet")[name].to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("values", "wanted", "stored"),
    [
        ("[1.0, None]", "int64", [1, None]),
        ("[1, 0]", "boolean", [True, False]),
        ("['true', 'F']", "boolean", [True, False]),
        ("[' 7 ', '']", "int32", [7, None]),
        ("['1e3', 'nan']", "double", [1000.0, pytest.approx(float("nan"), nan_ok=True)]),
        ("[1, 2]", "string", ["1", "2"]),
        ("['2013-01-31']", "date", [datetime(2013, 1, 31).date()]),
        (
            "['2013-01-31T05:00:00+02:00', '2013-01-31 03:00Z']",
            "timestamp",
            [datetime(2013, 1, 31, 3, tzinfo=UTC)] * 2,
        ),
    ],
)
def test_values_are_cast_when_nothing_is_lost(
    storage: Any, values: str, wanted: str, stored: list[Any]
) -> None:
    """Text of a CSV and floats of pandas become what the spec says."""
    result = storage.rows(f"return {{'v': {values}}}", {"columns": {"v": {"type": wanted, "nullable": True}}})
    assert column(storage, result, "v") == stored


@pytest.mark.parametrize(
    ("values", "wanted", "clause"),
    [
        ("['1', 'x', 'y', 'x']", "int64", "v is not int64 in 3 of 4 rows, for example 'x', 'y'"),
        ("[1.5, 2.0]", "int64", "v is not int64 in 1 of 2 rows, for example 1.5"),
        ("[2**40]", "int32", "v is not int32 in 1 of 1 rows, for example 1099511627776"),
        ("[0, 2, None]", "boolean", "v is not boolean in 1 of 3 rows, for example 2"),
        ("[20130131]", "date", "v is of type int64; a date comes from"),
        ("[1359590400]", "timestamp", "v is of type int64; a timestamp comes from"),
        ("['2013-01-31 05:00']", "timestamp", "v has timestamps without a time zone"),
    ],
)
def test_a_cast_that_would_lose_something_is_refused(
    storage: Any, values: str, wanted: str, clause: str
) -> None:
    """Silently rounded or wrapped numbers are the worst kind of fault: nobody sees them."""
    with pytest.raises(TaskError) as caught:
        storage.rows(f"return {{'v': {values}}}", {"columns": {"v": {"type": wanted, "nullable": True}}})
    assert clause in caught.value.message


def test_all_columns_are_reported_at_once(storage: Any) -> None:
    """One run, all faults; not one fault per run."""
    spec = {
        "columns": {"a": {"type": "int64"}, "b": {"type": "double"}, "dealy": {"type": "double"}},
        "strict": True,
    }
    with pytest.raises(TaskError) as caught:
        storage.rows("return {'a': ['x'], 'b': ['y'], 'delay': [1.0]}", spec)
    lines = caught.value.message.splitlines()
    assert lines[0] == "4 columns of dataset d do not fit"
    assert "dealy is declared but not in the source; did you mean delay?" in caught.value.message
    assert "delay is not declared, and the dataset is strict" in caught.value.message


def test_local_times_become_moments_across_the_clock_change(storage: Any) -> None:
    """New York, 2013-03-10: the clock jumps from 2:00 to 3:00, and UTC must not."""
    spec = {"time": {"event": "at", "timezone": "America/New_York"}}
    body = "import pandas as pd; return pd.DataFrame({'at': pd.to_datetime(['2013-03-10 01:59', '2013-03-10 03:00'])})"
    result = storage.rows(body, spec)
    assert column(storage, result, "at") == [
        datetime(2013, 3, 10, 6, 59, tzinfo=UTC),
        datetime(2013, 3, 10, 7, tzinfo=UTC),
    ]
    assert result["newest"] == "2013-03-10T07:00:00+00:00"
    assert result["columns"] == [{"name": "at", "type": "timestamp"}]


def test_ambiguous_local_times_are_told(storage: Any) -> None:
    """1:30 occurs twice on 2013-11-03; the choice is ours, so the user hears of it."""
    body = "import pandas as pd; return pd.DataFrame({'at': pd.to_datetime(['2013-11-03 01:30'])})"
    result = storage.rows(body, {"time": {"event": "at", "timezone": "America/New_York"}})
    assert column(storage, result, "at") == [datetime(2013, 11, 3, 5, 30, tzinfo=UTC)]
    assert result["warnings"] == [
        "at: 1 values lie in a clock change of America/New_York; the earlier moment is taken"
    ]


def test_naive_times_without_a_zone_name_the_way_out(storage: Any) -> None:
    """A guess here would shift every feature by hours."""
    with pytest.raises(TaskError, match=r"time: \{timezone: UTC\}"):
        storage.rows(
            "import pandas as pd; return pd.DataFrame({'at': pd.to_datetime(['2013-11-03'])})",
            {"time": {"event": "at"}},
        )


def test_unknown_zone_is_an_error(storage: Any) -> None:
    """A misspelt zone must not become UTC."""
    with pytest.raises(TaskError, match="America/New_Yrok"):
        storage.rows(
            "return {'at': ['2013-01-01 00:00']}", {"time": {"event": "at", "timezone": "America/New_Yrok"}}
        )


def test_storage_details_do_not_reach_the_snapshot(storage: Any) -> None:
    """Categories, nanoseconds, small integers and NaN are how pandas stores things, not what they mean."""
    body = (
        "import pandas as pd; return pd.DataFrame({'c': pd.Categorical(['a', 'b']), 'n': pd.array([1, 2], 'int8'),"
        " 'x': [1.0, float('nan')], 't': pd.to_datetime(['2013-01-01', '2014-01-01'], utc=True).astype('datetime64[ns, UTC]')})"
    )
    result = storage.rows(body)
    assert [c["type"] for c in result["columns"]] == ["string", "int32", "double", "timestamp"]
    assert column(storage, result, "x") == [1.0, None]
