"""Random histories of a model, held against the rules: what trains, what serves, where each candidate stands, and that the plan said so.

The oracle (`oracle.py`) is written from the rules alone. Each event is told to the product and to it; see `world.py`.
MLSPEC_LONG=1 plays 50,000 histories. A failure prints the shortest history that hypothesis has found, as code to paste.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lifecycle.world import DAY, HOUR, MemoryStage, Revision, Stage, World

HISTORIES = int(os.environ.get("N", "50_000" if os.environ.get("MLSPEC_LONG") else "2_000"))
LENGTH = 12

VALUES: dict[str, list[Any]] = {
    "code": ["b", "c"],
    "requirements": [("scikit-learn",), ("scikit-learn", "lightgbm")],
    "depth": [1, 2, 3],
    "seed": [0, 1],
    "metrics": [(), ("auc",)],
    "engine": ["workflow", "job"],
    "data": ["spring", "summer", "last 90d", "last 60d", "all"],
    "schedule": [None, (3, "90d"), (3, "120d"), (15, "90d")],
    "year": [2010, 2011],
    "loader": ["a", "e"],
    "label": [1, 2],
    "feature_window": ["1h", "3h"],
    "gates": [
        (("min", 0.6),),
        (("min", 0.8),),
        (),
        (("tolerance", 0.0),),
        (("min", 0.6), ("tolerance", 0.1)),
    ],
    "new_data": [False, True],
    "policy": [True, False],
    "refresh": [None, 6, 24],
    "model": [False, True],
    "suspend": [False, True],
    "memory": ["2Gi", "4Gi"],
    "retries": [1, 2],
    "comment": [0, 1, 2],
    "neighbour": [0, 1],
    "threshold": [1, 2],
}
OFTEN = ["depth", "data", "schedule", "gates", "gates", "new_data", "refresh", "year", "model"]
edits = st.lists(st.tuples(st.sampled_from([*VALUES, *OFTEN]), st.integers(0, 3)), min_size=1, max_size=2)
"""Fields, and which of their other values they get."""
aucs = st.sampled_from([0.75, 0.55, 0.85, 0.65])
baselines = st.sampled_from([0.7, 0.6, 0.8])
windows = st.sampled_from([None, "90d", "200d"])
expiries = st.sampled_from([7.0 * DAY, 2.0 * HOUR, 1.0 * DAY])
agos = st.sampled_from([60.0, 3600.0 + 7, 2.0 * DAY + 13])
crashes = st.integers(0, 14).map(lambda write: ("crash", write))
drivers = st.one_of(
    st.sampled_from(["controller", "controller", "controller", "apply", "apply", "nothing"]), crashes
)
ends = st.sampled_from(["passes", "passes", "passes", "refused", "fails", "goes on"])
then = st.tuples(drivers, ends)
"""Who is at work after an event, and what becomes of the trainings that are under way then."""
small = st.integers(0, 30)


def edited(now: Revision, changes: list[tuple[str, int]]) -> dict[str, Any]:
    """Values that are others than those of now."""
    result = {}
    for name, which in changes:
        others = [value for value in VALUES[name] if value != getattr(now, name)]
        result[name] = others[which % len(others)]
    return result


class Histories(RuleBasedStateMachine):
    """Events in any order. Each ends with the driver that is at work: nobody, the controller, a person, or one that dies at a write."""

    def stage(self) -> Stage:
        """The target."""
        return MemoryStage()

    @initialize(view=st.booleans(), first=edits, end=ends)
    def begin(self, view: bool, first: list[tuple[str, int]], end: str) -> None:
        """A first commit, applied."""
        self.world = World(self.stage(), view, **edited(Revision(), first))
        self.act(("apply", end))

    def act(self, how: Any) -> None:
        """Somebody is at work after an event, and trainings end."""
        driver, end = how
        self.drive(driver)
        if end != "goes on" and self.world.training:
            for run in self.world.training:
                if end == "fails":
                    self.world.fails(run)
                else:
                    self.world.ends(run, *((0.8, 0.75) if end == "passes" else (0.55, 0.75)))
            self.drive("controller")

    def drive(self, driver: Any) -> None:
        """One settling."""
        match driver:
            case "controller":
                self.world.settle()
            case "apply":
                self.world.apply()
            case "crash", int(write):
                self.world.settle(kill_at=write)
        self.world.later(1)

    @rule(changes=edits, how=then)
    def commit(self, changes: list[tuple[str, int]], how: Any) -> None:
        """Git says something else, or the same in other words."""
        self.world.commit(**edited(self.world.revision, changes))
        self.act(how)

    @rule(which=small, how=then)
    def revert(self, which: int, how: Any) -> None:
        """Git says again what it said once."""
        self.world.revert(which % len(self.world.commits))
        self.act(how)

    @precondition(lambda self: any(run["state"] == "ended" for run in self.world.oracle.runs.values()))
    @rule(which=small, how=then)
    def pin(self, which: int, how: Any) -> None:
        """The model is pinned to a run that has succeeded."""
        ended = [name for name, run in self.world.oracle.runs.items() if run["state"] == "ended"]
        self.world.commit(pin=ended[which % len(ended)], model=True)
        self.act(how)

    @precondition(lambda self: self.world.revision.pin is not None)
    @rule(how=then)
    def unpin(self, how: Any) -> None:
        """The model follows its job again."""
        self.world.commit(pin=None)
        self.act(how)

    @precondition(lambda self: self.world.training)
    @rule(which=small, auc=aucs, baseline=baselines, how=then)
    def training_ends(self, which: int, auc: float, baseline: float, how: Any) -> None:
        """With metrics that the gates like, or not."""
        self.world.ends(self.world.training[which % len(self.world.training)], auc, baseline)
        self.act(how)

    @precondition(lambda self: self.world.training)
    @rule(which=small, how=then)
    def training_fails(self, which: int, how: Any) -> None:
        """A run fails."""
        self.world.fails(self.world.training[which % len(self.world.training)])
        self.act(how)

    @rule(
        action=st.sampled_from(["retrain", "retrain", "retrain", "switch"]),
        ago=agos,
        window=windows,
        expires=expiries,
        how=then,
    )
    def alert(self, action: str, ago: float, window: str | None, expires: float, how: Any) -> None:
        """The policy asks."""
        self.world.alert(action, ago=ago, window=window, expires=expires)
        self.act(how)

    @rule(
        action=st.sampled_from(["retrain", "retrain", "switch"]),
        ago=agos,
        window=windows,
        expires=expiries,
        how=then,
    )
    def person(self, action: str, ago: float, window: str | None, expires: float, how: Any) -> None:
        """A person asks."""
        self.world.person(action, ago=ago, window=window, expires=expires)
        self.act(how)

    @precondition(lambda self: self.world.withdrawable)
    @rule(which=small, how=then)
    def withdraw(self, which: int, how: Any) -> None:
        """A person takes a request back, of whomever."""
        names = self.world.withdrawable
        self.world.withdraw(names[which % len(names)])
        self.act(how)

    @rule(seconds=st.sampled_from([HOUR, 7.0 * HOUR, DAY + 60.0, 8.0 * DAY]), how=then)
    def time_passes(self, seconds: float, how: Any) -> None:
        """Requests expire, schedules and refreshes come due."""
        self.world.later(seconds)
        self.act(how)

    @rule(read=st.booleans(), how=then)
    def new_rows(self, read: bool, how: Any) -> None:
        """The world has other rows, and perhaps a refresh is due that finds them."""
        self.world.new_rows()
        if read:
            self.world.later(DAY)
        self.act(how)

    @rule(slow=st.booleans(), how=then)
    def readings(self, slow: bool, how: Any) -> None:
        """Readings take their time from now on, or end."""
        self.world.slow(slow)
        self.act(how)

    @rule(how=then)
    def history_is_lost(self, how: Any) -> None:
        """The target forgets its ended runs."""
        self.world.lose_history()
        self.act(how)

    @rule(how=then)
    def policy_loses_its_state(self, how: Any) -> None:
        """It begins to count anew."""
        self.world.forget_alerts()
        self.act(how)


def histories(number: int, length: int) -> settings:
    """So many histories of so many events."""
    return settings(
        max_examples=number,
        stateful_step_count=length,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        derandomize=not os.environ.get("MLSPEC_LONG"),  # the short form plays the same ones everywhere
    )


Histories.TestCase.settings = histories(HISTORIES, LENGTH)


class TestHistories(Histories.TestCase):
    """Whatever happens, the product does what the rules say."""
