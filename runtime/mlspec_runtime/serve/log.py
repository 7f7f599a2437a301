"""The request log: every answered request as Parquet rows, written in the background.

The loop only appends to a bounded ring and never waits: when the ring is full, the entry is dropped and counted. A thread
turns the ring into files `<root>/logs/<graph>/<utc time>-<uuid>.parquet` (written under another name, then renamed);
shadow steps go to the folder `shadow` beside them. Monitoring reads the files; where it cannot see this disk, `ship` sends
them on.

Columns: `id` string, `at` timestamp[us, UTC] (the moment of the question), `received` timestamp[us, UTC], `model` string
(run names, joined by `+` if several), `status` int32, `input.<column>`, `feature.<name>`, `prediction` (double or
string), `probability` (double; of the positive class). A request of several rows has one log row for each, with ids
`<id>/<row>`.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlspec_runtime.serve.ship import Shipper
from mlspec_runtime.serve.v2 import Array, Columns, Request, text

CAPACITY = 65_536
"""Rows that may wait in memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request (or a group of its rows) with its answer. Arrays have `request.rows` values."""

    request: Request
    at: Array | None
    models: tuple[str, ...]
    status: int
    features: Columns
    answer: Columns
    """Empty when the request failed."""
    shadow: bool = False


class RequestLog:
    """Bounded ring and writer thread. `put` is called from the loop only. `ship` is told of new files."""

    def __init__(
        self,
        folder: Path,
        sample: float,
        flush: float,
        capacity: int = CAPACITY,
        ship: Shipper | None = None,
    ) -> None:
        self.sample = sample
        self.flush = flush
        self.written = 0
        self._dropped = 0
        self._ship = ship
        self._folder = folder
        self._capacity = capacity
        self._ring: deque[Entry] = deque()
        self._rows = 0
        self._taken = 0
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="request-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Rows that monitoring will never see."""
        return self._dropped + (self._ship.dropped if self._ship else 0)

    def put(self, entry: Entry) -> None:
        """Remember an entry, or drop it when the ring is full. The sample is a share of the ids, not of the moments."""
        if self.sample < 1 and not sampled(entry.request.id, self.sample):
            return
        rows = entry.request.rows
        if self._rows - self._taken + rows > self._capacity:
            self._dropped += rows
            return
        self._rows += rows
        self._ring.append(entry)
        if self._rows - self._taken > self._capacity // 2:
            self._wake.set()

    def close(self) -> None:
        """Write what is left, and send it, and stop the threads."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        if self._ship is not None:
            self._ship.close()

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(self.flush)
            self._wake.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        entries = []
        while self._ring:
            entries.append(self._ring.popleft())
        groups: dict[tuple[object, ...], list[Entry]] = {}
        for entry in entries:
            groups.setdefault(_schema(entry), []).append(entry)
        for group in groups.values():
            rows = sum(entry.request.rows for entry in group)
            try:
                write(self._folder / "shadow" if group[0].shadow else self._folder, table(group))
                self.written += rows
            except Exception as error:  # a full disk must not end the thread
                self._dropped += rows
                print(
                    f"request log: {rows} rows lost: {type(error).__name__}: {error}",
                    file=sys.stderr,
                    flush=True,
                )
        self._taken += sum(entry.request.rows for entry in entries)
        if groups and self._ship is not None:
            self._ship.wake()


def sampled(identity: str, share: float) -> bool:
    """Whether a request with this id is in the sample."""
    digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _schema(entry: Entry) -> tuple[object, ...]:
    """Entries with the same value fit into one table."""
    columns, features, answer = entry.request.columns, entry.features, entry.answer
    return (
        entry.shadow,
        *columns,
        *[values.dtype.kind for values in columns.values()],
        None,
        *features,
        *[values.dtype.kind for values in features.values()],
        None,
        *answer,
        *[(values.dtype.kind, values.ndim) for values in answer.values()],
    )


def table(entries: list[Entry]) -> pa.Table:
    """The rows of entries with the same schema. NaN becomes NULL."""
    counts = [entry.request.rows for entry in entries]
    received = np.array([round(entry.request.received * 1e6) for entry in entries], "datetime64[us]").repeat(
        counts
    )
    starts = np.cumsum([0, *counts])
    at = np.concatenate(
        [
            received[start : start + rows] if entry.at is None else entry.at.astype("datetime64[us]")
            for entry, start, rows in zip(entries, starts, counts, strict=False)
        ]
    )
    moment = pa.timestamp("us", tz="UTC")
    ids = [
        identity if rows == 1 else f"{identity}/{row}"
        for identity, rows in ((text(entry.request.id), entry.request.rows) for entry in entries)
        for row in range(rows)
    ]
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.string()),
        "at": pa.array(at, moment),
        "received": pa.array(received, moment),
        "model": pa.array(
            np.array(["+".join(entry.models) for entry in entries], object).repeat(counts), pa.string()
        ),
        "status": pa.array(np.array([entry.status for entry in entries], np.int32).repeat(counts)),
    }
    first = entries[0]
    for name in first.request.columns:
        columns[f"input.{name}"] = _arrow(entry.request.columns[name] for entry in entries)
    for name in first.features:
        columns[f"feature.{name}"] = _arrow(entry.features[name] for entry in entries)
    rows = len(ids)
    for name in ("prediction", "probability"):
        if name in first.answer and first.answer[name].ndim == 1:
            values = _arrow(entry.answer[name] for entry in entries)
            columns[name] = values if pa.types.is_string(values.type) else values.cast(pa.float64())
        else:
            columns[name] = pa.nulls(rows, pa.float64())
    return pa.table(columns)


def _arrow(arrays: Iterable[Array]) -> pa.Array:
    values = np.concatenate(list(arrays))
    match values.dtype.kind:
        case "O" | "U" | "S":
            return pa.array([text(value) for value in values.tolist()], pa.string())
        case "M" | "m":
            return pa.array(values)
        case _:
            return pa.array(values, from_pandas=True)


def write(folder: Path, rows: pa.Table) -> Path:
    """Write one file that readers see whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex}.parquet"
    temporary = folder / f".{name}.part"
    pq.write_table(rows, temporary)
    return temporary.replace(folder / name)
