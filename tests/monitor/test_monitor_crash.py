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
import json, os, pathlib, sys
from mlspec_runtime.monitor import evaluate, ingest
ingest.BATCH = 1
for line in sys.stdin:
    task, root, now = json.loads(line)
    pid = os.fork()
    if pid == 0:
        evaluate.evaluate(task, pathlib.Path(root), now)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""
"""Imports once and forks for each evaluation (one transaction per file): twelve cold starts would take a minute."""


class Starter:
    """Starts evaluations as processes of their own and kills them."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def killed_at(self, goal: int, pause: float, task: dict[str, Any], root: Path, now: float) -> None:
        """Evaluate, and kill -9 `pause` seconds after `goal` rows are committed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([task, str(root), now]) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        deadline = time.monotonic() + 30
        while (
            progress(root / "monitors" / task["policy"] / "state.sqlite") < goal
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        time.sleep(pause)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
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


@pytest.mark.slow
def test_killed_evaluations_count_every_row_once(tmp_path, starter):
    """Four times three kills and one evaluation that ends: the state of an evaluation without kills."""
    world = World(tmp_path)
    for day in range(8):
        for part in range(6):
            world.day(
                day + part / 6,
                rows=60,
                span=14_000,
                skill=1.0 if day < 3 else 0.0,
                shift=1.0 if day > 5 else 0.0,
            )
    spec = {
        "truth": TRUTH,
        "alerts": {"accuracy": {"metric": "auc", "below": 0.7, "for": 2}, "drift": {"drift": {}}},
        "actions": [{"when": "any", "retrain": {"job": "late-arrival"}}, {"when": "any", "notify": "nobody"}],
    }
    document = world.task(spec, receivers={"nobody": {"webhook": {"url": "http://127.0.0.1:1/"}}})
    clean = evaluate(document | {"policy": "clean"}, world.root, wall(8))
    task = document | {"policy": "killed"}

    partial: list[bool] = []
    chance = random.Random(3)
    for _ in range(4):
        shutil.rmtree(tmp_path / "monitors/killed", ignore_errors=True)
        state = tmp_path / "monitors/killed/state.sqlite"
        for goal in sorted(chance.sample(range(1, COMMITS), 3)):
            starter.killed_at(goal, chance.random() * 0.003, task, tmp_path, wall(8))
            partial += [goal <= progress(state) < COMMITS]
        result = evaluate(task, world.root, wall(8))

        assert result["rows"] == clean["rows"] == FILES * 60
        for part in ("windows", "performance", "drift", "failed"):
            assert result[part] == clean[part], part
        for one, other in zip(result["triggers"], clean["triggers"], strict=True):
            assert {**one, "id": ""} == {**other, "id": ""}
        sentences = [[one["sentence"] for one in each["messages"]] for each in (result, clean)]
        assert sentences[0] == sentences[1]
        assert progress(state) == COMMITS
    assert sum(partial) >= 6, "the kills came too late to prove anything"


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
