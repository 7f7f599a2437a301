"""Apply: perform the writes of a plan, along the edges of the DAG, and report every failure.

The inventory is written first: what is about to exist is known before it exists, and after it was made also its
identity. A failure keeps back only what depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from mlspec.kind_table import KINDS
from mlspec.manifest import Key
from mlspec.project import Project
from mlspec.workload import Made, RunFact
from mlspec_reconciler import inventory as inventories
from mlspec_reconciler import remembered
from mlspec_reconciler.cluster import Cluster, Conflict, Immutable, Refused, Unavailable
from mlspec_reconciler.inventory import Inventory
from mlspec_reconciler.plan import Action, Plan, Verb, Write, declared
from mlspec_reconciler.plan import Change as Planned
from mlspec_reconciler.remembered import ENDED, Change
from mlspec_reconciler.state import Session

UNANSWERED = 10
"""Writes in a row that got no answer, after which the others are left to the next round."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One performed write, or why it failed."""

    change: Planned
    write: Write
    error: str = ""
    uid: str = ""
    """Identity of the object that was written, when it was seen."""
    retryable: bool = False
    """The error says nothing about the write itself: the next round tries again."""


def perform(
    plan: Plan,
    project: Project,
    cluster: Cluster,
    session: Session,
    *,
    making: Mapping[str, Made] | None = None,
    now: float = 0.0,
    replacing: bool = False,
) -> list[Outcome]:
    """Write everything that the plan says; a failure stops only what depends on it. `making`: what the runs of the plan are made
    for, by name, to be remembered before they are made. `replacing`: consent to delete and recreate what cannot be changed in place.

    Raises `Conflict`, with nothing written, when another driver is at work.
    """
    inventory = _intend(plan, project)
    runs = _announced(plan, making or {}, session, now)
    if inventory != plan.inventory or runs:
        session.put([*inventories.changes(plan.inventory, inventory, plan.cluster), *runs])
        inventory = inventories.read(session, plan.cluster)
    outcomes = _along_the_edges(plan, project, cluster, replacing)
    cleaned = _forget(plan, _identified(inventory, outcomes), cluster)
    if cleaned != inventory:
        session.put(inventories.changes(inventory, cleaned, plan.cluster))
    return outcomes


def _announced(plan: Plan, making: Mapping[str, Made], session: Session, now: float) -> list[Change]:
    """The rows of the runs that are about to be made. One that is started again has no end any more, and stays what it was first
    made for."""
    starts = (Verb.CREATE, Verb.RESTART)
    runs = [
        change.run for change in plan.of(Action.RUN) if any(write.verb in starts for write in change.writes)
    ]
    known = remembered.runs(session) if runs else {}
    rows = []
    for run in runs:
        made = known[run].made if run in known and known[run].phase in ENDED else Made()
        made = made if made.resource else making.get(run, Made())
        rows.append(remembered.run_row(run, RunFact("pending", made=made, created=now)))
    return rows


def _intend(plan: Plan, project: Project) -> Inventory:
    entries = dict(plan.inventory.entries)
    known = {change.resource for change in plan.changes}
    resources = {resource.id: resource for resource in declared(project, known)}
    for change in plan.changes:
        resource = resources.get(change.resource)
        if resource is None or change.action in (Action.FOLLOW, Action.CONTINUE):
            continue
        written = [write for write in change.writes if write.verb is not Verb.DELETE]
        kept = [write.key for write in written if write.manifest and write.manifest.create_only]
        parts: Mapping[str, str] = next(
            (write.manifest.parts for write in written if write.manifest and change.run), {}
        )
        entries[resource.id] = Inventory(entries).having(
            resource, [write.key for write in written], kept, change.run, parts
        )
    return Inventory(entries)


def _along_the_edges(plan: Plan, project: Project, cluster: Cluster, replacing: bool) -> list[Outcome]:
    """Each change starts when all that it refers to is written; deletions follow one another, users first."""
    before = _edges(project)
    roots = [one.id for one in project.catalog.of("Project")]
    futures: dict[str, list[Future[list[Outcome]]]] = {}
    results: list[Future[list[Outcome]]] = []
    silence = _CircuitBreaker()
    with ThreadPoolExecutor(cluster.concurrency, "apply") as pool:
        for change in plan.changes:
            if not change.writes:
                continue
            # Everything that is waited for was submitted earlier, so the pool cannot run dry of workers.
            names = [*roots, change.resource, *before.get(change.resource, ())]
            if change.action is Action.DELETE:
                names = list(futures)
            awaited = [one for name in names for one in futures.get(name, ())]
            blocking = change.action is not Action.DELETE
            future = pool.submit(_change, change, cluster, replacing, awaited, blocking, silence)
            futures.setdefault(change.resource, []).append(future)
            results.append(future)
    return [outcome for one in results for outcome in one.result()]


def _edges(project: Project) -> Mapping[str, list[str]]:
    return {
        resource.id: [
            f"{kind}/{reference.name}"
            for reference in KINDS[resource.kind].references(resource.spec)
            for kind in reference.kinds
        ]
        for resource in project.order
    }


