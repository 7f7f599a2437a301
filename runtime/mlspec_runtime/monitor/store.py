"""The memory of one policy: `monitors/<policy>/state.sqlite`.

Whoever writes does so in one `transaction`; a process that is killed leaves the state before or after it. Counts may be
dropped and counted again from the log (`forget`); requests, messages and events are kept for good. Whoever collects the
requests knows the state by its `epoch` and its place in it by `seq`, which only grows.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlspec_runtime.monitor.reference import Counts
from mlspec_runtime.task import Document

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
-- what was counted: `start` is the first microsecond (UTC) of a window, `revision` grows with each batch of rows
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, rows INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS windows (start INTEGER PRIMARY KEY, revision INTEGER NOT NULL, failed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS served (start INTEGER, model TEXT, rows INTEGER NOT NULL, first INTEGER NOT NULL,
    last INTEGER NOT NULL, PRIMARY KEY (start, model));
CREATE TABLE IF NOT EXISTS counts (start INTEGER, model TEXT, name TEXT, counts BLOB NOT NULL,
    PRIMARY KEY (start, model, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (id INTEGER PRIMARY KEY, start INTEGER NOT NULL, rows BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS scores_start ON scores (start);
-- what was judged
CREATE TABLE IF NOT EXISTS performance (start INTEGER PRIMARY KEY, revision INTEGER NOT NULL, truth TEXT NOT NULL,
    final INTEGER NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (alert TEXT, start INTEGER, revision INTEGER NOT NULL, judged INTEGER NOT NULL,
    document TEXT NOT NULL, PRIMARY KEY (alert, start));
CREATE TABLE IF NOT EXISTS alerts (name TEXT PRIMARY KEY, definition TEXT NOT NULL, document TEXT NOT NULL);
-- what followed
CREATE TABLE IF NOT EXISTS events (alert TEXT, start INTEGER, state TEXT, at INTEGER NOT NULL, sentence TEXT NOT NULL,
    PRIMARY KEY (alert, start, state));
CREATE TABLE IF NOT EXISTS triggers (id TEXT PRIMARY KEY, mode TEXT NOT NULL, at INTEGER NOT NULL, document TEXT NOT NULL,
    seq INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, receiver TEXT NOT NULL,
    body TEXT NOT NULL, created REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', problem TEXT NOT NULL DEFAULT '');
"""
_BEFORE_SEQ = {"made_for": "", "job": "", "made": 0.0, "expires": 7 * 86_400.0, "episode": 0}
"""What requests of a state say that was written before they were numbered: made for nothing that git says now."""
_COUNTED = ("files", "windows", "served", "counts", "scores", "performance", "verdicts", "alerts")


@dataclass(frozen=True, slots=True)
class Window:
    """One window with rows. `models` maps run name to (rows, first, last); times are microseconds, UTC."""

    start: int
    revision: int
    failed: int
    models: Mapping[str, tuple[int, int, int]]

    @property
    def rows(self) -> int:
        """Answered rows of all models."""
        return sum(rows for rows, _, _ in self.models.values())

    @property
    def last(self) -> int:
        """Moment of the last row."""
        return max((last for _, _, last in self.models.values()), default=self.start)


