"""Schedules: start one step again and again, never two at once; missed starts collapse into one."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any, Literal

from croniter import CroniterBadDateError, croniter

from mlspec.manifest import digest
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.local.environments import Environments
from mlspec_reconciler.clusters.local.launch import FAR, Launcher, Owner
from mlspec_reconciler.clusters.local.steps import StepSpec, StepState, StepWorker

JSON = Mapping[str, Any]
Phase = Literal["active", "running", "failed"]


class ScheduleWorker:
    """Keeps one Schedule object going. A new or changed step is started at once.

    Status: `{phase, message, lastRun, lastResult, nextRun, starts, failures, document, step}`. `lastRun` is the start of
    the newest evaluation that ended, `lastResult` the newest result, `failures` how many evaluations failed in a row.
    """

    def __init__(self, launcher: Launcher, environments: Environments, schedule: Object) -> None:
        self._launcher, self._environments = launcher, environments
        self.owner = Owner(schedule.uid, schedule.key.kind, schedule.key.name)
        status = schedule.status
        self._stored: JSON = status
        self._last_run: float | None = status.get("lastRun")
        self._last_result: JSON | None = status.get("lastResult")
        self._starts = int(status.get("starts", 0))
        self._failures = int(status.get("failures", 0))
        self._message = str(status.get("message", "")) if status.get("phase") == "failed" else ""
        self._document = str(status.get("document", ""))
        """Digest of the step that was started last."""
        self._begun: float | None = status.get("begun")
        """When the newest evaluation was begun: the next one is counted from here."""
        self._worker: StepWorker | None = None
        self.update(schedule)
        known = StepState.read(status.get("step", {}))
        worker = StepWorker(launcher, environments, self.owner, self._step, known, once=False)
        if worker.active or status.get("step"):
            self._worker = worker

    def update(self, schedule: Object) -> None:
        """Follow the object: called when its body has changed."""
        spec = schedule.body["spec"]
        self._step = StepSpec.read(spec["step"])
        self._every: float | None = None if spec.get("every") is None else float(spec["every"])
        self._cron: str | None = spec.get("cron")
        step = spec["step"]
        self._wanted = digest([step["subject"], step.get("document", {}), step.get("requirements", [])])[:12]

    def tick(self, now: float) -> float:
        """Look once, do what is to be done; returns after how many seconds to look again."""
        changed = self._document != self._wanted
        if self._worker is not None and changed and not self._worker.active:
            self._worker = None  # a retry of the step before the change
        if self._worker is None and (changed or now >= self._next(now)):
            self._document, self._begun = self._wanted, now
            self._starts += 1
            self._worker = StepWorker(
                self._launcher, self._environments, self.owner, self._step, StepState(), once=False
            )
        delay = self._worker.tick(now) if self._worker is not None else self._next(now) - now
        tokens: list[str] = []
        worker = self._worker
        if worker is not None:
            tokens = list(worker.finished_tokens)
            if worker.state.ended:
                self._conclude(worker)
                delay = 0.0
        self._store(worker, tokens, now)
        return delay

    def end(self, now: float) -> bool:
        """Call until it returns True: ends the process."""
        if self._worker is not None and not self._worker.end(now):
            return False
        if self._worker is not None:
            for token in self._worker.finished_tokens:
                self._launcher.store.ended(token)
        self._launcher.forget_tasks(self.owner)
        return True

    def stopped(self) -> None:
        """The supervisor stops; the next one goes on."""

    def _conclude(self, worker: StepWorker) -> None:
        self._worker = None
        self._last_run = self._begun
        if worker.state.phase == "succeeded":
            self._last_result, self._message, self._failures = worker.result, "", 0
        else:
            self._failures += 1
            hint = f" ({worker.state.hint})" if worker.state.hint else ""
            self._message = worker.state.message + hint

    def _next(self, now: float) -> float:
        """When the next evaluation is due."""
        if self._begun is None:
            return now
        due = _after(self._begun, self._every, self._cron)
        return now + FAR if isinstance(due, str) else due

    def _store(self, worker: StepWorker | None, tokens: list[str], now: float) -> None:
        due = _after(self._begun, self._every, self._cron) if self._begun is not None else None
        message = self._message or (due if isinstance(due, str) else "")
        phase: Phase = "running" if self._worker is not None else "failed" if message else "active"
        if self._worker is not None and self._worker.state.message:
            message = self._worker.state.message
        status: dict[str, Any] = {
            "phase": phase,
            "message": message,
            "lastRun": self._last_run,
            "lastResult": self._last_result,
            "nextRun": round(due, 3) if isinstance(due, float) else None,
            "starts": self._starts,
            "failures": self._failures,
            "document": self._document,
            "begun": self._begun,
            "step": self._worker.state.document() if self._worker is not None else {},
        }
        if status == self._stored and not tokens:
            return
        store = self._launcher.store
        with store.write():
            store.set_status(self.owner.uid, status)
            for token in tokens:
                store.ended(token)
        if worker is not None:
            worker.finished_tokens.clear()
        self._stored = status


def _after(begun: float, every: float | None, cron: str | None) -> float | str:
    """The first moment after `begun` at which a schedule is due, or why there is none: `validate` refuses such a spec, but a
    store may hold it all the same."""
    if every is not None:
        return (
            begun + every if 0 < every < math.inf else f"an interval of {every:g} s is not one to repeat at"
        )
    if cron is None:
        return "it has neither an interval nor a cron expression"
    try:
        return float(croniter(cron, datetime.datetime.fromtimestamp(begun, datetime.UTC)).get_next(float))
    except CroniterBadDateError:
        return f'"{cron}" never comes'
    except (ValueError, TypeError):
        return f'"{cron}" is not a cron expression'
