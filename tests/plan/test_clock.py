"""What comes due becomes one durable request: datasets are read again, jobs train again, and nothing happens twice."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from mlspec import project
from mlspec.lifecycle import Request
from mlspec_reconciler import clock, remembered
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.state import Session, Table

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: prices}
spec:
  source: {parquet: prices.parquet}
  refresh: {every: 1h}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: forecast}
spec:
  function: "train.py:train"
  data:
    train: {dataset: prices, label: price}
    test: {dataset: prices, label: price}
  schedule: {cron: "0 6 * * *", window: 30d}
"""
NIGHT = datetime(2026, 11, 24, 5, 30, tzinfo=UTC).timestamp()


def due(cluster: MemoryCluster, now: float) -> list[tuple[str, str, str]]:
    built = project.build({"prices.yaml": SPECS}, "prices")
    assert built.project is not None, built.diagnostics
    session = Session.open(cluster.state, "test")
    session.put(clock.due(built.project, session, now).changes)
    found = sorted(remembered.requests(session).values(), key=lambda one: one.order)
    return [(one.action, one.subject, one.at[11:16]) for one in found]


def test_a_new_resource_starts_to_count_when_it_is_applied() -> None:
    """The first reading and training are those that the specs ask for, not last night's."""
    assert due(MemoryCluster(), NIGHT) == []


def test_missed_moments_collapse_into_the_newest() -> None:
    """A laptop that slept for three hours reads once."""
    cluster = MemoryCluster()
    due(cluster, NIGHT)
    assert due(cluster, NIGHT + 3.2 * 3600) == [
        ("retrain", "forecast", "06:00"),
        ("refresh", "prices", "08:30"),
    ]


def test_the_same_moment_twice_is_one_request() -> None:
    """Two reconcilers, or one that crashed in between, ask for the same run."""
    cluster = MemoryCluster()
    due(cluster, NIGHT)
    first = due(cluster, NIGHT + 3600)
    marks = [
        (Table.MARKS, f"timer {name}", {"at": NIGHT}) for name in ("Dataset/prices", "TrainingJob/forecast")
    ]
    Session.open(cluster.state, "test").put(marks)
    assert due(cluster, NIGHT + 3600) == first
    assert len(first) == 2


def test_what_comes_due_next_is_known() -> None:
    """A driver that sleeps until something changes must wake by itself for a timer."""
    built = project.build({"prices.yaml": SPECS}, "prices").project
    assert built is not None
    session = Session.open(MemoryCluster().state, "test")
    assert clock.due(built, session, NIGHT).next == NIGHT + 1800
    session.put(clock.due(built, session, NIGHT).changes)
    assert clock.due(built, session, NIGHT + 1800).next == NIGHT + 3600


def timer(every: float | None = None, cron: str | None = None) -> clock.Timer:
    blank = Request("", "refresh", "prices", "Dataset/prices", "", 0.0)
    return clock.Timer("Dataset/prices", blank, every, cron)


@pytest.mark.parametrize(
    "never",
    [
        timer(every=0.0),
        timer(every=-3600.0),
        timer(cron="0 0 31 2 *"),
        timer(cron="0 0 30 feb *"),
        timer(cron="0 25 * * *"),
        timer(cron="tomorrow"),
        timer(),
    ],
    ids=lambda one: str(one.cron or one.every),
)
def test_what_is_never_due_holds_up_nobody(never: clock.Timer) -> None:
    """`validate` refuses it. A stored revision that has it all the same must not end the controller, and not slow it down."""
    begun = time.perf_counter()
    assert never.latest(NIGHT - 86_400, NIGHT) is None
    assert never.next(NIGHT - 86_400, NIGHT) == clock.FOREVER
    assert time.perf_counter() - begun < 1


def test_a_clock_that_was_set_back_makes_nothing_due() -> None:
    """A moment before the last one would be read as a new request."""
    assert timer(every=60).latest(NIGHT, NIGHT - 3600) is None
    assert timer(cron="* * * * *").latest(NIGHT, NIGHT - 3600) is None


def test_an_interval_shorter_than_a_look_is_due_once() -> None:
    """A thousand missed starts are one."""
    assert timer(every=1).latest(NIGHT, NIGHT + 1000.5) == NIGHT + 1000
