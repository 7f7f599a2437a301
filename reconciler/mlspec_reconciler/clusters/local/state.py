"""`LocalState`: what mlspec remembers about this machine, as rows in the database of the local cluster.

A commit is one transaction: all of its rows, or none. See docs/design/state.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mlspec_reconciler.clusters.local import formats
from mlspec_reconciler.clusters.local.store import FORMAT, Store
from mlspec_reconciler.state import Fenced, Put, Row, Table, Tables, check, readable, written


class LocalState:
    """The contract of `StateStore` in SQLite. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> Tables:
        """All rows, also those of an older format, as this one would keep them."""
        with self._store.moment():
            found = self._store.format
            readable(found, str(self._store.path), FORMAT)
            if found == 0:
                return {}
            if found == 1:
                rows = formats.rows_of_notes(self._store.notes())
                return _tables((table, key, value, 1) for table, key, value in rows)
            stored = self._store.query('SELECT "table", key, value, version FROM rows ORDER BY 1, 2')
        return _tables((Table(row[0]), row[1], json.loads(row[2]), row[3]) for row in stored)

    def take(self, holder: str) -> int:
        """The token of this holder."""
        known, token = self._fence()
        if known == holder:
            return token
        with self._store.write():
            known, token = self._fence()
            if known != holder:
                token += 1
                self._set_fence(holder, token)
        return token

    def commit(self, token: int, writes: Sequence[Put]) -> None:
        """Write all rows or none."""
        with self._store.write():
            if self._fence()[1] != token:
                raise Fenced("another driver has taken over")
            before = self._touched(writes)
            check(before, writes)
            after = written(before, writes)
            for table, key in dict.fromkeys((put.table, put.key) for put in writes):
                row = after[table].get(key)
                if row is None:
                    self._store.query('DELETE FROM rows WHERE "table" = ? AND key = ?', (table, key))
                else:
                    values = table, key, json.dumps(row.value), row.version
                    self._store.query("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", values)

    def clear(self) -> None:
        """Forget everything, and who may write."""
        if self._store.format == 0:
            return
        with self._store.write():
            self._store.query("DELETE FROM rows")
            self._set_fence("", self._fence()[1] + 1)

    def holds(self, table: Table, kind: str) -> bool:
        """Whether a table has a row of this `kind`: cheap enough to ask all the time."""
        if self._store.format < FORMAT:
            return False
        found = "SELECT 1 FROM rows WHERE \"table\" = ? AND json_extract(value, '$.kind') = ? LIMIT 1"
        return bool(self._store.query(found, (table, kind)))

    def _touched(self, writes: Sequence[Put]) -> Tables:
        """The rows that these writes name, as they are now."""
        statement = 'SELECT "table", key, value, version FROM rows WHERE "table" = ? AND key = ?'
        found = [row for put in writes for row in self._store.query(statement, (put.table, put.key))]
        return _tables((Table(row[0]), row[1], json.loads(row[2]), row[3]) for row in found)

    def _fence(self) -> tuple[str, int]:
        """Who may write, and under which token."""
        rows = dict(self._store.query("SELECT name, value FROM meta WHERE name IN ('holder', 'token')"))
        return rows.get("holder", ""), rows.get("token", 0)

    def _set_fence(self, holder: str, token: int) -> None:
        self._store.query("UPDATE meta SET value = ? WHERE name = 'holder'", (holder,))
        self._store.query("UPDATE meta SET value = ? WHERE name = 'token'", (token,))


def _tables(rows: Iterable[tuple[Table, str, Any, int]]) -> Tables:
    found: dict[Table, dict[str, Row]] = {}
    for table, key, value, version in rows:
        found.setdefault(table, {})[key] = Row(value, version)
    return found
