"""Ground truth meets the predictions of a window, once it is known: performance with delayed labels.

A truth row exists for us from its `known` time on, on the clock of the log. A window is final at the first moment at
which `completeness` of its rows have an outcome, at the latest `maxDelay` after its end; its metrics use the rows known
by then. So they depend on the data alone, not on when somebody looked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.monitoring_policy import Truth
from mlspec.resource import seconds
from mlspec.sql import analyse
from mlspec_runtime.monitor import metrics
from mlspec_runtime.monitor.metrics import Joined
from mlspec_runtime.monitor.reference import to_float
from mlspec_runtime.monitor.store import Store, Window, dump
from mlspec_runtime.task import Document, TaskError

_KEPT = 30 * 86_400 * 1_000_000
"""How long the rows of a final window wait for late companions, beyond twice `maxDelay`."""
_NOTHING: Document = {"rows": 0, "known": 0, "complete": True, "metrics": {}}


@dataclass(frozen=True, slots=True)
class Source:
    """Where outcomes come from. `path` is relative to the storage root."""

    path: str
    dataset: DatasetSpec
    spec: Truth


def settle(
    store: Store, windows: Sequence[Window], source: Source, root: Path, pull: Callable[[str], None], clock: int,
    length: int, lateness: int, wanted: Sequence[str],
) -> list[str]:  # fmt: skip
    """Write the performance of every window that has become final, or that changed since. Returns problems in words.

    `pull` brings a path below the root, only when a window may be judged. `clock`, `length` and `lateness` in microseconds;
    `wanted` are metrics that alerts look at.
    """
    before = {
        start: (revision, truth, document)
        for start, revision, truth, document in store.execute(
            "SELECT start, revision, truth, document ->> '$.complete' FROM performance"
        )
    }
    due = [
        window
        for window in windows
        if window.start + length + lateness <= clock and _stale(window, source, before.get(window.start))
    ]
    if not due:
        return []
    pull(source.path)
    with duckdb.connect() as database:
        types = _load(database, root / source.path / "data.parquet", source, clock)
        problems = []
        for window in due:
            rows = store.scores(window.start)
            if not window.rows:
                _write(store, window, source, window.start + length + lateness, _NOTHING)
            if sum(part.num_rows for part in rows) < max(window.rows, 1):
                continue  # nothing was answered, or so long ago that the rows are gone and the verdict stays
            table = pa.concat_tables(rows, promote_options="permissive")
            if any(pa.types.is_null(table.schema.field(f"key{place}").type) for place in range(len(types))):
                names = ", ".join(f"input.{name}" for name in source.spec.key)
                problems = [f"the request log lacks {names}, so predictions cannot be joined with the truth"]
                continue
            _settle(store, window, source, _joined(database, table, types), clock, length, lateness, wanted)
    oldest = clock - 2 * int(seconds(source.spec.max_delay) * 1e6) - _KEPT - length
    with store.transaction():
        store.execute(
            "DELETE FROM scores WHERE start < ? AND start IN (SELECT start FROM performance)", oldest
        )
    return problems


def _stale(window: Window, source: Source, before: tuple[int, str, Any] | None) -> bool:
    """Whether a window was never judged, got rows since, or lacked outcomes that a newer snapshot may have."""
    if before is None:
        return True
    revision, truth, complete = before
    return revision != window.revision or (truth != source.path and not complete)


def _load(database: duckdb.DuckDBPyConnection, path: Path, source: Source, clock: int) -> list[str]:
    """Make the table `truth` (keys, label, known) of what is known by now; returns the types of the keys."""
    time = source.dataset.time
    if time is None:
        raise TaskError(
            "the dataset of the ground truth has no time", "add `time: {event: ..., known: ...}` to it"
        )
    known = f'"{time.known or time.event}"::TIMESTAMPTZ'
    if not time.known and time.delay:
        known = f"{known} + INTERVAL {int(seconds(time.delay) * 1e6)} MICROSECOND"
    label = analyse(source.spec.label)
    if label.problem is not None:
        raise TaskError(f"`truth.label` of the policy: {label.problem}: {source.spec.label}", label.hint)
    keys = ", ".join(f'"{name}" AS key{place}' for place, name in enumerate(source.spec.key))
    groups = ", ".join(f"key{place}" for place in range(len(source.spec.key)))
    try:
        database.execute("SET TimeZone = 'UTC'")
        database.execute(
            f"CREATE TABLE truth AS SELECT {groups}, arg_min(label, known) AS label, epoch_us(min(known)) AS known "
            f"FROM (SELECT {keys}, ({label.sql}) AS label, {known} AS known FROM read_parquet(?)) "
            f"WHERE label IS NOT NULL AND epoch_us(known) <= ? GROUP BY {groups}",
            [str(path), clock],
        )
    except duckdb.Error as error:
        raise TaskError(
            f"the ground truth cannot be read: {str(error).splitlines()[0]}",
            "check `truth.key` and `truth.label` of the policy against the columns of its dataset",
        ) from None
    described = database.execute("DESCRIBE truth").fetchall()
    return [str(kind) for _, kind, *_ in described[: len(source.spec.key)]]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one window that have an outcome, and how many there are in all."""

    joined: Joined
    known: npt.NDArray[np.int64]
    rows: int


