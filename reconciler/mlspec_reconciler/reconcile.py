"""The one path as one function: observe, compile, plan, apply, and again until nothing moves.

`mlspec plan` is its first half, `mlspec apply` the whole, and the controller calls it for ever. It keeps no state of
its own between rounds: killed anywhere, the next call goes on from what the cluster holds.
"""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlspec.compile import Compiled, compile, readings
from mlspec.health import Health, State
from mlspec.kinds.project import Target
from mlspec.manifest import Key
from mlspec.project import Project
from mlspec.workload import Files, RunFact
from mlspec_reconciler import apply, clock, inventory, observe, plan, preview
from mlspec_reconciler.bundle import Bundle
from mlspec_reconciler.cluster import Cluster, Conflict, Object, Unavailable

PATIENCE = 5
"""Rounds in a row in which every write failed, after which `reconcile` gives up."""
OUTAGE = 300.0
"""Seconds that an apply which has begun waits for a cluster that does not answer any more, or lets others go first."""
PAUSE = (1.0, 15.0)
"""Seconds between two looks meanwhile."""
GRACE = 30.0
"""Seconds in which a degraded service may recover by itself before `reconcile` takes it as it is."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One revision of a repository, with the code and files that its specs name, on one target."""

    project: Project
    target: Target
    code: Mapping[str, Bundle] = field(default_factory=dict)
    files: Mapping[str, Files] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """What one look at the world found."""

    compiled: Compiled
    plan: plan.Plan
    objects: tuple[Object, ...]


Report = Callable[[Round, list[apply.Outcome]], None]


@dataclass(frozen=True, slots=True)
class Consent:
    """What a person has agreed to, beyond what every apply may do."""

    retry: bool = True
    """Start failed runs again."""
    replacing: bool = False
    """Delete and make again what cannot be changed in place."""
    adopt: frozenset[str] = frozenset()
    """Take over these objects of others (`Kind/name`)."""
    deletes: frozenset[str] | None = None
    """Resources whose objects may be deleted; None: all that the specs do not declare any more."""


NONE = Consent(retry=False)
"""What the controller may do by itself."""


def look(wanted: Wanted, cluster: Cluster, consent: Consent = Consent(), *, ask: bool = False) -> Round:
    """Observe, compile, plan. Changes nothing. `ask`: the cluster is asked about every write, as a plan for people shows it."""
    objects = tuple(cluster.list())
    facts = observe.facts(cluster, objects, wanted.target, wanted.code, wanted.files)
    compiled = _served(compile(wanted.project, wanted.target, facts), cluster)
    return compare(wanted.project, compiled, objects, facts.runs, cluster, consent, ask=ask)


def compare(
    project: Project,
    compiled: Compiled,
    objects: tuple[Object, ...],
    runs: Mapping[str, RunFact],
    cluster: Cluster,
    consent: Consent = Consent(),
    *,
    ask: bool = False,
) -> Round:
    """The second half of `look`: what is wanted against what there is."""
    made = plan.make(
        project,
        compiled,
        objects,
        runs,
        inventory.read(cluster),
        retry=consent.retry,
        cluster=cluster.identity,
        holds=cluster.holds,
        adopt=consent.adopt,
    )
    return Round(compiled, preview.settle(made, objects, cluster, everything=ask), objects)


def _served(compiled: Compiled, cluster: Cluster) -> Compiled:
    """Without what the cluster does not know; the resources say why."""
    kinds = {(one.key.api_version, one.key.kind) for one in compiled.manifests}
    lacking = cluster.lacks(kinds)
    if not lacking:
        return compiled
    unsupported = dict(compiled.unsupported)
    manifests = []
    for one in compiled.manifests:
        words = lacking.get((one.key.api_version, one.key.kind))
        if words is None:
            manifests.append(one)
        elif one.origin.resource in compiled.lowered:  # a Project is not: whoever needs its objects says it
            unsupported[one.origin.resource] = words
    manifests = [one for one in manifests if one.origin.resource not in unsupported]
    return replace(compiled, manifests=tuple(manifests), unsupported=unsupported)


