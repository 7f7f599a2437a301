"""The rules of the life of a model, one story each: a commit, an alert, a revert, and what comes of it.

Rule by rule in the order of `docs/lifecycle.md`. Every settling of a story is held against the oracle too (`world.py`); here
stands what a person would check. `r` is git's own first run, on the data of spring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lifecycle.world import DAY, HOUR, MemoryStage, World
from mlspec.manifest import Key
from mlspec_reconciler.remembered import request_row, requests
from mlspec_reconciler.state import Session, Table

SPRING, SUMMER = "2023-01-01 to 2023-05-01", "2023-05-01 to 2023-09-01"


def story(view: bool = False, **first: Any) -> tuple[World, str]:
    """A world whose first commit is trained and serves, and that run."""
    world = World(MemoryStage(), view, **first)
    [run] = world.apply()
    world.later(1)
    world.trains()
    assert world.serves == run
    return world, run


def alerted(world: World, **about: Any) -> str:
    """The run that comes of an alert, accepted."""
    world.alert(**about)
    [run] = world.settle()
    world.trains()
    assert world.serves == run
    return run


# ---- rule 1: what git says about a run ----------------------------------------------------------------------------

TRAINS = [
    {"code": "c"},
    {"requirements": ("scikit-learn", "lightgbm")},
    {"depth": 2},
    {"seed": 1},
    {"metrics": ("auc",)},
    {"engine": "job"},
    {"data": "summer"},
    {"year": 2011},
    {"loader": "e"},
    {"label": 2},
]
TRAINS_NOTHING = [
    {"gates": (("min", 0.7),)},
    {"gates": ()},
    {"memory": "4Gi"},
    {"retries": 2},
    {"comment": 1},
    {"policy": False},
    {"threshold": 2},
    {"neighbour": 1},
    {"refresh": 6},
    {"new_data": True},
    {"model": True},
]


def names(change: dict[str, Any]) -> str:
    """For the name of a test."""
    return ", ".join(f"{name}={value}" for name, value in change.items())


@pytest.mark.parametrize("change", TRAINS, ids=names)
@pytest.mark.parametrize("view", [False, True], ids=["dataset", "view"])
def test_rule_1_what_git_says_about_the_run_trains_when_it_changes(
    view: bool, change: dict[str, Any]
) -> None:
    """A model that serves without what a commit says of it would be a lie in git."""
    world, run = story(view)
    said = world.oracle.s
    world.commit(**change)
    [other] = world.settle()
    assert other != run
    assert world.oracle.s != said


@pytest.mark.parametrize("change", TRAINS_NOTHING, ids=names)
def test_rule_1_what_says_nothing_about_the_run_trains_nothing(change: dict[str, Any]) -> None:
    """A comment, a gate or a neighbour must not cost a training."""
    world, run = story()
    said = world.oracle.s
    world.commit(**change)
    assert world.settle() == []
    assert (world.serves, world.oracle.s) == (run, said)


def test_rule_1_a_feature_that_the_job_reads_trains_one_that_it_does_not_read_trains_nothing() -> None:
    """The definitions that a job reads are its own; those of others are not."""
    world, _ = story(view=True)
    world.commit(feature_window="3h")
    assert len(world.settle()) == 1
    other, run = story(view=False)
    other.commit(feature_window="3h")
    assert other.settle() == []
    assert other.serves == run


def test_rule_1_a_schedule_is_part_of_it_and_trains_nothing_twice() -> None:
    """The state of git is another, but its own run would be the one that is there: it counts for both."""
    world, run = story()
    said = world.oracle.s
    world.commit(schedule=(3, "90d"))
    assert world.settle() == []
    assert world.oracle.s != said
    assert world.stage_of() == "serving"
    world.new_rows()
    world.commit(refresh=6)
    world.later(7 * HOUR)  # two in the morning to nine: the dataset is read again, and the schedule comes due
    started = world.settle()
    assert [world.names[one][1] for one in started] == ["schedule-1700017200"]
    assert world.serves == run


# ---- rule 2: valid requests ---------------------------------------------------------------------------------------


def test_rule_2_a_request_that_nobody_could_act_on_in_time_lapses() -> None:
    """The alert of the week before last says nothing about the model of today."""
    world, run = story(suspend=False)
    world.commit(suspend=True)
    world.settle()
    world.alert(expires=2 * HOUR)
    world.later(3 * HOUR)
    world.commit(suspend=False)
    assert world.settle() == []
    assert world.serves == run
    [lapsed] = world.lowered("TrainingJob/j").life.lapsed
    assert lapsed.reason == "nobody could act on it in time"


def test_rule_2_a_young_request_waits_for_those_who_can_act() -> None:
    """A suspension of an hour loses no alert."""
    world, _ = story()
    world.commit(suspend=True)
    world.settle()
    world.alert(expires=2 * HOUR)
    world.later(HOUR)
    world.commit(suspend=False)
    assert len(world.settle()) == 1


def test_rule_2_what_was_accepted_does_not_expire() -> None:
    """Otherwise the model would go back to git's dates a week after each retraining."""
    world, _ = story()
    run = alerted(world, expires=2 * HOUR)
    world.later(30 * DAY)
    assert world.settle() == []
    assert world.serves == run


