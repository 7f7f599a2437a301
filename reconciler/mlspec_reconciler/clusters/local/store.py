"""The store of the local cluster: objects, run history, notes and the table of children, in one SQLite file.

The command line writes objects, the supervisor writes statuses; each call is one transaction, so a process may be killed
anywhere. Versions come from one counter that moves with every change of an object, so "did anything change?" is one read.
WAL with `synchronous=NORMAL`: nothing is lost when a process dies; when the power fails, the last moments may be lost, but
in order, so an inventory never misses an object that is there.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlspec.manifest import Key, digest
from mlspec.workload import Phase
from mlspec_reconciler.cluster import Conflict, Object, Unavailable

JSON = Mapping[str, Any]

FORMAT = 1
CONTROLLER = "controller"
"""Name of the supervisor's program that keeps the target as applied."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (
    api_version TEXT, kind TEXT, namespace TEXT, name TEXT,
    uid TEXT NOT NULL UNIQUE, body TEXT NOT NULL, annotations TEXT NOT NULL, status TEXT NOT NULL DEFAULT '{}',
    version INTEGER NOT NULL, deleting INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (api_version, kind, namespace, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_version ON objects (version);
CREATE TABLE IF NOT EXISTS runs (
    name TEXT PRIMARY KEY, uid TEXT NOT NULL, title TEXT NOT NULL, phase TEXT NOT NULL, message TEXT NOT NULL DEFAULT '',
    results TEXT NOT NULL DEFAULT '{}', attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS children (
    token TEXT PRIMARY KEY, uid TEXT NOT NULL, step TEXT NOT NULL, pid INTEGER, started REAL NOT NULL,
    attempt INTEGER NOT NULL, detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
"""
OBJECT = "api_version, kind, namespace, name, body, status, uid, version, annotations, deleting"
_FAILING = "failing "
"""Prefix of the rows of `meta` about programs."""
RUN = "name, title, phase, message, results, attempts, created, started, finished"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One line of the run history. Times are seconds since the epoch; `attempts` counts started processes."""

    name: str
    title: str
    phase: Phase
    message: str
    results: Mapping[str, JSON]
    attempts: int
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True, slots=True)
class Child:
    """A process that the supervisor started, or was about to start when `pid` is None.

    `token` is in the environment of the process, so it is found and never mistaken, whatever happened to the supervisor.
    """

    token: str
    uid: str
    """Of the object that it serves; empty for the supervisor's own programs."""
    step: str
    pid: int | None
    started: float
    attempt: int
    detail: JSON = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failing:
    """A program of the supervisor's own that ends again and again."""

    failures: int
    """In a row."""
    message: str
    """How it ended the last time."""


class Store:
    """One SQLite file, shared by the threads of this process and by all other processes.

    `id` marks its processes. A copy of the file has another one, so that a copied project leaves the first one's alone.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        try:
            self._base = sqlite3.connect(path, timeout=20, isolation_level=None, check_same_thread=False)
            self._open(path)
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"cannot open {path}: {error}") from error

    def _open(self, path: Path) -> None:
        for attempt in range(100):  # the change to WAL does not wait for other openers, whatever the timeout
            try:
                self._base.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                if attempt == 99:
                    raise
                time.sleep(0.02)
        self._base.execute("PRAGMA synchronous = NORMAL")
        found = self._base.execute("PRAGMA user_version").fetchone()[0]
        if found > FORMAT:
            raise Unavailable(f"{path} was written by a newer mlspec (format {found}); upgrade mlspec")
        if found < FORMAT:
            with self.write():
                for statement in SCHEMA.split(";"):
                    self._base.execute(statement)
                self._base.execute(
                    "INSERT OR IGNORE INTO meta VALUES ('id', ?), ('counter', 0)", (uuid.uuid4().hex,)
                )
                self._base.execute(f"PRAGMA user_version = {FORMAT}")
        made = self._base.execute("SELECT value FROM meta WHERE name = 'id'").fetchone()[0]
        self.id = digest([made, str(path.resolve())])[:32]

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def write(self) -> Iterator[None]:
        """One transaction; a nested one joins it. All or nothing, also when the process is killed."""
        with self._lock:
            if self._depth:
                yield
                return
            self._execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._base.execute(statement, values)
        except sqlite3.Error as error:
            raise Unavailable(f"the local store does not answer: {error}") from error

    def _rows(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._execute(statement, values).fetchall()

    def _next_version(self) -> int:
        rows = self._rows("UPDATE meta SET value = value + 1 WHERE name = 'counter' RETURNING value")
        return int(rows[0][0])

    # Objects

    def counter(self) -> int:
        """The newest version; moves with every change of any object."""
        return int(self._rows("SELECT value FROM meta WHERE name = 'counter'")[0][0])

    def versions(self) -> dict[Key, int]:
        """The version of each object."""
        rows = self._rows("SELECT api_version, kind, namespace, name, version FROM objects")
        return {Key(*row[:4]): row[4] for row in rows}

    def objects(self, since: int = -1) -> list[Object]:
        """Objects that changed after version `since`; all by default."""
        return [
            _object(row) for row in self._rows(f"SELECT {OBJECT} FROM objects WHERE version > ?", (since,))
        ]

    def get(self, key: Key) -> Object | None:
        """One object."""
        where = "api_version = ? AND kind = ? AND namespace = ? AND name = ?"
        rows = self._rows(f"SELECT {OBJECT} FROM objects WHERE {where}", _parts(key))
        return _object(rows[0]) if rows else None

    def put(self, key: Key, body: JSON, annotations: Mapping[str, str], old: Object | None) -> Object:
        """Create (`old` is None), or replace the body. A new Run opens its line in the history."""
        with self.write():
            texts = json.dumps(body), json.dumps(dict(annotations))
            version = self._next_version()
            if old is None:
                uid = uuid.uuid4().hex
                columns = "api_version, kind, namespace, name, uid, body, annotations, version"
                self._rows(
                    f"INSERT INTO objects ({columns}) VALUES (?,?,?,?,?,?,?,?)",
                    (*_parts(key), uid, *texts, version),
                )
                if key.kind == "Run":
                    self._open_run(key.name, uid, str(body["spec"].get("title", key.name)))
            else:
                where = "uid = ?"
                self._rows(
                    f"UPDATE objects SET body = ?, annotations = ?, version = ? WHERE {where}",
                    (*texts, version, old.uid),
                )
            stored = self.get(key)
            if stored is None:
                raise Conflict(f"{key} was deleted meanwhile")
            return stored

    def set_status(self, uid: str, status: JSON) -> None:
        """Replace the status; nothing when it is equal already or the object is gone."""
        text = json.dumps(status)
        with self.write():
            if self._rows("SELECT 1 FROM objects WHERE uid = ? AND status <> ?", (uid, text)):
                self._rows(
                    "UPDATE objects SET status = ?, version = ? WHERE uid = ?",
                    (text, self._next_version(), uid),
                )

    def request_deletion(self, uid: str) -> None:
        """Remove an object that has no processes at once, otherwise leave the rest to the supervisor."""
        with self.write():
            if not self._rows("SELECT 1 FROM children WHERE uid = ? LIMIT 1", (uid,)):
                self.remove(uid)
            elif self._rows("SELECT 1 FROM objects WHERE uid = ? AND NOT deleting", (uid,)):
                version = self._next_version()
                self._rows("UPDATE objects SET deleting = 1, version = ? WHERE uid = ?", (version, uid))

    def remove(self, uid: str) -> None:
        """Forget an object. Its history stays; a run that had not ended never will."""
        with self.write():
            if self._rows("DELETE FROM objects WHERE uid = ? RETURNING 1", (uid,)):
                self._next_version()
            message = "deleted before it ended"
            self._rows(
                "UPDATE runs SET phase = 'failed', message = ?, finished = ? WHERE uid = ? AND phase IN ('pending', 'running')",
                (message, time.time(), uid),
            )

    # Run history

    def _open_run(self, name: str, uid: str, title: str) -> None:
        self._rows(
            "INSERT INTO runs (name, uid, title, phase, created) VALUES (?, ?, ?, 'pending', ?) ON CONFLICT (name) DO UPDATE"
            " SET uid = excluded.uid, title = excluded.title, phase = 'pending', message = '', results = '{}',"
            " started = NULL, finished = NULL",
            (name, uid, title, time.time()),
        )

    def record_run(
        self, uid: str, phase: Phase, message: str, results: Mapping[str, JSON], now: float
    ) -> None:
        """Bring the history line of a run up to date."""
        ended = now if phase in ("succeeded", "failed") else None
        begun = None if phase == "pending" else now
        with self.write():
            self._rows(
                "UPDATE runs SET phase = ?, message = ?, results = ?, started = coalesce(started, ?), finished = ?"
                " WHERE uid = ? AND phase NOT IN ('succeeded', 'failed')",
                (phase, message, json.dumps(results), begun, ended, uid),
            )

    def runs(self, name: str | None = None) -> list[RunRecord]:
        """The history, oldest first; of one run when `name` is given."""
        where = "WHERE name = ?" if name is not None else ""
        rows = self._rows(
            f"SELECT {RUN} FROM runs {where} ORDER BY created, name", (name,) if name is not None else ()
        )
        return [_record(row) for row in rows]

    # Children

    def announce(self, child: Child) -> bool:
        """Enter a process before it is started; False when its object is gone or going, and it must not start."""
        with self.write():
            if child.uid:
                if not self._rows("SELECT 1 FROM objects WHERE uid = ? AND NOT deleting", (child.uid,)):
                    return False
                self._rows("UPDATE runs SET attempts = attempts + 1 WHERE uid = ?", (child.uid,))
            row = (
                child.token,
                child.uid,
                child.step,
                None,
                child.started,
                child.attempt,
                json.dumps(child.detail),
            )
            self._rows("INSERT INTO children VALUES (?,?,?,?,?,?,?)", row)
            return True

    def started(self, token: str, pid: int) -> None:
        """Note the process id of an announced process."""
        with self.write():
            self._rows("UPDATE children SET pid = ? WHERE token = ?", (pid, token))

    def ended(self, token: str) -> None:
        """Forget a process that is gone."""
        with self.write():
            self._rows("DELETE FROM children WHERE token = ?", (token,))

    def children(self, uid: str | None = None) -> list[Child]:
        """Processes that may be alive, oldest first; those of one object when `uid` is given."""
        where = "WHERE uid = ?" if uid is not None else ""
        rows = self._rows(
            f"SELECT * FROM children {where} ORDER BY started", (uid,) if uid is not None else ()
        )
        return [Child(row[0], row[1], row[2], row[3], row[4], row[5], json.loads(row[6])) for row in rows]

    def clear(self) -> None:
        """Note that no process is left at all: forget the children and remove what waited for their end."""
        with self.write():
            self._rows("DELETE FROM children")
            for (uid,) in self._rows("SELECT uid FROM objects WHERE deleting"):
                self.remove(uid)

    # Programs of the supervisor

    def set_failing(self, program: str, failing: Failing | None) -> None:
        """Keep that a program fails, or that it does no longer."""
        with self.write():
            if failing is None:
                self._rows("DELETE FROM meta WHERE name = ?", (f"{_FAILING}{program}",))
            else:
                text = json.dumps([failing.failures, failing.message])
                self._rows("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"{_FAILING}{program}", text))

    def failing(self) -> dict[str, Failing]:
        """The programs that failed the last time that they ran, by name."""
        rows = self._rows("SELECT name, value FROM meta WHERE name LIKE ?", (f"{_FAILING}%",))
        return {name.removeprefix(_FAILING): Failing(*json.loads(value)) for name, value in rows}

    # Notes

    def note(self, name: str) -> JSON | None:
        """A document kept beside the objects."""
        rows = self._rows("SELECT document FROM notes WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else None

    def set_note(self, name: str, document: JSON) -> None:
        """Replace a document."""
        with self.write():
            self._rows("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(dict(document))))


def _parts(key: Key) -> tuple[str, str, str, str]:
    return key.api_version, key.kind, key.namespace, key.name


def _record(row: tuple[Any, ...]) -> RunRecord:
    name, title, phase, message, results, attempts, created, started, finished = row
    return RunRecord(name, title, phase, message, json.loads(results), attempts, created, started, finished)


def _object(row: tuple[Any, ...]) -> Object:
    body, status, annotations = json.loads(row[4]), json.loads(row[5]), json.loads(row[8])
    return Object(Key(*row[:4]), body, status, row[6], str(row[7]), annotations, bool(row[9]))
