"""The one path as one function: observe, compile, plan, apply, and again until nothing moves.

`mlspec plan` is its first half, `mlspec apply` the whole, and the controller calls it for ever. It keeps no state of
its own between rounds: killed anywhere, the next call goes on from what the cluster holds.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlspec.compile import ENGINES, Compiled, compile
from mlspec.health import Health, State
from mlspec.kinds.project import Target
from mlspec.project import Project
from mlspec.workload import Files
from mlspec_reconciler import apply, clock, inventory, observe, plan
from mlspec_reconciler.bundle import Bundle
from mlspec_reconciler.cluster import Cluster, Object

PATIENCE = 5
"""Rounds in a row in which every write failed, after which `reconcile` gives up."""
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


def look(wanted: Wanted, cluster: Cluster, *, retry: bool = True) -> Round:
    """Observe, compile, plan. Changes nothing."""
    objects = tuple(cluster.list())
    facts = observe.facts(cluster, objects, wanted.code, wanted.files)
    compiled = compile(wanted.project, wanted.target, facts)
    made = plan.make(
        wanted.project,
        compiled,
        objects,
        facts.runs,
        inventory.read(cluster),
        retry=retry,
        cluster=cluster.identity,
    )
    return Round(compiled, made, objects)


def reconcile(
    wanted: Wanted,
    cluster: Cluster,
    lock: Path,
    report: Report,
    *,
    retry: bool = True,
    deadline: float = float("inf"),
) -> Round:
    """Make the cluster hold what is wanted; returns when nothing moves any more, when `PATIENCE` rounds in a row could
    write nothing, or at the deadline (monotonic clock)."""
    stuck, healthy = 0, time.monotonic()
    while True:
        cluster.wake()
        with exclusive(lock):
            clock.tick(wanted.project, cluster, time.time())
            seen = look(wanted, cluster, retry=retry)
            outcomes = apply.perform(seen.plan, wanted.project, cluster)
        report(seen, outcomes)
        retry = False
        wrote = any(not outcome.error for outcome in outcomes)
        stuck = stuck + 1 if outcomes and not wrote else 0
        if not outcomes and not moving(seen, wanted.target):
            if not degraded(seen, wanted.target) or time.monotonic() > healthy + GRACE:
                return seen
        else:
            healthy = time.monotonic()
        if time.monotonic() > deadline or stuck >= PATIENCE:
            return seen
        if not wrote:
            next(iter(cluster.watch(timeout=1.0)), None)


def degraded(seen: Round, target: Target) -> list[Object]:
    """Objects that work, but not as they should: a service that is restarted, or too busy for its health check."""
    return [one for one in seen.objects if health(one, target).state is State.DEGRADED]


def moving(seen: Round, target: Target) -> list[Object]:
    """Objects that are still on their way: waiting or progressing runs, starting services, deletions."""
    return [
        one
        for one in seen.objects
        if one.deleting
        or (one.key.kind != "Schedule" and health(one, target).state in (State.PROGRESSING, State.WAITING))
    ]


def health(live: Object, target: Target) -> Health:
    """Health of one object by the engine that made it."""
    for engines in ENGINES[target.choice].values():
        for engine in engines.values():
            judge = engine.health.get(live.key.kind)
            if judge is not None:
                return judge(live.body, live.status)
    return Health(State.UNKNOWN, f"nobody knows the health of a {live.key.kind}")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One reconciler at a time per target; the kernel releases the lock when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
