"""One evaluation of a monitoring policy: read new rows, judge complete windows, move the alerts, act, tell.

The schedule of the policy starts it every `every`. Everything that it learns is in `monitors/<policy>/state.sqlite`, each
stage is one transaction, and each can be repeated: a process that is killed anywhere is continued by the next. Where the
state is a copy (`task.Storage`), it is saved before anything is told, and at the end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from mlspec import sensitivity
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.monitoring_policy import MonitoringPolicySpec
from mlspec.kinds.receiver import ReceiverSpec
from mlspec.resource import moment, seconds
from mlspec_runtime.monitor import actions, alerts, outbox, truth
from mlspec_runtime.monitor.actions import iso
from mlspec_runtime.monitor.alerts import Judged, State
from mlspec_runtime.monitor.ingest import ingest, ingested, watermark
from mlspec_runtime.monitor.judge import Evidence, judge
from mlspec_runtime.monitor.reference import Library
from mlspec_runtime.monitor.store import Store, Window, dump, opened
from mlspec_runtime.task import Document, Here, Storage, TaskError

HISTORY = 1_000
"""Verdicts that a streak looks back at, and windows that are looked at again when late rows come."""
REPORTED = 60
"""Windows and events in the result."""


@dataclass(frozen=True, slots=True)
class _Policy:
    """The task, typed. Durations in microseconds."""

    name: str
    spec: MonitoringPolicySpec
    asker: actions.Asker
    log: Path
    references: Library
    truth: truth.Source | None
    receivers: Mapping[str, ReceiverSpec]

    @property
    def length(self) -> int:
        """Of a window."""
        return int(seconds(self.spec.window) * 1e6)

    @property
    def lateness(self) -> int:
        """How long a window waits for rows."""
        return int(seconds(self.spec.lateness) * 1e6)


def run(task: Document, root: Path, storage: Storage | None = None) -> Document:
    """Evaluate once. See `evaluate` for the result."""
    return evaluate(task, root, time.time(), storage)


def evaluate(task: Document, root: Path, now: float, storage: Storage | None = None) -> Document:
    """Evaluate at `now` (seconds on the wall).

    Result: `watermark` (ISO, the clock of the log; null before the first row), `windows` (number with rows), `alerts`
    (name -> state, since, sentence, value, ...), `triggers` and `proposals` (all ever recorded, oldest first; see
    `actions`), `epoch` (of the state, in which no `seq` of a trigger comes twice), `performance` (newest windows), `drift`
    (top columns of the newest judged window), `events`, `messages`, `problems`, `expected` (the budget at the traffic of
    now) and `summary`, one line. TaskError when the task cannot be read.
    """
    storage = storage or Here(root)
    policy = _policy(task, root, storage)
    state = f"monitors/{policy.name}/state.sqlite"
    storage.take(state)
    with opened(root / state) as store:
        _keep_or_forget(store, policy)
        storage.pull(task["log"], ingested(store))
        keys = policy.truth.spec.key if policy.truth else []
        _, broken = ingest(store, policy.log, policy.length, policy.references, keys)
        problems = [f"cannot read {name} of the request log yet" for name in broken[:3]]
        clock = watermark(store, now)
        if clock is not None:
            windows = store.windows()[-HISTORY:]
            if policy.truth:
                wanted = [one.metric for one in policy.spec.alerts.values() if one.metric]
                problems += truth.settle(
                    store,
                    windows,
                    policy.truth,
                    root,
                    storage.pull,
                    clock,
                    policy.length,
                    policy.lateness,
                    wanted,
                )
            _judge(store, policy, windows, clock)
            _move(store, policy, windows, clock, now)
            problems += _unlogged(store, policy, windows)
        with store.transaction():
            _tell_again(store, policy, clock, now)
        if outbox.due(store, now):
            storage.save(state)
        outbox.deliver(store, policy.receivers, now)
        result = _result(store, policy, clock, problems)
    storage.save(state)
    return result


def _unlogged(store: Store, policy: _Policy, windows: Sequence[Window]) -> list[str]:
    """What cannot be judged in the newest window, because the log or the reference does not have it."""
    problems = []
    counted = store.counts(windows[-1].start) if windows else {}
    for model in windows[-1].models if windows else ():
        if (known := policy.references[model]) is None:
            problems.append(f"no reference bins of model {model}: its drift is not judged")
        elif missing := [name for name in known.features if f"feature/{name}" not in counted.get(model, {})]:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            problems.append(f"the request log lacks {names} of model {model}")
    return problems


def _policy(task: Document, root: Path, storage: Storage) -> _Policy:
    try:
        spec = MonitoringPolicySpec.model_validate(task["spec"])
        receivers = {name: ReceiverSpec.model_validate(one) for name, one in task["receivers"].items()}
        source = None
        if spec.truth and task.get("truth"):
            dataset = DatasetSpec.model_validate(task["truth"]["spec"])
            source = truth.Source(task["truth"]["path"], dataset, spec.truth)
    except (ValidationError, KeyError, TypeError) as error:
        raise TaskError(
            f"the task of the monitor cannot be read: {error}", "apply again with the mlspec that runs here"
        ) from None
    library = Library(root, task["references"], storage.pull)
    asker = actions.Asker(task["policy"], spec, task.get("made_for", {}), task.get("runs", {}))
    return _Policy(task["policy"], spec, asker, root / task["log"], library, source, receivers)


def _keep_or_forget(store: Store, policy: _Policy) -> None:
    """Counts fit one length of windows and one set of keys; when these change, the log is counted again."""
    keys = ",".join(policy.truth.spec.key) if policy.truth else ""
    shape = f"{policy.spec.window}|{keys}"
    with store.transaction():
        if (before := store.setting("shape")) != shape:
            if before is not None:
                store.forget()
                store.remember("forgotten", "yes")
            store.remember("shape", shape)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def _judge(store: Store, policy: _Policy, windows: Sequence[Window], clock: int) -> None:
    """Write the verdict of every alert about every complete window that it has not judged as it is now."""
    performances = truth.performances(store)
    complete = [one for one in windows if one.start + policy.length + policy.lateness <= clock]
    with store.transaction():
        _follow_definitions(store, policy, complete)
    verdicts = {
        (name, start): (revision, judged)
        for name, start, revision, judged in store.execute(
            "SELECT alert, start, revision, judged FROM verdicts"
        )
    }
    firsts = {name: _state(store, name)[1] for name in policy.spec.alerts}
    for window in complete:
        due = [
            name
            for name, first in firsts.items()
            if (first is None or window.start >= first)
            and _due(policy, name, window, performances.get(window.start), verdicts.get((name, window.start)))
        ]
        if not due:
            continue
        performance = performances.get(window.start)
        evidence = Evidence(
            {name: rows for name, (rows, _, _) in window.models.items()},
            store.counts(window.start),
            performance[2] if performance else None,
        )
        with store.transaction():
            for name in due:
                verdict = judge(policy.spec.alerts[name], policy.spec, evidence, policy.references)
                judged = window.start + policy.length + policy.lateness
                if policy.spec.alerts[name].metric and performance:
                    judged = performance[1]
                store.execute(
                    "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)",
                    name, window.start, window.revision, judged, dump(asdict(verdict)),
                )  # fmt: skip


def _due(
    policy: _Policy,
    name: str,
    window: Window,
    performance: tuple[int, int, Document] | None,
    verdict: tuple[int, int] | None,
) -> bool:
    """Whether a window is to be judged: never done, or on fewer rows, or with fewer outcomes than there are now."""
    if not policy.spec.alerts[name].metric or not policy.truth:
        return verdict is None or verdict[0] != window.revision
    if performance is None or performance[0] != window.revision:
        return False  # not final yet
    return verdict is None or verdict != (window.revision, performance[1])


def _follow_definitions(store: Store, policy: _Policy, complete: Sequence[Window]) -> None:
    """A new or changed alert starts afresh at the newest windows; a removed one is dropped. A new policy sees it all."""
    known = dict(store.execute("SELECT name, definition FROM alerts"))
    for name in known.keys() - policy.spec.alerts.keys():
        _drop(store, name)
    seen = bool(known) or store.setting("forgotten") is not None
    level = sensitivity.level(policy.spec)
    for name, alert in policy.spec.alerts.items():
        definition = hashlib.sha256(
            f"{dump(alert.document())}|{policy.spec.min_rows}|{level if not alert.metric else ''}".encode()
        ).hexdigest()
        if known.get(name) == definition:
            continue
        _drop(store, name)
        newest = complete[-alert.for_ :]
        first = newest[0].start if seen and newest else None
        document = asdict(State()) | {"first": first}
        store.execute("INSERT INTO alerts VALUES (?, ?, ?)", name, definition, dump(document))


def _drop(store: Store, name: str) -> None:
    store.execute("DELETE FROM alerts WHERE name = ?", name)
    store.execute("DELETE FROM verdicts WHERE alert = ?", name)


# --- states -----------------------------------------------------------------------------------------------------------


def _move(store: Store, policy: _Policy, windows: Sequence[Window], clock: int, now: float) -> None:
    """Move every alert by the windows that it has not passed, in the order in which they could be known."""
    by_start = {window.start: window for window in windows}
    complete = [one.start for one in windows if one.start + policy.length + policy.lateness <= clock]
    steps = sorted(step for name in policy.spec.alerts for step in _steps(store, name, complete))
    for _, start, name in steps:
        with store.transaction():
            before, first = _state(store, name)
            history = [one for one in _history(store, name) if one.start <= start]
            alert = policy.spec.alerts[name]
            revised = before.cursor == start
            after = alerts.advance(before, history, alert.for_, policy.spec.window, revised)
            if after == before:
                continue
            store.execute(
                "UPDATE alerts SET document = ? WHERE name = ?", dump(asdict(after) | {"first": first}), name
            )
            if after.stage != before.stage:
                store.execute(
                    "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)",
                    name, start, after.stage, after.at, after.sentence,
                )  # fmt: skip
            if not revised or after.stage != before.stage:
                actions.act(store, policy.asker, name, after, by_start[start], windows, now)
            _tell(store, policy, name, after, after.at, now)


def _steps(store: Store, name: str, complete: Sequence[int]) -> list[tuple[int, int, str]]:
    """The windows that move an alert now: the last one again (late rows may have revised it) and those after it, up to
    the first that cannot be judged yet. Each with the moment at which it and all before it could be known."""
    state, first = _state(store, name)
    judged = {one.start: one.judged for one in _history(store, name)}
    start_of = state.cursor if state.cursor is not None else first
    steps = []
    known = state.at or 0
    for start in complete:
        if start_of is not None and start < start_of:
            continue
        if start not in judged:
            break
        known = max(known, judged[start])
        steps.append((known, start, name))
    return steps


def _history(store: Store, name: str) -> list[Judged]:
    found = store.execute(
        "SELECT start, judged, document ->> '$.outcome', document ->> '$.text', document ->> '$.value' "
        "FROM verdicts WHERE alert = ? ORDER BY start DESC LIMIT ?",
        name, HISTORY,
    )  # fmt: skip
    return [
        Judged(start, outcome, text, None if value is None else float(value), judged)
        for start, judged, outcome, text, value in reversed(found)
    ]


def _state(store: Store, name: str) -> tuple[State, int | None]:
    document = store.documents("SELECT document FROM alerts WHERE name = ?", name)[0]
    first = document.pop("first")
    return State(**document), first


# --- messages ---------------------------------------------------------------------------------------------------------


def _tell(store: Store, policy: _Policy, name: str, state: State, at: int | None, now: float) -> None:
    """Write the message of a transition, unless it is silenced; that an alert is over is told to whom it was told."""
    if state.fired is None or state.stage not in ("firing", "resolved") or at is None:
        return
    for receiver in dict.fromkeys(
        one.notify for one in policy.spec.actions if one.notify and one.when in (name, "any")
    ):
        fired = f"{policy.name}/{name}/{state.fired}/firing/{receiver}"
        key = f"{policy.name}/{name}/{state.fired}/{state.stage}/{receiver}"
        if outbox.written(store, key):
            continue
        if state.stage == "firing" and _silenced(policy.spec, name, at):
            continue
        if state.stage == "resolved" and not outbox.written(store, fired):
            continue
        body = {
            "policy": policy.name,
            "graph": policy.spec.graph,
            "alert": name,
            "state": state.stage,
            "severity": policy.spec.alerts[name].severity,
            "sentence": state.sentence,
            "value": state.value,
            "since": iso(state.since) if state.since is not None else None,
            "at": iso(state.at or at),
            "fingerprint": fingerprint(policy.name, name),
        }
        outbox.write(store, outbox.Message(key, receiver, body), now)


def _tell_again(store: Store, policy: _Policy, clock: int | None, now: float) -> None:
    """An alert that still fires when its silence ends is told then."""
    known = {name for (name,) in store.execute("SELECT name FROM alerts")}
    for name in policy.spec.alerts.keys() & known:
        state, _ = _state(store, name)
        if state.stage == "firing":
            _tell(store, policy, name, state, clock, now)


def _silenced(spec: MonitoringPolicySpec, name: str, at: int) -> bool:
    return any(
        one.alert in (name, "any") and at < moment(one.until).timestamp() * 1e6 for one in spec.silences
    )


def fingerprint(policy: str, alert: str) -> str:
    """Identity of an alert over all its episodes."""
    return hashlib.sha256(f"{policy}|{alert}".encode()).hexdigest()[:12]


# --- result -----------------------------------------------------------------------------------------------------------


def _result(store: Store, policy: _Policy, clock: int | None, problems: Sequence[str]) -> Document:
    windows = store.windows()
    states = {name: _state(store, name)[0] for name in policy.spec.alerts} if clock is not None else {}
    rows = sum(window.rows for window in windows)
    return {
        "watermark": iso(clock) if clock is not None else None,
        "windows": len(windows),
        "rows": rows,
        "failed": sum(window.failed for window in windows),
        "alerts": {
            name: {
                "state": state.stage,
                "since": iso(state.since) if state.since is not None else None,
                "at": iso(state.at) if state.at is not None else None,
                "sentence": state.sentence,
                "value": state.value,
                "severity": policy.spec.alerts[name].severity,
                "fingerprint": fingerprint(policy.name, name),
            }
            for name, state in states.items()
        },
        "triggers": actions.triggers(store, "auto"),
        "proposals": actions.triggers(store, "propose"),
        "epoch": store.setting("epoch"),
        "performance": _performance(store, windows),
        "drift": _drift(store, policy),
        "events": [
            {"alert": name, "state": state, "window": iso(start), "at": iso(at), "sentence": sentence}
            for name, start, state, at, sentence in reversed(
                store.execute("SELECT * FROM events ORDER BY at DESC, start DESC LIMIT ?", REPORTED)
            )
        ],
        "messages": outbox.report(store),
        "problems": list(problems),
        "expected": _expected(policy, windows),
        "summary": _summary(states, len(windows), rows),
    }


def _performance(store: Store, windows: Sequence[Window]) -> list[Document]:
    models = {window.start: sorted(window.models) for window in windows}
    return [
        {
            "start": iso(start), "final": iso(final), "rows": document["rows"], "known": document["known"],
            "metrics": document["metrics"], "model": ", ".join(models.get(start, [])),
        }
        for start, (_, final, document) in list(truth.performances(store).items())[-REPORTED:]
    ]  # fmt: skip


def _drift(store: Store, policy: _Policy) -> list[Document]:
    """The largest effects in the newest window that each drift alert has judged."""
    result = []
    for name, alert in policy.spec.alerts.items():
        if not alert.drift and not alert.prediction:
            continue
        newest = store.execute(
            "SELECT max(start) FROM verdicts WHERE alert = ? AND document ->> '$.outcome' <> 'insufficient'",
            name,
        )
        if newest[0][0] is not None:
            found = store.documents(
                "SELECT document FROM verdicts WHERE alert = ? AND start = ?", name, newest[0][0]
            )
            result += [{"alert": name, "window": iso(newest[0][0]), **one} for one in found[0]["top"]]
    return result


def _expected(policy: _Policy, windows: Sequence[Window]) -> str:
    """What the plan says about the budget, at the traffic of now."""
    newest = [window for window in windows[-31:-1] if window.models] or list(windows)
    found = [policy.references[name] for window in newest for name in window.models]
    known = [one for one in found if one]
    if not known or not any(one.drift or one.prediction for one in policy.spec.alerts.values()):
        return ""
    typical = sensitivity.rows_per_window(policy.spec, {str(one.start): float(one.rows) for one in newest})
    bins = next(iter(known[-1].features.values()), None)
    rows = float(bins.counts.sum()) if bins else sensitivity.REFERENCE_ROWS
    return sensitivity.predicted(policy.spec, len(known[-1].features), typical, rows).sentence


def _summary(states: Mapping[str, State], windows: int, rows: int) -> str:
    firing = [state.sentence for _, state in sorted(states.items()) if state.stage == "firing"]
    if firing:
        return "; ".join(firing)
    if not windows:
        return "no request has been logged yet"
    return f"{rows:,} rows in {windows} window{'' if windows == 1 else 's'}, no alert fires"