def _change(
    change: Planned,
    cluster: Cluster,
    replacing: bool,
    awaited: Iterable[Future[list[Outcome]]],
    blocking: bool,
    silence: _CircuitBreaker,
) -> list[Outcome]:
    failed = [one for future in awaited for one in future.result() if one.error]
    if failed and blocking:
        first = failed[0]
        words = f"kept back, because {first.write.key} of {first.change.resource} failed"
        return [Outcome(change, write, words, retryable=first.retryable) for write in change.writes]
    outcomes: list[Outcome] = []
    for write in change.writes:
        before = next((one for one in outcomes if one.error), None)
        if before is not None and write.verb is not Verb.DELETE:
            words = "kept back, because what it needs failed"
            outcomes.append(Outcome(change, write, words, retryable=before.retryable))
        elif silence.lasts:
            words = "kept back, because the cluster does not answer"
            outcomes.append(Outcome(change, write, words, retryable=True))
        else:
            outcomes.append(silence.heard(_outcome(change, write, cluster, replacing)))
    return outcomes


class _CircuitBreaker:
    """Whether a cluster has stopped to answer: a thousand writes must not wait a minute each for the same outage."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def lasts(self) -> bool:
        return self._count >= UNANSWERED

    def heard(self, outcome: Outcome) -> Outcome:
        """Count writes without an answer, one after the other."""
        self._count = self._count + 1 if outcome.retryable and outcome.error else 0
        return outcome


def _outcome(change: Planned, write: Write, cluster: Cluster, replacing: bool) -> Outcome:
    try:
        return Outcome(change, write, uid=_write(write, cluster))
    except Immutable as error:
        if write.verb not in (Verb.APPLY, Verb.REPLACE):  # never delete what is not ours
            words = f"{write.key}: {error.field} of it cannot be changed in place; rename yours, or delete it"
            return Outcome(change, write, words)
        if not replacing:
            words = f"{write.key}: {error.field} cannot be changed in place; replace it with: mlspec apply --allow-replace"
            return Outcome(change, write, words)
        return Outcome(change, write, _replace(write, cluster))
    except Conflict as error:
        # Somebody else wrote in between: the next round of the loop looks again and decides anew.
        live = cluster.get(write.key)
        if live is not None and not inventories.is_ours(live):
            words = f"{write.key} exists already, and mlspec did not make it; rename yours, delete it, or take it over with --adopt {write.key.kind}/{write.key.name}"
            return Outcome(change, write, words)
        if live is not None and write.verb is Verb.CREATE:
            return Outcome(change, write)  # made meanwhile, by another apply of the same
        return Outcome(change, write, f"{write.key} changed meanwhile: {error}", retryable=True)
    except Refused as error:
        return Outcome(change, write, f"{write.key}: {error}")
    except Unavailable as error:
        words = f"{write.key}: the cluster does not answer: {error}"
        return Outcome(change, write, words, retryable=True)


def _write(write: Write, cluster: Cluster) -> str:
    """Perform one write; returns the uid of what is there now."""
    match write.verb, write.manifest:
        case Verb.DELETE, _:
            cluster.delete(write.key, write.uid)
            return ""
        case Verb.RESTART, manifest if manifest is not None:
            cluster.delete(write.key, write.uid)
            return cluster.create(manifest.body, write.marks).uid
        case Verb.CREATE, manifest if manifest is not None:
            return cluster.create(manifest.body, write.marks).uid
        case Verb.ADOPT, manifest if manifest is not None:
            return cluster.apply(manifest.body, write.marks).uid
        case Verb.APPLY | Verb.REPLACE, manifest if manifest is not None:
            return cluster.apply(manifest.body, write.marks, write.version).uid
        case _:
            raise AssertionError(f"{write.verb} without a manifest")


def _replace(write: Write, cluster: Cluster) -> str:
    """Delete what is in the way; the next round creates it anew. First it is shown that it can be created at all."""
    assert write.manifest is not None
    body = dict(write.manifest.body)
    body["metadata"] = {**body["metadata"], "name": f"{write.key.name[:50]}-replaced"}
    [answer] = cluster.preview([(body, write.marks, None)])
    if answer.refusal:
        return f"{write.key} is not replaced, because the new one would be refused: {answer.refusal}"
    cluster.delete(write.key, write.uid)
    return ""


def _identified(inventory: Inventory, outcomes: Iterable[Outcome]) -> Inventory:
    """With the identities of what was made just now."""
    seen: dict[str, dict[Key, str]] = {}
    for one in outcomes:
        if one.uid:
            seen.setdefault(one.change.resource, {})[one.write.key] = one.uid
    entries = dict(inventory.entries)
    for resource, uids in seen.items():
        if (entry := entries.get(resource)) is not None:
            entries[resource] = replace(entry, uids={**entry.uids, **uids})
    return Inventory(entries)


def _forget(plan: Plan, inventory: Inventory, cluster: Cluster) -> Inventory:
    """Entries of removed resources go when the cluster says that their objects are gone, not before; so do single objects
    that a resource does not want any more."""
    for change in plan.changes:
        entry = inventory.entries.get(change.resource)
        if entry is None:
            continue
        if change.action is Action.DELETE:
            asked: Iterable[Key] = entry.objects
        else:
            asked = [write.key for write in change.writes if write.verb is Verb.DELETE]
        inventory = inventory.without(change.resource, [key for key in asked if _gone(key, entry, cluster)])
        if change.action is Action.DELETE and not inventory.entries[change.resource].objects:
            inventory = inventory.forgetting(change.resource)
    return inventory


def _gone(key: Key, entry: inventories.Entry, cluster: Cluster) -> bool:
    live = cluster.get(key)
    return live is None or not inventories.mine(live, entry)
