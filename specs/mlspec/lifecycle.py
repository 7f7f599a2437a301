"""The life of a model over time: which run is trained, which one serves, and why.

Pure. `kinds/training_job.py` gathers what is known of a job (`Events`) and asks `advance`; `docs/lifecycle.md` has the rules in
words, with an example each, and the numbers here are those of that page.

Git says what is trained: `S` is the digest of what it says about a job. A request (of a policy, a clock, a person) moves the
data of a run, as long as it is valid for the `S` of now. Validity is computed and never stored, so a revert brings back
what was valid then. What is stored (`Memory`) is only what happened: what was accepted, and what has served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from mlspec.resource import moment

JSON = Mapping[str, Any]
Phase = Literal["pending", "running", "succeeded", "failed"]


class Stage(StrEnum):
    """Where a candidate stands."""

    WAITING = "waiting"
    """It will be trained: its inputs are not there yet, or a newer candidate is tried first."""
    TRAINING = "training"
    FAILED = "failed"
    """Its run failed. A person may retry it."""
    REFUSED = "refused"
    """Its run does not pass the gates."""
    ACCEPTED = "accepted"
    """It passed once. A newer accepted candidate serves instead of it."""
    SERVING = "serving"
    """Requests are answered with it. What served goes on serving while nothing newer is accepted, whatever its gates say."""
    HELD = "held"
    """A request that the pin of the model holds back."""
    PINNED = "pinned"
    """It serves because the model is pinned to its run."""
    SWITCHED_AWAY = "switched-away"
    """It is the newest accepted one, and a switch leads away from it."""
    LAPSED = "lapsed"
    """A request that is not valid now."""


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody asks for something to happen now; the id never changes."""

    id: str
    action: Literal["retrain", "switch", "refresh"]
    subject: str
    """Name of the job, graph or dataset."""
    asker: str
    """Resource id of the policy, or of the resource whose schedule asks; `person` for `mlspec retrain` and its like."""
    at: str
    """As-of time of the request: data time, ISO 8601."""
    made: float
    """Wall clock, seconds since the epoch."""
    made_for: str = ""
    """`S` of the job when the asker was compiled (of its data and schedule alone for a schedule); of a dataset the digest of its
    recipe."""
    schedule: bool = False
    """Made by the job's own schedule: made for data and schedule alone, and its newest one does not expire."""
    window: str | None = None
    """Length of the data in all, ending at `at`."""
    end: str = ""
    """Where the ranges end, when that is not `at`: a request for new rows keeps the ranges of the run before."""
    run: str | None = None
    """The run that served when the request was made; a switch leads away from it."""
    reason: str = ""
    expires: float | None = None
    """Seconds after which it lapses unless it was accepted; None: never."""
    withdrawn: str = ""
    """Who took it back; empty while nobody did."""
    person: str = ""
    """Name of the person who asked, where one did and it is known."""

    @property
    def order(self) -> tuple[float, str]:
        """Candidates follow one another by data time, then by id."""
        return moment(self.at).timestamp(), self.id

    @property
    def by(self) -> str:
        """The asker in words."""
        kind, _, name = self.asker.partition("/")
        if self.schedule:
            return "its schedule"
        if self.asker == PERSON:
            return self.person or "a person"
        words = {
            "MonitoringPolicy": f"the policy {name}",
            "TrainingJob": "the job itself",
            "Dataset": "its refresh",
        }
        return words.get(kind, self.asker)


