"""Runs: a DAG of steps, each brought to its end once; independent steps run side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mlspec.workload import Phase
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.local.environments import Environments
from mlspec_reconciler.clusters.local.launch import FAR, Launcher, Owner
from mlspec_reconciler.clusters.local.steps import StepSpec, StepState, StepWorker

JSON = Mapping[str, Any]


class RunWorker:
    """Brings one Run object to its end and keeps its status and history.

    Status: `{phase, message, started, finished, results: {STEP: result}, steps: {STEP: StepState}}`.
    """

    def __init__(self, launcher: Launcher, environments: Environments, run: Object) -> None:
        self._launcher = launcher
        self.owner = Owner(run.uid, run.key.kind, run.key.name)
        self._started: float | None = run.status.get("started")
        self._ended = run.status.get("phase") in ("succeeded", "failed")
        self._stored: JSON = run.status
        known = run.status.get("steps", {})
        self._steps = (
            {}
            if self._ended
            else {
                spec.name: StepWorker(
                    launcher, environments, self.owner, spec, StepState.read(known.get(spec.name, {}))
                )
                for spec in map(StepSpec.read, run.body["spec"]["steps"])
            }
        )

    def update(self, run: Object) -> None:
        """Runs are create-only: nothing follows."""

    def tick(self, now: float) -> float:
        """Look at every step once; returns after how many seconds to look again."""
        if self._ended:
            return FAR
        delay = FAR
        for worker in self._steps.values():
            before = [self._steps[name].state.phase for name in worker.spec.after if name in self._steps]
            if all(phase == "succeeded" for phase in before):
                delay = min(delay, worker.tick(now))
            elif not worker.state.ended and any(phase in ("failed", "blocked") for phase in before):
                worker.state.phase, worker.state.message = (
                    "blocked",
                    f"{', '.join(worker.spec.after)} did not succeed",
                )
                delay = 0.0
        self._store(now)
        return FAR if self._ended else delay

    def end(self, now: float) -> bool:
        """Call until it returns True: ends all processes of the run."""
        rest = [worker for worker in self._steps.values() if not worker.end(now)]
        if not rest:
            self._launcher.forget_tasks(self.owner)
        return not rest

    def stopped(self) -> None:
        """The supervisor stops; the next one goes on."""

    def _store(self, now: float) -> None:
        phase, message = self._phase()
        if phase != "pending" and self._started is None:
            self._started = min((one.state.started or now for one in self._steps.values()), default=now)
        self._ended = phase in ("succeeded", "failed")
        fresh = {name: worker.result for name, worker in self._steps.items() if worker.result is not None}
        results = {**self._stored.get("results", {}), **fresh}
        status: dict[str, Any] = {
            "phase": phase,
            "message": message,
            "results": results,
            "steps": {name: worker.state.document() for name, worker in self._steps.items()},
        }
        if self._started is not None:
            status["started"] = self._started
        if self._ended:
            status["finished"] = now
        tokens = [token for worker in self._steps.values() for token in worker.finished_tokens]
        if status == self._stored and not tokens:
            return
        store = self._launcher.store
        with store.write():
            store.set_status(self.owner.uid, status)
            store.record_run(self.owner.uid, phase, message, results, now)
            for token in tokens:
                store.ended(token)
        self._stored = status
        for worker in self._steps.values():
            worker.finished_tokens.clear()
        if self._ended:
            self._launcher.forget_tasks(self.owner)
            outcome = f"{phase}{': ' if message else ''}{message}"
            print(
                f"{time.strftime('%FT%TZ', time.gmtime(now))} {self.owner.kind} {self.owner.name} {outcome}",
                flush=True,
            )

    def _phase(self) -> tuple[Phase, str]:
        """Phase and sentence of the run. It has failed when nothing more can happen and a step has failed."""
        states = {name: worker.state for name, worker in self._steps.items()}
        if all(state.phase == "succeeded" for state in states.values()):
            return "succeeded", ""
        failed = {name: state for name, state in states.items() if state.phase == "failed"}
        if failed and all(state.ended for state in states.values()):
            sentences = [f"{name}: {state.message}" for name, state in failed.items()]
            hints = [state.hint for state in failed.values() if state.hint]
            return "failed", "; ".join(sentences) + (f" ({hints[0]})" if hints else "")
        for phase in ("running", "preparing", "backoff", "waiting"):
            found = [name for name, state in states.items() if state.phase == phase]
            if found:
                said = states[found[0]].message
                sentence = {
                    "running": "runs",
                    "preparing": "prepares",
                    "backoff": "retries",
                    "waiting": "waits with",
                }[phase]
                return "running" if self._begun else "pending", f"{sentence} {', '.join(found)}" + (
                    f": {said}" if said else ""
                )
        return "running" if self._begun else "pending", ""

    @property
    def _begun(self) -> bool:
        return any(worker.state.attempts for worker in self._steps.values())
