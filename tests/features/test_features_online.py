"""The online side as a service uses it: ingestion while serving, requests that do not fit, threads, and the parity check."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features import worlds
from features.oracle import Row
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec_runtime.features import parity
from mlspec_runtime.features.online import ViewReader, ingest
from mlspec_runtime.task import TaskError

SPEC: dict[str, Any] = {
    "dataset": "one",
    "key": ["key"],
    "features": {
        "newest": "value",
        "n": {"count": "*", "window": "1h"},
        "mean": {"mean": "value", "window": "1h"},
    },
}
ASK = DatasetSpec.model_validate(worlds.ASK)


def opened(root: Path, rows: list[Row]) -> tuple[Path, ViewReader]:
    folder = worlds.materialise_rows(root, worlds.rows_table(rows, pa.float64()), SPEC)
    sets = {"one": (FeatureSetSpec.model_validate(SPEC), folder)}
    return folder, ViewReader(worlds.view_of(), ASK, sets)


def iso(micro: int) -> str:
    return datetime.fromtimestamp(micro / 1e6, UTC).isoformat()


def test_a_reader_sees_what_is_ingested(tmp_path: Path) -> None:
    """Rows arrive while the service runs, as records, late and twice; also for keys never seen before."""
    folder, reader = opened(tmp_path, [Row("a", 10, 10, 1.0)])
    assert worlds.ask_reader(reader, [("a", 100), ("z", 100)]) == [
        {"newest": 1.0, "n": 1, "mean": 1.0},
        {"newest": None, "n": 0, "mean": None},
    ]
    rows = [
        {"id": 7, "key": "a", "event": iso(5), "known": iso(50), "value": 4},
        {"id": 8, "key": "z", "event": iso(20), "known": iso(20), "value": None},
    ]
    assert ingest(folder, rows) == 2
    assert ingest(folder, rows[:1]) == 0
    assert ingest(folder, [{"id": 0, "key": "a", "event": iso(10), "known": iso(10), "value": 1.0}]) == 0
    assert worlds.ask_reader(reader, [("a", 100), ("z", 100), ("a", 50)]) == [
        {"newest": 1.0, "n": 2, "mean": 2.5},
        {"newest": None, "n": 1, "mean": None},
        {"newest": 1.0, "n": 1, "mean": 1.0},
    ]
    reader.close()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "key": "a"}], "no column event"),
        ([{"id": 1, "key": "a", "event": "soon", "known": "soon", "value": 1.0}], "event is not timestamp"),
        ([{"id": 1, "key": "a", "event": iso(1), "known": iso(1), "value": "x"}], "value is not double"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    """A producer with a wrong schema must not poison the store."""
    folder, reader = opened(tmp_path, [Row("a", 10, 10, 1.0)])
    reader.close()
    with pytest.raises(TaskError, match=message):
        ingest(folder, rows)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"at": [1]}, "the request has no column key"),
        ({"at": [1, 2], "key": ["a"]}, "at has 2 values for 1 rows"),
        ({"at": ["noon"], "key": ["a"]}, "at must be a time"),
        ({"at": [1], "key": [3]}, "key must be text"),
    ],
)
def test_requests_that_do_not_fit_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    """The caller gets a sentence (HTTP 400), not a traceback."""
    _, reader = opened(tmp_path, [Row("a", 10, 10, 1.0)])
    with pytest.raises(ValueError, match=message):
        reader.read(columns, 1)
    reader.close()


def test_without_a_moment_the_question_is_asked_now(tmp_path: Path) -> None:
    """A live request has no event time: its moment is the present."""
    now = time.time_ns() // 1000
    _, reader = opened(tmp_path, [Row("a", now - 60_000_000, now - 60_000_000, 3.0)])
    found, at = reader.read({"key": np.array(["a"], object)}, 1)
    reader.close()
    assert (found["newest"].tolist(), found["n"].tolist()) == ([3.0], [1])
    assert abs(int(at.astype(np.int64)[0]) - now) < 60_000_000


def test_reading_while_ingesting(tmp_path: Path) -> None:
    """Threads of one server share a reader while another process writes; counts only grow."""
    folder, reader = opened(tmp_path, [Row("a", 1, 1, 1.0)])
    faults: list[Any] = []
    done = threading.Event()

    def read() -> None:
        last = 0
        while not done.is_set():
            count = worlds.ask_reader(reader, [("a", 1_000_000)])[0]["n"]
            if count < last:
                faults.append((last, count))
            last = count

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20):
        ingest(
            folder,
            [
                {
                    "id": 100 + number,
                    "key": "a",
                    "event": iso(10 + number),
                    "known": iso(10 + number),
                    "value": 1.0,
                }
            ],
        )
    done.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert worlds.ask_reader(reader, [("a", 1_000_000)])[0]["n"] == 21
    reader.close()


def test_parity_of_a_request_log(tmp_path: Path) -> None:
    """What was served equals what training would see; one wrong cell is found and named."""
    folder, reader = opened(tmp_path, [Row("a", 10, 10, 1.0), Row("b", 20, 35, 0.1)])
    ingest(folder, [{"id": 9, "key": "b", "event": iso(5), "known": iso(6), "value": 0.2}])
    keys, moments = ["a", "b", "b", None, "b"], [11, 20, 30, 40, 50]
    found, at = reader.read({"key": np.array(keys, object), "at": moments}, 5)
    reader.close()
    log = pa.table(
        {"id": [f"r/{row}" for row in range(5)], "at": pa.array(at).cast(worlds.TIME), "input.key": keys}
        | {"input.at": [iso(moment) for moment in moments]}
        | {f"feature.{name}": pa.array(column, from_pandas=True) for name, column in found.items()}
    )
    sets = {"one": (FeatureSetSpec.model_validate(SPEC), folder)}
    outcome = parity.check(log, worlds.view_of(), ASK, sets)
    assert (outcome.rows, outcome.cells, outcome.differing) == (5, 15, {})
    place = log.column_names.index("feature.mean")
    wrong = log.set_column(place, "feature.mean", pa.array([1.0, 0.2, 0.2, None, 0.5]))
    outcome = parity.check(wrong, worlds.view_of(), ASK, sets)
    assert outcome.differing == {"mean": 1}
    (example,) = outcome.examples
    assert (example.id, example.feature, example.served) == ("r/4", "mean", 0.5)
    assert example.expected == pytest.approx(0.15)
