"""What follows from a firing alert: triggers of retraining and switching, under rate caps in the time of the data.

Each trigger is recorded once and returned by every later evaluation: the reconciler reads the newest result only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from mlspec.kinds.monitoring_policy import Action, MonitoringPolicySpec
from mlspec.resource import seconds
from mlspec_runtime.monitor.alerts import State
from mlspec_runtime.monitor.store import Store, Window, dump
from mlspec_runtime.task import Document

_OVERLAP = 0.05
"""Share of a window by which the last row of one model may follow the first row of its successor."""


def act(
    store: Store, policy: str, spec: MonitoringPolicySpec, alert: str, state: State, window: Window,
    windows: Sequence[Window],
) -> None:  # fmt: skip
    """Record what a firing alert asks for after `window`, unless a cap or an action under way forbids it.

    The models of the window must be those that serve now: what was caused by a model that is gone needs no action, and
    a model that has just come is given one full window first.
    """
    if state.stage != "firing" or set(window.models) != serving(windows, seconds(spec.window)):
        return
    for action in spec.actions:
        if action.when not in (alert, "any") or action.notify:
            continue
        trigger = _trigger(policy, spec, action, alert, state, window, windows)
        if _allowed(store, action, trigger, state.at or window.start, windows):
            store.execute(
                "INSERT OR IGNORE INTO triggers VALUES (?, ?, ?, ?)",
                trigger["id"], action.mode, state.at, dump(trigger),
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


def _trigger(
    policy: str,
    spec: MonitoringPolicySpec,
    action: Action,
    alert: str,
    state: State,
    window: Window,
    windows: Sequence[Window],
) -> Document:
    subject = action.retrain.job if action.retrain else spec.graph
    identity = "|".join([policy, action.choice, subject, alert, str(window.start)])
    most = max(window.models, key=lambda name: window.models[name][0], default="")
    run = (
        max(most.split("+"), key=lambda one: _came(one, windows)) or None
    )  # of an ensemble the part that came last
    common = {
        "id": hashlib.sha256(identity.encode()).hexdigest()[:12],
        "action": action.choice,
        "subject": subject,
        "at": iso(state.at or window.start),
        "window": action.retrain.window if action.retrain else None,
        "run": run,
        "alert": alert,
        "reason": state.sentence,
    }
    if action.retrain:
        return common | {"job": subject}
    return common | {"graph": subject, "to": "previous"}


def _allowed(store: Store, action: Action, trigger: Document, at: int, windows: Sequence[Window]) -> bool:
    earlier = [
        (when, document)
        for when, document in zip(
            (
                when
                for (when,) in store.execute(
                    "SELECT at FROM triggers WHERE mode = ? ORDER BY at, id", action.mode
                )
            ),
            store.documents("SELECT document FROM triggers WHERE mode = ? ORDER BY at, id", action.mode),
            strict=True,
        )
        if document["action"] == trigger["action"] and document["subject"] == trigger["subject"]
    ]
    if action.switch and earlier and not _newer(trigger["run"], earlier[-1][0], windows):
        return False  # a second switch would lead back to the model that the first one left
    recent = [one for one in earlier if at - one[0] < seconds(action.limit.per) * 1e6]
    if len(recent) >= action.limit.count:
        return False
    return not recent or recent[-1][1]["run"] != trigger["run"]  # its model must have been replaced meanwhile


def _newer(run: str | None, at: int, windows: Sequence[Window]) -> bool:
    """Whether a model served for the first time after `at`."""
    return run is not None and _came(run, windows) > at


def _came(run: str, windows: Sequence[Window]) -> int:
    """When a model first answered, alone or with others; 0 if it never did."""
    firsts = (
        first for one in windows for name, (_, first, _) in one.models.items() if run in name.split("+")
    )
    return min(firsts, default=0)


def triggers(store: Store, mode: str) -> list[Document]:
    """All triggers ever recorded in this mode, oldest first."""
    return store.documents("SELECT document FROM triggers WHERE mode = ? ORDER BY at, id", mode)


def iso(moment: int) -> str:
    """Microseconds as ISO 8601 in UTC, rounded up to the second: what was known then is known at that time."""
    return datetime.fromtimestamp(-(-moment // 1_000_000), UTC).isoformat()
