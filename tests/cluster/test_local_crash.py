"""Nothing is lost and nothing is left: the supervisor is killed, stopped, doubled, and its home removed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cluster.harness import body, home, run_of, step
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.state import Session, Table


def test_killed_at_random_moments_each_step_succeeds_once(tmp_path: Path) -> None:
    """Acceptance: `kill -9` at any time, and the next supervisor goes on with exactly the unfinished steps."""
    names = [f"run-{number}" for number in range(8)]
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    with home(tmp_path, start=False) as own:
        for name in names:
            steps = (
                step(name, "load", sleep=0.1),
                step(name, "left", after=("load",), sleep=0.15),
                step(name, "right", "flaky", after=("load",), times=1, retries=2),
                step(name, "last", after=("left", "right"), sleep=0.05),
            )
            own.create(run_of(name, *steps))
        for _ in range(14):
            own.start()
            time.sleep(0.12 + moments.random() * 0.5)
            own.kill()
        own.start()
        ended = {name: own.ended(name, 40.0) for name in names}
        assert {name: status["message"] for name, status in ended.items()} == dict.fromkeys(names, ""), (
            f"seed {seed}"
        )
        commits = own.trace("commit")
        assert sorted(commits) == sorted(
            {(name, one) for name in names for one in ("load", "left", "right", "last")}
        )
        calm = [pair for pair in own.trace("start") if pair[1] != "right"]
        assert len(calm) == len(set(calm)), f"seed {seed}: a step was started while, or after, it ran"
        own.wait(lambda: not own.alive())


def test_stop_leaves_no_process_and_wake_goes_on(tmp_path: Path) -> None:
    """`destroy` is allowed to stop in the middle; nothing is lost by it."""
    with home(tmp_path) as own:
        own.create(run_of("long", step("long", "load", sleep=1.0, retries=0)))
        own.create(body("Service", "s", port=None, readyPath="/", step=step("s", "serve", "serve")))
        own.ready("s")
        own.wait(lambda: own.trace("start"))
        own.cluster.stop()
        assert own.alive() == []
        assert not own.cluster.awake
        assert own.status("Service", "s")["phase"] == "stopped"
        assert own.supervisor is not None
        assert own.supervisor.wait(5) == 0
        own.start()
        assert own.ended("long")["phase"] == "succeeded"  # the stop does not count as a failure
        own.ready("s")


def test_stop_finds_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    """No orphan process after `destroy`, whatever happened before."""
    with home(tmp_path) as own:
        own.create(run_of("long", step("long", "load", sleep=60)))
        made = own.create(body("Service", "s", port=None, readyPath="/", step=step("s", "serve", "serve")))
        own.ready("s")
        own.wait(lambda: own.trace("start"))
        own.kill()
        assert len(own.alive()) == 2
        own.cluster.delete(made.key, made.uid)
        assert own.cluster.get(made.key) is not None  # nobody has ended its process yet
        own.cluster.stop()
        assert own.alive() == []
        assert own.cluster.get(made.key) is None


def test_a_removed_home_ends_everything(tmp_path: Path) -> None:
    """`rm -rf .mlspec` is how people clean up; a supervisor without its store must not stay."""
    with home(tmp_path / "home") as own:
        own.create(body("Service", "s", port=None, readyPath="/", step=step("s", "serve", "serve")))
        own.ready("s")
        shutil.rmtree(tmp_path / "home")
        assert own.supervisor is not None
        own.supervisor.wait(10)
        assert own.alive() == []


def test_a_copied_project_leaves_the_first_one_alone(tmp_path: Path) -> None:
    """People copy folders, with the store in it; what runs belongs to the place where it was started."""
    with home(tmp_path / "first") as own:
        own.create(body("Service", "s", port=None, readyPath="/", step=step("s", "serve", "serve")))
        pid = own.ready("s")["pid"]
        shutil.copytree(tmp_path / "first", tmp_path / "copy")
        copy = LocalCluster(tmp_path / "copy")
        assert copy.identity != own.cluster.identity
        copy.stop()
        copy.close()
        assert own.alive() == [pid]


def test_there_is_one_supervisor(tmp_path: Path) -> None:
    """Several commands at once wake one supervisor; the real one, as the command line starts it."""
    script = (
        "import sys, pathlib\n"
        "from mlspec_reconciler.clusters.local.cluster import LocalCluster\n"
        "print(LocalCluster(pathlib.Path(sys.argv[1])).wake())\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    wakers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    pids = {int(waker.communicate()[0]) for waker in wakers}
    cluster = LocalCluster(tmp_path)
    try:
        assert len(pids) == 1
        assert cluster.wake() in pids
        assert cluster.awake
    finally:
        cluster.stop()
        cluster.close()
    (pid,) = pids
    assert (
        not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )  # init may be slow


def test_an_idle_supervisor_costs_nothing(tmp_path: Path) -> None:
    """It stays on the user's laptop: under one percent of a core."""
    cluster = LocalCluster(tmp_path)
    try:
        supervisor = psutil.Process(cluster.wake())
        for number in range(20):
            spec = {"every": 3600, "cron": None, "step": step(f"n{number}", "x", "no-such-subject")}
            cluster.create(body("Run", f"n{number}", title="", steps=[]), {})
            cluster.create(body("Record", f"n{number}", data=spec), {})
        time.sleep(1.0)
        before = supervisor.cpu_times()
        time.sleep(3.0)
        after = supervisor.cpu_times()
        assert (after.user + after.system - before.user - before.system) / 3.0 < 0.01
    finally:
        cluster.stop()
        cluster.close()


def test_a_supervisor_that_would_do_otherwise_hands_over(tmp_path: Path) -> None:
    """After an upgrade, or with a new storage root, the old one must not go on for weeks."""
    cluster, moved = LocalCluster(tmp_path), LocalCluster(tmp_path, tmp_path / "elsewhere")
    try:
        first = cluster.wake()
        second = moved.wake()
        assert second != first
        assert moved.wake() == second
    finally:
        moved.stop()
        cluster.close()
        moved.close()


def test_the_controller_runs_as_long_as_something_is_applied(tmp_path: Path) -> None:
    """It is started, restarted, adopted and ended like everything else."""
    with home(tmp_path) as own:
        session = Session.open(own.cluster.state, "test")
        session.put([(Table.APPLIED, "local", {"kind": "local"})])
        (first,) = own.wait(own.alive)
        os.kill(first, signal.SIGKILL)
        (second,) = own.wait(lambda: [pid for pid in own.alive() if pid != first])
        own.kill()
        own.start()
        own.wait(lambda: own.cluster.awake)
        own.create(run_of("r", step("r", "load")))
        own.ended("r")
        assert own.alive() == [second]
        session.put([(Table.APPLIED, "local", None)])
        own.wait(lambda: not own.alive())
