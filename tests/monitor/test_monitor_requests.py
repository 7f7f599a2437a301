"""Requests of a policy: when a firing alert asks, what a request says about itself, and that a reader can tell new ones."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlspec_runtime.monitor.evaluate import evaluate
from monitor.log_writer import TRUTH, World, wall

DRIFT = {"drift": {"drift": {}}}
RETRAIN = {"when": "drift", "retrain": {"job": "late-arrival"}}
OFTEN = {"count": 9, "per": "90d"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A storage root with three trained models."""
    found = World(tmp_path)
    found.train("flights-2")
    found.train("flights-3")
    return found


def live(world: World, days: str, *actions: dict[str, Any], states: str = "", **more: Any) -> dict[str, Any]:
    """One evaluation after each day, three hours later; returns the last result.

    A day is `b` (features drift), `g` (they do not) or `.` (no requests); after `2` and `3` another model serves. `states` names
    the state of git by day, `0` if it is shorter.
    """
    spec = {"alerts": DRIFT, "actions": list(actions), **more.pop("spec", {})}
    model, result = "flights-1", {}
    for day, kind in enumerate(_models(days), start=more.pop("start", 0)):
        model = f"flights-{kind[1]}" if len(kind) > 1 else model
        if kind[0] != ".":
            world.day(day, model=model, shift=float(kind[0] == "b"))
        made_for = {"late-arrival": f"s{states[day] if day < len(states) else 0}"}
        result = evaluate(world.task(spec, made_for=made_for, **more), world.root, after(day))
    return result


def after(day: int) -> float:
    """The wall clock when a day is over: its window is judged, on the clock of the log."""
    return wall(day + 1) + 3 * 3_600


def _models(days: str) -> list[str]:
    """`gb2b` -> `g`, `b2`, `b`: the digit stands behind the first day of a model."""
    found: list[str] = []
    for letter in days:
        if letter.isdigit():
            found[-1] += letter
        else:
            found.append(letter)
    return found


def days_of(result: dict[str, Any], which: str = "triggers") -> list[int]:
    """The last day that each request has seen."""
    return [int(one["at"][8:10]) - 11 for one in result[which]]


# --- when it asks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "asked"),
    [
        ("bbbb", [0]),
        ("bgbg", [0, 2]),
        ("bgbgbg", [0, 2, 4]),
        ("bbggbbb", [0, 4]),
        ("gbbgb.", [1, 4]),
        ("b.bb", [0]),
        ("bgggbg", [0, 4]),
    ],
)
def test_a_new_alert_is_a_new_request(world: World, days: str, asked: list[int]) -> None:
    """The first retraining may have been refused by its gates; when the alert comes again, the data is another."""
    assert days_of(live(world, days, RETRAIN | {"limit": OFTEN})) == asked


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        ({"count": 1, "per": "30d"}, [0]),
        ({"count": 2, "per": "30d"}, [0, 2]),
        ({"count": 1, "per": "3d"}, [0, 4]),
        ({"count": 2, "per": "5d"}, [0, 2, 6]),
        ({"count": 9, "per": "1d"}, [0, 2, 4, 6]),
        ({"count": 1, "per": "6d"}, [0, 6]),
    ],
)
def test_every_request_counts_in_the_limit(world: World, limit: dict[str, Any], asked: list[int]) -> None:
    """Nobody tells the policy what became of a request: one that its gates refused has cost a training all the same."""
    assert days_of(live(world, "bgbgbgbg", RETRAIN | {"limit": limit})) == asked


