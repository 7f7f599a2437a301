"""kill -9 of real evaluations at random moments: every row counts once, every trigger exists once."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlspec_runtime.monitor.evaluate import evaluate
from mlspec_runtime.monitor.store import opened
from monitor.log_writer import TRUTH, World, wall

PROGRAM = """
import json, sys
from pathlib import Path
from mlspec_runtime.monitor import evaluate, ingest
ingest.BATCH = 1
task = json.loads(Path(sys.argv[1]).read_text())
print("started", flush=True)
evaluate.evaluate(task, Path(sys.argv[2]), float(sys.argv[3]))
"""


def start(task: Path, root: Path, now: float) -> subprocess.Popen[str]:
    """A real evaluation in its own process, past its imports."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(task), str(root), str(now)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    return process


@pytest.mark.slow
def test_killed_evaluations_count_every_row_once(tmp_path):
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
    task = tmp_path / "task.json"
    task.write_text(json.dumps(document | {"policy": "killed"}))

    process = start(task, tmp_path, wall(8))
    began = time.monotonic()
    process.wait()
    whole = time.monotonic() - began
    chance = random.Random(3)
    partial = 0
    for _ in range(4):
        shutil.rmtree(tmp_path / "monitors/killed")
        for _ in range(3):
            process = start(task, tmp_path, wall(8))
            time.sleep(whole * 0.8 * chance.random())
            process.kill()
            process.wait()
            partial += 0 < progress(tmp_path / "monitors/killed/state.sqlite") < 1
        result = evaluate(json.loads(task.read_text()), world.root, wall(8))

        assert result["rows"] == clean["rows"] == 8 * 6 * 60
        for part in ("windows", "performance", "drift", "failed"):
            assert result[part] == clean[part], part
        for one, other in zip(result["triggers"], clean["triggers"], strict=True):
            assert {**one, "id": ""} == {**other, "id": ""}
        sentences = [[one["sentence"] for one in each["messages"]] for each in (result, clean)]
        assert sentences[0] == sentences[1]
    assert partial >= 3, "the kills came too early or too late to prove anything"


def progress(state: Path) -> float:
    """Share of the work that is committed: files counted and alerts moved."""
    with opened(state) as store:
        files, states = (
            store.execute(f"SELECT count(*) FROM {table}")[0][0] for table in ("files", "events")
        )
        return float(files / 48 + (states > 0)) / 2
