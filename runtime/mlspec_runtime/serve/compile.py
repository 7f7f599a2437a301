"""A task document becomes a plan: order the steps, load models, readers and code, warm everything up.

Runs beside the serving loop, in a thread; the app knows nothing of it until the plan is complete. What the previous plan
has loaded is taken over by identity (run, path, digest), so a new model costs only its own loading.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from pydantic import ValidationError

from mlspec.kinds.function import InlineFunction
from mlspec.kinds.serving_graph import GraphStep, ServingGraphSpec
from mlspec.resource import seconds
from mlspec_runtime import code
from mlspec_runtime import model as models
from mlspec_runtime.serve import steps, v2
from mlspec_runtime.serve.batch import Batcher
from mlspec_runtime.serve.fault import Fault
from mlspec_runtime.serve.plan import Limits, ModelUse, Plan, PlanStep, Recovery, Run
from mlspec_runtime.task import Document, TaskError

if TYPE_CHECKING:
    from mlspec_runtime.serve.views import View

T = TypeVar("T")

PYTHON_THREADS = 8
"""Threads of a python step with a timeout; other steps with one get a single thread."""


@dataclass(slots=True)
class _Resources:
    """What the plan has loaded; looks into its predecessor first."""

    root: Path
    task: Document
    before: Mapping[tuple[str, ...], object]
    now: dict[tuple[str, ...], object] = field(default_factory=dict)

    def model(self, name: str) -> tuple[models.Model, str]:
        """The model that a step names, and its run. Raises TaskError."""
        entry = self.task.get("models", {}).get(name)
        if entry is None:
            raise TaskError(
                f"no run of the model {name} is given", "train it first; `mlspec runs` lists the runs"
            )
        key = ("model", str(entry.get("run") or name), entry["path"])
        return self._once(key, lambda: models.load(self.root / entry["path"])), key[1]

    def view(self, name: str) -> View:
        """The reader of a FeatureView. Raises TaskError."""
        entry = self.task.get("views", {}).get(name)
        if entry is None:
            raise TaskError(f"the view {name} is not given", "materialise its feature sets first")
        key = ("view", name, json.dumps(entry, sort_keys=True))
        # Brings SQL and a database; not every graph has a view.
        views = importlib.import_module("mlspec_runtime.serve.views")
        return self._once(key, lambda: cast("View", views.load(entry, self.root)))

    def function(self, step: str, use: str | InlineFunction) -> Callable[[v2.Columns], Any]:
        """The function of a python step; the task has its code by step or by use. Raises TaskError."""
        name = use if isinstance(use, str) else use.code
        bundles = self.task.get("code", {})
        entry = bundles.get(step) or bundles.get(name)
        if entry is None:
            raise TaskError(
                f"the code of {name} is not given", "the supervisor writes it; `mlspec apply` again"
            )
        key = ("code", entry["path"], entry["entry"])
        return self._once(key, lambda: code.load(entry["entry"], self.root / entry["path"]))

    def _once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        if key not in self.now:
            self.now[key] = self.before[key] if key in self.before else make()
        return cast(T, self.now[key])


def build(task: Document, root: Path, before: Plan | None = None) -> Plan:
    """The plan of a serve task, loaded and warm. Raises TaskError with all that a user can mend."""
    try:
        spec = ServingGraphSpec.model_validate(task["spec"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TaskError(
            f"the spec of the graph is not valid: {place}: {first['msg']}", "run `mlspec validate`"
        ) from None
    shape = _shape(spec)
    resources = _Resources(root, task, {} if before is None else before.resources)
    plan = _plan(spec, shape, resources)
    _warm(plan, resources)
    return plan


# --- the shape of the graph: order, branches, who answers


@dataclass(frozen=True, slots=True)
class _Shape:
    """Steps in order, and the part that each plays."""

    order: tuple[str, ...]
    after: Mapping[str, tuple[str, ...]]
    """Sources of each step; none means the request."""
    gated: frozenset[str]
    """Steps that a router or split must choose."""
    fallbacks: frozenset[str]
    """Steps that run only instead of a failed one."""
    shadow: frozenset[str]
    """Steps that run after the answer."""
    respond: tuple[str, ...]


def _targets(step: GraphStep) -> list[str]:
    """Steps that a router or split chooses among."""
    if step.router is not None:
        return [*step.router.cases.values(), *([step.router.default] if step.router.default else [])]
    return [arm.step for arm in step.split.arms] if step.split is not None else []


def _shape(spec: ServingGraphSpec) -> _Shape:
    after = {name: list(step.after) for name, step in spec.steps.items()}
    gated: set[str] = set()
    shadow: set[str] = set()
    fallbacks: dict[str, str] = {}
    for name, step in spec.steps.items():
        mirrors = step.split.shadow if step.split is not None else []
        for target in [*_targets(step), *mirrors]:
            _known(spec, name, target)
            after[target] = after[target] or [name]
        gated.update(_targets(step))
        shadow.update(mirrors)
        if step.on_error is not None and step.on_error.goto is not None:
            _known(spec, name, step.on_error.goto)
            fallbacks[step.on_error.goto] = name
        for source in step.after:
            _known(spec, name, source)
    # A choice comes before what it chooses; what a fallback reads comes before the step that may fail.
    edges = {name: set(sources) for name, sources in after.items()}
    for name, step in spec.steps.items():
        for target in _targets(step):
            edges[target].add(name)
    for fallback, failing in fallbacks.items():
        edges[failing] |= {source for source in after[fallback] if source != failing}
        edges[fallback].add(failing)
    try:
        order = tuple(TopologicalSorter(edges).static_order())
    except CycleError as error:
        raise TaskError(
            f"the steps form a cycle: {' -> '.join(error.args[1])}", "remove one `after`"
        ) from None
    for name in order:
        if name not in shadow and after[name] and all(source in shadow for source in after[name]):
            shadow.add(name)
    taken = {source for sources in after.values() for source in sources}
    choosers = {name for name, step in spec.steps.items() if _targets(step)}
    ends = [
        n for n in order if n not in taken and n not in shadow and n not in fallbacks and n not in choosers
    ]
    respond = (spec.respond,) if spec.respond else tuple(ends)
    if spec.respond:
        _known(spec, "respond", spec.respond)
    if len(respond) > 1 and not all(_chosen(name, after, gated) for name in respond):
        raise TaskError(f"several steps could answer: {', '.join(respond)}", "say which with `respond`")
    if not respond:
        raise TaskError("no step answers", "name one with `respond`")
    return _Shape(
        order,
        {name: tuple(sources) for name, sources in after.items()},
        frozenset(gated),
        frozenset(fallbacks) - gated,
        frozenset(shadow),
        respond,
    )


def _known(spec: ServingGraphSpec, step: str, target: str) -> None:
    if target not in spec.steps:
        raise TaskError(
            f"{step} names the step {target}, which does not exist", f"steps are {', '.join(spec.steps)}"
        )


def _chosen(name: str, after: Mapping[str, Sequence[str]], gated: set[str]) -> bool:
    """Whether a step runs only in some branch."""
    return name in gated or (
        bool(after[name]) and all(_chosen(source, after, gated) for source in after[name])
    )


# --- the steps themselves


def _plan(spec: ServingGraphSpec, shape: _Shape, resources: _Resources) -> Plan:
    task = resources.task
    slots = {name: index for index, name in enumerate(shape.order, start=1)}
    built: dict[str, PlanStep] = {}
    executors: list[ThreadPoolExecutor] = []
    used: dict[str, tuple[models.Model, str]] = {
        name: resources.model(step.model) for name, step in spec.steps.items() if step.model is not None
    }
    inputs = _inputs(spec, shape, used, resources)
    for name in reversed(shape.order):  # a fallback stands behind the step that it serves, so it exists first
        step = spec.steps[name]
        call, use = _call(name, step, spec, shape, slots, used, resources)
        recovery = _recovery(name, step, spec, built, resources)
        executor = None
        if step.timeout is not None and not _targets(step):
            executor = ThreadPoolExecutor(PYTHON_THREADS if step.python is not None else 1, f"step-{name}")
            executors.append(executor)
        built[name] = PlanStep(
            name=name,
            slot=slots[name],
            sources=tuple(slots[one] for one in shape.after[name])
            or (() if name in shape.fallbacks else (0,)),
            gated=name in shape.gated,
            call=call,
            merge=step.ensemble is None,
            model=use,
            recovery=recovery,
            timeout=None if step.timeout is None else seconds(step.timeout),
            executor=executor,
            awaits=executor is not None
            or (recovery is not None and recovery.goto is not None and recovery.goto.awaits),
        )
    main = tuple(built[n] for n in shape.order if n not in shape.fallbacks and n not in shape.shadow)
    runs = {step.model: used[name][1] for name, step in spec.steps.items() if step.model is not None}
    generation = int(task.get("generation", 0))
    return Plan(
        name=str(task["name"]),
        version=next(iter(runs.values())) if len(runs) == 1 else str(generation),
        generation=generation,
        steps=main,
        shadow=tuple(built[n] for n in shape.order if n in shape.shadow),
        names=("request", *shape.order),
        respond=tuple(slots[name] for name in shape.respond),
        inputs=inputs,
        outputs={},
        models=runs,
        limits=Limits(spec.limits.max_in_flight, spec.limits.max_rows, spec.limits.max_bytes),
        sample=spec.log.sample,
        flush=seconds(spec.log.flush),
        awaits=any(step.awaits for step in main),
        batches=any(step.model is not None for step in main),
        resources=resources.now,
        executors=tuple(executors),
    )


def _call(
    name: str,
    step: GraphStep,
    spec: ServingGraphSpec,
    shape: _Shape,
    slots: Mapping[str, int],
    used: Mapping[str, tuple[models.Model, str]],
    resources: _Resources,
) -> tuple[steps.Call, ModelUse | None]:
    match step.choice:
        case "python":
            assert step.python is not None
            return steps.python(resources.function(name, step.python)), None
        case "view":
            assert step.view is not None
            return steps.view(resources.view(step.view).reader), None
        case "model":
            assert step.model is not None
            model, run = used[name]
            select = steps.select(model, run, name)
            return steps.model(model, select), ModelUse(step.model, run, select, Batcher(model.predict))
        case "router":
            assert step.router is not None
            return steps.router(step.router, name, slots), None
        case "split":
            assert step.split is not None
            return steps.split(step.split, name, str(resources.task["name"]), slots), None
        case _:
            assert step.ensemble is not None
            sources = [(source, slots[source]) for source in shape.after[name]]
            if not sources:
                raise TaskError(f"the ensemble {name} has no steps to combine", "list them in `after`")
            unknown = sorted(set(step.ensemble.weights or {}) - set(shape.after[name]))
            if unknown:
                raise TaskError(f"the ensemble {name} weighs {unknown[0]}, which is not in `after`", "")
            members = {source: used[source][0] for source, _ in sources if source in used}
            return steps.ensemble(step.ensemble, sources, members), None


def _recovery(
    name: str, step: GraphStep, spec: ServingGraphSpec, built: Mapping[str, PlanStep], resources: _Resources
) -> Recovery | None:
    if step.on_error is None:
        return None
    match step.on_error.choice:
        case "goto":
            return Recovery(goto=built[str(step.on_error.goto)])
        case "default":
            columns = None if step.view is None else resources.view(step.view).features
            return Recovery(default=steps.default(step.on_error.default, columns))
        case _:
            return Recovery(skip=True)


# --- the inputs of the graph


def _inputs(
    spec: ServingGraphSpec,
    shape: _Shape,
    used: Mapping[str, tuple[models.Model, str]],
    resources: _Resources,
) -> dict[str, v2.Input] | None:
    """The spec's inputs, else what the first view asks for, else the inputs of the models."""
    if spec.inputs is not None:
        return {one.name: v2.Input(one.name, one.datatype) for one in spec.inputs}
    for name in shape.order:
        view = spec.steps[name].view
        if view is not None:
            return {one.name: one for one in resources.view(view).inputs}
    found = {one.name: v2.Input(one.name, one.datatype) for model, _ in used.values() for one in model.inputs}
    return found or None