def reconcile(
    wanted: Wanted,
    cluster: Cluster,
    lock: Path,
    report: Report,
    consent: Consent = Consent(),
    *,
    deadline: float = float("inf"),
    say: Callable[[str], None] = lambda sentence: None,
) -> Round:
    """Make the cluster hold what is wanted; returns when nothing moves any more, when `PATIENCE` rounds in a row could
    write nothing that is new, or at the deadline (monotonic clock). `say` is told, once, that the cluster does not answer.

    Raises `Unavailable` when the cluster cannot be read or written: at once before the first round, after `OUTAGE` later.
    """
    stuck, healthy = 0, time.monotonic()
    outage, written = _Outage(deadline, say), Counter[tuple[plan.Verb, Key]]()
    while True:
        try:
            cluster.wake()
            with exclusive(lock):
                clock.tick(wanted.project, cluster, time.time())
                seen = _agreed(look(wanted, cluster, consent), consent)
                outcomes = apply.perform(seen.plan, wanted.project, cluster, replacing=consent.replacing)
        except (Conflict, Unavailable) as error:
            outage.wait(error)
            continue
        outage.ended()
        outcomes = _lasting(outcomes, written)
        report(seen, outcomes)
        unheard = any(one.error and one.change.reason is plan.Reason.RETRY for one in outcomes)
        consent = replace(consent, retry=consent.retry and unheard)
        wrote = any(not one.error and written[one.write.verb, one.write.key] == 1 for one in outcomes)
        stuck = stuck + 1 if outcomes and not wrote else 0
        if not outcomes and not moving(seen, wanted.target):
            if not degraded(seen, wanted.target) or time.monotonic() > healthy + GRACE:
                return seen
        else:
            healthy = time.monotonic()
        if time.monotonic() > deadline or stuck >= PATIENCE:
            return seen
        if not wrote:
            _until_something_changes(cluster)


def _lasting(outcomes: list[apply.Outcome], written: Counter[tuple[plan.Verb, Key]]) -> list[apply.Outcome]:
    """Count how often the same was written since a round had nothing to write; a write that never lasts is a failure."""
    if not outcomes:
        written.clear()
    written.update((one.write.verb, one.write.key) for one in outcomes if not one.error)
    words = "is written again and again, and is not as it was applied: somebody changes it back"
    return [
        replace(one, error=f"{one.write.key} {words}")
        if not one.error and written[one.write.verb, one.write.key] >= PATIENCE
        else one
        for one in outcomes
    ]


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


def _agreed(seen: Round, consent: Consent) -> Round:
    """Without deletions that nobody was shown: the inventory may name more than when the plan was made."""
    if consent.deletes is None:
        return seen
    changes = tuple(
        one
        for one in seen.plan.changes
        if one.action is not plan.Action.DELETE or one.resource in consent.deletes
    )
    return replace(seen, plan=replace(seen.plan, changes=changes))


def degraded(seen: Round, target: Target) -> list[Object]:
    """Objects that work, but not as they should: a service that is restarted, or too busy for its health check."""
    return [one for one in seen.objects if health(one, target).state is State.DEGRADED]


def moving(seen: Round, target: Target) -> list[Object]:
    """Objects that are still on their way: waiting or progressing runs, starting services, deletions."""
    understood = readings(target.choice)
    return [
        one
        for one in seen.objects
        if one.deleting
        or (
            not ((read := understood.get(one.key.kind)) and read.result)  # schedules never end
            and health(one, target).state in (State.PROGRESSING, State.WAITING)
        )
    ]


def health(live: Object, target: Target) -> Health:
    """Health of one object by the engine that made it."""
    read = readings(target.choice).get(live.key.kind)
    if read is None:
        return Health(State.UNKNOWN, f"nobody knows the health of a {live.key.kind}")
    return read.health(live.live)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One reconciler at a time per target; the kernel releases the lock when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
