"""A step: one process that is brought to its end, with retries. Runs have several, a schedule starts one again and again.

What the process owes us (`mlspec_runtime.task` keeps it): success is exit code 0 and `result.json` in
`ROOT/runs/NAME/STEP/`; a failure that it could still report is in `error.json` there: `{"message", "hint"}`. A reported
failure is final, because the same code and data fail again; it is retried when the report has `"retry": true` (a connection
that broke). A process that ends without a report (killed, out of memory, broken environment) is retried, up to the
step's `retries`, with exponential back-off. A timeout is final.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlspec_reconciler.clusters.local import lock, processes
from mlspec_reconciler.clusters.local.environments import EnvironmentFailed, Environments
from mlspec_reconciler.clusters.local.launch import FAR, Launcher, Owner, Running, read_json, write_json

JSON = Mapping[str, Any]
Phase = Literal["pending", "waiting", "preparing", "running", "backoff", "succeeded", "failed", "blocked"]


@dataclass(frozen=True, slots=True)
class StepSpec:
    """What an object says about a step."""

    name: str
    subject: str
    document: JSON
    requirements: tuple[str, ...] = ()
    timeout: float = 6 * 3600.0
    retries: int = 1
    after: tuple[str, ...] = ()

    @staticmethod
    def read(step: JSON) -> StepSpec:
        """From the JSON of an object; absent fields have their defaults."""
        return StepSpec(
            name=str(step["name"]),
            subject=str(step["subject"]),
            document=step.get("document", {}),
            requirements=tuple(step.get("requirements", ())),
            timeout=float(step.get("timeout", 6 * 3600.0)),
            retries=int(step.get("retries", 1)),
            after=tuple(step.get("after", ())),
        )


@dataclass(slots=True)
class StepState:
    """What is known about a step; stored in the status of its object. Times are seconds since the epoch.

    `blocked`: a step before it has failed. `waiting`: for a core, or for another process that runs the same step.
    """

    phase: Phase = "pending"
    attempts: int = 0
    """Started processes."""
    failures: int = 0
    """Ends that count against the retries."""
    message: str = ""
    hint: str = ""
    started: float | None = None
    finished: float | None = None
    next: float | None = None
    """When it is tried again."""

    @staticmethod
    def read(document: JSON) -> StepState:
        """From a status."""
        known = {name: document[name] for name in StepState.__slots__ if name in document}
        return StepState(**known)

    def document(self) -> dict[str, Any]:
        """For a status; fields that say nothing are left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in ("succeeded", "failed", "blocked")