def test_rule_2_a_request_is_worth_nothing_without_the_policy_that_asks_and_again_with_it() -> None:
    """Git stays the truth: who is not in git decides nothing. Nothing was stored, so nothing has to be trained to come back."""
    world, run = story()
    moved = alerted(world)
    first = len(world.commits) - 1
    world.commit(policy=False)
    assert world.settle() == []
    assert world.serves == run
    world.revert(first)
    assert world.settle() == []
    assert world.serves == moved


def test_rule_2_a_person_takes_a_request_back() -> None:
    """`mlspec withdraw` brings back what served without the request."""
    world, run = story()
    name = world.alert()
    world.settle()
    moved = world.trains()
    assert world.serves == moved
    world.withdraw(name)
    assert world.settle() == []
    assert world.serves == run


def test_rule_2_a_revert_makes_a_request_valid_again() -> None:
    """Validity is computed: what was asked for this state of git is still what was asked for it."""
    world, _ = story()
    world.commit(suspend=True)
    world.settle()
    world.alert(window="90d")
    world.commit(suspend=False, depth=2)
    [own] = world.settle()
    assert world.names[own] == (world.oracle.s, "")
    world.revert(0)
    [moved] = world.settle()
    assert world.names[moved][1] == "p/0/000"


# ---- rule 3: candidates -------------------------------------------------------------------------------------------


def test_rule_3_candidates_follow_one_another_by_the_time_of_the_data() -> None:
    """An alert about yesterday does not win over one about today because it came later."""
    world, _ = story()
    world.commit(suspend=True)
    world.settle()
    today = world.alert(ago=60)
    world.alert(ago=2 * DAY)
    world.commit(suspend=False)
    [run] = world.settle()
    assert world.names[run][1] == today


def test_rule_3_a_refused_candidate_is_not_trained_again() -> None:
    """The same code on the same data would be refused again."""
    world, run = story()
    world.alert()
    world.settle()
    world.trains(auc=0.5)
    for _ in range(3):
        world.later(DAY)
        assert world.settle() == []
    assert world.serves == run
    assert world.stage_of("p/0/000") == "refused"


def test_rule_3_a_refused_request_moves_no_later_run() -> None:
    """Found in use: a retraining that the gates refused kept moving the dates of every later commit."""
    world, _ = story()
    world.alert(window="200d")
    world.settle()
    world.trains(auc=0.5)
    world.commit(depth=2)
    [own] = world.settle()
    assert world.span_of(own) == SPRING


