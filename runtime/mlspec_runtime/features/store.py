"""The online store of a set: one SQLite file beside its events. `materialise` creates it, `online` reads it, `ingest` adds.

Two tables. `base` has one packed row per key (its materialised events as an Arrow stream), so a key is one lookup. `late` has what
was ingested since, one row per event (msgpack) under its identity, so a delivery that is repeated changes nothing, and the order of
deliveries does not matter. `late.seq` tells readers which keys have changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pyarrow as pa

from mlspec_runtime.features.definition import EVENT, ID, KNOWN, SetPlan

SCHEMA = """
CREATE TABLE base (key TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE late (seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, id INTEGER NOT NULL, data BLOB NOT NULL,
                   UNIQUE (key, id));
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


def key_text(values: Sequence[Any]) -> str:
    """The store's form of a key: a JSON list; dates in ISO form, timestamps as int microseconds."""
    return orjson.dumps(list(values)).decode()


def create(path: Path, events: pa.Table, plan: SetPlan) -> int:
    """Write a new store with these sorted events; returns the number of keys."""
    packed = events.select([EVENT, KNOWN, *plan.inputs, ID]).combine_chunks()
    with closing(sqlite3.connect(path)) as session:
        session.executescript(SCHEMA)
        schema = events.schema.remove_metadata().serialize().to_pybytes()
        session.execute("INSERT INTO meta VALUES ('schema', ?)", (schema,))
        starts = _starts(events, plan)
        session.executemany("INSERT INTO base VALUES (?, ?)", _packed(events, packed, plan, starts))
        session.commit()
        session.execute("PRAGMA journal_mode = WAL")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return len(starts)


def _starts(events: pa.Table, plan: SetPlan) -> list[int]:
    """First row of each key."""
    change = np.zeros(events.num_rows, np.bool_)
    change[:1] = True
    for column in plan.key:
        coded = (
            np.asarray(events[column].combine_chunks().dictionary_encode().indices)
            if events.num_rows
            else change
        )
        change[1:] |= coded[1:] != coded[:-1]
    return [int(row) for row in np.flatnonzero(change)]


def _packed(
    events: pa.Table, packed: pa.Table, plan: SetPlan, starts: list[int]
) -> Iterator[tuple[str, bytes]]:
    keys = [plain_values(events[column].take(pa.array(starts, pa.int64()))) for column in plan.key]
    for place, start in enumerate(starts):
        stop = starts[place + 1] if place + 1 < len(starts) else events.num_rows
        yield key_text([column[place] for column in keys]), pack(packed.slice(start, stop - start))


def plain_values(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Values as they stand in keys: timestamps as int microseconds."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    found: list[Any] = values.to_pylist()
    return found


def pack(events: pa.Table) -> bytes:
    """Events as an Arrow stream of one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema) as writer:
        writer.write_table(events)
    return bytes(sink.getvalue())


def _from_text(key: list[Any], schema: pa.Schema, count: int) -> list[Any]:
    """Key values of `key_text`, back in their types."""
    dated = [pa.types.is_date(one.type) for one in list(schema)[:count]]
    return [date.fromisoformat(one) if is_date else one for one, is_date in zip(key, dated, strict=True)]


def pack_rows(events: pa.Table) -> list[bytes]:
    """Each event by itself: its values as a msgpack list, times and dates as numbers."""
    columns = [
        plain_values(events[one.name].cast(pa.int32()) if pa.types.is_date(one.type) else events[one.name])
        for one in events.schema
    ]
    return [msgspec.msgpack.encode(row) for row in zip(*columns, strict=True)]


class Store:
    """One connection to a store, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._session = sqlite3.connect(f"file:{path}?mode=rw", uri=True, check_same_thread=False, timeout=30)
        self._session.execute("PRAGMA synchronous = NORMAL")
        self.version = self._version()
        """Changes when another connection has written."""
        self._seen = self._newest()
        schema = self._session.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()[0]
        self.schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(schema))
        """Columns of the events, the key's first."""
        self.packed = pa.schema(list(self.schema)[self.schema.get_field_index(EVENT) :])
        """The same without the key, as they are packed."""

    def events(self, key: str) -> pa.Table | None:
        """All events of a key, not sorted, or None without any."""
        base = self._session.execute("SELECT data FROM base WHERE key = ?", (key,)).fetchone()
        late = self._session.execute("SELECT data FROM late WHERE key = ?", (key,)).fetchall()
        parts = [pa.ipc.open_stream(base[0]).read_all()] if base else []
        if late:
            rows = zip(*(msgspec.msgpack.decode(data) for (data,) in late), strict=True)
            parts.append(
                pa.table(
                    [pa.array(one, field.type) for one, field in zip(rows, self.packed, strict=True)],
                    self.packed,
                )
            )
        if not parts:
            return None
        return pa.concat_tables(parts)

    def late(self) -> pa.Table:
        """What was ingested since the set was materialised, with its keys; not sorted."""
        rows = self._session.execute("SELECT key, data FROM late").fetchall()
        count = len(self.schema) - len(self.packed)
        columns: list[list[Any]] = [[] for _ in self.schema]
        for key, data in rows:
            values = (*_from_text(orjson.loads(key), self.schema, count), *msgspec.msgpack.decode(data))
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        arrays = [pa.array(one, field.type) for one, field in zip(columns, self.schema, strict=True)]
        return pa.table(arrays, self.schema)

    def changed(self) -> list[str]:
        """Keys with new events since the last call; empty and cheap if nobody has written."""
        version = self._version()
        if version == self.version:
            return []
        self.version = version
        rows = self._session.execute("SELECT key, seq FROM late WHERE seq > ?", (self._seen,)).fetchall()
        self._seen = max([self._seen, *(seq for _, seq in rows)])
        return list({key for key, _ in rows})

    def add(self, events: Mapping[str, Sequence[tuple[int, bytes]]]) -> int:
        """Add events by key as (identity, packed row); what is there already stays. Returns how many were new."""
        before = self._session.total_changes
        with self._session:
            self._session.executemany(
                "INSERT OR IGNORE INTO late (key, id, data) VALUES (?, ?, ?)",
                [(key, identity, data) for key, rows in events.items() for identity, data in rows],
            )
        return self._session.total_changes - before

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _version(self) -> int:
        return int(self._session.execute("PRAGMA data_version").fetchone()[0])

    def _newest(self) -> int:
        return int(self._session.execute("SELECT coalesce(max(seq), 0) FROM late").fetchone()[0])
