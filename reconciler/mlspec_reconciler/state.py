"""StateStore: what mlspec remembers about a target, beside the objects that it has made there.

One contract for the inventory, requests, runs and how they ended, the life of models, timers and the applied revision. It is
memory and not desired state: it outlives the objects, and `destroy`. `tests/state/contract.py` runs the same cases over
all implementations: SQLite on this machine, ConfigMaps on Kubernetes, dictionaries in tests.

Rows are JSON under a key. A write names the version of the row that it was decided on (compare and swap), and carries a
fencing token, so that a driver that was paused and comes back cannot write over what its successor has decided.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from mlspec_reconciler.cluster import Conflict, Unavailable

JSON = Mapping[str, Any]
FORMAT = 1
"""Of tables and rows. A store of a newer format is refused, one of an older is read (`tests/state/releases`)."""


class Table(StrEnum):
    """What is kept."""

    TARGET = "target"
    """`cluster`: the identity for which all of this was written."""
    INVENTORY = "inventory"
    """Resource id -> what was applied for it, and the objects that were made."""
    REQUESTS = "requests"
    """Request id -> who asks for what, and why."""
    MARKS = "marks"
    """Asker -> how many of its requests were collected; timer -> when it came due last."""
    RUNS = "runs"
    """Run -> what it was made for, and how it ended."""
    MODELS = "models"
    """TrainingJob id -> accepted runs, what has served, when each state of git was first seen."""
    APPLIED = "applied"
    """Target -> the revision that was applied last."""


class Fenced(Conflict):
    """Another driver has taken over since the token was taken. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Row:
    """A value and how often it was written."""

    value: JSON
    version: int


@dataclass(frozen=True, slots=True)
class Put:
    """One row to write. `expected` is the version that it replaces, 0 where there must be none."""

    table: Table
    key: str
    value: JSON | None
    """None removes the row."""
    expected: int


Tables = Mapping[Table, Mapping[str, Row]]


class StateStore(Protocol):
    """Where the state of one project on one target is kept. All methods raise `Unavailable` when it cannot be reached, or was
    written by a newer mlspec."""

    def read(self) -> Tables:
        """All rows, as of one moment. Writes nothing, also when nothing was ever kept."""

    def take(self, holder: str) -> int:
        """The token of this holder: the one it has while nobody else took it, otherwise a greater one, after which
        writes under every earlier token are `Fenced`."""

    def commit(self, token: int, writes: Sequence[Put]) -> None:
        """Write these rows in this order; durable when it returns. Killed in between, an implementation may have written
        only the first of them, but never half of one.

        Raises `Fenced`, or `Conflict` when a row has another version than expected. Then nothing was written, but for the
        first rows of a commit that is too large for one write (megabytes on Kubernetes).
        """

    def clear(self) -> None:
        """Forget everything: the project is gone from here for good. Every earlier token is `Fenced` from now on, so that a
        driver that slept through it brings nothing back."""


@dataclass(slots=True)
class Session:
    """A view of the state that one step reads, and writes back. Rows that it wrote are seen at once."""

    store: StateStore
    holder: str
    tables: Tables
    token: int | None = None
    """Taken with the first write, so that looking takes nothing."""
    writes: int = field(default=0)

    @staticmethod
    def open(store: StateStore, holder: str) -> Session:
        """Read everything."""
        return Session(store, holder, store.read())

    def rows(self, table: Table) -> dict[str, JSON]:
        """The values of a table by key."""
        return {key: row.value for key, row in self.tables.get(table, {}).items()}

    def get(self, table: Table, key: str) -> JSON | None:
        """One value."""
        row = self.tables.get(table, {}).get(key)
        return row.value if row is not None else None

    def put(self, changes: Iterable[tuple[Table, str, JSON | None]]) -> None:
        """Make these rows durable; what is so already is not written. Raises `Conflict` when somebody else wrote one of
        them since it was read."""
        puts: list[Put] = []
        for table, key, value in changes:
            row = self.tables.get(table, {}).get(key)
            if value is None and row is None:
                continue
            if row is not None and value is not None and row.value == value:
                continue
            puts.append(
                Put(table, key, plain(value) if value is not None else None, row.version if row else 0)
            )
        if not puts:
            return
        if self.token is None:
            self.token = self.store.take(self.holder)
        self.store.commit(self.token, puts)
        self.writes += len(puts)
        self.tables = written(self.tables, puts)


def plain(value: JSON) -> dict[str, Any]:
    """A value as it comes back from a store: a copy, with lists for tuples."""
    copied: dict[str, Any] = json.loads(json.dumps(dict(value)))
    return copied


def written(tables: Tables, puts: Iterable[Put]) -> dict[Table, dict[str, Row]]:
    """The tables after these writes."""
    after = {table: dict(rows) for table, rows in tables.items()}
    for put in puts:
        rows = after.setdefault(put.table, {})
        if put.value is None:
            rows.pop(put.key, None)
        else:
            rows[put.key] = Row(put.value, put.expected + 1)
    return after


def check(tables: Tables, puts: Iterable[Put]) -> None:
    """Raise `Conflict` where a row is not as a write expects it: implementations call it under their lock."""
    for put in puts:
        row = tables.get(put.table, {}).get(put.key)
        if (row.version if row else 0) != put.expected:
            raise Conflict(f"{put.table} {put.key} was written by somebody else")


def readable(found: int, where: str, newest: int = FORMAT) -> None:
    """Raise `Unavailable` for a format that only a later mlspec knows."""
    if found > newest:
        raise Unavailable(f"{where} was written by a newer mlspec (format {found}); upgrade mlspec")


class MemoryState:
    """The contract in dictionaries, for tests."""

    def __init__(self) -> None:
        self._tables: dict[Table, dict[str, Row]] = {}
        self._holder, self._token = "", 0

    def read(self) -> Tables:
        """All rows."""
        return {
            table: {key: replace(row, value=plain(row.value)) for key, row in rows.items()}
            for table, rows in self._tables.items()
        }

    def take(self, holder: str) -> int:
        """The token of this holder."""
        if holder != self._holder:
            self._holder, self._token = holder, self._token + 1
        return self._token

    def commit(self, token: int, writes: Sequence[Put]) -> None:
        """Write all rows or none."""
        if token != self._token:
            raise Fenced("another driver has taken over")
        check(self._tables, writes)
        own = [replace(put, value=plain(put.value) if put.value is not None else None) for put in writes]
        self._tables = written(self._tables, own)

    def clear(self) -> None:
        """Forget everything."""
        self._tables = {}
        self._holder, self._token = "", self._token + 1