class Store:
    """An open state file. Not shared between threads; the step's lock keeps other processes out."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside, or none."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement and all its rows."""
        return self._sql.execute(statement, values).fetchall()

    def setting(self, name: str) -> str | None:
        """A remembered value."""
        found = self.execute("SELECT value FROM settings WHERE name = ?", name)
        return str(found[0][0]) if found else None

    def remember(self, name: str, value: str) -> None:
        """Set a remembered value."""
        self.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", name, value)

    def number(self) -> int:
        """The number of the next request. It is never given again, also when requests are deleted."""
        given = int(self.setting("seq") or 0) + 1
        self.remember("seq", str(given))
        return given

    def migrate(self) -> None:
        """Bring the state of an earlier version up to date, and give a new one its name."""
        with self.transaction():
            if all(name != "seq" for _, name, *_ in self.execute("PRAGMA table_info(triggers)")):
                self.execute("ALTER TABLE triggers ADD COLUMN seq INTEGER NOT NULL DEFAULT 0")
                for id_, text in self.execute("SELECT id, document FROM triggers ORDER BY at, id"):
                    seq = self.number()
                    document = _BEFORE_SEQ | json.loads(text) | {"seq": seq}
                    self.execute(
                        "UPDATE triggers SET seq = ?, document = ? WHERE id = ?", seq, dump(document), id_
                    )
            if self.setting("epoch") is None:
                self.remember("epoch", uuid.uuid4().hex)

    def forget(self) -> None:
        """Drop everything that comes from the log, so that it is counted again."""
        for table in _COUNTED:
            self.execute(f"DELETE FROM {table}")

    def add_rows(self, start: int, model: str, rows: int, first: int, last: int) -> None:
        """Add answered rows of a model to a window."""
        self.execute(
            "INSERT INTO served VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET rows = rows + excluded.rows, "
            "first = min(first, excluded.first), last = max(last, excluded.last)",
            start, model, rows, first, last,
        )  # fmt: skip

    def touch(self, start: int, failed: int) -> None:
        """Note that a window got rows, of which `failed` were not answered."""
        self.execute(
            "INSERT INTO windows VALUES (?, 1, ?) ON CONFLICT DO UPDATE SET revision = revision + 1, "
            "failed = failed + excluded.failed",
            start, failed,
        )  # fmt: skip

    def add_counts(self, start: int, model: str, name: str, counts: Counts) -> None:
        """Add counts of one column (`feature/x`, `prediction/probability`)."""
        found = self.execute(
            "SELECT counts FROM counts WHERE start = ? AND model = ? AND name = ?", start, model, name
        )
        total = counts + np.frombuffer(found[0][0], dtype="<i8") if found else counts
        self.execute(
            "INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?)",
            start, model, name, total.astype("<i8").tobytes(),
        )  # fmt: skip

    def add_scores(self, start: int, rows: pa.Table) -> None:
        """Keep the answered rows of a window (keys, prediction, probability) until their outcome is known."""
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
            writer.write_table(rows)
        self.execute("INSERT INTO scores (start, rows) VALUES (?, ?)", start, sink.getvalue().to_pybytes())

    def scores(self, start: int) -> list[pa.Table]:
        """The answered rows of a window, as they came."""
        found = self.execute("SELECT rows FROM scores WHERE start = ? ORDER BY id", start)
        return [pa.ipc.open_stream(pa.py_buffer(blob)).read_all() for (blob,) in found]

    def counts(self, start: int) -> dict[str, dict[str, Counts]]:
        """Counts of a window: model -> column -> counts."""
        result: dict[str, dict[str, Counts]] = {}
        for model, name, blob in self.execute(
            "SELECT model, name, counts FROM counts WHERE start = ? ORDER BY model, name", start
        ):
            result.setdefault(model, {})[name] = np.frombuffer(blob, dtype="<i8").astype(np.int64)
        return result

    def windows(self) -> list[Window]:
        """All windows with rows, oldest first."""
        models: dict[int, dict[str, tuple[int, int, int]]] = {}
        for start, model, rows, first, last in self.execute("SELECT * FROM served ORDER BY start, model"):
            models.setdefault(start, {})[model] = (rows, first, last)
        return [
            Window(start, revision, failed, models.get(start, {}))
            for start, revision, failed in self.execute("SELECT * FROM windows ORDER BY start")
        ]

    def documents(self, query: str, *values: Any) -> list[Document]:
        """The JSON documents that a one-column query finds."""
        return [json.loads(text) for (text,) in self.execute(query, *values)]


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """Open (or make) the state file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        store = Store(connection)
        store.migrate()
        yield store


def dump(document: Mapping[str, Any]) -> str:
    """JSON text of a document that is kept in the state."""
    return json.dumps(document, sort_keys=True)