def test_rule_3_a_failed_run_is_left_to_a_person() -> None:
    """The controller would fail for ever; who applies has mended something."""
    world, run = story()
    world.alert()
    [moved] = world.settle()
    world.fails(moved)
    assert world.settle() == []
    assert world.stage_of("p/0/000") == "failed"
    assert world.apply() == [moved]
    world.trains()
    assert world.serves == moved != run


def test_rule_3_the_candidate_before_is_tried_when_the_newest_failed_and_a_retry_does_not_wait_for_it() -> (
    None
):
    """What failed is spent, so git's own run is next. A person who applies wants the failed one as well."""
    world = World(MemoryStage())
    world.commit(suspend=True)
    world.settle()
    world.person()
    world.commit(suspend=False)
    [asked] = world.settle()
    world.fails(asked)
    [own] = world.settle()
    assert world.names[own][1] == ""
    assert world.apply() == [asked]


# ---- rule 4: what serves ------------------------------------------------------------------------------------------


def test_rule_4_the_newest_accepted_candidate_serves() -> None:
    """Two alerts, two models, the later one serves."""
    world, _ = story()
    first = alerted(world, ago=HOUR)
    second = alerted(world)
    assert first != second == world.serves


@pytest.mark.parametrize("end", ["trains", "is refused", "fails"])
def test_rule_4_what_served_goes_on_serving_until_something_is_accepted(end: str) -> None:
    """A commit must never leave requests without an answer."""
    world, run = story()
    world.commit(depth=2)
    world.settle()
    if end == "is refused":
        world.trains(auc=0.5)
    if end == "fails":
        world.fails()
        world.settle()
    assert world.serves == run


def test_rule_4_a_commit_does_not_bring_back_what_a_switch_has_left() -> None:
    """The model that a switch left was bad; while the next one trains, the good one goes on."""
    world, run = story()
    bad = alerted(world)
    world.alert("switch")
    world.settle()
    assert world.serves == run
    world.commit(depth=2)
    world.settle()
    assert world.serves == run != bad


# ---- rule 5: what is trained --------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"year": 2011}, {"loader": "e"}], ids=names)
def test_rule_5_a_snapshot_that_git_changed_trains(change: dict[str, Any]) -> None:
    """A corrected query is a change of the model."""
    world, _ = story()
    world.commit(**change)
    assert len(world.settle()) == 1


def test_rule_5_a_snapshot_that_the_world_changed_trains_nothing() -> None:
    """New rows every night must not be a new model every night."""
    world, run = story(refresh=6)
    world.new_rows()
    world.later(7 * HOUR)
    assert world.settle() == []
    assert (world.serves, world.oracle.readings) == (run, 2)


def test_rule_5_new_data_trains_where_the_job_says_so() -> None:
    """`retrain: {newData: true}`: other rows, the same dates."""
    world, run = story(refresh=6, new_data=True)
    world.new_rows()
    world.later(7 * HOUR)
    [other] = world.settle()
    assert world.span_of(other) == SPRING
    world.trains()
    assert world.serves == other != run
    assert world.settle() == []


def test_rule_5_new_data_keeps_a_window_that_has_moved() -> None:
    """Otherwise each night would bring the old dates of git back."""
    world, _ = story(refresh=6, new_data=True)
    moved = alerted(world, window="90d")
    world.new_rows()
    world.later(7 * HOUR)
    [other] = world.settle()
    assert world.data_of(other) == world.data_of(moved)


def test_rule_5_rows_that_come_back_train_again_and_what_was_taken_back_does_not() -> None:
    """A source that is mended twice is read twice. To withdraw the request is not to be asked again for the same rows."""
    world, _ = story(refresh=6, new_data=True)
    for rows in (2000, 1000, 2000):
        world.rows = world.oracle.rows = rows
        world.later(7 * HOUR)
        assert len(world.settle()) == 1
        world.trains()
    world.rows = world.oracle.rows = 3000
    world.later(7 * HOUR)
    world.settle()
    world.fails()
    world.withdraw("new-data-4")
    assert world.settle() == []


