"""The contract of a StateStore in the database of the local cluster, and what only a file and a killed process can break."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlspec.manifest import digest
from mlspec_reconciler import inventory, planfile, workspace
from mlspec_reconciler.cluster import Unavailable, is_same
from mlspec_reconciler.clusters.local.cluster import API_VERSION, LocalCluster
from mlspec_reconciler.clusters.local.state import LocalState
from mlspec_reconciler.clusters.local.store import FORMAT, Store
from mlspec_reconciler.state import Session, StateStore, Table
from state import releases
from state.contract import Again, Contract
from stepping import look

SIDE_FILES = ("state.db-wal", "state.db-shm")
"""SQLite's own, beside a database that somebody has open."""
SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {function: "load.py:rows"}}
"""


def opened(folder: Path) -> LocalState:
    """The state of a home, as another process opens it."""
    return LocalState(Store(folder / "state.db"))


def first_write(cluster: LocalCluster) -> None:
    """Something is remembered."""
    Session.open(cluster.state, "somebody").put([(Table.MARKS, "any", {"at": 1.0})])


class TestLocalState(Contract):
    """In SQLite."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> StateStore:
        return opened(tmp_path / "home")

    @pytest.fixture
    def again(self, tmp_path: Path) -> Again:
        return lambda: opened(tmp_path / "home")


