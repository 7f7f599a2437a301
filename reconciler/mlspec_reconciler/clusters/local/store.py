"""The store of the local cluster: objects, run history, remembered rows and the table of children, in one SQLite file.

The command line writes objects, the supervisor writes statuses; each call is one transaction, so a process may be killed
anywhere. Versions come from one counter that moves with every change of an object, so "did anything change?" is one read.
WAL with `synchronous=NORMAL`: nothing is lost when a process dies; when the power fails, the last moments may be lost, but
in order, so an inventory never misses an object that is there.

The first write makes the file. Until then there is nothing, and looking makes nothing, not even the folder. Whoever only
looks opens the file read-only, and moves no byte of it, nor of the WAL that a killed process has left.
"""

from __future__ import annotations

import json
import sqlite3
import stat
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
from mlspec_reconciler.clusters.local import formats
from mlspec_reconciler.state import readable

JSON = Mapping[str, Any]

FORMAT = 2
"""Of the database, in its `user_version`, which is 0 before it is made. It covers its rows: it moves when `state.FORMAT` does."""
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
CREATE TABLE IF NOT EXISTS rows (
    "table" TEXT, key TEXT, value TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY ("table", key)
) WITHOUT ROWID;
"""
OBJECT = "api_version, kind, namespace, name, body, status, uid, version, annotations, deleting"
NOTES = "SELECT name, document FROM notes"
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

    The constructor makes nothing. Raises `Unavailable` when there is a file, and it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._base: sqlite3.Connection | None = None
        self._writes = False
        """Whether `_base` may write."""
        self._made = ""
        self._reader()

    @property
    def id(self) -> str:
        """Marks the processes of this store. A copy of the file has another one, so that a copied project leaves the first
        one's alone. Before the first write there are no processes, and this is a name that none carries."""
        return digest([self._birth(), str(self.path.resolve())])[:32]

    @property
    def identity(self) -> str:
        """`PLACE` before the first write, `PLACE/ID` after it: see `cluster.is_same`."""
        place = digest([str(self.path.resolve())])[:16]
        return f"{place}/{self.id}" if self._birth() else place

    @property
    def format(self) -> int:
        """The format of the file at this moment (another process may bring it up to date); 0 when there is none."""
        return _number(self.query("PRAGMA user_version"))

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._base is not None:
                self._base.close()

    @contextmanager
    def write(self) -> Iterator[None]:
        """One transaction; a nested one joins it. All or nothing, also when the process is killed."""
        with self._lock:
            if self._depth:
                yield
                return
            with self._transaction(self._writer()):
                readable(self.format, str(self.path), FORMAT)  # another process may know a later one
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0

    @contextmanager
    def _transaction(self, base: sqlite3.Connection) -> Iterator[None]:
        self._execute(base, "BEGIN IMMEDIATE")
        try:
            yield
            self._execute(base, "COMMIT")
        except BaseException:
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise

    @contextmanager
    def moment(self) -> Iterator[None]:
        """All that is read within is of one moment."""
        with self._lock:
            base = self._reader()
            if base is None or base.in_transaction:
                yield
                return
            self._execute(base, "BEGIN")
            try:
                yield
            finally:
                self._execute(base, "COMMIT")

    def query(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement, which may write inside of `write`; none while there is no file."""
        with self._lock:
            base = self._reader()
            return self._execute(base, statement, values) if base is not None else []

    def _birth(self) -> str:
        """What the first write has made up, for ever; empty before it."""
        if not self._made and (rows := self.query("SELECT value FROM meta WHERE name = 'id'")):
            self._made = str(rows[0][0])
        return self._made

    def _reader(self) -> sqlite3.Connection | None:
        """A connection that can at least read; None when nobody has made the file, or is just about to."""
        if self._base is None:
            try:
                if not stat.S_ISREG(self.path.stat().st_mode):
                    raise Unavailable(f"cannot open {self.path}: it is not a file")
            except FileNotFoundError:
                return None
            except OSError as error:
                raise Unavailable(f"cannot open {self.path}: {error.strerror}") from error
            base = self._connect("ro")
            try:
                found = _number(self._execute(base, "PRAGMA user_version"))
                readable(found, str(self.path), FORMAT)
                if found > 0:
                    self._base = base
            finally:
                if self._base is None:
                    base.close()
        return self._base

    def _writer(self) -> sqlite3.Connection:
        """A connection that can write, to a database of this format; made where there is none."""
        if self._base is None or not self._writes:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unavailable(f"cannot make {self.path}: {error.strerror}") from error
            base = self._connect("rwc")
            # The change to WAL does not wait for other openers, whatever the timeout.
            for attempt in range(100):
                try:
                    base.execute("PRAGMA journal_mode = WAL")
                    break
                except sqlite3.OperationalError as error:
                    if attempt == 99:
                        raise self._trouble(error) from error
                    time.sleep(0.02)
                except sqlite3.Error as error:
                    raise self._trouble(error) from error
            self._execute(base, "PRAGMA synchronous = NORMAL")
            with self._transaction(base):
                self._bring_up_to_date(base)
            if self._base is not None:
                self._base.close()
            self._base, self._writes = base, True
        return self._base

    def _bring_up_to_date(self, base: sqlite3.Connection) -> None:
        """Make the tables, or fill those of this format from the ones of an earlier."""
        found = _number(self._execute(base, "PRAGMA user_version"))
        if found == FORMAT:
            return
        readable(found, str(self.path), FORMAT)
        for statement in SCHEMA.split(";"):
            self._execute(base, statement)
        born = "INSERT OR IGNORE INTO meta VALUES ('id', ?), ('counter', 0), ('holder', ''), ('token', 0)"
        self._execute(base, born, (uuid.uuid4().hex,))
        if found == 1:  # notes stay for who still reads them
            notes = self._execute(base, NOTES)
            for table, key, value in formats.rows_of_notes(_documents(notes)):
                row = table, key, json.dumps(value)
                self._execute(base, "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, 1)", row)
        self._execute(base, f"PRAGMA user_version = {FORMAT}")

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode={mode}"
        try:
            return sqlite3.connect(
                address, uri=True, timeout=20, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _execute(
        self, base: sqlite3.Connection, statement: str, values: tuple[Any, ...] = ()
    ) -> list[tuple[Any, ...]]:
        try:
            return base.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _trouble(self, error: sqlite3.Error) -> Unavailable:
        if isinstance(error, sqlite3.OperationalError):  # it is busy, or the disk is full
            return Unavailable(f"the local store {self.path} does not answer: {error}")
        way = "restore it from a backup, or move it away, and mlspec apply begins anew"
        return Unavailable(f"cannot open {self.path}: {error}; {way}")

    def _next_version(self) -> int:
        return _number(self.query("UPDATE meta SET value = value + 1 WHERE name = 'counter' RETURNING value"))

    # Objects

    def counter(self) -> int:
        """The newest version; moves with every change of any object."""
        return _number(self.query("SELECT value FROM meta WHERE name = 'counter'"))

    def versions(self) -> dict[Key, int]:
        """The version of each object."""
        rows = self.query("SELECT api_version, kind, namespace, name, version FROM objects")
        return {Key(*row[:4]): row[4] for row in rows}

    def objects(self, since: int = -1) -> list[Object]:
        """Objects that changed after version `since`; all by default."""
        return [
            _object(row) for row in self.query(f"SELECT {OBJECT} FROM objects WHERE version > ?", (since,))
        ]

    def get(self, key: Key) -> Object | None:
        """One object."""
        where = "api_version = ? AND kind = ? AND namespace = ? AND name = ?"
        rows = self.query(f"SELECT {OBJECT} FROM objects WHERE {where}", _parts(key))
        return _object(rows[0]) if rows else None

    def put(self, key: Key, body: JSON, annotations: Mapping[str, str], old: Object | None) -> Object:
        """Create (`old` is None), or replace the body. A new Run opens its line in the history."""
        with self.write():
            texts = json.dumps(body), json.dumps(dict(annotations))
            version = self._next_version()
            if old is None:
                uid = uuid.uuid4().hex
                columns = "api_version, kind, namespace, name, uid, body, annotations, version"
                self.query(
                    f"INSERT INTO objects ({columns}) VALUES (?,?,?,?,?,?,?,?)",
                    (*_parts(key), uid, *texts, version),
                )
                if key.kind == "Run":
                    self._open_run(key.name, uid, str(body["spec"].get("title", key.name)))
            else:
                where = "uid = ?"
                self.query(
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
            if self.query("SELECT 1 FROM objects WHERE uid = ? AND status <> ?", (uid, text)):
                self.query(
                    "UPDATE objects SET status = ?, version = ? WHERE uid = ?",
                    (text, self._next_version(), uid),
                )

    def request_deletion(self, uid: str) -> None:
        """Remove an object that has no processes at once, otherwise leave the rest to the supervisor."""
        with self.write():
            if not self.query("SELECT 1 FROM children WHERE uid = ? LIMIT 1", (uid,)):
                self.remove(uid)
            elif self.query("SELECT 1 FROM objects WHERE uid = ? AND NOT deleting", (uid,)):
                version = self._next_version()
                self.query("UPDATE objects SET deleting = 1, version = ? WHERE uid = ?", (version, uid))

    def remove(self, uid: str) -> None:
        """Forget an object. Its history stays; a run that had not ended never will."""
        with self.write():
            if self.query("DELETE FROM objects WHERE uid = ? RETURNING 1", (uid,)):
                self._next_version()
            message = "deleted before it ended"
            self.query(
                "UPDATE runs SET phase = 'failed', message = ?, finished = ? WHERE uid = ? AND phase IN ('pending', 'running')",
                (message, time.time(), uid),
            )

    # Run history

    def _open_run(self, name: str, uid: str, title: str) -> None:
        self.query(
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
            self.query(
                "UPDATE runs SET phase = ?, message = ?, results = ?, started = coalesce(started, ?), finished = ?"
                " WHERE uid = ? AND phase NOT IN ('succeeded', 'failed')",
                (phase, message, json.dumps(results), begun, ended, uid),
            )

    def runs(self, name: str | None = None) -> list[RunRecord]:
        """The history, oldest first; of one run when `name` is given."""
        where = "WHERE name = ?" if name is not None else ""
        rows = self.query(
            f"SELECT {RUN} FROM runs {where} ORDER BY created, name", (name,) if name is not None else ()
        )
        return [_record(row) for row in rows]

    # Children

    def announce(self, child: Child) -> bool:
        """Enter a process before it is started; False when its object is gone or going, and it must not start."""
        with self.write():
            if child.uid:
                if not self.query("SELECT 1 FROM objects WHERE uid = ? AND NOT deleting", (child.uid,)):
                    return False
                self.query("UPDATE runs SET attempts = attempts + 1 WHERE uid = ?", (child.uid,))
            row = (
                child.token,
                child.uid,
                child.step,
                None,
                child.started,
                child.attempt,
                json.dumps(child.detail),
            )
            self.query("INSERT INTO children VALUES (?,?,?,?,?,?,?)", row)
            return True

    def started(self, token: str, pid: int) -> None:
        """Note the process id of an announced process."""
        with self.write():
            self.query("UPDATE children SET pid = ? WHERE token = ?", (pid, token))

    def ended(self, token: str) -> None:
        """Forget a process that is gone."""
        with self.write():
            self.query("DELETE FROM children WHERE token = ?", (token,))

    def children(self, uid: str | None = None) -> list[Child]:
        """Processes that may be alive, oldest first; those of one object when `uid` is given."""
        where = "WHERE uid = ?" if uid is not None else ""
        rows = self.query(
            f"SELECT * FROM children {where} ORDER BY started", (uid,) if uid is not None else ()
        )
        return [Child(row[0], row[1], row[2], row[3], row[4], row[5], json.loads(row[6])) for row in rows]

    def clear(self) -> None:
        """Note that no process is left at all: forget the children and remove what waited for their end."""
        with self.write():
            self.query("DELETE FROM children")
            for (uid,) in self.query("SELECT uid FROM objects WHERE deleting"):
                self.remove(uid)

    # Programs of the supervisor

    def set_failing(self, program: str, failing: Failing | None) -> None:
        """Keep that a program fails, or that it does no longer."""
        with self.write():
            if failing is None:
                self.query("DELETE FROM meta WHERE name = ?", (f"{_FAILING}{program}",))
            else:
                text = json.dumps([failing.failures, failing.message])
                self.query("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"{_FAILING}{program}", text))

    def failing(self) -> dict[str, Failing]:
        """The programs that failed the last time that they ran, by name."""
        rows = self.query("SELECT name, value FROM meta WHERE name LIKE ?", (f"{_FAILING}%",))
        return {name.removeprefix(_FAILING): Failing(*json.loads(value)) for name, value in rows}

    # Notes

    def notes(self) -> dict[str, JSON]:
        """All documents by name."""
        return _documents(self.query(NOTES))


def _documents(rows: list[tuple[Any, ...]]) -> dict[str, JSON]:
    return {name: json.loads(text) for name, text in rows}


def _number(rows: list[tuple[Any, ...]]) -> int:
    return int(rows[0][0]) if rows else 0


def _parts(key: Key) -> tuple[str, str, str, str]:
    return key.api_version, key.kind, key.namespace, key.name


def _record(row: tuple[Any, ...]) -> RunRecord:
    name, title, phase, message, results, attempts, created, started, finished = row
    return RunRecord(name, title, phase, message, json.loads(results), attempts, created, started, finished)


def _object(row: tuple[Any, ...]) -> Object:
    body, status, annotations = json.loads(row[4]), json.loads(row[5]), json.loads(row[8])
    return Object(Key(*row[:4]), body, status, row[6], str(row[7]), annotations, bool(row[9]))
