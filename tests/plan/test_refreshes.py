"""Readings that come due while one is under way: they never overlap, collapse into one, and hold up nobody."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mlspec.lifecycle import Request
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.remembered import request_row
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import CONTROLLER_CONSENT, DesiredState
from plan.playing import Script, end, wanted
from stepping import look, perform

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: prices}
spec:
  source: {function: "load.py:rows"}
  key: [shop]
  time: {event: at, delay: 0s}
  refresh: {every: 1m}
---
apiVersion: mlspec.dev/v1alpha1
kind: FeatureSet
metadata: {name: shop}
spec:
  dataset: prices
  key: [shop]
  features: {price: price}
"""


class World:
    """The project on a memory cluster. Readings end only when a test says so."""

    def __init__(self, folder: Path) -> None:
        (folder / "load.py").write_text("def rows():\n    return []\n")
        (folder / "prices.yaml").write_text(SPECS)
        self.project: DesiredState = wanted(folder)
        self.cluster = MemoryCluster()
        self.asked = 0
        self.rows = 1000

    def ask(self) -> None:
        """A refresh comes due."""
        self.asked += 1
        at = f"2026-11-24T06:{self.asked:02}:00+00:00"
        request = Request(f"Dataset/prices@{at}", "refresh", "prices", "Dataset/prices", at, time.time())
        Session.open(self.cluster.state, "test").put([request_row(request)])

    def move(self) -> None:
        """What the controller does until nothing is left to write."""
        for _ in range(10):
            seen = look(self.project, self.cluster, CONTROLLER_CONSENT)
            if not perform(self.project, self.cluster, seen):
                return
        raise AssertionError("does not settle")

    def under_way(self, kind: str = "data") -> list[str]:
        """Runs that have not ended."""
        return [
            name
            for name, fact in self.cluster.runs().items()
            if name.startswith(f"{kind}-") and fact.phase == "pending"
        ]

    def end(self, fail: str = "") -> None:
        """All that is under way ends; each reading finds one row more."""
        self.rows += 1
        script = Script(rows={"read prices": self.rows}, fail={"read prices": fail} if fail else {})
        for one in list(self.cluster.list()):
            end(one, self.cluster, script)
        self.move()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Read once, with features."""
    made = World(tmp_path)
    made.move()
    made.end()
    made.end()
    assert made.under_way() == made.under_way("features") == []
    return made


def test_a_reading_under_way_is_waited_for(world: World) -> None:
    """A second one beside it would read the same source twice and take the place of others."""
    world.ask()
    world.move()
    first = world.under_way()
    for _ in range(5):
        world.ask()
        world.move()
        assert world.under_way() == first
    assert len(first) == 1


def test_what_came_due_meanwhile_is_one_reading(world: World) -> None:
    """Five missed minutes are one reading, of the newest request, and then there is nothing to do."""
    world.ask()
    world.move()
    (first,) = world.under_way()
    for _ in range(5):
        world.ask()
    world.end()
    (second,) = world.under_way()
    assert second != first
    world.end()
    assert world.under_way() == []
    assert sum(name.startswith("data-") for name in world.cluster.runs()) == 3


def test_dependants_follow_though_the_next_reading_is_due_already(world: World) -> None:
    """With a source that is always being read, features would otherwise never see a new snapshot."""
    made = {*world.cluster.runs()}
    world.ask()
    world.move()
    for _ in range(4):
        world.ask()
        world.end()
        assert len(world.under_way()) == 1
        assert len(world.under_way("features")) == 1
        assert world.under_way("features")[0] not in made
        made |= {*world.cluster.runs()}


def test_a_reading_that_fails_is_told_and_the_next_one_is_read(world: World) -> None:
    """A source that is down for an hour must not end the refreshes."""
    world.ask()
    world.move()
    world.end(fail="no route to host")
    lowered = look(world.project, world.cluster, CONTROLLER_CONSENT).compiled.lowered["Dataset/prices"]
    assert lowered.failed == "no route to host"
    assert lowered.version is not None, "dependants go on with the snapshot before"
    assert world.under_way() == []
    world.ask()
    world.move()
    assert len(world.under_way()) == 1
    world.end()
    lowered = look(world.project, world.cluster, CONTROLLER_CONSENT).compiled.lowered["Dataset/prices"]
    assert (lowered.failed, lowered.waits) == ("", ())


def test_a_changed_definition_is_waited_for(world: World, tmp_path: Path) -> None:
    """The snapshot before is of another table: dependants must not take it for the new one."""
    world.ask()
    (tmp_path / "prices.yaml").write_text(
        SPECS.replace("spec:\n  source", "spec:\n  strict: false\n  checks: [{rows: {min: 1}}]\n  source", 1)
    )
    world.project = wanted(tmp_path)
    world.move()
    lowered = look(world.project, world.cluster, CONTROLLER_CONSENT).compiled.lowered
    assert lowered["Dataset/prices"].version is None
    assert lowered["FeatureSet/shop"].waits == ("Dataset/prices",)