PERSON = "person"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A run of a candidate, and what its gates say about it now."""

    run: str
    made_for: str
    request: str
    """Id; empty for git's own run."""
    phase: Phase
    passed: bool = False
    reason: str = ""
    """Why it failed, or what the gates say, in one sentence."""
    record: JSON = field(default_factory=dict)
    """What serving needs of it, once it has succeeded."""
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A run that passed its gates once: memory, whatever the gates say later."""

    made_for: str
    request: str
    run: str
    previous: str
    """The run that really served when this one was accepted; a switch leads back to it."""
    record: JSON
    at: float = 0.0
    """Wall clock, seconds since the epoch."""

    @property
    def key(self) -> tuple[str, str]:
        """Acceptances are found by `S` and the request, not by the name of the run (rule 6)."""
        return self.made_for, self.request


@dataclass(frozen=True, slots=True)
class Memory:
    """What happened to the model of a job. Grows only by `advance`."""

    accepted: Mapping[tuple[str, str], Acceptance] = field(default_factory=dict)
    served: tuple[str, ...] = ()
    """Runs in the order in which they really came to serve, by gates, switches and pins; the last one serves."""
    counts: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(`S`, request) -> a run that was made for another `S`, and has computed what this candidate would."""
    seen: Mapping[str, str] = field(default_factory=dict)
    """`S` -> where its relative ranges end: after the newest data when it was first seen, ISO 8601 (rule 13)."""

    def record(self, run: str) -> JSON | None:
        """What serving needs of an accepted run."""
        return next((one.record for one in self.accepted.values() if one.run == run), None)


@dataclass(frozen=True, slots=True)
class Events:
    """All that is known at one moment."""

    made_for: str
    """`S` of git now."""
    made_for_data: str = ""
    """The digest for which requests of the job's schedule are made."""
    requests: Sequence[Request] = ()
    """Those to retrain this job, and to switch graphs that serve it."""
    askers: frozenset[str] = frozenset()
    """Resources of git that may ask: policies, and the job itself while it says `newData`."""
    attempts: Sequence[Attempt] = ()
    pins: Sequence[str] = ()
    """Runs to which models of this job are pinned, and which can serve."""
    held: bool = False
    """Everything that serves this job is pinned (rule 11)."""
    graphs: Sequence[str] = ()
    """Graphs that follow this job."""
    now: float = 0.0
    end: str = ""
    """Where relative ranges would end now; empty while the data is not known, or no range is relative."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Git's own run, or that of a request, and where it stands."""

    request: Request | None
    stage: Stage
    reason: str = ""
    run: str = ""
    """The run that was made for it; empty while there is none."""

    @property
    def id(self) -> str:
        """Of the request; empty for git's own."""
        return self.request.id if self.request else ""


@dataclass(frozen=True, slots=True)
class State:
    """The model at this moment."""

    memory: Memory
    """With what was learned just now."""
    candidates: tuple[Candidate, ...] = ()
    """Oldest first."""
    lapsed: tuple[Candidate, ...] = ()
    """Requests that are not valid now, with the reason."""
    train: Candidate | None = None
    """The candidate to train, or that is being trained (rule 5)."""
    retry: Candidate | None = None
    """The candidate that would be trained if its run had not failed."""
    serves: str = ""
    """The run of the newest accepted candidate, or what really served before (rule 4)."""
    really: str = ""
    """What requests are answered with, switches and pins considered: the baseline of gates (rule 10)."""
    warning: str = ""
    """What serves does not pass its gates any more (rule 7)."""
    switches: Mapping[str, Request] = field(default_factory=dict)
    """Graph -> the request that leads it away from what serves (rule 10)."""