@pytest.mark.parametrize(
    ("days", "states", "asked"),
    [
        ("bbbbb", "00000", [(0, "s0")]),
        ("bbbbb", "00111", [(0, "s0"), (2, "s1")]),
        ("bbbbb", "01010", [(0, "s0"), (1, "s1")]),
        ("bbbb", "0123", [(0, "s0"), (1, "s1"), (2, "s2"), (3, "s3")]),
        ("bgbbb", "00012", [(0, "s0"), (2, "s0"), (3, "s1"), (4, "s2")]),
        ("bbgbb", "01000", [(0, "s0"), (1, "s1"), (3, "s0")]),
        ("bgggg", "01111", [(0, "s0")]),
    ],
)
def test_a_changed_state_of_git_asks_once_more_while_the_alert_fires(
    world: World, days: str, states: str, asked: list[tuple[int, str]]
) -> None:
    """A commit has ended the earlier request; after a revert the one that was made for that state is valid again."""
    result = live(world, days, RETRAIN | {"limit": OFTEN}, states=states)
    assert [*zip(days_of(result), [one["made_for"] for one in result["triggers"]], strict=True)] == asked
    assert len({one["id"] for one in result["triggers"]}) == len(asked)


def test_a_changed_state_of_git_does_not_get_around_the_limit(world: World) -> None:
    """Otherwise ten commits on the day of an alert are ten trainings."""
    limit = {"count": 2, "per": "30d"}
    result = live(world, "bbbbb", RETRAIN | {"limit": limit}, states="01234")
    assert [one["made_for"] for one in result["triggers"]] == ["s0", "s1"]


def test_another_job_of_git_is_no_change(world: World) -> None:
    """A request ends with its own job's state only."""
    spec = {"alerts": DRIFT, "actions": [RETRAIN | {"limit": OFTEN}]}
    for day in range(4):
        world.day(day, shift=1.0)
        task = world.task(spec, made_for={"late-arrival": "s0", "other": f"s{day}"})
        result = evaluate(task, world.root, after(day))
    assert days_of(result) == [0]


@pytest.mark.parametrize(
    ("days", "asked"),
    [
        ("bbb2bb", [(0, "1"), (2, "2")]),
        ("bb2bb3b", [(0, "1"), (1, "2"), (3, "3")]),
        ("bb2bb1b", [(0, "1"), (1, "2")]),
        ("bg2bbb", [(0, "1"), (2, "2")]),
        ("bbbbb", [(0, "1")]),
    ],
)
def test_one_alert_asks_once_for_each_run_that_it_sees(
    world: World, days: str, asked: list[tuple[int, str]]
) -> None:
    """While the retraining is under way nothing is asked; a new model that is as bad is another matter."""
    result = live(world, days, RETRAIN | {"limit": OFTEN})
    runs = [one["run"].removeprefix("flights-") for one in result["triggers"]]
    assert [*zip(days_of(result), runs, strict=True)] == asked


def test_alerts_that_fire_together_ask_for_one_retraining(world: World) -> None:
    """Drift and lost accuracy of the same days have one cause; an alert that comes after the request asks anew."""
    alerts = {
        "drift": {"drift": {}},
        "scores": {"quality": {"nullRate": 0.5}},
        "also": {"drift": {"features": ["wind"]}},
    }
    action = {"when": "any", "retrain": {"job": "late-arrival"}, "limit": OFTEN}
    result = live(world, "bbb", action, spec={"alerts": alerts})
    assert days_of(result) == [0]
    later = {"drift": {"drift": {}}, "slow": {"metric": "auc", "below": 1.0, "for": 2}}
    again = live(World(world.root / "later"), "bbbb", action, spec={"alerts": later, "truth": TRUTH})
    assert [(one["alert"], one["at"][:10]) for one in again["triggers"]] == [
        ("drift", "2013-06-11"),
        ("slow", "2013-06-12"),
    ]


@pytest.mark.parametrize(
    ("days", "asked"),
    [
        ("gb2bbb", [(1, "2")]),
        ("gb2bb1bbb", [(1, "2")]),
        ("gb2gb2bb", [(1, "2"), (3, "2")]),
        ("gb2gg1bgb2b", [(1, "2"), (6, "2")]),
        ("gb2bb1bb3bb", [(1, "2"), (5, "3")]),
    ],
)
def test_a_switch_is_asked_for_again_but_never_leads_back(
    world: World, days: str, asked: list[tuple[int, str]]
) -> None:
    """A switch that had no effect (a pin held it, a person ended it) is asked for by the next alert; the model that was
    switched to may be as bad, and then a switch would bring the first one back."""
    action = {"when": "drift", "switch": {"to": "previous"}, "limit": {"count": 9, "per": "1d"}}
    result = live(world, days, action)
    runs = [one["run"].removeprefix("flights-") for one in result["triggers"]]
    assert [*zip(days_of(result), runs, strict=True)] == asked