# --- warm up


def _warm(plan: Plan, resources: _Resources) -> None:
    """Call every model and then the whole plan once with made-up values: first calls are slow, and outputs get known.

    Made-up values may well be refused (an unknown category, a router without a case), so failures mean nothing here.
    """
    for loaded in resources.now.values():
        if isinstance(loaded, models.Model):
            columns = {one.name: _made_up(one.datatype) for one in loaded.inputs}
            try:
                loaded.predict(columns, 1)
            except Exception:
                continue
    if plan.inputs is None:
        return
    for step in (*plan.steps, *plan.shadow):
        step.timing.reported = float("inf")
    columns = {one.name: _made_up(one.datatype) for one in plan.inputs.values() if one.required}
    try:
        answer = plan.answer(Run(v2.Request("warm", columns, 1, 0.0), len(plan.names)))
    except Fault:
        answer = {}
    plan.outputs.update({name: v2.datatype(values) for name, values in answer.items()})
    for step in (*plan.steps, *plan.shadow):
        step.timing.reported = step.timing.seconds = 0.0
        step.timing.calls = step.timing.errors = 0


def _made_up(datatype: str | None) -> v2.Array:
    dtype = v2.DTYPES[datatype or "BYTES"]
    return np.array(["2000-01-01" if dtype.kind == "O" else 0], dtype)
