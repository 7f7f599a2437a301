"""Frames of a dataset: the right rows, the label, and nothing that gives the label away."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from mlspec_runtime import frames
from mlspec_runtime.task import TaskError

BODY = (
    "import datetime as d; n = 1000; return {'id': list(range(n)), 'y': [i % 4 or None for i in range(n)], 'x': [i * 0.5 for i in range(n)],"
    " 'at': [d.datetime(2013, 1, 1, tzinfo=d.UTC) + d.timedelta(hours=i) for i in range(n)]}"
)
SPEC = {"source": {"function": "load.py:rows"}, "key": ["id"], "time": {"event": "at"}}


@pytest.fixture
def build(storage: Any) -> Any:
    taken = storage.rows(BODY, SPEC)

    def build(**use: Any) -> Any:
        entry = {
            "use": {"dataset": "d", **use},
            "dataset": {"path": taken["path"], "spec": SPEC},
            "view": None,
        }
        return frames.build("train", entry, storage.root)

    return build


def test_the_range_is_half_open(build: Any) -> None:
    """[from, to): the end of train is the beginning of test, and no row is in both."""
    table = build(**{"from": "2013-01-02", "to": "2013-01-03"}).table
    assert table["at"].to_pylist()[0] == datetime(2013, 1, 2, tzinfo=UTC)
    assert table["at"].to_pylist()[-1] == datetime(2013, 1, 2, 23, tzinfo=UTC)


def test_what_the_label_reads_is_no_feature_and_unlabelled_rows_are_left_out(build: Any) -> None:
    """A model that sees its label's source scores 1.0 and is worthless."""
    frame = build(label="y > 2")
    assert frame.table.column_names == ["id", "x", "at", "label"]
    assert frame.table.num_rows == 750
    assert frame.note == "left out because the label reads them: y; 250 rows without a label left out"


def test_shares_partition_the_rows_and_stay_when_rows_are_added(build: Any) -> None:
    """A test row that moves into train with the next snapshot spoils every later comparison."""
    parts = [set(build(share=share).table["id"].to_pylist()) for share in ([0, 0.7], [0.7, 1])]
    assert len(parts[0]) + len(parts[1]) == 1000
    assert not parts[0] & parts[1]
    assert len(parts[0]) == pytest.approx(700, abs=45)
    assert set(build(share=[0, 0.7], where="id < 500").table["id"].to_pylist()) == {
        i for i in parts[0] if i < 500
    }


def test_shares_are_the_same_on_every_machine(build: Any) -> None:
    """The hash is MD5, not DuckDB's own, which may change."""
    places = [
        int.from_bytes(hashlib.md5(str(i).encode()).digest()[8:], "little") / 2**64 for i in range(1000)
    ]
    assert build(share=[0.25, 0.75]).table["id"].to_pylist() == [
        i for i in range(1000) if 0.25 <= places[i] < 0.75
    ]


def test_an_empty_range_says_what_the_data_has(build: Any) -> None:
    """A typo in the year is the commonest cause."""
    with pytest.raises(TaskError) as caught:
        build(**{"from": "2031-01-01", "to": "2031-02-01"})
    assert caught.value.message == "data train has no row from 2031-01-01 to 2031-02-01"
    assert "1,000 rows from 2013-01-01T00:00:00+00:00 to 2013-02-11T15:00:00+00:00" in caught.value.hint


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ({"label": "z"}, "z"),
        ({"where": "id >"}, "something is missing after"),
        ({"where": "id < 0"}, "meets where"),
    ],
)
def test_expressions_that_fail_or_leave_nothing(build: Any, use: dict[str, Any], message: str) -> None:
    """One sentence, no picture of the query."""
    with pytest.raises(TaskError) as caught:
        build(**use)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_the_step_writes_parquet_and_tells_what_it_made(storage: Any) -> None:
    """The plan and `mlspec status` show these numbers."""
    taken = storage.rows(BODY, SPEC)
    result = storage.frames("r-1", {"train": {"dataset": "d", "label": "y = 1"}}, taken, SPEC)["frames"][
        "train"
    ]
    assert (result["rows"], result["label"]) == (750, {"share": pytest.approx(1 / 3, abs=1e-6)})
    assert result["features"] == [
        {"name": "id", "type": "int64"},
        {"name": "x", "type": "double"},
        {"name": "at", "type": "timestamp"},
    ]
    assert pq.read_table(storage.root / "runs/r-1/frames/train.parquet").num_rows == 750