def advance(memory: Memory, events: Events) -> State:
    """The state of a model, and what is remembered of it from now on. Repeating it with the memory that it returned changes
    nothing."""
    memory = _first_seen(memory, events)
    asked = [one for one in events.requests if one.action == "retrain"]
    reasons = {one.id: lapse(one, events, memory) for one in asked}
    valid = sorted((one for one in asked if not reasons[one.id]), key=lambda one: one.order)
    attempts = _newest(events.attempts)
    asking: list[Request | None] = [None, *valid]
    memory = _accepting(memory, [_key(one, events) for one in asking], attempts, events)
    newest = max(
        (index for index, one in enumerate(asking) if _key(one, events) in memory.accepted), default=-1
    )
    serves = _last(memory)
    if newest >= 0:  # rule 4
        serves = memory.accepted[_key(asking[newest], events)].run
    actual = really(memory, serves, events)
    memory = _serve(memory, actual)
    candidates = [_candidate(one, attempts, memory, events) for one in asking]
    candidates = [_standing(one, actual, index == newest, events) for index, one in enumerate(candidates)]
    open_ = [one for one in candidates[newest + 1 :] if one.stage in (Stage.WAITING, Stage.TRAINING)]
    train = open_[-1] if open_ else None
    failed = [one for one in candidates[newest + 1 :] if one.stage is Stage.FAILED]
    retry = (
        failed[-1]
        if failed and (train is None or candidates.index(failed[-1]) > candidates.index(train))
        else None
    )
    candidates = [_passed_over(one, train, candidates, newest) for one in candidates]
    warning = ""
    if (
        newest >= 0
        and (attempt := attempts.get(_key(asking[newest], events)))
        and attempt.phase == "succeeded"
    ):
        warning = "" if attempt.passed else attempt.reason
    lapsed = tuple(Candidate(one, Stage.LAPSED, reasons[one.id]) for one in asked if reasons[one.id])
    switches = {
        graph: found
        for graph in events.graphs
        if not events.held
        and (found := switch(graph, serves, events))
        and led_to(serves, memory, events.made_for)
    }
    return State(memory, tuple(candidates), lapsed, train, retry, serves, actual, warning, switches)


def counting(memory: Memory, run: str, made_for: str, candidate: Candidate) -> Memory:
    """A run that was made for another `S` counts for this candidate from now on, whatever its inputs become."""
    return replace(memory, counts={**memory.counts, (made_for, candidate.id): run})


def lapse(request: Request, events: Events, memory: Memory) -> str:
    """Rule 2: why a request is not valid now; empty when it is."""
    if request.withdrawn:
        return f"withdrawn by {request.withdrawn}"
    if not request.schedule and request.asker != PERSON and request.asker not in events.askers:
        own = request.asker.startswith("TrainingJob/")
        return f"{request.asker} {'does not ask any more' if own else 'is not in git any more'}"
    if request.made_for != (events.made_for_data if request.schedule else events.made_for):
        return "git has changed what is trained since"
    if (events.made_for, request.id) in memory.accepted:
        return ""
    if request.schedule and not _superseded(request, events):
        return ""  # rule 9
    if request.expires is not None and events.now - request.made >= request.expires:
        return "nobody could act on it in time"
    return ""


def _superseded(request: Request, events: Events) -> bool:
    """Whether a newer request of the same schedule was made for the same data."""
    return any(
        one.schedule and one.made_for == request.made_for and not one.withdrawn and one.order > request.order
        for one in events.requests
        if one.action == "retrain" and one.subject == request.subject
    )


def switch(graph: str, serves: str, events: Events) -> Request | None:
    """Rule 10: the request that leads a graph away from the run that serves; None when there is none.

    It ends when git says something else (another `S`), when a newer run is accepted (it leads away from the one before), or
    when a person withdraws it. While it is in force it does not expire.
    """
    found = [
        one
        for one in events.requests
        if one.action == "switch"
        and one.subject == graph
        and one.run == serves
        and not one.withdrawn
        and (one.asker == PERSON or one.asker in events.askers)
        and one.made_for == events.made_for
    ]
    return max(found, key=lambda one: one.order, default=None)


def led_to(run: str, memory: Memory, made_for: str = "") -> str:
    """Where a switch away from a run leads: what really served when it was accepted, for this `S` or else last; empty when
    nothing did."""
    found = [one for one in memory.accepted.values() if one.run == run]
    accepted = max(found, key=lambda one: (one.made_for == made_for, one.at), default=None)
    return accepted.previous if accepted else ""