def test_rule_5_without_new_data_git_s_own_run_serves_again() -> None:
    """The job does not ask any more, so what it asked for does not count; and when it asks again, nothing is trained."""
    world, run = story(refresh=6, new_data=True)
    world.new_rows()
    world.later(7 * HOUR)
    world.settle()
    other = world.trains()
    world.commit(new_data=False)
    assert (world.settle(), world.serves) == ([], run)
    world.commit(new_data=True)
    assert (world.settle(), world.serves) == ([], other)


def test_rule_5_a_run_that_is_under_way_keeps_its_inputs() -> None:
    """A training of six hours would never end if each new snapshot began it anew."""
    world = World(MemoryStage(), refresh=6, new_data=True)
    [run] = world.settle()
    world.new_rows()
    world.later(7 * HOUR)
    assert world.settle() == []
    world.ends(run)
    [other] = world.settle()
    assert world.serves == run != other


# ---- rule 6: reverts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [*TRAINS, {"data": "last 90d"}, {"schedule": (3, "90d"), "depth": 3}], ids=names
)
def test_rule_6_a_revert_serves_the_earlier_model_and_trains_nothing(change: dict[str, Any]) -> None:
    """Also when the rows are newer by now: what was accepted for this state of git is found by it."""
    world, run = story(refresh=6)
    world.commit(**change)
    world.settle()
    other = world.trains()
    world.new_rows()
    world.later(7 * HOUR)
    for one in world.settle():  # a schedule may have come due
        world.ends(one, auc=0.9)
    world.settle()
    world.revert(0)
    assert world.settle() == []
    assert world.serves == run != other


def test_rule_6_back_and_forth_trains_nothing() -> None:
    """Two people who disagree cost no computer time."""
    world, run = story()
    world.commit(depth=2)
    world.settle()
    other = world.trains()
    for _ in range(2):
        world.revert(0)
        assert (world.settle(), world.serves) == ([], run)
        world.revert(1)
        assert (world.settle(), world.serves) == ([], other)


def test_rule_6_a_revert_of_what_was_refused_trains_nothing_either() -> None:
    """It was refused on its own merits; nothing has changed."""
    world, run = story()
    world.commit(depth=2)
    world.settle()
    world.trains(auc=0.5)
    world.revert(0)
    assert (world.settle(), world.serves) == ([], run)
    world.revert(1)
    assert (world.settle(), world.serves) == ([], run)


# ---- rule 7: gates ------------------------------------------------------------------------------------------------


def test_rule_7_stricter_gates_never_stop_what_serves() -> None:
    """A new threshold is for new models; status says that the one of now would not pass."""
    world, run = story()
    world.commit(gates=(("min", 0.95),))
    assert (world.settle(), world.serves) == ([], run)
    assert "no longer passes its gates" in world.lowered("TrainingJob/j").warning


def test_rule_7_looser_gates_accept_a_run_that_was_refused() -> None:
    """Judged from what it committed, without a training."""
    world, _ = story()
    world.commit(depth=2)
    [refused] = world.settle()
    world.trains(auc=0.55)
    world.commit(gates=(("min", 0.5),))
    assert (world.settle(), world.serves) == ([], refused)


def test_rule_7_stricter_again_after_looser_keeps_what_was_accepted() -> None:
    """An acceptance is memory: it happened."""
    world, _ = story()
    world.commit(depth=2)
    [refused] = world.settle()
    world.trains(auc=0.55)
    world.commit(gates=())
    world.settle()
    world.commit(gates=(("min", 0.6),))
    assert (world.settle(), world.serves) == ([], refused)


# ---- rule 8: alerts -----------------------------------------------------------------------------------------------


def test_rule_8_a_new_alert_is_a_new_request() -> None:
    """After a refusal the policy may ask again, for data that are newer."""
    world, _ = story()
    world.alert()
    world.settle()
    world.trains(auc=0.5)
    world.later(DAY)
    run = alerted(world)
    assert world.names[run][1] == "p/0/001"


