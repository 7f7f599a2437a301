"""The plan: a graph as an immutable flat tuple of steps, run by a plain loop over slots.

`compile` makes it, `app` runs one `Run` of it per request. Slot 0 holds the request's columns, every step has one slot of
its own; an empty slot means that the step did not run, and so does what depends only on it. The loop is the same for
both ways through it: `answer` calls every step inline; `answer_async` stops at the steps that must be awaited (a thread
because of a timeout, or a model whose requests of one loop tick share a call).
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mlspec_runtime.model import InputError
from mlspec_runtime.serve.batch import Batcher
from mlspec_runtime.serve.fault import Fault
from mlspec_runtime.serve.v2 import Array, Columns, Input, Request

INLINE, AWAITED, BATCHED = 0, 1, 2
"""Which steps end a turn of the loop: none, those with an executor, also models."""


class Mixed(Exception):
    """The rows of one request belong to different branches: run it once per distinct key. `keys` has one per row."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__("rows take different branches")
        self.keys = keys


class Run:
    """One request's way through a plan, and what the log wants to know about it."""

    __slots__ = ("at", "chosen", "features", "models", "parts", "request", "values")

    def __init__(self, request: Request, slots: int) -> None:
        self.request = request
        self.values: list[Columns | None] = [None] * slots
        self.values[0] = request.columns
        self.chosen: frozenset[int] = frozenset()
        """Slots that a router or split has chosen."""
        self.models: tuple[str, ...] = ()
        """Runs whose models have predicted."""
        self.features: Columns = {}
        """What the models were given."""
        self.at: Array | None = None
        """Moment of the question of each row, where a view knows it."""
        self.parts: list[Run] = []
        """Runs of groups of rows, where these take different branches; they are logged instead of this one."""