# --- proposals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "triggers", "proposals"),
    [
        (["propose"], [], [0]),
        (["auto"], [0], []),
        (["auto", "propose"], [0], [0]),
        (["propose", "auto"], [0], [0]),
        (["propose", "propose"], [], [0]),
    ],
)
def test_a_proposal_is_never_a_request(
    world: World, modes: list[str], triggers: list[int], proposals: list[int]
) -> None:
    """What a person shall decide must not be collected; and neither uses up the limit of the other."""
    result = live(world, "bbb", *({**RETRAIN, "mode": mode} for mode in modes))
    assert (days_of(result), days_of(result, "proposals")) == (triggers, proposals)
    ids = [one["id"] for one in result["triggers"] + result["proposals"]]
    assert len(ids) == len(set(ids))


def test_an_action_that_becomes_auto_asks_though_it_has_proposed(world: World) -> None:
    """The person has decided that the policy may act; the proposal stays a proposal."""
    live(world, "bb", RETRAIN | {"mode": "propose"})
    result = live(world, "bb", RETRAIN, start=2)
    assert (days_of(result), days_of(result, "proposals")) == ([2], [0])


# --- what a request says -----------------------------------------------------------------------------------------------


def test_a_request_says_for_what_state_of_git_it_was_made_when_and_for_how_long(world: World) -> None:
    """The reconciler judges its validity from these; nothing of it is stored there."""
    switch = {"when": "drift", "switch": {"to": "previous"}, "expires": "36h"}
    result = live(world, "bb2b", RETRAIN | {"limit": OFTEN}, switch, states="011")
    first, second, third = result["triggers"]
    episode = 1_370_822_400_000_000  # 2013-06-10
    assert {
        name: first[name] for name in ("action", "subject", "job", "made_for", "run", "alert", "episode")
    } == {
        "action": "retrain",
        "subject": "late-arrival",
        "job": "late-arrival",
        "made_for": "s0",
        "run": "flights-1",
        "alert": "drift",
        "episode": episode,
    }
    assert (first["made"], first["expires"]) == (after(0), 7 * 86_400)
    assert (second["action"], second["subject"], second["job"]) == ("switch", "flights", "late-arrival")
    assert (second["made"], second["expires"], second["episode"]) == (after(0), 36 * 3_600, episode)
    assert (third["run"], third["made_for"], third["made"]) == ("flights-2", "s1", after(1))
    assert [one["seq"] for one in result["triggers"]] == [1, 2, 3]
    assert live(world, "b", RETRAIN, start=3, states="0112")["triggers"][:3] == result["triggers"]


@pytest.mark.parametrize(
    ("model", "switches", "trains"),
    [
        ("flights-1", ("late-arrival", "s0"), "flights-1"),
        ("flights-2", ("price", "p0"), "flights-2"),
        ("flights-1+flights-2", ("price", "p0"), "flights-1"),
        ("flights-3", ("", ""), "flights-3"),
        ("flights-3+flights-1", ("late-arrival", "s0"), "flights-1"),
    ],
)
def test_a_graph_of_several_jobs_asks_for_the_one_whose_run_it_is(
    world: World, model: str, switches: tuple[str, str], trains: str
) -> None:
    """A switch leads away from one run: its job's state decides how long it holds. A retraining is about its own job's run."""
    runs = {"flights-1": "late-arrival", "flights-2": "price"}
    spec = {"alerts": DRIFT, "actions": [RETRAIN, {"when": "drift", "switch": {"to": "previous"}}]}
    world.day(0, model="flights-3")
    world.day(1, rows=150, span=10_000, model="flights-3")
    for part in model.split("+")[:-1]:
        world.day(1.2, rows=1, span=10, model=part)
    for day in (2, 3):
        world.day(day, model=model, shift=1.0)
        task = world.task(spec, runs=runs, made_for={"late-arrival": "s0", "price": "p0"})
        result = evaluate(task, world.root, after(day))
    retrain, switch = sorted(result["triggers"], key=lambda one: str(one["action"]))
    assert (switch["job"], switch["made_for"]) == switches
    assert (retrain["job"], retrain["made_for"], retrain["run"]) == ("late-arrival", "s0", trains)