def really(memory: Memory, serves: str, events: Events) -> str:
    """What requests are answered with: the pin, what a switch leads to, or the run that serves."""
    if events.held:
        return events.pins[0] if events.pins else _last(memory)
    for graph in events.graphs:
        if switch(graph, serves, events) and (before := led_to(serves, memory, events.made_for)):
            return before
    return serves


def _key(request: Request | None, events: Events) -> tuple[str, str]:
    return events.made_for, request.id if request else ""


def _newest(attempts: Iterable[Attempt]) -> dict[tuple[str, str], Attempt]:
    """The run that counts for each candidate: a success before all, otherwise the newest."""
    found: dict[tuple[str, str], Attempt] = {}
    for one in sorted(attempts, key=lambda one: (one.phase == "succeeded", one.created, one.run)):
        found[one.made_for, one.request] = one
    return found


def _first_seen(memory: Memory, events: Events) -> Memory:
    if not events.end or events.made_for in memory.seen:
        return memory
    return replace(memory, seen={**memory.seen, events.made_for: events.end})


def _accepting(
    memory: Memory,
    keys: Sequence[tuple[str, str]],
    attempts: Mapping[tuple[str, str], Attempt],
    events: Events,
) -> Memory:
    """Accept what has passed, oldest first; each is told what really served before it."""
    top = max((index for index, key in enumerate(keys) if key in memory.accepted), default=-1)
    before = really(memory, memory.accepted[keys[top]].run if top >= 0 else _last(memory), events)
    for index, key in enumerate(keys):
        attempt = attempts.get(key)
        if key in memory.accepted or attempt is None or attempt.phase != "succeeded" or not attempt.passed:
            continue
        memory = _accept(memory, key, attempt, before, events)
        if index > top:
            before = really(memory, attempt.run, events)
    return memory


def _accept(memory: Memory, key: tuple[str, str], attempt: Attempt, before: str, events: Events) -> Memory:
    previous = before if before != attempt.run else led_to(attempt.run, memory)
    made = Acceptance(*key, attempt.run, previous, attempt.record, events.now)
    return replace(memory, accepted={**memory.accepted, key: made})


def _last(memory: Memory) -> str:
    return memory.served[-1] if memory.served else ""


def _serve(memory: Memory, run: str) -> Memory:
    if run == _last(memory):
        return memory
    return replace(memory, served=(*memory.served, run))


def _candidate(
    request: Request | None, attempts: Mapping[tuple[str, str], Attempt], memory: Memory, events: Events
) -> Candidate:
    """Rule 3."""
    key = _key(request, events)
    if (made := memory.accepted.get(key)) is not None:
        return Candidate(request, Stage.ACCEPTED, run=made.run)
    attempt = attempts.get(key)
    if attempt is None:
        if request is not None and events.held:
            return Candidate(request, Stage.HELD, "held by the pin")
        return Candidate(request, Stage.WAITING)
    match attempt.phase:
        case "failed":
            return Candidate(request, Stage.FAILED, attempt.reason, attempt.run)
        case "succeeded":
            return Candidate(request, Stage.REFUSED, attempt.reason, attempt.run)
    return Candidate(request, Stage.TRAINING, run=attempt.run)


def _passed_over(
    one: Candidate, train: Candidate | None, candidates: Sequence[Candidate], newest: int
) -> Candidate:
    """Why a candidate that waits is not the one to be trained (rule 5)."""
    if one.stage is not Stage.WAITING or one is train:
        return one
    if newest >= 0 and candidates.index(one) < newest:
        return replace(one, reason=f"{candidates[newest].run}, which is newer, was accepted")
    return replace(one, reason="a newer candidate is tried first")


def _standing(one: Candidate, actual: str, newest: bool, events: Events) -> Candidate:
    """What a candidate is to those who ask the model."""
    if one.run and one.run == actual:
        return replace(one, stage=Stage.PINNED if events.held else Stage.SERVING)
    if newest and not events.held:
        return replace(one, stage=Stage.SWITCHED_AWAY)
    return one