@dataclass(slots=True)
class Timing:
    """Counters of one step since the plan was made."""

    seconds: float = 0.0
    calls: int = 0
    errors: int = 0
    reported: float = 0.0
    """When a traceback of this step was printed last."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """The model of a step: the name in the spec, its run, and how a batch of requests calls it."""

    name: str
    run: str
    select: Callable[[Run, Columns], Columns]
    """The model's inputs of a step's input; notes them in the run for the log."""
    batcher: Batcher


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a step does instead of failing: exactly one is set."""

    default: Callable[[int], Columns] | None = None
    """Answer for a number of rows."""
    goto: PlanStep | None = None
    """The step to run instead."""
    skip: bool = False
    """Pass the input on."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step. `call(run, input) -> output`; it may also choose branches in the run."""

    name: str
    slot: int
    sources: tuple[int, ...]
    gated: bool
    """Runs only when a router or split has chosen it."""
    call: Callable[[Run, Columns], Columns]
    merge: bool = True
    """Whether several sources are merged; otherwise the step looks at `run.values` itself and gets the first."""
    model: ModelUse | None = None
    recovery: Recovery | None = None
    timeout: float | None = None
    executor: ThreadPoolExecutor | None = None
    """Where the step runs, when it has a timeout."""
    awaits: bool = False
    """Whether this step, or one that it may go to, has an executor."""
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What a branch of the shadow came to, for some rows of a request."""

    run: Run
    models: tuple[str, ...]
    """Runs whose models have predicted on the way; without one the step that stands at the end."""
    features: Columns
    """What the models were given."""
    output: Columns


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one process."""

    in_flight: int
    rows: int
    body: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled graph with its models loaded."""

    name: str
    version: str
    """The run of the model where there is one model, else the generation."""
    generation: int
    steps: tuple[PlanStep, ...]
    shadow: tuple[PlanStep, ...]
    """Steps that run after the answer and are only logged."""
    outcomes: Mapping[int, frozenset[int]]
    """Slots of the shadow steps whose output is logged, with those of all shadow steps before them."""
    names: tuple[str, ...]
    """Step names by slot; `request` is slot 0."""
    respond: tuple[int, ...]
    """Slots of the answer: one, or several of which one runs."""
    inputs: Mapping[str, Input] | None
    """None accepts any."""
    outputs: dict[str, str]
    """Names and datatypes of the answer; filled when the plan is warmed, or by its first answer."""
    models: Mapping[str, str]
    """Name in the spec -> run."""
    limits: Limits
    sample: float
    flush: float
    awaits: bool
    """Whether some step must be awaited even for a single request."""
    batches: bool
    """Whether requests of one tick can share model calls."""
    resources: Mapping[tuple[str, ...], object] = field(default_factory=dict)
    """What was loaded (models, view readers, functions) by identity; the next plan takes over what it still needs."""
    executors: tuple[ThreadPoolExecutor, ...] = ()

    def answer(self, run: Run) -> Columns:
        """Run all steps inline. Raises `Fault`."""
        try:
            position = 0
            while position < len(self.steps):
                position = self._advance(run, position, INLINE)
            return self.answer_of(run)
        except Mixed as mixed:
            groups = _groups(mixed.keys)
            run.parts = [Run(run.request.part(rows), len(run.values)) for rows in groups]
            return _gather(groups, [self.answer(part) for part in run.parts])

    async def answer_async(self, run: Run, batched: bool) -> Columns:
        """Run all steps, awaiting those with an executor and, if `batched`, the models. Raises `Fault`."""
        try:
            position = 0
            mode = BATCHED if batched else AWAITED
            while (position := self._advance(run, position, mode)) < len(self.steps):
                step = self.steps[position]
                value = self._input(run, step)
                assert value is not None
                run.values[step.slot] = await self._settle_async(run, step, value, batched)
                position += 1
            return self.answer_of(run)
        except Mixed as mixed:
            groups = _groups(mixed.keys)
            run.parts = [Run(run.request.part(rows), len(run.values)) for rows in groups]
            return _gather(groups, [await self.answer_async(part, batched) for part in run.parts])

    def run_shadow(self, run: Run) -> list[Shadowed]:
        """Run the shadow steps of an answered request. A branch with a step that fails comes to nothing."""
        answered = list(run.values)
        used: dict[int, tuple[tuple[str, ...], Columns]] = {}
        for step in self.shadow:
            value = self._input(run, step)
            if value is None:
                continue
            run.models, run.features = (), {}
            try:
                run.values[step.slot] = self._settle(run, step, value)
            except Fault:
                continue
            except Mixed as mixed:
                parts = [_part(run, answered, rows) for rows in _groups(mixed.keys)]
                return [found for part in parts for found in self.run_shadow(part)]
            used[step.slot] = run.models, run.features
        found = []
        for slot, before in self.outcomes.items():
            output = run.values[slot]
            if output is not None:
                seen = [used[step.slot] for step in self.shadow if step.slot in before and step.slot in used]
                names = tuple(name for models, _ in seen for name in models)
                features = {name: values for _, given in seen for name, values in given.items()}
                found.append(Shadowed(run, names or (self.names[slot],), features, output))
        return found

    def _advance(self, run: Run, position: int, mode: int) -> int:
        """Run inline steps from `position` on; returns where one must be awaited, or the end."""
        steps = self.steps
        values = run.values
        count = len(steps)
        while position < count:
            step = steps[position]
            if not step.gated and len(step.sources) == 1:
                value = values[step.sources[0]]
            else:
                value = self._input(run, step)
            if value is not None:
                if mode and (step.awaits or (mode == BATCHED and step.model is not None)):
                    return position
                started = time.perf_counter()
                timing = step.timing
                timing.calls += 1
                try:
                    values[step.slot] = step.call(run, value)
                except Mixed:
                    raise
                except Exception as error:
                    values[step.slot] = self._recover(run, step, value, error)
                finally:
                    timing.seconds += time.perf_counter() - started
            position += 1
        return position

    def _input(self, run: Run, step: PlanStep) -> Columns | None:
        """The input of a step; None when it does not run."""
        if step.gated and step.slot not in run.chosen:
            return None
        there = [slot for slot in step.sources if run.values[slot] is not None]
        if not there:
            return None
        if len(there) == 1 or not step.merge:
            return run.values[there[0]]
        return self._merged(run, there)

    def _merged(self, run: Run, slots: list[int]) -> Columns:
        """The columns of several steps; a name with different values gets its step's name and a dot before it."""
        merged: Columns = {}
        owners: dict[str, int] = {}
        clashes = set()
        for slot in slots:
            for name, values in (run.values[slot] or {}).items():
                if name in merged and merged[name] is not values:
                    clashes.add(name)
                else:
                    merged[name] = values
                    owners.setdefault(name, slot)
        for name in clashes:
            del merged[name]
            for slot in slots:
                values_of = (run.values[slot] or {}).get(name)
                if values_of is not None:
                    merged[f"{self.names[slot]}.{name}"] = values_of
        return merged

    def _settle(self, run: Run, step: PlanStep, value: Columns) -> Columns:
        """One step inline, to its output or a `Fault`."""
        step.timing.calls += 1
        started = time.perf_counter()
        try:
            return step.call(run, value)
        except Mixed:
            raise
        except Exception as error:
            return self._recover(run, step, value, error)
        finally:
            step.timing.seconds += time.perf_counter() - started

    def _recover(self, run: Run, step: PlanStep, value: Columns, error: Exception) -> Columns:
        other = self._instead(run, step, value, error)
        if isinstance(other, dict):
            return other
        output = run.values[other.slot] = self._settle(run, other, self._detour(run, other, value))
        return output

    async def _settle_async(self, run: Run, step: PlanStep, value: Columns, batched: bool) -> Columns:
        """One step that may have to be awaited, to its output or a `Fault`."""
        step.timing.calls += 1
        started = time.perf_counter()
        try:
            if step.executor is not None:
                work = asyncio.get_running_loop().run_in_executor(step.executor, step.call, run, value)
                return await asyncio.wait_for(work, step.timeout)
            if batched and step.model is not None:
                return await step.model.batcher.submit(step.model.select(run, value), run.request.rows)
            return step.call(run, value)
        except Mixed:
            raise
        except Exception as error:
            other = self._instead(run, step, value, error)
        finally:
            step.timing.seconds += time.perf_counter() - started
        if isinstance(other, dict):
            return other
        output = run.values[other.slot] = await self._settle_async(
            run, other, self._detour(run, other, value), batched
        )
        return output

    def _instead(self, run: Run, step: PlanStep, value: Columns, error: Exception) -> Columns | PlanStep:
        """What a failed step's recovery gives: an output, or another step. Without one the request fails."""
        step.timing.errors += 1
        fault = fault_of(run, step, error)
        if fault.status >= 500:
            _report(step, error)
        recovery = step.recovery
        if recovery is None:
            raise fault from error
        if recovery.goto is not None:
            return recovery.goto
        if recovery.default is not None:
            return recovery.default(run.request.rows)
        return value

    def _detour(self, run: Run, step: PlanStep, value: Columns) -> Columns:
        """Input of a step that runs instead of another: its own sources, else what the failed one had."""
        there = [slot for slot in step.sources if run.values[slot] is not None]
        return self._merged(run, there) if there else value

    def answer_of(self, run: Run) -> Columns:
        """The columns of the step that answers. Raises `Fault` when none has run."""
        for slot in self.respond:
            value = run.values[slot]
            if value is not None:
                if not value:
                    raise Fault(500, f"step {self.names[slot]} answered no columns")
                return value
        raise Fault(
            500, f"no step answered; the answer is that of {', '.join(self.names[s] for s in self.respond)}"
        )


