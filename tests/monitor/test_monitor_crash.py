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
        "actions": [{"when": "any", "retrain": {"job": "late-arrival"}}, {"when": "any", "notify": "nobody"}],
    }
    document = world.task(spec, receivers={"nobody": {"webhook": {"url": "http://127.0.0.1:1/"}}})
    clean = evaluate(document | {"policy": "clean"}, tmp_path, wall(DAYS))
    return tmp_path, document | {"policy": "killed"}, clean


def same(result: dict[str, Any], clean: dict[str, Any]) -> None:
    """Both evaluations have seen, judged, asked and told the same."""
    assert result["rows"] == clean["rows"] == FILES * 60
    for part in ("windows", "performance", "drift", "failed"):
        assert result[part] == clean[part], part
    for one, other in zip(result["triggers"], clean["triggers"], strict=True):
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
        same(evaluate(task, root, wall(DAYS)), clean)
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
        same(evaluate(task, root, wall(DAYS)), clean)


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
