"""Clock: datasets that are read again and jobs that train again at set times.

What has come due becomes a request, like that of a monitoring policy, and goes the same way. Pure: `step` gives the time of
day and makes durable what was learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from croniter import croniter

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.training_job import TrainingJobSpec, said_of_data
from mlspec.lifecycle import Request
from mlspec.project import Project
from mlspec.resource import seconds
from mlspec_reconciler.remembered import Change, request_row
from mlspec_reconciler.state import Session, Table

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Timer:
    """One thing that comes due: every `every` seconds, or by a cron expression in UTC."""

    resource: str
    request: Request
    every: float | None = None
    cron: str | None = None

    @property
    def mark(self) -> str:
        """Where it is kept when it came due last."""
        return f"timer {self.resource}"

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

    def next(self, since: float, now: float) -> float:
        """When it comes due after `now`; `FOREVER` when it never does."""
        if self.every is not None and self.every > 0:
            return since + (int(max(0.0, now - since) // self.every) + 1) * self.every
        if self.every is not None or self.cron is None:
            return FOREVER
        try:
            return float(croniter(self.cron, datetime.fromtimestamp(now, UTC)).get_next(float))
        except (ValueError, TypeError):
            return FOREVER


@dataclass(frozen=True, slots=True)
class Due:
    """What came due, as rows to remember, and when something does next (seconds since the epoch)."""

    requests: Mapping[str, Request]
    changes: tuple[Change, ...]
    next: float


def due(project: Project, session: Session, now: float) -> Due:
    """All that came due since the last call. A resource that is new starts to count now."""
    requests: dict[str, Request] = {}
    marks: list[Change] = []
    soonest = FOREVER
    for timer in _timers(project):
        mark = session.get(Table.MARKS, timer.mark)
        since = float(mark["at"]) if mark is not None else now
        moment = timer.latest(since, now)
        if moment is not None:
            since = moment
            at = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
            key = f"{timer.resource}@{at}"
            requests[key] = replace(timer.request, id=key, at=at, made=moment, reason=f"due at {at}")
        if mark is None or moment is not None:
            marks.append((Table.MARKS, timer.mark, {"at": since}))
        soonest = min(soonest, timer.next(since, now))
    # Requests before marks: one that is made twice is the same request.
    return Due(requests, (*(request_row(one) for one in requests.values()), *marks), soonest)


def _timers(project: Project) -> Iterator[Timer]:
    for resource in project.order:
        blank = Request("", "refresh", resource.name, resource.id, "", 0.0)
        match resource.spec:
            case DatasetSpec(refresh=refresh) if refresh is not None:
                every = seconds(refresh.every) if refresh.every else None
                yield Timer(resource.id, blank, every, refresh.cron)
            case TrainingJobSpec(schedule=schedule) as spec if schedule is not None:
                request = replace(
                    blank,
                    action="retrain",
                    window=schedule.window,
                    schedule=True,
                    made_for=said_of_data(spec),
                    expires=seconds(EXPIRES),
                )
                yield Timer(resource.id, request, cron=schedule.cron)


EXPIRES = "7d"
"""After which a request of a schedule lapses once a newer one was made: its newest one does not expire (rule 9)."""
