"""Runs on the local cluster, with a real supervisor and real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.harness import Home, home, run_of, step
from mlspec.manifest import Key
from mlspec_reconciler.clusters.local.cluster import API_VERSION


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One supervisor for all cases that leave it alone."""
    with home(tmp_path_factory.mktemp("runs")) as made:
        yield made


def test_a_run_succeeds_and_is_remembered(shared: Home) -> None:
    """Result, times and log of a run are what everything after it is built on."""
    made = shared.create(run_of("good", step("good", "load", value=7)))
    status = shared.ended("good")
    assert status["phase"] == "succeeded"
    assert status["results"]["load"]["value"] == 7
    assert status["steps"]["load"]["attempts"] == 1
    assert status["started"] <= status["finished"]
    (log,) = shared.cluster.logs(made.key)
    assert "attempt 1: " in log.read_text()
    shared.cluster.delete(made.key, made.uid)
    assert shared.cluster.get(made.key) is None
    fact = shared.cluster.runs()["good"]
    assert (fact.phase, fact.results["load"]["value"]) == ("succeeded", 7)
    (line,) = shared.cluster.history("good")
    assert (line.title, line.attempts) == ("run good", 1)
    assert line.finished is not None


def test_a_finished_step_is_not_started_again(shared: Home) -> None:
    """A run that is made again, after a destroy for instance, finds its results."""
    for _ in range(2):
        made = shared.create(run_of("again", step("again", "load")))
        assert shared.ended("again")["phase"] == "succeeded"
        shared.cluster.delete(made.key, made.uid)
    assert shared.trace("start").count(("again", "load")) == 1


def test_a_reported_failure_is_final(shared: Home) -> None:
    """The user's mistake is shown at once, not after two more trainings with the same mistake."""
    shared.create(
        run_of("wrong", step("wrong", "load", "wrong", retries=3), step("wrong", "train", after=("load",)))
    )
    status = shared.ended("wrong")
    assert status["phase"] == "failed"
    assert status["message"] == "load: no column x (add it)"
    assert status["steps"]["load"]["attempts"] == 1
    assert status["steps"]["train"]["phase"] == "blocked"
    assert shared.cluster.runs()["wrong"].message == "load: no column x (add it)"


def test_a_passing_failure_is_retried(shared: Home) -> None:
    """A connection that broke is worth another try, when the step says so."""
    shared.create(run_of("passing", step("passing", "load", "wrong", retry=True, retries=2)))
    assert shared.ended("passing")["steps"]["load"]["attempts"] == 3


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_crash_is_retried_with_backoff(shared: Home, by_signal: bool) -> None:
    """A process that dies without a word (memory, a bad disk) gets its retries, then the run goes on."""
    name = f"flaky-{by_signal}".lower()
    shared.create(run_of(name, step(name, "load", "flaky", times=2, retries=2, signal=by_signal)))
    status = shared.ended(name)
    assert status["phase"] == "succeeded"
    assert status["steps"]["load"]["attempts"] == 3
    assert status["finished"] - status["started"] > 0.2  # 0.1 s and 0.2 s, with jitter


def test_crashes_use_the_retries_up(shared: Home) -> None:
    """The message then is the program's last words."""
    shared.create(run_of("hopeless", step("hopeless", "load", "flaky", times=9, retries=1)))
    status = shared.ended("hopeless")
    assert (status["phase"], status["steps"]["load"]["attempts"]) == ("failed", 2)
    assert status["message"] == "load: exited with code 3: something went wrong (the log has more)"


def test_a_failed_run_may_be_made_again(shared: Home) -> None:
    """What had succeeded of it is kept; only the rest runs."""
    steps = (step("redo", "load"), step("redo", "train", "flaky", after=("load",), times=1, retries=0))
    made = shared.create(run_of("redo", *steps))
    assert shared.ended("redo")["phase"] == "failed"
    shared.cluster.delete(made.key, made.uid)
    shared.create(run_of("redo", *steps))
    assert shared.ended("redo")["phase"] == "succeeded"
    assert shared.trace("start").count(("redo", "load")) == 1
    assert shared.cluster.runs()["redo"].phase == "succeeded"


