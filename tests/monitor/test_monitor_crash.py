"""kill -9 of real evaluations at random moments: every row counts once, every trigger exists once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from mlspec_runtime.monitor.evaluate import evaluate
from mlspec_runtime.monitor.store import opened
from monitor.log_writer import TRUTH, World, wall

PROGRAM = """
import json, os, pathlib, signal, sqlite3, sys
from mlspec_runtime.monitor import evaluate, ingest
ingest.BATCH = 1
connect = sqlite3.connect

def dying(statements):
    def opened(*arguments, **options):
        left = [statements]
        def tick(_):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        connection = connect(*arguments, **options)
        connection.set_trace_callback(tick)
        return connection
    return opened

for line in sys.stdin:
    task, root, now, statements = json.loads(line)
    pid = os.fork()
    if pid == 0:
        if statements is not None:
            sqlite3.connect = dying(statements)
        evaluate.evaluate(task, pathlib.Path(root), now)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""
"""Imports once and forks for each evaluation (one transaction per file): cold starts would take a minute. With a number
of SQL statements, the evaluation kills itself before the next one."""


class Starter:
    """Starts evaluations as processes of their own and kills them."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def killed_at(self, goal: int, pause: float, task: dict[str, Any], root: Path) -> None:
        """Evaluate, and kill -9 `pause` seconds after `goal` rows are committed."""
        pid = self._begin(task, root, None)
        deadline = time.monotonic() + 30
        while progress(state_of(task, root)) < goal and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pause)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._end()

    def killed_after(self, statements: int, task: dict[str, Any], root: Path) -> None:
        """Evaluate, and kill -9 before SQL statement number `statements`."""
        self._begin(task, root, statements)
        self._end()

    def _begin(self, task: dict[str, Any], root: Path, statements: int | None) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([task, str(root), wall(DAYS), statements]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def _end(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == "ended\n"


@pytest.fixture
def starter():
    """A running starter."""
    running = Starter()
    yield running
    running.process.communicate()


FILES, DAYS = 48, 8
COMMITS = FILES + (DAYS - 1) + 2 * (DAYS - 1)
"""Files, performances and verdicts of two alerts; the last day is not over."""


@pytest.fixture
def case(tmp_path):
    """A storage root with a log, the task, and the result of an evaluation that nobody kills."""
    world = World(tmp_path)
    for day in range(DAYS):
        for part in range(FILES // DAYS):
            change = {"skill": 1.0 if day < 3 else 0.0, "shift": 1.0 if day > 5 else 0.0}
            world.day(day + part / 6, rows=60, span=14_000, **change)
    spec = {
        "truth": TRUTH,
        "alerts": {"accuracy": {"metric": "auc", "below": 0.7, "for": 2}, "drift": {"drift": {}}},
        "actions": [
            {"when": "any", "retrain": {"job": "late-arrival"}, "limit": {"count": 9, "per": "30d"}},
            {"when": "any", "switch": {"to": "previous"}},
            {"when": "accuracy", "retrain": {"job": "late-arrival"}, "mode": "propose"},
            {"when": "any", "notify": "nobody"},
        ],
    }
    document = world.task(spec, receivers={"nobody": {"webhook": {"url": "http://127.0.0.1:1/"}}})
    clean = evaluate(document | {"policy": "clean"}, tmp_path, wall(DAYS))
    return tmp_path, document | {"policy": "killed"}, clean


def same(result: dict[str, Any], clean: dict[str, Any]) -> None:
    """Both evaluations have seen, judged, asked and told the same."""
    assert result["rows"] == clean["rows"] == FILES * 60
    for part in ("windows", "performance", "drift", "failed"):
        assert result[part] == clean[part], part
    for which in ("triggers", "proposals"):
        for one, other in zip(result[which], clean[which], strict=True):
            assert {**one, "id": ""} == {**other, "id": ""}
    told, expected = ([one["sentence"] for one in each["messages"]] for each in (result, clean))
    assert told == expected


@pytest.mark.slow
def test_killed_at_random_moments(case, starter):
    """Four times three kills and one evaluation that ends: the state of an evaluation without kills."""
    root, task, clean = case
    chance = random.Random(3)
    partial = []
    for _ in range(4):
        shutil.rmtree(root / "monitors/killed", ignore_errors=True)
        for goal in sorted(chance.sample(range(1, COMMITS), 3)):
            starter.killed_at(goal, chance.random() * 0.003, task, root)
            partial.append(goal <= progress(state_of(task, root)) < COMMITS)
        result = evaluate(task, root, wall(DAYS))
        same(result, clean)
        numbered(state_of(task, root), result)
        assert progress(state_of(task, root)) == COMMITS
    assert sum(partial) >= 6, "the kills came too late to prove anything"


@pytest.mark.slow
def test_killed_between_any_two_statements(case, starter):
    """24 kills, each before a chosen SQL statement: no boundary of a transaction is in the wrong place."""
    root, task, clean = case
    chance = random.Random(5)
    for _ in range(2):
        shutil.rmtree(root / "monitors/killed", ignore_errors=True)
        for _ in range(12):
            starter.killed_after(chance.randrange(15, 200), task, root)
        result = evaluate(task, root, wall(DAYS))
        same(result, clean)
        numbered(state_of(task, root), result)


def numbered(state: Path, result: dict[str, Any]) -> None:
    """Each request has a number of its own, the same in its row and in what a reader gets, and none was lost on the way."""
    numbers = sorted(one["seq"] for one in result["triggers"] + result["proposals"])
    assert numbers == [*range(1, len(numbers) + 1)]
    with closing(sqlite3.connect(state)) as file:
        rows = file.execute("SELECT seq, document ->> '$.seq' FROM triggers ORDER BY seq").fetchall()
        settings = dict(file.execute("SELECT name, value FROM settings"))
    assert rows == [(number, number) for number in numbers]
    assert (int(settings["seq"]), settings["epoch"]) == (len(numbers), result["epoch"])


@pytest.mark.slow
def test_killed_while_the_state_of_an_earlier_version_is_brought_up_to_date(tmp_path, starter):
    """A kill before each statement of the migration: requests are numbered once, and nothing of them is lost."""
    world = World(tmp_path)
    for day in range(3):
        world.day(day, shift=1.0)
    old = (Path(__file__).parent / "state_before_seq.sql").read_text()
    task = world.task({"alerts": {"drift": {"drift": {}}}}) | {"policy": "killed"}
    state = state_of(task, tmp_path)

    def begin() -> None:
        shutil.rmtree(state.parent, ignore_errors=True)
        state.parent.mkdir(parents=True)
        with closing(sqlite3.connect(state)) as file:
            file.executescript(old)

    begin()
    statements = migration(state)
    clean = evaluate(task, tmp_path, wall(DAYS))
    assert len(clean["triggers"] + clean["proposals"]) == 3
    for number in range(statements + 1):
        begin()
        starter.killed_after(number, task, tmp_path)
        for _ in range(2):
            result = evaluate(task, tmp_path, wall(DAYS))
            numbered(state, result)
            assert result == clean | {"epoch": result["epoch"]}
        assert result["epoch"] != clean["epoch"]


def migration(state: Path) -> int:
    """How many SQL statements bring a state of an earlier version up to date."""
    seen: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(seen.append)
        return connection

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite3, "connect", traced)
        with opened(state):
            pass
    assert any(statement.startswith("ALTER TABLE") for statement in seen)
    assert seen[-1] == "COMMIT"
    return len(seen)


def state_of(task: dict[str, Any], root: Path) -> Path:
    """The state file of a policy."""
    return root / "monitors" / task["policy"] / "state.sqlite"


def progress(state: Path) -> int:
    """Rows that the stages of an evaluation have committed so far: files, performances, verdicts."""
    try:
        with closing(sqlite3.connect(f"file:{state}?mode=rw", uri=True, timeout=0.1)) as connection:
            return sum(
                connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("files", "performance", "verdicts")
            )
    except sqlite3.OperationalError:
        return 0
