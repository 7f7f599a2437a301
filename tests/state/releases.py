"""State as releases have left it, in text that people can read: `releases/N/` holds what format N looked like.

`rows.json` says what is remembered; `local.sql` and `configmaps.json` are the same rows as a database and as ConfigMaps. They
are written once, with the code of that release, and only read after it: whoever changes a format adds a folder.

    python tests/state/releases.py tests/state/releases/N      # makes local.sql of rows.json
    MLSPEC_RECORD=1 pytest tests/cluster/test_kube_state.py    # makes configmaps.json of it, where there is none
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlspec_reconciler.clusters.local.state import LocalState
from mlspec_reconciler.clusters.local.store import Store
from mlspec_reconciler.state import Session, StateStore, Table

FOLDER = Path(__file__).with_name("releases")
Rows = Mapping[str, Mapping[str, Any]]
"""Table -> key -> value."""


def expected(release: str) -> Rows:
    """What was remembered then."""
    rows: Rows = json.loads((FOLDER / release / "rows.json").read_text())
    return rows


def remembered(store: StateStore) -> Rows:
    """What a store reads; no table without rows."""
    tables = store.read()
    return {
        str(table): {key: row.value for key, row in tables[table].items()}
        for table in tables
        if tables[table]
    }


def remember(store: StateStore, rows: Rows) -> None:
    """Write all rows, as one holder."""
    changes = [(Table(table), key, value) for table in rows for key, value in rows[table].items()]
    Session.open(store, "laptop/4711").put(changes)


def load(release: str, database: Path) -> None:
    """Make the database of a release."""
    database.parent.mkdir(parents=True, exist_ok=True)
    base = sqlite3.connect(database)
    base.executescript((FOLDER / release / "local.sql").read_text())
    base.execute("PRAGMA journal_mode = WAL")
    base.close()


def dump(database: Path) -> str:
    """A database as text, with its format."""
    base = sqlite3.connect(database)
    found = base.execute("PRAGMA user_version").fetchone()[0]
    lines = [f"PRAGMA user_version={found};", *base.iterdump()]
    base.close()
    return "\n".join(lines) + "\n"


def main(folder: Path) -> None:
    """Record the database of this code."""
    database = folder / "state.db"
    store = Store(database)
    remember(LocalState(store), json.loads((folder / "rows.json").read_text()))
    store.close()
    (folder / "local.sql").write_text(dump(database))
    database.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
