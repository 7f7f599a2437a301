"""The one path as one function: observe, compile, plan, apply. Once.

`step` never sleeps and never loops. Two drivers call it until nothing moves (`drivers/once.py`, the command line) or for ever
(`drivers/forever.py`, the controller). What a driver must know from one step to the next (back-off, fights) it passes in
as `Memory` and gets back; everything else is in the cluster and in the StateStore, so a step may be killed anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mlspec.compile import Compiled, compile, readings
from mlspec.health import Health, State
from mlspec.kinds.project import Target
from mlspec.lifecycle import Memory as Life
from mlspec.manifest import Key
from mlspec.project import Project
from mlspec.workload import Facts, Files, Made, Run, RunFact
from mlspec_reconciler import apply, clock, inventory, observe, plan, preview, remembered
from mlspec_reconciler.apply import Outcome
from mlspec_reconciler.bundle import Bundle
from mlspec_reconciler.cluster import Cluster, Object
from mlspec_reconciler.remembered import Change
from mlspec_reconciler.state import JSON, Session, StateStore, Table

PATIENCE = 5
"""How often the same write may fail, or be undone by somebody else, before it is spaced out."""
FIGHT = 600.0
"""Seconds within which the same write again and again is a fight."""
BACKOFF = (10.0, 600.0)
"""Seconds between two tries after `PATIENCE` failures: the first pause, doubled each time, and the longest."""
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class DesiredState:
    """One revision of a repository, with the code and files that its specs name, on one target."""

    project: Project
    target: Target
    code: Mapping[str, Bundle] = field(default_factory=dict)
    files: Mapping[str, Files] = field(default_factory=dict)
    record: JSON = field(default_factory=dict)
    """How this revision is remembered as the applied one (`target`, `revision`, `commit`, ...); empty: it is not."""


@dataclass(frozen=True, slots=True)
class Consent:
    """What a person has agreed to, beyond what every apply may do."""

    retry: bool = True
    """Start failed runs again."""
    replacing: bool = False
    """Delete and recreate what cannot be changed in place."""
    adopt: frozenset[str] = frozenset()
    """Take over these objects of others (`Kind/name`)."""
    deletes: frozenset[str] | None = None
    """Resources whose objects may be deleted; None: all that the specs do not declare any more."""


APPLY_CONSENT = Consent()
"""What whoever runs `mlspec apply` agrees to."""
CONTROLLER_CONSENT = Consent(retry=False)
"""What the controller may do by itself."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at the world found."""

    compiled: Compiled
    plan: plan.Plan
    objects: tuple[Object, ...]
    facts: Facts = field(default_factory=Facts)
    learned: tuple[Change, ...] = ()
    """Rows to remember: ends of runs, requests, accepted models."""
    due: float = FOREVER
    """When something happens by itself (wall clock): a timer, a request that expires."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How often something was done, the last time, and until when it is not done again (wall clock)."""

    count: int = 0
    last: float = 0.0
    until: float = 0.0


Failure = tuple[Key, str, str]
"""An object, its version and the digest that was to be written: when one of them changes, the count begins anew."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a driver remembers between two steps."""

    failed: Mapping[Failure, Tried] = field(default_factory=dict)
    written: Mapping[tuple[plan.Verb, Key, str], Tried] = field(default_factory=dict)
    """Successful writes by what they wrote: the same again and again means that somebody undoes it."""
    retried: bool = False
    """Failed runs were started again, as the person agreed: those that fail from now on are not."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step did."""

    outcomes: tuple[Outcome, ...]
    memory: Memory
    due: float
    """When to step again although nothing changes (wall clock)."""
    seen: Observation
    stored: int = 0
    """Rows that were written."""


def step(
    desired: DesiredState,
    cluster: Cluster,
    store: StateStore,
    consent: Consent,
    now: float,
    memory: Memory,
    holder: str = "mlspec",
) -> Stepped:
    """Bring the target one step nearer to what is desired. `now` is the wall clock, `holder` names the driver.

    Raises `Unavailable` when the cluster or the store cannot be reached, `Conflict` when another driver is at work; what
    was done until then stays done.
    """
    session = Session.open(store, holder)
    consent = replace(consent, retry=consent.retry and not memory.retried)
    seen = observe_and_plan(desired, cluster, session, consent, now)
    record = [(Table.APPLIED, str(desired.record["target"]), desired.record)] if desired.record else []
    if desired.project.settings.suspend:
        session.put(record)
        return Stepped((), memory, FOREVER, seen, session.writes)
    session.put([*record, *seen.learned])
    stored = session.writes
    seen = replace(seen, plan=_agreed(seen.plan, consent))
    ready, due = _not_backing_off(seen.plan, seen.objects, memory, now)
    outcomes = apply.perform(
        ready,
        desired.project,
        cluster,
        session,
        making=making(seen.compiled),
        now=now,
        replacing=consent.replacing,
    )
    told, memory = _learn(outcomes, seen.objects, memory, now)
    unheard = any(one.error and one.change.reason is plan.Reason.RETRY for one in told)
    memory = replace(memory, retried=memory.retried or (consent.retry and not unheard))
    waiting = [one.until for one in memory.failed.values() if one.until > now]
    return Stepped(tuple(told), memory, min([seen.due, due, *waiting]), seen, stored)


