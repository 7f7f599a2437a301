"""Random histories of a model, held against the rules: what trains, what serves, where each candidate stands, and that the plan said so.

The oracle (`oracle.py`) is written from the rules alone. Each event is told to the product and to it; see `world.py`.
MLSPEC_LONG=1 plays 50,000 histories. A failure prints the shortest history that hypothesis has found, as code to paste.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from lifecycle.world import DAY, HOUR, MemoryStage, Revision, Stage, World

HISTORIES = 50_000 if os.environ.get("MLSPEC_LONG") else 2_000
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
asking = {"ago": agos, "window": windows, "expires": expiries}
EVENTS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "commit": (9, {"changes": edits}),
    "revert": (4, {"which": small}),
    "pin": (2, {"which": small}),
    "unpin": (1, {}),
    "training_ends": (2, {"which": small, "auc": aucs, "baseline": baselines}),
    "training_fails": (1, {"which": small}),
    "alert": (5, asking),
    "alert_to_switch": (3, asking),
    "person": (2, {"action": st.sampled_from(["retrain", "switch"]), **asking}),
    "withdraw": (2, {"which": small}),
    "time_passes": (3, {"seconds": st.sampled_from([HOUR, 7.0 * HOUR, DAY + 60.0, 8.0 * DAY])}),
    "new_rows": (3, {"read": st.booleans()}),
    "readings": (1, {"slow": st.booleans()}),
    "history_is_lost": (1, {}),
    "policy_loses_its_state": (1, {}),
}
"""How often, and about what."""
events = st.sampled_from([name for name, (weight, _) in EVENTS.items() for _ in range(weight)]).flatmap(
    lambda name: st.tuples(st.just(name), st.fixed_dictionaries(EVENTS[name][1]))
)


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

    @rule(event=events, how=then)
    def happens(self, event: tuple[str, dict[str, Any]], how: Any) -> None:
        """An event, if it can happen now, and what is done about it."""
        name, about = event
        if getattr(self, name)(**about):
            self.act(how)

    def commit(self, changes: list[tuple[str, int]]) -> bool:
        """Git says something else, or the same in other words."""
        self.world.commit(**edited(self.world.revision, changes))
        return True

    def revert(self, which: int) -> bool:
        """Git says again what it said once."""
        self.world.revert(which % len(self.world.commits))
        return True

    def pin(self, which: int) -> bool:
        """The model is pinned to a run that has succeeded."""
        ended = [name for name, run in self.world.oracle.runs.items() if run["state"] == "ended"]
        if ended:
            self.world.commit(pin=ended[which % len(ended)], model=True)
        return bool(ended)

    def unpin(self) -> bool:
        """The model follows its job again."""
        pinned = self.world.revision.pin is not None
        if pinned:
            self.world.commit(pin=None)
        return pinned

    def training_ends(self, which: int, auc: float, baseline: float) -> bool:
        """With metrics that the gates like, or not."""
        under_way = self.world.training
        if under_way:
            self.world.ends(under_way[which % len(under_way)], auc, baseline)
        return bool(under_way)

    def training_fails(self, which: int) -> bool:
        """A run fails."""
        under_way = self.world.training
        if under_way:
            self.world.fails(under_way[which % len(under_way)])
        return bool(under_way)

    def alert(self, ago: float, window: str | None, expires: float) -> bool:
        """The policy asks for a retraining."""
        return self.world.alert(ago=ago, window=window, expires=expires) != ""

    def alert_to_switch(self, ago: float, window: str | None, expires: float) -> bool:
        """The policy asks for the model before."""
        return self.world.alert("switch", ago=ago, window=window, expires=expires) != ""

    def person(self, action: str, ago: float, window: str | None, expires: float) -> bool:
        """A person asks."""
        return self.world.person(action, ago=ago, window=window, expires=expires) != ""

    def withdraw(self, which: int) -> bool:
        """A person takes a request back, of whomever."""
        names = self.world.withdrawable
        if names:
            self.world.withdraw(names[which % len(names)])
        return bool(names)

    def time_passes(self, seconds: float) -> bool:
        """Requests expire, schedules and refreshes come due."""
        self.world.later(seconds)
        return True

    def new_rows(self, read: bool) -> bool:
        """The world has other rows, and perhaps a refresh is due that finds them."""
        self.world.new_rows()
        self.world.later(DAY if read else 1)
        return True

    def readings(self, slow: bool) -> bool:
        """Readings take their time from now on, or end."""
        self.world.slow(slow)
        return True

    def history_is_lost(self) -> bool:
        """The target forgets its ended runs."""
        self.world.lose_history()
        return True

    def policy_loses_its_state(self) -> bool:
        """It begins to count anew."""
        self.world.forget_alerts()
        return True


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