def look_at_everything(home: Path) -> LocalCluster:
    """All that a plan or a status reads of a cluster."""
    cluster = LocalCluster(home)
    Session.open(cluster.state, "reader")
    assert cluster.get(inventory.Key(API_VERSION, "Record", "", "r")) is None
    assert [*cluster.list(), *cluster.watch(0.01)] == []
    assert (cluster.runs(), cluster.history()) == ({}, [])
    assert (cluster.store.children(), cluster.store.versions(), cluster.awake) == ([], {}, False)
    assert cluster.identity
    return cluster


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file of ours; of a WAL only where it holds anything."""
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.name != "state.db-shm" and not (path.name == "state.db-wal" and path.stat().st_size == 0)
    }


def test_looking_makes_nothing(tmp_path: Path) -> None:
    """`plan` and `status` of a fresh clone leave it as it was; they may run in a checkout that nobody may write."""
    look_at_everything(tmp_path / "project" / ".mlspec").close()
    assert list(tmp_path.iterdir()) == []


def test_looking_at_an_empty_file_makes_nothing(tmp_path: Path) -> None:
    """So it stands there while another process makes it, or after one was killed at that."""
    (tmp_path / "state.db").touch()
    look_at_everything(tmp_path).close()
    assert (tmp_path / "state.db").stat().st_size == 0


def test_looking_moves_no_byte(tmp_path: Path) -> None:
    """Also not from the WAL of a process that was killed: what looks like a write is one to whoever watches the folder."""
    script = (
        "import os, pathlib, sys\n"
        "from mlspec_reconciler.clusters.local.store import Store\n"
        "from mlspec_reconciler.clusters.local.state import LocalState\n"
        "from mlspec_reconciler.state import Session, Table\n"
        "state = LocalState(Store(pathlib.Path(sys.argv[1]) / 'state.db'))\n"
        "Session.open(state, 'a').put([(Table.RUNS, 'r', {'n': 1})])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    before = content(tmp_path)
    assert "state.db-wal" in before
    cluster = look_at_everything(tmp_path)
    assert Session.open(cluster.state, "b").rows(Table.RUNS) == {"r": {"n": 1}}
    cluster.close()
    assert content(tmp_path) == before


def test_who_looked_sees_what_is_made_later(tmp_path: Path) -> None:
    """The controller opens the store before the first apply has written anything."""
    early = LocalCluster(tmp_path / "home")
    changes = early.watch(5.0)
    assert Session.open(early.state, "reader").tables == {}
    late = LocalCluster(tmp_path / "home")
    body = {"apiVersion": API_VERSION, "kind": "Record", "metadata": {"name": "r"}, "spec": {}}
    late.create(body, {})
    assert next(changes).name == "r"
    Session.open(late.state, "writer").put([(Table.RUNS, "r", {"n": 1})])
    assert Session.open(early.state, "reader").rows(Table.RUNS) == {"r": {"n": 1}}
    Session.open(early.state, "writer").put([(Table.RUNS, "s", {"n": 2})])
    assert set(Session.open(late.state, "reader").rows(Table.RUNS)) == {"r", "s"}


def test_a_name_is_kept_from_before_the_first_write(tmp_path: Path) -> None:
    """A plan that was saved before the first apply names the cluster that the apply makes; processes are marked with the id."""
    cluster, other = LocalCluster(tmp_path / "home"), LocalCluster(tmp_path / "home")
    unborn, mark = cluster.identity, cluster.store.id
    assert unborn == LocalCluster(tmp_path / "home").identity
    first_write(cluster)
    assert is_same(unborn, cluster.identity)
    assert not is_same(cluster.identity, unborn)
    assert cluster.store.id not in ("", mark)
    assert {other.identity, LocalCluster(tmp_path / "home").identity} == {cluster.identity}
    assert {other.store.id, LocalCluster(tmp_path / "home").store.id} == {cluster.store.id}


def test_another_store_has_another_name(tmp_path: Path) -> None:
    """A copy, a neighbour and one that was removed and made anew hold other objects than those that were planned for."""
    names = []
    for name in ("home", "neighbour"):
        cluster = LocalCluster(tmp_path / name)
        first_write(cluster)
        names.append((cluster.identity, cluster.store.id))
        cluster.close()
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    copy = LocalCluster(tmp_path / "copy")
    names.append((copy.identity, copy.store.id))
    shutil.rmtree(tmp_path / "home")
    unborn = LocalCluster(tmp_path / "home")
    names.append((unborn.identity, unborn.store.id))
    first_write(unborn)
    names.append((unborn.identity, unborn.store.id))
    assert [
        (one, other)
        for at, (one, _) in enumerate(names)
        for other, _ in names[at + 1 :]
        if is_same(one, other)
    ] == [names[3][:1] + names[4][:1]], "only from before its first write to after it"
    assert len({mark for _, mark in names}) == len(names)


def test_a_plan_from_before_the_first_write_holds_after_it(tmp_path: Path) -> None:
    """`plan --out`, a review, and only then the first apply; meanwhile another project of this folder may have begun."""
    (tmp_path / "specs.yaml").write_text(SPEC)
    (tmp_path / "load.py").write_text("def rows():\n    return None\n")
    project = workspace.open_project(tmp_path, None)
    assert project.wanted is not None
    planfile.save(tmp_path / "plan.json", project, look(project.wanted, project.workspace.local))
    saved = planfile.read(tmp_path / "plan.json")
    assert not isinstance(saved, str)
    assert not (project.workspace.home / "state.db").exists()

    def reasons() -> list[str]:
        assert project.wanted is not None
        return planfile.moved(saved, project, look(project.wanted, project.workspace.local))

    assert reasons() == []
    first_write(project.workspace.local)
    assert reasons() == []
    planfile.save(tmp_path / "plan.json", project, look(project.wanted, project.workspace.local))
    saved = planfile.read(tmp_path / "plan.json")
    assert not isinstance(saved, str)
    assert reasons() == []
    for path in project.workspace.home.glob("state.db*"):
        path.unlink()
    [sentence] = reasons()
    assert sentence.startswith("the plan was made for the cluster local/")


def test_a_killed_writer_leaves_whole_commits(tmp_path: Path) -> None:
    """`kill -9` at any moment: rows that were decided together are there together, and nothing that was told is lost."""
    script = (
        "import pathlib, sys\n"
        "from mlspec_reconciler.clusters.local.store import Store\n"
        "from mlspec_reconciler.clusters.local.state import LocalState\n"
        "from mlspec_reconciler.state import Session, Table\n"
        "session = Session.open(LocalState(Store(pathlib.Path(sys.argv[1]) / 'state.db')), 'a')\n"
        "number = (session.get(Table.RUNS, 'r-0') or {'n': 0})['n']\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    number += 1\n"
        "    rows = [(Table.RUNS, f'r-{row}', {'n': number, 'pad': 'x' * 3000}) for row in range(40)]\n"
        "    session.put([*rows, (Table.MARKS, 'm', {'n': number}), (Table.REQUESTS, f'q-{number}', {})])\n"
        "    print(number, flush=True)\n"
    )
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    for _ in range(12):
        argv = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(moments.random() * 0.1)
            writer.send_signal(signal.SIGKILL)
            told = [int(line) for line in writer.stdout if line.endswith("\n")]
        found = Session.open(opened(tmp_path), "b")
        numbers = {row["n"] for row in found.rows(Table.RUNS).values()}
        assert len(numbers) <= 1, f"seed {seed}: half a commit"
        if not numbers:
            assert found.tables == {}
            continue
        (number,) = numbers
        assert len(found.rows(Table.RUNS)) == 40
        assert found.get(Table.MARKS, "m") == {"n": number}
        assert set(found.rows(Table.REQUESTS)) == {f"q-{n}" for n in range(1, number + 1)}
        assert not told or told[-1] in (number, number - 1), (
            f"seed {seed}: {told[-1]} was told, {number} is there"
        )


def test_two_processes_lose_no_write(tmp_path: Path) -> None:
    """Two people apply at once; each looks again after a conflict."""
    script = (
        "import pathlib, sys\n"
        "from mlspec_reconciler.cluster import Conflict\n"
        "from mlspec_reconciler.clusters.local.store import Store\n"
        "from mlspec_reconciler.clusters.local.state import LocalState\n"
        "from mlspec_reconciler.state import Session, Table\n"
        "state = LocalState(Store(pathlib.Path(sys.argv[1]) / 'state.db'))\n"
        "done = 0\n"
        "while done < 100:\n"
        "    session = Session.open(state, sys.argv[2])\n"
        "    number = (session.get(Table.MARKS, 'sum') or {'n': 0})['n']\n"
        "    try:\n"
        "        session.put([(Table.MARKS, 'sum', {'n': number + 1}), (Table.RUNS, f'{sys.argv[2]}-{done}', {'n': done})])\n"
        "        done += 1\n"
        "    except Conflict:\n"
        "        continue\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "home"), name]) for name in ("a", "b")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = Session.open(opened(tmp_path / "home"), "reader")
    assert found.get(Table.MARKS, "sum") == {"n": 200}
    assert set(found.rows(Table.RUNS)) == {f"{name}-{number}" for name in ("a", "b") for number in range(100)}


@pytest.mark.parametrize("release", ["0", "1"])
def test_what_a_release_has_kept_is_read(tmp_path: Path, release: str) -> None:
    """An upgrade of mlspec forgets nothing: looking shows it, moving no byte, and the first write takes it along."""
    releases.load(release, tmp_path / "state.db")
    before = content(tmp_path)
    rows = releases.expected(release)
    cluster = LocalCluster(tmp_path)
    assert releases.remembered(cluster.state) == rows
    cluster.close()
    assert content(tmp_path) == before
    state = opened(tmp_path)
    Session.open(state, "new").put(
        [(Table.RUNS, "later", {"n": 1}), (Table.MARKS, "timer Dataset/flights", None)]
    )
    after = {table: dict(values) for table, values in rows.items()}
    after["runs"] = {**after.get("runs", {}), "later": {"n": 1}}
    del after["marks"]
    assert releases.remembered(state) == releases.remembered(opened(tmp_path)) == after


def test_a_store_of_the_first_format_keeps_its_name_and_objects(tmp_path: Path) -> None:
    """`applied.json` and the inventory name the cluster as it was called before the upgrade."""
    releases.load("0", tmp_path / "state.db")
    made = "05565dbd40454eebbbcda360e55d6a77"
    before = f"local/{digest([made, str((tmp_path / 'state.db').resolve())])[:32]}"
    cluster = LocalCluster(tmp_path)
    for _ in range(2):
        assert is_same(before, cluster.identity)
        assert {one.key.name for one in cluster.list()} == {"late-arrival-7c1e9a02", "late-arrival-accepted"}
        assert cluster.runs()["late-arrival-7c1e9a02"].results == {"train": {"metrics": {"auc": 0.82}}}
        assert json.loads((releases.FOLDER / "0" / "rows.json").read_text())["inventory"] == (
            Session.open(cluster.state, "reader").rows(Table.INVENTORY)
        )
        cluster.state.take("somebody")  # brings it up to date
    assert cluster.store.format == FORMAT


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    """After a step back to an older mlspec: what it does not understand it neither shows as nothing nor writes over."""
    state = opened(tmp_path)
    state.take("a")
    with sqlite3.connect(tmp_path / "state.db") as base:
        base.execute(f"PRAGMA user_version = {FORMAT + 1}")
    for use in (state.read, lambda: state.take("b"), lambda: opened(tmp_path)):
        with pytest.raises(
            Unavailable, match=rf"state\.db was written by a newer mlspec \(format {FORMAT + 1}\)"
        ):
            use()


@pytest.mark.parametrize("where", ["header", "page"])
def test_a_damaged_database_is_told_with_its_path(tmp_path: Path, where: str) -> None:
    """It is never taken for an empty one, and the sentence says what to do."""
    state = opened(tmp_path)
    Session.open(state, "a").put([(Table.RUNS, f"r-{number}", {"pad": "x" * 300}) for number in range(200)])
    state._store.close()
    content = bytearray((tmp_path / "state.db").read_bytes())
    start, end = (0, 100) if where == "header" else (4096, len(content))
    content[start:end] = os.urandom(end - start)
    (tmp_path / "state.db").write_bytes(content)
    with pytest.raises(Unavailable, match=r"cannot open .*state\.db: .*; restore it .* or move it away"):
        opened(tmp_path).read()


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file in the place of the folder: no traceback, and looking does not take it for an empty home."""
    (tmp_path / ".mlspec").write_text("")
    with pytest.raises(Unavailable, match=r"cannot open .*\.mlspec/state\.db: Not a directory"):
        LocalCluster(tmp_path / ".mlspec")