def test_rule_8_a_policy_repeats_itself_and_is_heard_once() -> None:
    """It sends all that it ever asked for; a row that was forgotten here does not come back."""
    world, _ = story()
    first = alerted(world)
    session = Session.open(world.stage.state, "test")
    session.put([(Table.REQUESTS, "p/0/000", None)])
    del world.oracle.requests["p/0/000"]
    world.later(1)
    world.settle()
    assert world.serves != first
    second = alerted(world)
    assert world.serves == second
    assert list(requests(Session.open(world.stage.state, "test"))) == ["p/0/001"]


def test_rule_8_a_policy_that_lost_its_state_is_heard_again() -> None:
    """Its counter begins anew; what it asks for now is new."""
    world, _ = story()
    alerted(world)
    world.forget_alerts()
    world.later(DAY)
    run = alerted(world)
    assert world.names[run][1] == "p/1/000"


# ---- rule 9: schedules --------------------------------------------------------------------------------------------


def scheduled() -> tuple[World, str]:
    """A job whose schedule has trained at three in the morning, on 90 days."""
    world, _ = story(schedule=(3, "90d"))
    world.later(4 * HOUR)
    [run] = world.settle()
    world.trains()
    assert world.span_of(run) == "2023-08-17 to 2023-11-15"
    return world, run


@pytest.mark.parametrize("change", [{"depth": 2}, {"code": "c"}, {"year": 2011}, {"label": 2}], ids=names)
def test_rule_9_a_commit_of_parameters_keeps_the_moving_window(change: dict[str, Any]) -> None:
    """Git's old dates would throw away a year of schedules."""
    world, run = scheduled()
    world.commit(**change)
    [other] = world.settle()
    assert world.span_of(other) == world.span_of(run)
    assert world.names[other][1] == world.names[run][1]


def test_rule_9_the_newest_request_of_a_schedule_does_not_expire() -> None:
    """A controller that was off for a month goes on where the schedule stands."""
    world, _ = scheduled()
    world.commit(suspend=True)
    world.settle()
    world.later(30 * DAY)
    world.commit(suspend=False, depth=2)
    [run] = world.settle()
    assert world.span_of(run) == "2023-09-16 to 2023-12-15"
    world.later(8 * HOUR)
    world.fails(run)
    world.settle()
    assert world.stage_of(world.names[run][1]) == "failed"


def test_rule_9_another_schedule_or_other_dates_end_it() -> None:
    """Git says something else about the data then."""
    world, _ = scheduled()
    world.commit(data="summer")
    [own] = world.settle()
    assert (world.names[own][1], world.span_of(own)) == ("", SUMMER)


@pytest.mark.parametrize("change", [{"depth": 2}, {"schedule": (15, "90d")}, {"code": "c"}], ids=names)
def test_rule_9_the_request_of_a_policy_ends_with_any_change_and_the_plan_warns(
    change: dict[str, Any],
) -> None:
    """Git decides; but who commits a parameter must see that the dates in git are older than what serves."""
    world, _ = story()
    alerted(world, window="90d")
    world.commit(**change)
    warning = world.lowered("TrainingJob/j").warning
    started = world.settle()
    if "schedule" in change:  # git's own run is there already: it computes the same
        assert started == []
    else:
        assert [world.span_of(one) for one in started] == [SPRING]
        assert warning.startswith(
            "git's data end on 2023-05-01, before those of the model that serves (2023-11-14"
        )


# ---- rule 10: switches --------------------------------------------------------------------------------------------


def switched() -> tuple[World, str, str]:
    """A world that was switched from a bad model to the one before, and both."""
    world, run = story()
    bad = alerted(world)
    world.alert("switch")
    assert (world.settle(), world.serves) == ([], run)
    assert world.stage_of("p/0/000") == "switched-away"
    return world, run, bad


def test_rule_10_a_switch_ends_by_the_acceptance_of_a_newer_run() -> None:
    """What led away from the model before says nothing about this one."""
    world, _, bad = switched()
    world.later(60)
    assert bad != alerted(world) == world.serves


