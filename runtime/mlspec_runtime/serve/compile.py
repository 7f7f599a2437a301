"""A task document becomes a plan: order the steps, load models, readers and code, warm everything up.

Runs beside the serving loop, in a thread; the app knows nothing of it until the plan is complete. What the previous plan
has loaded is taken over by identity (run, path, digest), so a new model costs only its own loading.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from pydantic import ValidationError

from mlspec import graph
from mlspec.kinds.function import InlineFunction
from mlspec.kinds.serving_graph import GraphStep, ServingGraphSpec, nodes
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
    shape = graph.shape(nodes(spec), spec.respond)
    if not isinstance(shape, graph.Shape):
        raise TaskError("; ".join(one.message for one in shape), shape[0].hint)
    resources = _Resources(root, task, {} if before is None else before.resources)
    plan = _plan(spec, shape, resources)
    _warm(plan, resources)
    return plan


# --- the steps themselves


def _plan(spec: ServingGraphSpec, shape: graph.Shape, resources: _Resources) -> Plan:
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
        if step.timeout is not None and step.router is None and step.split is None:
            executor = ThreadPoolExecutor(PYTHON_THREADS if step.python is not None else 1, f"step-{name}")
            executors.append(executor)
        built[name] = PlanStep(
            name=name,
            slot=slots[name],
            sources=tuple(slots[one] for one in shape.sources[name])
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
        shadow=tuple(built[n] for n in shape.order if n in shape.shadow and n not in shape.fallbacks),
        outcomes={
            slots[name]: frozenset(slots[one] for one in before) for name, before in shape.outcomes.items()
        },
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
    shape: graph.Shape,
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
            sources = [(source, slots[source]) for source in shape.sources[name]]
            unknown = sorted(set(step.ensemble.weights or {}) - set(shape.sources[name]))
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
    shape: graph.Shape,
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
