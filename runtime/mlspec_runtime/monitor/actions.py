"""What follows from a firing alert: requests to retrain or to switch, under rate caps in the time of the data.

Each request is recorded once and returned by every later evaluation: the reconciler reads the newest result only. It says for
which state of git it was made (`made_for`); what became of it there is not known here, so each one counts in the limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlspec.kinds.monitoring_policy import Action, MonitoringPolicySpec
from mlspec.resource import seconds
from mlspec_runtime.monitor.alerts import State
from mlspec_runtime.monitor.store import Store, Window, dump
from mlspec_runtime.task import Document

_OVERLAP = 0.05
"""Share of a window by which the last row of one model may follow the first row of its successor."""


@dataclass(frozen=True, slots=True)
class Asker:
    """The policy that asks, as it was compiled."""

    policy: str
    spec: MonitoringPolicySpec
    made_for: Mapping[str, str]
    """Job -> digest of what git says about it (`mlspec.kind.Lowered.recipe`)."""
    jobs: Mapping[str, str]
    """Run that serves or has served -> its job."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an earlier request was made about; `at` in microseconds."""

    at: int
    made_for: str
    run: str | None


def act(
    store: Store, asker: Asker, alert: str, state: State, window: Window, windows: Sequence[Window], now: float
) -> None:  # fmt: skip
    """Record what a firing alert asks for after `window`, unless a cap or an action under way forbids it.

    The models of the window must be those that serve now: what was caused by a model that is gone needs no action, and
    a model that has just come is given one full window first. `now` in seconds on the wall.
    """
    if state.stage != "firing" or set(window.models) != serving(windows, seconds(asker.spec.window)):
        return
    for action in asker.spec.actions:
        if action.when not in (alert, "any") or action.notify:
            continue
        request = _request(asker, action, alert, state, window, windows)
        if _allowed(store, action, request, state, windows):
            seq = store.number()
            request |= {"made": now, "expires": seconds(action.expires), "seq": seq}
            store.execute(
                "INSERT INTO triggers VALUES (?, ?, ?, ?, ?)",
                request["id"], action.mode, state.at, dump(request), seq,
            )  # fmt: skip


def serving(windows: Sequence[Window], length: float) -> set[str]:
    """The models of the newest window, without those that ended when another began. `length` in seconds."""
    if not windows:
        return set()
    newest = max(windows, key=lambda one: one.last)
    latest = max((first for _, first, _ in newest.models.values()), default=0)
    overlap = _OVERLAP * length * 1e6
    return {
        name
        for name, (_, _, last) in newest.models.items()
        if last >= newest.last - overlap or last >= latest + overlap
    }


def _request(
    asker: Asker, action: Action, alert: str, state: State, window: Window, windows: Sequence[Window]
) -> Document:
    subject = action.retrain.job if action.retrain else asker.spec.graph
    run = _run(asker, action, window, windows)
    job = action.retrain.job if action.retrain else asker.jobs.get(run or "", "")
    made_for = asker.made_for.get(job, "")
    identity = [
        asker.policy, action.mode, action.choice, subject, alert, state.fired, made_for, window.start
    ]  # fmt: skip
    common = {
        "id": hashlib.sha256("|".join(map(str, identity)).encode()).hexdigest()[:12],
        "action": action.choice,
        "subject": subject,
        "job": job,
        "made_for": made_for,
        "at": iso(state.at or window.start),
        "window": action.retrain.window if action.retrain else None,
        "run": run,
        "alert": alert,
        "episode": state.fired,
        "reason": state.sentence,
    }
    return common if action.retrain else common | {"graph": subject, "to": "previous"}


def _run(asker: Asker, action: Action, window: Window, windows: Sequence[Window]) -> str | None:
    """The run that is to be replaced: of the job that is trained, else of the model with most rows. Of an ensemble it is the
    part that came last."""
    mine = {run for run, job in asker.jobs.items() if action.retrain and job == action.retrain.job}
    models = [name for name in window.models if mine & {*name.split("+")}] or list(window.models)
    most = max(models, key=lambda name: window.models[name][0], default="")
    parts = [part for part in most.split("+") if part in mine] or most.split("+")
    return max(parts, key=lambda part: _came(part, windows)) or None


def _allowed(
    store: Store, action: Action, request: Document, state: State, windows: Sequence[Window]
) -> bool:
    """Whether the cap leaves room, and nothing that was asked for already would do the same.

    While an alert fires, one request is made for each state of git and each run that it sees, by it or by another alert: the run
    must have been replaced before the next. A new alert is a new request. A retraining is asked for again when the time of
    the cap is over, with newer data; a switch is not.
    """
    earlier = _earlier(store, action, request["subject"])
    if action.switch and earlier and _leads_back(request["run"], earlier[-1], windows):
        return False
    at = state.at or 0
    recent = [one for one in earlier if at - one.at < seconds(action.limit.per) * 1e6]
    if len(recent) >= action.limit.count:
        return False
    if store.execute("SELECT 1 FROM triggers WHERE id = ?", request["id"]):
        return False  # the log was counted again
    began = state.fired_at or state.fired or 0
    return not any(
        one.at >= began and (one.made_for, one.run) == (request["made_for"], request["run"])
        for one in (earlier if action.switch else recent)
    )


def _earlier(store: Store, action: Action, subject: str) -> list[_Asked]:
    """Requests of this sort for this subject, oldest first. A proposal is none, and no request is a proposal."""
    return [
        _Asked(*found)
        for found in store.execute(
            "SELECT at, document ->> '$.made_for', document ->> '$.run' FROM triggers WHERE mode = ? "
            "AND document ->> '$.action' = ? AND document ->> '$.subject' = ? ORDER BY at, seq",
            action.mode, action.choice, subject,
        )
    ]  # fmt: skip


def _leads_back(run: str | None, last: _Asked, windows: Sequence[Window]) -> bool:
    """Whether a switch away from `run` would bring back the model that the last switch left."""
    return run is None or (run != last.run and _came(run, windows) <= last.at)


def _came(run: str, windows: Sequence[Window]) -> int:
    """When a model first answered, alone or with others; 0 if it never did."""
    firsts = (
        first for one in windows for name, (_, first, _) in one.models.items() if run in name.split("+")
    )
    return min(firsts, default=0)


def triggers(store: Store, mode: str) -> list[Document]:
    """All requests ever recorded in this mode, oldest first."""
    return store.documents("SELECT document FROM triggers WHERE mode = ? ORDER BY at, seq", mode)


def iso(moment: int) -> str:
    """Microseconds as ISO 8601 in UTC, rounded up to the second: what was known then is known at that time."""
    return datetime.fromtimestamp(-(-moment // 1_000_000), UTC).isoformat()