def test_rule_10_a_switch_ends_with_another_state_of_git() -> None:
    """And is there again after a revert, as it was made for what git says then."""
    world, run, _ = switched()
    world.commit(depth=2)
    world.settle()
    other = world.trains()
    assert world.serves == other
    world.revert(0)
    assert (world.settle(), world.serves) == ([], run)


def test_rule_10_a_switch_ends_when_a_person_takes_it_back() -> None:
    """The alarm was false."""
    world, _, bad = switched()
    world.withdraw("p/0/001")
    assert (world.settle(), world.serves) == ([], bad)


def test_rule_10_a_switch_does_not_expire() -> None:
    """A bad model does not become good within a week."""
    world, run, _ = switched()
    world.later(60 * DAY)
    assert (world.settle(), world.serves) == ([], run)


def test_rule_10_the_baseline_is_what_really_serves() -> None:
    """A new model is compared with the one that it would replace, not with the one that a switch has left."""
    world, run, _ = switched()
    world.later(60)
    world.alert()
    [other] = world.settle()
    train = world.stage.get(Key("local.mlspec.dev/v1", "Run", "", other)).body["spec"]["steps"][1]
    assert train["document"]["baseline"]["run"] == run


def test_rule_10_a_switch_takes_the_environment_of_the_model_that_it_leads_to() -> None:
    """A model that needs another package than its successor could not be loaded."""
    world, run = story(requirements=("scikit-learn",))
    world.commit(requirements=("lightgbm",))
    world.settle()
    world.trains()
    world.person("switch")
    assert (world.settle(), world.serves) == ([], run)
    service = world.stage.get(Key("local.mlspec.dev/v1", "Service", "", "g"))
    assert service.body["spec"]["step"]["requirements"] == ["scikit-learn"]


# ---- rule 11: pins ------------------------------------------------------------------------------------------------


def test_rule_11_a_pin_holds_requests_and_says_so() -> None:
    """Who pins decides what serves; computer time for what cannot serve is wasted."""
    world, run = story()
    world.commit(model=True, pin=world.names[run])
    world.settle()
    name = world.alert()
    assert (world.settle(), world.serves) == ([], run)
    assert world.stage_of(name) == "held"
    assert world.lowered("Model/m").note.endswith("1 request held by the pin")


def test_rule_11_git_s_own_run_is_trained_below_a_pin() -> None:
    """Git asked for it. It is accepted, and serves when the pin goes."""
    world, run = story()
    world.commit(model=True, pin=world.names[run])
    world.settle()
    world.commit(depth=2)
    [own] = world.settle()
    world.trains()
    assert (world.serves, world.stage_of()) == (run, "accepted")
    world.commit(pin=None)
    assert (world.settle(), world.serves) == ([], own)


def test_rule_11_a_held_request_is_trained_when_the_pin_goes() -> None:
    """If it is still young."""
    world, run = story()
    world.commit(model=True, pin=world.names[run])
    world.settle()
    name = world.alert()
    world.settle()
    world.commit(pin=None)
    [moved] = world.settle()
    assert world.names[moved][1] == name


def test_rule_11_a_refused_run_may_be_pinned_and_goes_on_until_another_is_accepted() -> None:
    """The person has seen it and decided; without the pin it is what served."""
    world, run = story()
    world.commit(depth=2)
    [refused] = world.settle()
    world.trains(auc=0.5)
    world.commit(model=True, pin=world.names[refused])
    assert (world.settle(), world.serves, world.stage_of()) == ([], refused, "pinned")
    world.commit(pin=None)
    assert (world.settle(), world.serves, world.stage_of()) == ([], refused, "serving")
    world.revert(0)
    assert (world.settle(), world.serves) == ([], run)


# ---- rule 12: proposals -------------------------------------------------------------------------------------------


