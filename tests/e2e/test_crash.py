"""`kill -9` of the supervisor and of the command at random moments of `apply`: nothing is lost, nothing runs twice."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
from pathlib import Path

from e2e.project import Project

KILLS = 20
SEED = 20261124


def test_killed_at_random_moments_the_end_is_the_same(tmp_path: Path) -> None:
    """The promise of the local target: the next command goes on with exactly the unfinished runs."""
    chance = random.Random(SEED)
    project = Project("minimal", tmp_path / "shaken")
    quiet = Project("minimal", tmp_path / "quiet")
    strengths = [1.0]
    try:
        for number in range(KILLS):
            _kill_once(project, chance, victim=("command", "supervisor", "both")[number % 3])
            if not project.changed() and number < KILLS - 1:
                strengths.append(strengths[-1] + 1)
                project.edit("project.yaml", f"strength: {strengths[-2]}", f"strength: {strengths[-1]}")
        project.run("apply", "--yes")
        assert project.changed() == []
        quiet.edit("project.yaml", "strength: 1.0", f"strength: {strengths[-1]}")
        quiet.run("apply", "--yes")
        assert project.objects()["Service tumour"]["status"]["phase"] == "ready"
        assert _serving(project) == _serving(quiet)
        for name, run in project.runs().items():
            assert run["phase"] == "succeeded", f"{name}: {run}"
        finished = _finished(project)
        trainings = [name for name in project.runs() if name.startswith("tumour-")]
        assert sorted(finished) == sorted(trainings), "each training has exactly one finished MLflow run"
    finally:
        project.stop()
        quiet.stop()
    assert not project.processes()


def _kill_once(project: Project, chance: random.Random, victim: str) -> None:
    process = project.start("apply", "--yes")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=chance.uniform(0.2, 4.0))
    if victim in ("supervisor", "both") and (supervisor := project.supervisor()):
        supervisor.kill()
    if victim in ("command", "both") and process.poll() is None:
        process.kill()
    try:
        process.communicate(timeout=240 if victim == "supervisor" else 10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        if victim == "supervisor":
            raise


def _serving(project: Project) -> str:
    run: str = project.objects()["Record model-tumour"]["spec"]["data"]["run"]
    return run


def _finished(project: Project) -> list[str]:
    with sqlite3.connect(project.folder / ".mlspec" / "mlflow.db") as database:
        query = (
            "SELECT tags.value FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid "
            "WHERE tags.key = 'mlspec.run' AND runs.status = 'FINISHED'"
        )
        return [value for (value,) in database.execute(query)]
