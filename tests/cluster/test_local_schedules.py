"""Schedules on the local cluster."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.harness import Home, body, home, step


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One supervisor for all cases that leave it alone."""
    with home(tmp_path_factory.mktemp("schedules")) as made:
        yield made


def schedule(
    name: str, subject: str = "ok", every: float | None = 3600.0, cron: str | None = None, **document: Any
) -> dict[str, Any]:
    """A Schedule whose step works each time."""
    return body(
        "Schedule", name, every=every, cron=cron, step=step(name, "evaluate", subject, again=True, **document)
    )


def settled(home: Home, name: str, starts: int) -> Mapping[str, Any]:
    """The status once that many evaluations have been started and none runs."""

    def look() -> Mapping[str, Any] | None:
        status = home.status("Schedule", name)
        return status if status.get("starts", 0) >= starts and status["phase"] != "running" else None

    found: Mapping[str, Any] = home.wait(look)
    return found


def test_it_runs_when_it_is_made_and_when_its_document_changes(shared: Home) -> None:
    """A new policy must not wait a day for its first evaluation; the same body again starts nothing."""
    shared.create(schedule("new", value=1))
    status = settled(shared, "new", 1)
    assert status["phase"] == "active"
    assert status["lastResult"]["value"] == 1
    assert status["nextRun"] == pytest.approx(status["lastRun"] + 3600, abs=0.01)
    shared.cluster.apply(schedule("new", value=1), {"revision": "other"})
    shared.cluster.apply(schedule("new", value=2), {})
    assert settled(shared, "new", 2)["lastResult"]["value"] == 2
    assert shared.trace("start").count(("new", "evaluate")) == 2


def test_it_runs_again_and_again_but_never_twice_at_once(shared: Home) -> None:
    """An evaluation that takes longer than its period delays the next one."""
    made = shared.create(schedule("often", every=0.1, sleep=0.3))
    settled_after = time.monotonic() + 1.5
    shared.wait(lambda: time.monotonic() > settled_after)
    shared.cluster.delete(made.key, made.uid)
    shared.wait(lambda: shared.cluster.get(made.key) is None)
    words = [
        line.split()[0]
        for line in (shared.cluster.root / "trace.log").read_text().splitlines()
        if " often " in line
    ]
    assert len(words) >= 4
    assert all(one == ("start", "commit")[index % 2] for index, one in enumerate(words))


def test_a_failure_is_told_and_the_last_result_kept(shared: Home) -> None:
    """A broken evaluation must not erase what the page shows; the next success clears the message."""
    shared.create(schedule("fails", value=1))
    settled(shared, "fails", 1)
    shared.cluster.apply(schedule("fails", "wrong"), {})
    status = settled(shared, "fails", 2)
    assert (status["phase"], status["message"], status["failures"]) == ("failed", "no column x (add it)", 1)
    assert status["lastResult"]["value"] == 1
    shared.cluster.apply(schedule("fails", value=3), {})
    status = settled(shared, "fails", 3)
    assert (status["phase"], status["message"], status["lastResult"]["value"]) == ("active", "", 3)


def test_a_crash_is_retried_within_one_evaluation(shared: Home) -> None:
    """An out-of-memory kill must not cost the alert of a whole day."""
    shared.create(schedule("shaky", "flaky", times=1, retries=1))
    status = settled(shared, "shaky", 1)
    assert (status["phase"], status["starts"]) == ("active", 1)
    assert shared.trace("start").count(("shaky", "evaluate")) == 2


def test_cron_counts_in_utc(shared: Home) -> None:
    """The next start is the one that crontab.guru shows for UTC."""
    shared.create(schedule("cron", every=None, cron="30 3 * * *"))
    status = settled(shared, "cron", 1)
    following = datetime.datetime.fromtimestamp(status["nextRun"], datetime.UTC)
    assert (following.hour, following.minute, following.second) == (3, 30, 0)
    assert 0 < status["nextRun"] - status["lastRun"] <= 86400


def test_a_cron_expression_starts_its_step(shared: Home) -> None:
    """With seconds as sixth field, as croniter has it."""
    shared.create(schedule("secondly", every=None, cron="* * * * * */1"))
    settled(shared, "secondly", 3)


NEVER = [
    pytest.param(0, None, "an interval of 0 s is not one to repeat at", id="no_interval"),
    pytest.param(-5, None, "an interval of -5 s is not one to repeat at", id="backwards"),
    pytest.param(None, "0 0 31 2 *", '"0 0 31 2 *" never comes', id="31st_of_february"),
    pytest.param(None, "0 0 1 1 * 0 2020", '"0 0 1 1 * 0 2020" never comes', id="a_year_that_is_over"),
    pytest.param(None, None, "it has neither an interval nor a cron expression", id="neither"),
    pytest.param(None, "every tuesday", '"every tuesday" is not a cron expression', id="prose"),
    pytest.param(None, "0 99 * * *", '"0 99 * * *" is not a cron expression', id="hour_99"),
]


@pytest.mark.parametrize(("every", "cron", "message"), NEVER)
def test_a_schedule_that_is_never_due_says_so_and_runs_once(
    shared: Home, request: pytest.FixtureRequest, every: float | None, cron: str | None, message: str
) -> None:
    """`validate` refuses it, but an older store may hold it: an interval of 0 must not start processes without end, and a
    date that is not in the calendar must not raise at every turn. Its neighbours go on."""
    name = request.node.callspec.id.replace("_", "-")
    shared.create(schedule(name, every=every, cron=cron, value=7))
    status = settled(shared, name, 1)
    assert (status["phase"], status["message"], status["nextRun"]) == ("failed", message, None)
    assert status["lastResult"]["value"] == 7
    shared.create(schedule(f"{name}-neighbour", every=0.1))
    settled(shared, f"{name}-neighbour", 3)
    assert shared.status("Schedule", name)["starts"] == 1
    shared.cluster.apply(schedule(name, every=3600, value=7), {})
    assert shared.wait(lambda: shared.status("Schedule", name)["phase"] == "active")


def test_missed_starts_collapse_into_one(tmp_path: Path) -> None:
    """After a weekend with the laptop closed there is one evaluation, not sixty."""
    with home(tmp_path) as own:
        own.create(schedule("missed", every=1.0))
        settled(own, "missed", 1)
        own.cluster.stop()
        time.sleep(2.5)
        before = own.trace("start").count(("missed", "evaluate"))
        own.start()
        own.wait(lambda: own.trace("start").count(("missed", "evaluate")) > before)
        time.sleep(0.5)
        assert own.trace("start").count(("missed", "evaluate")) == before + 1


def test_an_evaluation_outlives_its_supervisor(tmp_path: Path) -> None:
    """The next supervisor takes its result over and does not start it a second time."""
    with home(tmp_path) as own:
        own.create(schedule("stays", sleep=1.0, value=4))
        own.wait(lambda: own.trace("start"))
        own.kill()
        own.start()
        assert settled(own, "stays", 1)["lastResult"]["value"] == 4
        assert own.trace("start") == [("stays", "evaluate")]