def test_rule_12_a_proposal_is_no_request() -> None:
    """A policy that proposes waits for a commit, however often it says so."""
    world, run = story()
    proposal = {"id": "x", "seq": 1, "action": "retrain", "job": "j", "at": "2023-11-14T00:00:00+00:00"}
    key = Key("local.mlspec.dev/v1", "Schedule", "", "p-monitor")
    world.stage.settle(key, {"phase": "ready", "lastResult": {"summary": "drift", "proposals": [proposal]}})
    assert (world.settle(), world.serves) == ([], run)
    assert requests(Session.open(world.stage.state, "test")) == {}


def test_rule_12_a_proposal_that_is_committed_is_git_s_own_run() -> None:
    """It does not lapse, and nobody but git has decided it."""
    world, _ = story()
    world.commit(data="summer")
    [own] = world.settle()
    world.later(60 * DAY)
    world.trains()
    assert (world.names[own][1], world.span_of(own), world.serves) == ("", SUMMER, own)
    assert world.lowered("TrainingJob/j").data == f"data {SUMMER} (git)"


# ---- rule 13: relative ranges -------------------------------------------------------------------------------------


def test_rule_13_a_relative_range_ends_at_the_newest_data_of_the_moment_at_which_git_said_it() -> None:
    """Rows until 23:29:59.5, so the range ends at 23:30:00: whatever comes later, the same commit means the same rows."""
    world, run = story(data="last 90d", refresh=6)
    assert world.span_of(run) == "2023-08-16 to 2023-11-14"
    world.new_rows()
    world.later(7 * HOUR)
    assert world.settle() == []
    world.commit(gates=())
    assert world.settle() == []
    assert world.serves == run


def test_rule_13_a_commit_of_parameters_takes_the_newest_data() -> None:
    """It must not bring old data back."""
    world, _ = story(data="last 90d", refresh=6)
    world.later(20 * DAY)
    world.new_rows()
    world.later(DAY)
    world.settle()
    world.commit(depth=2)
    [other] = world.settle()
    assert world.span_of(other) == "2023-09-05 to 2023-12-04"


def test_rule_13_a_revert_means_the_dates_of_then() -> None:
    """The moment is kept; after a month the reverted commit still says what it said."""
    world = World(MemoryStage(), data="last 90d", refresh=6)
    [first] = world.settle()
    world.fails(first)
    world.settle()
    world.commit(depth=2)
    world.settle()
    world.new_rows()
    world.later(30 * DAY)
    world.settle()
    world.revert(0)
    [again] = world.apply()
    assert world.names[again] == world.names[first]
    assert world.span_of(again) == "2023-08-16 to 2023-11-14"


def test_rule_13_a_request_ends_the_range_at_its_own_moment() -> None:
    """`last` is a length; where it ends, the request says."""
    world, _ = story(data="last 90d")
    world.later(10 * DAY)
    world.alert(ago=DAY)
    [run] = world.settle()
    assert world.span_of(run) == "2023-08-26 to 2023-11-24"


def test_rule_13_a_plan_shows_the_dates_that_it_means() -> None:
    """A reviewer must not compute them."""
    world, _ = story(data="last 90d")
    world.commit(depth=2)
    [run] = [
        one for one in world.plan().compiled.lowered["TrainingJob/j"].workloads if one.name.startswith("j-")
    ]
    assert run.made.data.startswith("data 2023-08-16 23:30 to 2023-11-14 23:30")


# ---- the inputs that failed ---------------------------------------------------------------------------------------

COMMITS = [
    {"data": "summer"},
    {"data": "summer", "depth": 2},
    {"data": "last 90d"},
    {"depth": 2},
    {"code": "c"},
    {"year": 2011},
    {"requirements": ("lightgbm",)},
]


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "refused"])
@pytest.mark.parametrize("change", COMMITS, ids=names)
def test_after_a_requested_retraining_git_decides(change: dict[str, Any], accepted: bool) -> None:
    """`trigger_overrides_git`: a commit that moved the dates planned no run, and the job stayed on the old data."""
    world, run = story()
    world.alert(window="90d")
    world.settle()
    moved = world.trains(auc=0.8 if accepted else 0.5)
    assert world.serves == (moved if accepted else run)
    world.commit(**change)
    [own] = world.settle()
    expected = {"summer": SUMMER, "last 90d": "2023-08-16 to 2023-11-14"}.get(change.get("data", ""), SPRING)
    assert world.span_of(own) == expected
    world.trains()
    assert world.serves == own


