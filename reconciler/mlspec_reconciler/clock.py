"""Clock: datasets that are read again and jobs that train again at set times.

The only place of the reconciler that looks at the time of day. What has come due becomes a durable trigger, like the
request of a monitoring policy, and goes the same way: into the facts, into the identity of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.training_job import TrainingJobSpec
from mlspec.project import Project
from mlspec.resource import seconds
from mlspec_reconciler import observe
from mlspec_reconciler.cluster import Cluster

NOTE = "clock"


@dataclass(frozen=True, slots=True)
class Timer:
    """One thing that comes due: every `every` seconds, or by a cron expression in UTC."""

    resource: str
    request: dict[str, Any]
    every: float | None = None
    cron: str | None = None

    def latest(self, since: float, now: float) -> float | None:
        """The newest moment in (since, now] at which it was due; missed ones collapse into it.

        What `validate` refuses (an interval of 0, a cron that never comes) is never due: one timer must not stop the others.
        """
        if self.every is not None:
            passed = int((now - since) // self.every) if self.every > 0 else 0
            return since + passed * self.every if passed > 0 else None
        if self.cron is None:
            return None
        try:
            due: float = croniter(self.cron, datetime.fromtimestamp(now, UTC)).get_prev(float)
        except (ValueError, TypeError):
            return None
        return due if due > since else None


def tick(project: Project, cluster: Cluster, now: float) -> None:
    """Make triggers of all that came due since the last call. A resource that is new starts to count now."""
    timers = list(_timers(project))
    if not timers:
        return
    marks: dict[str, float] = dict(cluster.note(NOTE) or {})
    before = dict(marks)
    requests = []
    for timer in timers:
        since = marks.setdefault(timer.resource, now)
        due = timer.latest(since, now)
        if due is not None:
            marks[timer.resource] = due
            at = datetime.fromtimestamp(due, UTC).isoformat(timespec="seconds")
            requests.append(
                {"id": f"{timer.resource}@{at}", "at": at, "reason": f"due at {at}", **timer.request}
            )
    observe.remember(cluster, requests)  # first: a trigger that is made twice is the same trigger
    if marks != before:
        cluster.set_note(NOTE, marks)


def _timers(project: Project) -> Iterator[Timer]:
    for resource in project.order:
        match resource.spec:
            case DatasetSpec(refresh=refresh) if refresh is not None:
                every = seconds(refresh.every) if refresh.every else None
                yield Timer(resource.id, {"action": "refresh", "dataset": resource.name}, every, refresh.cron)
            case TrainingJobSpec(schedule=schedule) if schedule is not None:
                request = {"action": "retrain", "job": resource.name, "window": schedule.window}
                yield Timer(resource.id, request, cron=schedule.cron)