def observe_and_plan(
    desired: DesiredState,
    cluster: Cluster,
    session: Session,
    consent: Consent = APPLY_CONSENT,
    now: float = 0.0,
    *,
    ask: bool = False,
) -> Observation:
    """The first half of a step. Writes nothing, anywhere. `ask`: the cluster is asked about every write, as a plan for people
    shows it."""
    objects = tuple(cluster.list())
    timers = clock.due(desired.project, session, now)
    observed = observe.facts(
        cluster, objects, session, desired.target, desired.code, desired.files, timers.requests, now
    )
    compiled = _served(compile(desired.project, desired.target, observed.facts), cluster)
    learned = (*timers.changes, *observed.learned, *_lived(compiled, observed.facts))
    found = compare(
        desired.project, compiled, objects, observed.facts.runs, cluster, session, consent, ask=ask
    )
    expiring = [
        one.made + one.expires
        for one in observed.facts.requests
        if one.expires is not None and one.made + one.expires > now
    ]
    return replace(
        found, facts=observed.facts, learned=learned, due=min([timers.next, *expiring], default=FOREVER)
    )


def compare(
    project: Project,
    compiled: Compiled,
    objects: tuple[Object, ...],
    runs: Mapping[str, RunFact],
    cluster: Cluster,
    session: Session,
    consent: Consent = APPLY_CONSENT,
    *,
    ask: bool = False,
) -> Observation:
    """What is desired against what there is."""
    made = plan.make(
        project,
        compiled,
        objects,
        runs,
        inventory.read(session, cluster.identity),
        retry=consent.retry,
        cluster=cluster.identity,
        holds=cluster.holds,
        adopt=consent.adopt,
    )
    return Observation(compiled, preview.settle(made, objects, cluster, everything=ask), objects)


def _lived(compiled: Compiled, facts: Facts) -> Iterable[Change]:
    """What the models have gone through, and what jobs ask for themselves."""
    for resource, lowered in compiled.lowered.items():
        if lowered.life is not None and resource.startswith("TrainingJob/"):
            before = facts.memories.get(resource, Life())
            yield from remembered.memory_rows(resource, before, lowered.life.memory)
        yield from map(remembered.request_row, lowered.asks)


def making(compiled: Compiled) -> Mapping[str, Made]:
    """What each run is made for."""
    works = (work for one in compiled.lowered.values() for work in one.workloads)
    return {work.name: work.made for work in works if isinstance(work, Run)}


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


def _agreed(found: plan.Plan, consent: Consent) -> plan.Plan:
    """Without deletions that nobody was shown: the inventory may name more than when the plan was made."""
    if consent.deletes is None:
        return found
    changes = tuple(
        one
        for one in found.changes
        if one.action is not plan.Action.DELETE or one.resource in consent.deletes
    )
    return replace(found, changes=changes)


def _failure(write: plan.Write, versions: Mapping[Key, str]) -> Failure:
    return write.key, versions.get(write.key, ""), write.manifest.digest if write.manifest else ""


def _not_backing_off(
    found: plan.Plan, objects: Iterable[Object], memory: Memory, now: float
) -> tuple[plan.Plan, float]:
    """Without changes whose writes have failed too often lately; and when the first of them is tried again."""
    if not memory.failed:
        return found, FOREVER
    versions = {one.key: one.version for one in objects}
    changes, due = [], FOREVER
    for change in found.changes:
        tried = [memory.failed.get(_failure(write, versions)) for write in change.writes]
        until = max((one.until for one in tried if one is not None), default=0.0)
        if until > now:
            due = min(due, until)
        else:
            changes.append(change)
    return replace(found, changes=tuple(changes)), due


def _learn(
    outcomes: Iterable[Outcome], objects: Iterable[Object], memory: Memory, now: float
) -> tuple[list[Outcome], Memory]:
    """Count failures and repeated writes; a write that never lasts is a failure."""
    versions = {one.key: one.version for one in objects}
    written = {key: tried for key, tried in memory.written.items() if now - tried.last < FIGHT}
    failed = {key: tried for key, tried in memory.failed.items() if now - tried.last < 2 * BACKOFF[1]}
    told: list[Outcome] = []
    for one in outcomes:
        digest = one.write.manifest.digest if one.write.manifest else ""
        if not one.error and one.write.manifest is not None:
            key = one.write.verb, one.write.key, digest
            count = written.get(key, Tried()).count + 1
            written[key] = Tried(count, now)
            if count >= PATIENCE:
                words = "is written again and again, and is not as it was applied: somebody changes it back"
                one = replace(one, error=f"{one.write.key} {words}")
        if one.error:
            place = _failure(one.write, versions)
            count = failed.get(place, Tried()).count + 1
            pause = min(BACKOFF[0] * 2.0 ** (count - PATIENCE), BACKOFF[1]) if count >= PATIENCE else 0.0
            failed[place] = Tried(count, now, now + pause)
        told.append(one)
    return told, replace(memory, failed=failed, written=written)


def degraded(seen: Observation, target: Target) -> list[Object]:
    """Objects that work, but not as they should: a service that is restarted, or too busy for its health check."""
    return [one for one in seen.objects if health(one, target).state is State.DEGRADED]


def moving(seen: Observation, target: Target) -> list[Object]:
    """Objects that are still on their way: waiting or progressing runs, starting services, deletions. Not the reading of a
    dataset that was read before: it comes again and again, and nobody waits for it."""
    understood = readings(target.choice)
    again = {name for name, one in seen.compiled.lowered.items() if one.reading is not None and one.output}
    found = []
    for one in seen.objects:
        read = understood.get(one.key.kind)
        if read is not None and read.result is not None:  # schedules never end
            continue
        if read is not None and read.run is not None and one.annotations.get(observe.RESOURCE) in again:
            continue
        if one.deleting or health(one, target).state in (State.PROGRESSING, State.WAITING):
            found.append(one)
    return found


def health(live: Object, target: Target) -> Health:
    """Health of one object by the engine that made it."""
    read = readings(target.choice).get(live.key.kind)
    if read is None:
        return Health(State.UNKNOWN, f"the health of a {live.key.kind} is not known")
    return read.health(live.live)
