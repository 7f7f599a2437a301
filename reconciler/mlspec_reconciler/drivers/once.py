"""Once: step until nothing moves any more. The driver of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlspec_reconciler.apply import Outcome
from mlspec_reconciler.cluster import Cluster, Conflict, Unavailable
from mlspec_reconciler.drivers.lock import driving, exclusive
from mlspec_reconciler.state import Session, StateStore
from mlspec_reconciler.step import (
    APPLY_CONSENT,
    CONTROLLER_CONSENT,
    PATIENCE,
    Consent,
    DesiredState,
    Memory,
    Observation,
    degraded,
    moving,
    observe_and_plan,
    step,
)

OUTAGE = 300.0
"""Seconds that an apply which has begun waits for a cluster that does not answer any more, or lets others go first."""
PAUSE = (1.0, 15.0)
"""Seconds between two looks meanwhile."""
GRACE = 30.0
"""Seconds in which a degraded service may recover by itself before `reconcile` takes it as it is."""

Report = Callable[[Observation, list[Outcome]], None]


def reconcile(
    desired: DesiredState,
    cluster: Cluster,
    store: StateStore,
    lock: Path,
    report: Report,
    consent: Consent = APPLY_CONSENT,
    *,
    holder: str = "mlspec",
    deadline: float = float("inf"),
    say: Callable[[str], None] = lambda sentence: None,
) -> Observation:
    """Make the cluster hold what is desired; returns when nothing moves any more, when `PATIENCE` rounds in a row could
    write nothing that is new, or at the deadline (monotonic clock). `say` is told, once, that the cluster does not answer.

    Raises `Unavailable` when the cluster cannot be read or written: at once before the first round, after `OUTAGE` later.
    """
    with driving(lock):
        return _until_nothing_moves(
            desired, cluster, store, lock, report, consent, holder, deadline, _Outage(deadline, say)
        )


def _until_nothing_moves(
    desired: DesiredState,
    cluster: Cluster,
    store: StateStore,
    lock: Path,
    report: Report,
    consent: Consent,
    holder: str,
    deadline: float,
    outage: _Outage,
) -> Observation:
    stuck, healthy, memory = 0, time.monotonic(), Memory()
    while True:
        try:
            cluster.wake()
            with exclusive(lock):
                done = step(desired, cluster, store, consent, time.time(), memory, holder)
        except (Conflict, Unavailable) as error:
            outage.wait(error)
            continue
        outage.ended()
        memory, seen, outcomes = done.memory, done.seen, list(done.outcomes)
        report(seen, outcomes)
        wrote = any(_is_new(one, memory) for one in outcomes)
        stuck = stuck + 1 if outcomes and not wrote else 0
        if not outcomes and not done.stored and not moving(seen, desired.target):
            if not degraded(seen, desired.target) or time.monotonic() > healthy + GRACE:
                return seen
        else:
            healthy = time.monotonic()
        if desired.project.settings.suspend or stuck >= PATIENCE:
            return seen
        if time.monotonic() > deadline:  # what was just made is seen, too
            return _last_look(desired, cluster, store, holder) if wrote else seen
        if not wrote and not done.stored:
            _until_something_changes(cluster)


def _last_look(desired: DesiredState, cluster: Cluster, store: StateStore, holder: str) -> Observation:
    session = Session.open(store, holder)
    return observe_and_plan(desired, cluster, session, CONTROLLER_CONSENT, time.time())


def _is_new(outcome: Outcome, memory: Memory) -> bool:
    """Whether something was written that was not written before."""
    digest = outcome.write.manifest.digest if outcome.write.manifest else ""
    tried = memory.written.get((outcome.write.verb, outcome.write.key, digest))
    return not outcome.error and (tried is None or tried.count == 1)


def _until_something_changes(cluster: Cluster) -> None:
    """For at most a second; a watch that cannot be had is no reason to stop, nor to ask faster."""
    try:
        next(iter(cluster.watch(timeout=1.0)), None)
    except Unavailable:
        time.sleep(1.0)


class _Outage:
    """How long an apply goes on while it cannot read or write: what is not known is waited for, never guessed."""

    def __init__(self, deadline: float, say: Callable[[str], None]) -> None:
        self._deadline, self._say = deadline, say
        self._since: float | None = None
        self._begun = False
        self._pause = PAUSE[0]

    def wait(self, error: Exception) -> None:
        """Pause, or raise `Unavailable`: before anything was done, at the deadline, or when it has lasted too long."""
        now = time.monotonic()
        if isinstance(error, Conflict):
            error = Unavailable(f"somebody else applies this project to the same target: {error}")
        elif not self._begun:
            raise error
        if self._since is None:
            self._since = now
            self._say(f"{error}; trying again")
        if now > min(self._deadline, self._since + OUTAGE):
            raise error
        time.sleep(self._pause)
        self._pause = min(self._pause * 1.5, PAUSE[1])

    def ended(self) -> None:
        """A whole round got its answers."""
        self._begun, self._since, self._pause = True, None, PAUSE[0]