def fault_of(run: Run, step: PlanStep, error: Exception) -> Fault:
    """The HTTP answer for an error in a step.

    A model that refuses its input is the caller's fault if the request has the nulls or infinities, else ours.
    """
    match error:
        case Fault():
            return error
        case InputError():
            odd = [name for name, values in run.request.columns.items() if not _finite(values)]
            if odd:
                return Fault(
                    400,
                    f"step {step.name} refuses the request: {error} Null or out of range: {', '.join(odd)}",
                )
            return Fault(500, f"step {step.name} refuses its input: {error}")
        case TimeoutError():
            limit = f" within {step.timeout:g} s" if step.timeout is not None else ""
            return Fault(504, f"step {step.name} did not answer{limit}")
        case ConnectionError():
            return Fault(502, f"step {step.name} cannot reach what it needs: {error}")
        case _:
            return Fault(500, f"step {step.name} failed: {type(error).__name__}: {error}")


def _finite(values: Array) -> bool:
    if values.dtype.kind == "f":  # a tree casts to float32; beyond its range it refuses
        return bool((np.abs(values) < np.finfo(np.float32).max).all())
    return values.dtype.kind != "O" or all(value is not None for value in values.tolist())


def _report(step: PlanStep, error: Exception) -> None:
    """Print the traceback, at most one per step in ten seconds: a failing step must not fill the disk."""
    now = time.monotonic()
    if now - step.timing.reported > 10 or not step.timing.reported:
        step.timing.reported = now
        print(f"step {step.name} failed ({step.timing.errors} times by now):", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()


def _part(run: Run, values: list[Columns | None], rows: Array) -> Run:
    """Some rows of a request after it was answered."""
    part = Run(run.request.part(rows), len(values))
    part.values[1:] = [
        None if one is None else {name: column[rows] for name, column in one.items()} for one in values[1:]
    ]
    part.chosen = run.chosen
    part.at = None if run.at is None else run.at[rows]
    return part


def _groups(keys: list[str]) -> list[Array]:
    """Row indices of each distinct key."""
    found: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return [np.array(rows) for rows in found.values()]


def _gather(groups: list[Array], answers: list[Columns]) -> Columns:
    """The answers of groups of rows, in the order of the request. Branches must answer the same columns."""
    names = list(answers[0])
    if any(set(answer) != set(names) for answer in answers):
        raise Fault(
            500, "the branches of the graph answer different columns; send their rows in separate requests"
        )
    order = np.argsort(np.concatenate(groups), kind="stable")
    return {name: np.concatenate([answer[name] for answer in answers])[order] for name in names}