def test_a_timeout_ends_the_whole_group(shared: Home) -> None:
    """A hanging step must neither hold a core for ever nor leave children behind."""
    shared.create(run_of("slow", step("slow", "load", sleep=60, timeout=0.5, retries=3)))
    status = shared.ended("slow")
    assert status["message"] == "load: did not end within 0.5 s (raise its timeout)"
    assert status["steps"]["load"]["attempts"] == 1
    shared.wait(lambda: not shared.alive())


def test_steps_run_in_the_order_of_the_dag(shared: Home) -> None:
    """A step starts after all that it needs has committed, and independent steps run at the same time."""
    shared.create(
        run_of(
            "dag",
            step("dag", "last", after=("left", "right")),
            step("dag", "left", after=("first",), sleep=0.6),
            step("dag", "right", after=("first",), sleep=0.6),
            step("dag", "first"),
        )
    )
    assert shared.ended("dag")["phase"] == "succeeded"
    lines = [line.split() for line in (shared.cluster.root / "trace.log").read_text().splitlines()]
    order = [(word, name) for word, run, name, *_ in lines if run == "dag"]
    assert order[:2] == [("start", "first"), ("commit", "first")]
    assert sorted(order[2:4]) == [("start", "left"), ("start", "right")]
    assert order[-2:] == [("start", "last"), ("commit", "last")]


def test_a_program_that_cannot_start_is_a_failure_of_the_step(tmp_path: Path) -> None:
    """Requirements that cannot be installed are told in the run, with the installer's own words."""
    with home(tmp_path) as own:
        own.create(run_of("needs", step("needs", "load", requirements=["not a requirement"], retries=0)))
        status = own.ended("needs")
        assert status["phase"] == "failed"
        assert status["message"].startswith(
            "load: cannot install not a requirement: 'not a requirement' is not"
        )


def test_steps_get_the_interpreter_of_their_requirements(shared: Home) -> None:
    """What is installed here already needs no environment of its own."""
    shared.create(run_of("has", step("has", "load", requirements=["pydantic>=2"])))
    assert shared.ended("has")["phase"] == "succeeded"


def test_deletion_ends_what_runs(shared: Home) -> None:
    """The object is there until its processes are gone, and its name is free after that."""
    made = shared.create(run_of("doomed", step("doomed", "load", sleep=60)))
    shared.wait(lambda: ("doomed", "load") in shared.trace("start"))
    shared.cluster.delete(made.key, made.uid)
    found = shared.cluster.get(made.key)
    assert found is None or found.deleting
    shared.wait(lambda: shared.cluster.get(made.key) is None)
    assert not shared.alive()
    assert shared.cluster.runs()["doomed"].message == "deleted before it ended"


def test_a_step_that_somebody_else_runs_is_not_started(shared: Home) -> None:
    """Whoever holds the step's lock does the work; a second process would only wait and hold a core."""
    import fcntl

    folder = shared.cluster.root / "runs" / "mine" / "load"
    folder.mkdir(parents=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shared.create(run_of("mine", step("mine", "load")))
        shared.wait(lambda: "another process" in shared.status("Run", "mine").get("message", ""))
        assert ("mine", "load") not in shared.trace("start")
    assert shared.ended("mine")["phase"] == "succeeded"


def test_an_object_of_another_make_is_refused(shared: Home) -> None:
    """A body that the supervisor cannot read is one failed object, not a dead supervisor."""
    bad = run_of("bad", {"name": "no-subject"})
    shared.create(bad)
    shared.wait(lambda: shared.status("Run", "bad").get("phase") == "failed")
    assert "KeyError 'subject'" in shared.status("Run", "bad")["message"]
    one = shared.cluster.get(Key(API_VERSION, "Run", "", "bad"))
    assert one is not None
    shared.cluster.delete(one.key, one.uid)
    assert shared.cluster.get(one.key) is None
