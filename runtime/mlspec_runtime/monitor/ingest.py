"""The request log becomes counts: each Parquet file exactly once.

Counts of a batch of files, the rows that wait for their outcome, and the marks of the files are one transaction. A
process that dies counts the batch again from nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec_runtime.monitor import reference
from mlspec_runtime.monitor.reference import Bins, Counts, Reference
from mlspec_runtime.monitor.store import Store

BATCH = 64
"""Files per transaction."""
MODEL_UNKNOWN = "-"


@dataclass(slots=True)
class _Batch:
    """What some files add."""

    files: dict[str, int] = field(default_factory=dict)
    served: dict[tuple[int, str], tuple[int, int, int]] = field(default_factory=dict)
    failed: dict[int, int] = field(default_factory=dict)
    counts: dict[tuple[int, str, str], Counts] = field(default_factory=dict)
    scores: dict[int, list[pa.Table]] = field(default_factory=dict)
    ahead: int | None = None


def ingest(
    store: Store, log: Path, window: int, references: Mapping[str, Reference | None], keys: Sequence[str]
) -> tuple[int, list[str]]:
    """Add all new files of `log` to the counts of windows of `window` microseconds.

    `references` by run name (see `reference.Library`). `keys`: input columns that identify a row in the ground
    truth; rows are kept for the join when there are any. Returns the number of new rows and the names of files that cannot be read (tried again later).
    """
    known = ingested(store)
    names = sorted(path.name for path in log.glob("*.parquet") if not path.name.startswith("."))
    fresh = [name for name in names if name not in known]
    broken: list[str] = []
    rows = 0
    for position in range(0, len(fresh), BATCH):
        batch = _Batch()
        for name in fresh[position : position + BATCH]:
            try:
                table = _read(log / name, references, keys)
            except (pa.ArrowException, OSError):
                broken.append(name)
                continue
            _add(batch, table, window, references, keys)
            batch.files[name] = table.num_rows
            rows += table.num_rows
        _commit(store, batch)
    return rows, broken


def ingested(store: Store) -> set[str]:
    """Names of the files that are counted."""
    return {name for (name,) in store.execute("SELECT name FROM files")}


def _read(path: Path, references: Mapping[str, Reference | None], keys: Sequence[str]) -> pa.Table:
    """The columns that are needed, under the names that the log gives them."""
    file = pq.ParquetFile(path)
    present = set(file.schema_arrow.names)
    wanted = {"at", "received", "model", "status", "prediction", "probability"}
    wanted |= {f"input.{name}" for name in keys}
    models = pc.unique(file.read(columns=["model"]).column("model")).to_pylist() if "model" in present else []
    for known in (references[str(model)] for model in models):
        if known:
            wanted |= {f"{prefix}.{name}" for name in known.features for prefix in ("feature", "input")}
    if missing := {"at", "received"} - present:
        raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
    return file.read(columns=sorted(wanted & present))


def _add(
    batch: _Batch,
    table: pa.Table,
    window: int,
    references: Mapping[str, Reference | None],
    keys: Sequence[str],
) -> None:
    table = table.filter(pc.and_(pc.is_valid(table.column("at")), pc.is_valid(table.column("received"))))
    if not table.num_rows:
        return
    at, received = (_microseconds(table.column(name)) for name in ("at", "received"))
    ahead = min(
        0, int((at - received).max())
    )  # the clock of the data never runs ahead of the clock on the wall
    batch.ahead = ahead if batch.ahead is None else max(batch.ahead, ahead)
    for start, model, part in _parts(table, at, window):
        answered = part.filter(_answered(part)) if "status" in part.column_names else part
        batch.failed[start] = batch.failed.get(start, 0) + part.num_rows - answered.num_rows
        if not answered.num_rows:
            continue
        times = _microseconds(answered.column("at"))
        rows, first, last = batch.served.get((start, model), (0, int(times[0]), int(times[0])))
        batch.served[start, model] = (
            rows + answered.num_rows, min(first, int(times.min())), max(last, int(times.max())),
        )  # fmt: skip
        if known := references[model]:
            for name, bins, column in _columns(answered, known):
                found = reference.count(bins, column)
                place = (start, model, name)
                batch.counts[place] = batch.counts[place] + found if place in batch.counts else found
        if keys:
            batch.scores.setdefault(start, []).append(_scores(answered, keys))


def _microseconds(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    values: npt.NDArray[np.int64] = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return values


def _answered(table: pa.Table) -> pa.ChunkedArray:
    status = pc.fill_null(table.column("status").cast(pa.int64()), 200)
    return pc.and_(pc.greater_equal(status, 200), pc.less(status, 300))


def _parts(table: pa.Table, at: npt.NDArray[np.int64], window: int) -> Iterator[tuple[int, str, pa.Table]]:
    """Rows by window start and model."""
    starts = at // window * window
    if "model" in table.column_names:
        models = pc.fill_null(table.column("model").cast(pa.string()), MODEL_UNKNOWN)
        encoded = models.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    else:
        names, codes = [MODEL_UNKNOWN], np.zeros(len(at), dtype=np.int64)
    for start in np.unique(starts):
        for code, name in enumerate(names):
            chosen = (starts == start) & (codes == code)
            if chosen.all():
                yield int(start), name, table
            elif chosen.any():
                yield int(start), name, table.filter(pa.array(chosen))


def _columns(table: pa.Table, known: Reference) -> Iterator[tuple[str, Bins, pa.ChunkedArray]]:
    """Columns of the model: computed features first, else the request's inputs. One that is not logged is left out."""
    present = set(table.column_names)
    for name, bins in known.features.items():
        if column := next((one for one in (f"feature.{name}", f"input.{name}") if one in present), None):
            yield f"feature/{name}", bins, table.column(column)
    for name, bins in known.predictions.items():
        if name in present:
            yield f"prediction/{name}", bins, table.column(name)


def _scores(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Keys as `key0`, `key1`, ..., prediction, probability; a column that is not logged is null."""
    columns = {f"key{place}": f"input.{name}" for place, name in enumerate(keys)}
    columns |= {"prediction": "prediction", "probability": "probability"}
    present = set(table.column_names)
    return pa.table(
        {
            name: table.column(source) if source in present else pa.nulls(table.num_rows)
            for name, source in columns.items()
        }
    )


def _commit(store: Store, batch: _Batch) -> None:
    with store.transaction():
        for (start, model), (rows, first, last) in batch.served.items():
            store.add_rows(start, model, rows, first, last)
        for (start, model, name), counts in batch.counts.items():
            store.add_counts(start, model, name, counts)
        for start, tables in batch.scores.items():
            store.add_scores(start, pa.concat_tables(tables, promote_options="permissive"))
        for start, failed in batch.failed.items():
            store.touch(start, failed)
        for name, rows in batch.files.items():
            store.execute("INSERT INTO files VALUES (?, ?)", name, rows)
        if batch.ahead is not None:
            before = store.setting("ahead")
            store.remember("ahead", str(batch.ahead if before is None else max(int(before), batch.ahead)))


def watermark(store: Store, now: float) -> int | None:
    """The clock of the log in microseconds, at `now` (seconds) on the wall: at + (now - received) of its newest row.

    A live graph's clock is the clock on the wall, a replay's is the replayed time. None before the first row.
    """
    ahead = store.setting("ahead")
    return None if ahead is None else int(now * 1_000_000) + int(ahead)
