"""A candidate that waits says for what: whoever reads `mlspec requests` must not wonder why nothing trains."""

from __future__ import annotations

from mlspec.lifecycle import PERSON, Attempt, Events, Memory, Request, Stage, advance


def request(name: str, at: str) -> Request:
    return Request(name, "retrain", "late", PERSON, at, made=1.0, made_for="s")


def standing(
    requests: list[Request], accepted: str = "", pinned: bool = False
) -> dict[str, tuple[Stage, str]]:
    """Where each request stands when the run of one was accepted."""
    attempts = [Attempt("late-1", "s", accepted, "succeeded", passed=True)] if accepted else []
    pins = ["late-0"] if pinned else []
    state = advance(Memory(), Events("s", requests=requests, attempts=attempts, pins=pins, held=pinned))
    return {one.id: (one.stage, one.reason) for one in state.candidates if one.request is not None}


OLD, NEW = request("a", "2013-05-01"), request("b", "2013-06-01")


def test_the_newest_request_is_tried_first() -> None:
    """The older one is not lost: it comes when the newer is refused."""
    assert standing([OLD, NEW]) == {
        "a": (Stage.WAITING, "a newer candidate is tried first"),
        "b": (Stage.WAITING, ""),
    }


def test_an_older_request_waits_while_a_newer_run_is_accepted() -> None:
    """`mlspec retrain --at` with a time before that of the model would wait without a word."""
    assert standing([OLD, NEW], accepted="b") == {
        "a": (Stage.WAITING, "late-1, which is newer, was accepted"),
        "b": (Stage.SERVING, ""),
    }


def test_a_pin_holds_every_request() -> None:
    """Rule 11."""
    assert standing([OLD], pinned=True) == {"a": (Stage.HELD, "held by the pin")}


def test_the_asker_is_named() -> None:
    """People are told who it was, not what kind of thing asks."""
    asked = [
        Request("", "retrain", "late", asker, "", 0.0, person=person, schedule=schedule).by
        for asker, person, schedule in (
            (PERSON, "ada", False),
            (PERSON, "", False),
            ("MonitoringPolicy/accuracy", "", False),
            ("TrainingJob/late", "", True),
            ("TrainingJob/late", "", False),
            ("Dataset/rows", "", False),
        )
    ]
    assert asked == [
        "ada",
        "a person",
        "the policy accuracy",
        "its schedule",
        "the job itself",
        "its refresh",
    ]