def _joined(database: duckdb.DuckDBPyConnection, table: pa.Table, types: Sequence[str]) -> _Rows:
    asked = table.append_column("place", pa.array(np.arange(table.num_rows)))
    same = " AND ".join(
        f"TRY_CAST(a.key{place} AS {kind}) = t.key{place}" for place, kind in enumerate(types)
    )
    database.register("asked", asked)
    found = database.sql(
        f"SELECT a.place, t.label, t.known FROM asked a JOIN truth t ON {same} ORDER BY a.place"
    ).to_arrow_table()
    database.unregister("asked")
    rows = table.take(found.column("place"))
    known = found.column("known").cast(pa.int64()).to_numpy()
    return _Rows(_comparable(found.column("label"), rows), known, table.num_rows)


def _comparable(label: pa.ChunkedArray, rows: pa.Table) -> Joined:
    """Labels and predictions in one type: numbers when the labels are numbers or booleans, else texts."""
    prediction, probability = rows.column("prediction"), rows.column("probability")
    chance = (
        None
        if pa.types.is_null(probability.type) or pa.types.is_nested(probability.type)
        else to_float(probability)
    )
    if chance is not None and np.isnan(chance).any():
        chance = None
    if pa.types.is_string(label.type) or pa.types.is_large_string(label.type):
        texts = np.asarray(label.to_pylist(), dtype=str)
        said = np.asarray([str(value) for value in prediction.to_pylist()], dtype=str)
        return Joined(texts, said, chance)
    said = to_float(prediction)
    if pa.types.is_string(prediction.type) and pa.types.is_boolean(label.type):
        said = np.asarray([float(str(value).lower() in ("true", "1")) for value in prediction.to_pylist()])
    numbers = to_float(label)
    whole = pa.types.is_boolean(label.type) or pa.types.is_integer(label.type)
    return Joined(numbers.astype(np.int64) if whole else numbers, said, chance)


def _settle(
    store: Store, window: Window, source: Source, rows: _Rows, clock: int, length: int, lateness: int,
    wanted: Sequence[str],
) -> None:  # fmt: skip
    final = final_time(
        rows.known, rows.rows, window.start + length, lateness,
        int(seconds(source.spec.max_delay) * 1e6), source.spec.completeness,
    )  # fmt: skip
    if final > clock:
        return
    seen = rows.known <= final
    part = Joined(
        rows.joined.label[seen],
        rows.joined.prediction[seen],
        None if rows.joined.probability is None else rows.joined.probability[seen],
    )
    known = int(seen.sum())
    names = list(dict.fromkeys([*wanted, *(metrics.fitting(part) if known else [])]))
    document: Document = {
        "rows": rows.rows,
        "known": known,
        "complete": known >= source.spec.completeness * rows.rows,
        "metrics": metrics.measure(part, names) if known else {},
    }
    _write(store, window, source, final, document)


def _write(store: Store, window: Window, source: Source, final: int, document: Document) -> None:
    with store.transaction():
        store.execute(
            "INSERT OR REPLACE INTO performance VALUES (?, ?, ?, ?, ?)",
            window.start, window.revision, source.path, final, dump(document),
        )  # fmt: skip


def final_time(
    known: npt.NDArray[np.int64], rows: int, end: int, lateness: int, max_delay: int, completeness: float
) -> int:
    """When a window is final: `completeness` of its rows have an outcome, at the latest `max_delay` after its end."""
    earliest, latest = end + lateness, max(end + lateness, end + max_delay)
    needed = math.ceil(completeness * rows - 1e-9)
    if needed <= 0:
        return earliest
    if len(known) < needed:
        return latest
    return min(latest, max(earliest, int(np.partition(known, needed - 1)[needed - 1])))


def performances(store: Store) -> Mapping[int, tuple[int, int, Document]]:
    """Window start -> (revision, final time, document)."""
    found = store.execute("SELECT start, revision, final FROM performance ORDER BY start")
    documents = store.documents("SELECT document FROM performance ORDER BY start")
    return {
        start: (revision, final, document)
        for (start, revision, final), document in zip(found, documents, strict=True)
    }
