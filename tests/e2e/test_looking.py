"""Looking writes nothing: no file, no row of any table, whether something was applied or not."""

from __future__ import annotations

import hashlib
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.project import Project
from mlspec_reconciler.clusters.local.cluster import LocalCluster

SIDE_FILES = ("state.db-wal", "state.db-shm")
"""SQLite's own, beside a database that somebody has open."""
LOOKS = (
    ("validate",),
    ("plan",),
    ("plan", "--output", "json"),
    ("plan", "--output", "markdown"),
    ("status",),
    ("status", "--output", "json"),
    ("status", "TrainingJob/tumour"),
    ("runs",),
    ("runs", "TrainingJob/tumour"),
    ("requests",),
    ("logs", "TrainingJob/tumour"),
    ("url",),
    ("render",),
    ("propose",),
)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project("minimal", tmp_path / "minimal")
    yield made
    made.stop()


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file, but those of the database, which are compared by their rows."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (*SIDE_FILES, "state.db")
    }


def rows(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    path = folder / ".mlspec" / "state.db"
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: sorted(base.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in tables}
    base.close()
    return found


def watch(project: Project) -> str:
    """`mlspec dev` until it has shown a plan."""
    process = project.start("dev")
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=30)[0]


def test_nothing_is_made_by_looking_at_what_was_never_applied(project: Project) -> None:
    """A reviewer's clone stays as git made it."""
    before = files(project.folder)
    for arguments in LOOKS:
        project.start(*arguments).communicate(timeout=60)
    assert "to create" in watch(project)
    assert files(project.folder) == before
    assert not (project.folder / ".mlspec").exists()


@pytest.mark.slow
def test_nothing_is_changed_by_looking_at_what_is_applied(project: Project) -> None:
    """Also not what would be learned: a run that has ended, a request that has come due. Whoever drives learns it."""
    project.run("apply", "--yes")
    project.edit("train.py", "C=strength", "C=strength, max_iter=321")  # there is something to plan
    cluster = LocalCluster(project.folder / ".mlspec")
    cluster.stop()  # nobody drives: what changes now was changed by looking
    cluster.close()
    before, kept = files(project.folder), rows(project.folder)
    assert {"rows", "objects", "runs", "children"} <= kept.keys()
    assert len(kept["rows"]) > 5
    for arguments in LOOKS:
        project.start(*arguments).communicate(timeout=60)
        assert rows(project.folder) == kept, arguments
        assert files(project.folder) == before, arguments
    assert "code changed" in watch(project)
    assert rows(project.folder) == kept
    assert files(project.folder) == before