@pytest.mark.parametrize("change", COMMITS, ids=names)
def test_a_request_that_comes_after_the_commit_was_made_for_the_state_before(change: dict[str, Any]) -> None:
    """As in the files of the case: the alert is collected together with the commit that ends it."""
    world, _ = story()
    world.alert(window="90d")
    world.commit(**change)
    [own] = world.settle()
    assert world.names[own][1] == ""


@pytest.mark.parametrize("change", COMMITS, ids=names)
@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
def test_a_revert_after_a_request_trains_nothing(when: str, change: dict[str, Any]) -> None:
    """`revert_after_trigger`: `git revert` trained again. What serves is what was accepted for that state, the alert's run included."""
    world, run = story()
    if when == "before the commit":
        run = alerted(world, window="90d")
    world.commit(**change)
    world.settle()
    world.trains()
    if when == "after the commit":
        alerted(world, window="90d")
    world.revert(0)
    assert (world.settle(), world.serves) == ([], run)


LATER: dict[str, Callable[[World], Any]] = {
    "other requirements": lambda world: world.commit(requirements=("lightgbm",)),
    "another window of a feature": lambda world: world.commit(feature_window="3h"),
    "another label": lambda world: world.commit(label=2),
    "another recipe": lambda world: world.commit(year=2011),
    "stricter gates": lambda world: world.commit(gates=(("min", 0.95),)),
    "other rows": lambda world: (world.commit(refresh=6), world.new_rows(), world.later(7 * HOUR)),
    "its history is lost": lambda world: world.lose_history(),
}


@pytest.mark.parametrize("view", [False, True], ids=["dataset", "view"])
@pytest.mark.parametrize("later", LATER)
def test_a_pinned_run_serves_with_what_it_was_trained_with(later: str, view: bool) -> None:
    """`pinned_requirements`: it got the requirements of the newest run, and none when the record was gone."""
    world, run = story(view)
    world.commit(model=True, pin=world.names[run])
    world.settle()
    LATER[later](world)
    world.settle()
    if world.training:
        world.trains()
    assert world.serves == run
    work = world.stage.get(Key("local.mlspec.dev/v1", "Service", "", "g")).body["spec"]["step"]
    assert work["requirements"] == ["scikit-learn"]
    if view:
        served = work["document"]["views"]["v"]
        assert served["spec"]["label"] == "x > 1"
        assert served["sets"]["s"]["spec"]["features"]["mean"]["window"] == "1h"


@pytest.mark.parametrize("view", [False, True], ids=["dataset", "view"])
def test_a_run_may_be_pinned_that_no_gate_has_accepted(view: bool) -> None:
    """No record was ever made of it; the run itself knows what it needs."""
    world, _ = story(view)
    world.commit(requirements=("lightgbm",))
    [refused] = world.settle()
    world.trains(auc=0.5)
    world.commit(model=True, pin=world.names[refused], requirements=("xgboost",))
    world.settle()
    work = world.stage.get(Key("local.mlspec.dev/v1", "Service", "", "g")).body["spec"]["step"]
    assert (world.serves, work["requirements"]) == (refused, ["lightgbm"])


def test_a_request_row_survives_its_round_trip() -> None:
    """What a person asks for is read as it was written, or the oracle and the product would judge different requests."""
    world, _ = story()
    world.person(window="90d")
    session = Session.open(world.stage.state, "test")
    [one] = requests(session).values()
    assert request_row(one)[2] == session.rows(Table.REQUESTS)[one.id]