@dataclass(slots=True)
class StepWorker:
    """Brings one step to its end. `once`: a result that is there already is the success of this step (runs)."""

    launcher: Launcher
    environments: Environments
    owner: Owner
    spec: StepSpec
    state: StepState
    once: bool = True
    result: dict[str, Any] | None = None
    finished_tokens: list[str] = field(default_factory=list)
    """Children whose end is known but not stored; the owner stores it together with the status."""
    _running: Running | None = field(default=None, init=False)
    _timed_out: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.state.ended:
            self.result = read_json(self.folder / "result.json") if self.state.phase == "succeeded" else None
            return
        for running in self.launcher.recover(self.owner.uid, self.spec.name):
            self.state.attempts = max(self.state.attempts, running.child.attempt)
            self.state.phase, self.state.started = "running", running.child.started
            self._running = running
            self.launcher.busy.add(running.child.token)
        if self._running is None and self.state.phase != "backoff":
            self.state.phase = "pending"

    @property
    def folder(self) -> Path:
        """Where the step commits."""
        name, step = (
            self.spec.document.get("name", self.owner.name),
            self.spec.document.get("step", self.spec.name),
        )
        return self.launcher.root / "runs" / str(name) / str(step)

    @property
    def active(self) -> bool:
        """Whether a process runs for it."""
        return self._running is not None

    def tick(self, now: float) -> float:
        """Look once, do what is to be done; returns after how many seconds to look again."""
        if self._running is not None:
            return self._watch(self._running, now)
        if self.state.ended:
            return FAR
        if self.state.next is not None and now < self.state.next:
            return self.state.next - now
        if self.once and (result := read_json(self.folder / "result.json")) is not None:
            self._succeed(result, now)
            return 0.0
        return self._try_to_start(now)

    def end(self, now: float) -> bool:
        """Call until it returns True: ends the process of the step, whatever it does."""
        running = self._running
        if running is None:
            return True
        if running.process is not None and running.alive():
            running.process.end(now, self.launcher.pace.grace)
            return False
        self._release(running)
        return True

    def _try_to_start(self, now: float) -> float:
        self.state.next = None
        try:
            interpreter = self.launcher.program[0]
            if self.spec.requirements:
                found = self.environments.interpreter(self.spec.requirements, now)
                if found is None:
                    self.state.phase, self.state.message = (
                        "preparing",
                        f"installs {', '.join(self.spec.requirements)}",
                    )
                    return 0.5
                interpreter = found
            if lock.held(self.folder / "lock"):
                self.state.phase, self.state.message = "waiting", "another process runs this step"
                return 0.5
            if len(self.launcher.busy) >= self.launcher.cores:
                self.state.phase, self.state.message = "waiting", f"all {self.launcher.cores} cores are busy"
                return FAR
            return self._start(interpreter, now)
        except (EnvironmentFailed, OSError) as error:
            self._fail(str(error), "", now, final=False)
            return 0.0

    def _start(self, interpreter: str, now: float) -> float:
        task = self.launcher.task(self.owner, self.spec.name)
        write_json(task, self.spec.document)
        root = str(self.launcher.root)
        argv = [
            interpreter,
            *self.launcher.program[1:],
            self.spec.subject,
            "--task",
            str(task),
            "--root",
            root,
        ]
        attempt = self.state.attempts + 1
        error = self.folder / "error.json"
        running = self.launcher.start(
            self.owner,
            self.spec.name,
            argv,
            self.folder,
            attempt=attempt,
            before=lambda: error.unlink(missing_ok=True),
        )
        if running is None:  # the object is going
            return FAR
        self._running, self._timed_out = running, False
        self.launcher.busy.add(running.child.token)
        self.state.phase, self.state.attempts, self.state.message = "running", attempt, ""
        self.state.started, self.state.finished = self.state.started or now, None
        return 0.0

    def _watch(self, running: Running, now: float) -> float:
        if not running.alive():
            self._conclude(running, now)
            return 0.0
        deadline = running.child.started + self.spec.timeout
        if now >= deadline and running.process is not None:
            self._timed_out = True
            running.process.end(now, self.launcher.pace.grace)
            return 0.1
        return min(deadline - now, 0.1 if running.adopted else FAR)

    def _conclude(self, running: Running, now: float) -> None:
        self._release(running)
        code = running.process.code if running.process is not None else None
        result = read_json(self.folder / "result.json")
        if result is not None and (self.once or self._is_new(running, code)):
            self._succeed(result, now)
            return
        report = read_json(self.folder / "error.json")
        if self._timed_out:
            self._fail(f"did not end within {self.spec.timeout:g} s", "raise its timeout", now, final=True)
        elif report is not None:
            message, hint = str(report.get("message", "")), str(report.get("hint", ""))
            self._fail(message, hint, now, final=not report.get("retry", False))
        elif running.interrupted:
            self.state.phase, self.state.message = "pending", ""
        else:
            how = processes.how_it_ended(code, self.launcher.log(self.owner, self.spec.name))
            self._fail(how, "the log has more", now, final=False)

    def _is_new(self, running: Running, code: int | None) -> bool:
        """Whether the result of a repeated step comes from this process; its exit code is unknown after an adoption."""
        if code is not None:
            return code == 0
        return (self.folder / "result.json").stat().st_mtime > running.child.started

    def _release(self, running: Running) -> None:
        if running.process is not None:
            running.process.sweep()
        self._running = None
        self.launcher.busy.discard(running.child.token)
        self.launcher.wakeups += 1
        self.finished_tokens.append(running.child.token)

    def _succeed(self, result: dict[str, Any], now: float) -> None:
        self.result = result
        self.state.phase, self.state.message, self.state.hint = "succeeded", "", ""
        self.state.next, self.state.finished = None, now

    def _fail(self, message: str, hint: str, now: float, *, final: bool) -> None:
        self.state.failures += 1
        self.state.message, self.state.hint = message, hint
        if final or self.state.failures > self.spec.retries:
            self.state.phase, self.state.finished = "failed", now
        else:
            self.state.phase = "backoff"
            self.state.next = now + self.launcher.pace.backoff(self.state.failures)