# --- how a reader tells new requests -------------------------------------------------------------------------------------


def state_of(world: World) -> Path:
    """The state file of the policy."""
    return world.root / "monitors/watch/state.sqlite"


def test_numbers_grow_and_never_come_again(world: World) -> None:
    """A reader keeps the highest number that it has collected; one that came twice would hide a request."""
    both = [RETRAIN | {"limit": OFTEN}, RETRAIN | {"limit": OFTEN, "mode": "propose"}]
    result = live(world, "bgb", *both)
    assert [one["seq"] for one in result["triggers"] + result["proposals"]] == [1, 3, 2, 4]
    with closing(sqlite3.connect(state_of(world))) as state, state:
        state.execute("DELETE FROM triggers")
    again = live(world, "gb", *both, start=3)
    assert [one["seq"] for one in again["triggers"] + again["proposals"]] == [5, 6]
    assert again["epoch"] == result["epoch"]


@pytest.mark.parametrize("window", ["12h", "2d", "8h", "1h", "7d"])
def test_counting_the_log_again_repeats_no_request(world: World, window: str) -> None:
    """Another window counts everything anew; what was asked stays asked, and its number too."""
    action = RETRAIN | {"limit": OFTEN}
    before = live(world, "b", action)
    for other in (window, "1d"):
        task = world.task({"alerts": DRIFT, "actions": [action], "window": other})
        again = evaluate(task, world.root, after(0))
        assert again["triggers"] == before["triggers"]
    assert again["epoch"] == before["epoch"]


def test_a_lost_state_is_noticed(world: World) -> None:
    """Its numbers begin again, so they must not be compared with those of the state before."""
    lost = live(world, "b.", RETRAIN)
    state_of(world).unlink()
    found = live(world, "bb", RETRAIN, start=1)
    assert (lost["triggers"][0]["seq"], found["triggers"][0]["seq"]) == (1, 1)
    assert lost["epoch"] != found["epoch"]
    assert evaluate(world.task({"alerts": DRIFT}), world.root, after(2))["epoch"] == found["epoch"]


def test_the_state_of_an_earlier_version_is_read(world: World) -> None:
    """`state_before_seq.sql` was written by the version that did not number requests. They were made for a state of git that nobody
    knows, so they are no longer valid; but they count in the limit, and the alert goes on firing."""
    state_of(world).parent.mkdir(parents=True)
    with closing(sqlite3.connect(state_of(world))) as old:
        old.executescript((Path(__file__).parent / "state_before_seq.sql").read_text())
    for day in range(3):
        world.day(day, shift=1.0)
    limited = RETRAIN | {"limit": {"count": 1, "per": "30d"}}
    result = live(world, "b", limited, {"when": "drift", "switch": {"to": "previous"}}, start=3)
    assert [(one["action"], one["seq"], one["made_for"]) for one in result["triggers"]] == [
        ("switch", 1, ""),
        ("retrain", 2, ""),
    ]
    assert [one["seq"] for one in result["proposals"]] == [3]
    assert [one["job"] for one in result["triggers"]] == ["", "late-arrival"]
    assert {(one["made"], one["expires"], one["episode"]) for one in result["triggers"]} == {
        (0.0, 604_800.0, 0)
    }
    assert result["rows"] == 4 * 300
    assert result["alerts"]["drift"]["sentence"].endswith("for 4 days, since Jun 10")
    assert [one["state"] for one in result["events"]] == ["firing"]
    more = live(world, "b", RETRAIN | {"limit": {"count": 2, "per": "30d"}}, start=4)
    assert [(one["seq"], one["made_for"]) for one in more["triggers"]] == [(1, ""), (2, ""), (4, "s0")]
    assert more["epoch"] == result["epoch"]
