"""ServingGraph: steps from a request to an answer, served by one process over the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from mlspec import graph, rules
from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, CodeUse, Context, Lowered
from mlspec.kinds.function import Bound, FunctionUse, bind, inline, use_reference
from mlspec.kinds.model import ModelSpec
from mlspec.kinds.resource_pool import Resources, check_resources, pool_reference
from mlspec.kinds.training_job import definition
from mlspec.lifecycle import Request
from mlspec.manifest import digest
from mlspec.resource import Base, Identifier, Interval, Name, OneOf, Path, Ref, Resource, Share
from mlspec.workload import JSON, Service, Step

StepName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=63)]


class Router(Base):
    """Sends the request to one of the following steps by its content."""

    by: str = Field(min_length=1)
    """JMESPath expression over `{inputs, parameters, headers}`; its value (as a string) picks the case."""
    cases: dict[str, StepName] = Field(min_length=1)
    """Value -> step."""
    default: StepName | None = None
    """Step for any other value; without it such a request is a client error (400)."""


class Ensemble(Base):
    """Combines the predictions of the steps in `after`."""

    combine: Literal["mean", "median", "min", "max", "vote"] = "mean"
    """How: numeric reductions of the predictions (or probabilities), or the majority of the labels."""
    weights: dict[StepName, float] | None = None
    """Weights of `mean` and `vote` by step; they are normalised."""


class Arm(Base):
    """One branch of a split."""

    step: StepName
    """The step that this arm runs."""
    weight: Annotated[float, Field(ge=0, le=100)]
    """Percent of the keys; the weights of a split add up to 100."""


class Split(Base):
    """Sends a fixed share of the keys to each arm: the same key always gets the same arm."""

    key: str = "id"
    """`id` (of the request), `header:NAME`, or a JMESPath expression over `{inputs, parameters, headers}`."""
    arms: list[Arm] = Field(min_length=1)
    """The branches."""
    salt: str = ""
    """Changes who falls into which arm; by default the name of the graph and step."""
    shadow: list[StepName] = []
    """Steps that also run where the split runs, after the answer, and are logged. What takes only from them runs in the shadow
    too; a step that takes from both sides is an error."""


class OnError(OneOf):
    """What happens when a step fails. Without it the request fails."""

    CHOICES: ClassVar[tuple[str, ...]] = ("default", "goto", "skip")

    default: Any = None
    """Answer of the step instead: a number, a string or a list."""
    goto: StepName | None = None
    """Run this step instead; its output then is that of the step that failed."""
    skip: Literal[True] | None = None
    """Pass the step's input on."""


class GraphStep(OneOf):
    """One step of the graph."""

    CHOICES: ClassVar[tuple[str, ...]] = ("python", "view", "model", "router", "ensemble", "split")

    python: FunctionUse | None = None
    """A plain function of the step's input (a dict of numpy arrays by column) that returns the same."""
    view: Name | None = None
    """FeatureView: looks up and computes the features of each asking row."""
    model: Name | None = None
    """Model or TrainingJob: predicts."""
    router: Router | None = None
    """Chooses the next step by content."""
    ensemble: Ensemble | None = None
    """Combines the steps in `after`."""
    split: Split | None = None
    """Chooses the next step by a sticky share."""
    after: list[StepName] = []
    """Steps whose output this step takes; without it the request."""
    on_error: OnError | None = None
    """What happens when the step fails."""
    timeout: Interval | None = None
    """The step fails after this time (`python` steps run in a thread then)."""


class Scale(Base):
    """Number of replicas. The local target runs one process."""

    min: int = Field(1, ge=0)
    """Fewest replicas."""
    max: int = Field(1, ge=1)
    """Most replicas."""
    concurrency: int = Field(20, ge=1)
    """Requests in flight per replica that scaling aims at."""


class Limits(Base):
    """Bounds of one replica."""

    max_in_flight: int = Field(256, ge=1)
    """More requests at once are answered with 429 and Retry-After."""
    max_rows: int = Field(10_000, ge=1)
    """Most rows of one request."""
    max_bytes: int = Field(16_777_216, ge=1024)
    """Largest request body in bytes."""


class RequestLog(Base):
    """Every answered request as Parquet rows: inputs, features, prediction, model, time."""

    sample: Share = 1.0
    """Share of the requests that are logged."""
    flush: Interval = "2s"
    """How long rows may wait in memory."""


class Tensor(Base):
    """One input of the graph, for metadata and checks of requests."""

    name: Identifier
    """Name of the tensor."""
    datatype: Literal["BOOL", "INT32", "INT64", "FP32", "FP64", "BYTES"]
    """Datatype of the Open Inference Protocol."""


class ServingGraphSpec(Base):
    """A graph of steps behind one V2 endpoint: `POST /v2/models/NAME/infer`."""

    steps: dict[StepName, GraphStep] = Field(min_length=1)
    """Steps by name."""
    respond: StepName | None = None
    """The step whose output is the answer; by default the only step that no other step takes, or in branches the one that ran."""
    inputs: list[Tensor] | None = None
    """Inputs of the graph; by default those of its first view or model."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Local port; a free one by default."""
    scale: Scale = Scale()
    """Replicas."""
    resources: Resources = Resources()
    """What one replica needs."""
    limits: Limits = Limits()
    """Bounds of one replica."""
    log: RequestLog = RequestLog()
    """The request log."""


def references(spec: ServingGraphSpec) -> Iterator[Ref]:
    """The functions, views and models of the steps, and the pool."""
    for name, step in spec.steps.items():
        yield from use_reference(step.python, ("steps", name, "python"))
        if step.view is not None:
            yield Ref(("FeatureView",), step.view, ("steps", name, "view"))
        if step.model is not None:
            yield Ref(("Model", "TrainingJob"), step.model, ("steps", name, "model"))
    yield from pool_reference(spec.resources, ("resources",))


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """The steps form one acyclic graph with one answer."""
    spec = cast(ServingGraphSpec, resource.spec)
    for name, step in spec.steps.items():
        yield from _check_step(step, ("spec", "steps", name))
    found = graph.shape(nodes(spec), spec.respond)
    if isinstance(found, graph.Shape):
        yield from _check_order(spec, found)
    else:
        yield from found
    yield from rules.ordered(spec.scale.min, spec.scale.max, "min", "max", ("spec", "scale"))
    yield from check_resources(spec.resources, ("spec", "resources"), catalog)


def nodes(spec: ServingGraphSpec) -> dict[str, graph.Node]:
    """The steps as far as the shape of the graph depends on them."""
    return {
        name: graph.Node(
            after=tuple(step.after),
            chooses=tuple(_targets(step)),
            mirrors=tuple(step.split.shadow) if step.split is not None else (),
            goto=step.on_error.goto if step.on_error is not None else None,
        )
        for name, step in spec.steps.items()
    }


def _targets(step: GraphStep) -> Iterator[tuple[str, Path]]:
    """The steps that a router or split chooses among, each with its place below the step."""
    if step.router is not None:
        for value, target in step.router.cases.items():
            yield target, ("router", "cases", value)
        if step.router.default is not None:
            yield step.router.default, ("router", "default")
    if step.split is not None:
        for index, arm in enumerate(step.split.arms):
            yield arm.step, ("split", "arms", index, "step")


def _check_step(step: GraphStep, path: Path) -> Iterator[Problem]:
    if step.split is not None:
        total = sum(arm.weight for arm in step.split.arms)
        if abs(total - 100) > 1e-6:
            message = f"the weights add up to {total:g}, not to 100"
            yield Problem(
                "weights", message, (*path, "split", "arms"), "they are percent of the keys", on_key=True
            )
    if step.ensemble is not None:
        if len(set(step.after)) < 2:
            message = f"an ensemble combines two or more steps; after has {len(set(step.after))}"
            yield Problem(
                "ensemble",
                message,
                (*path, "after" if step.after else "ensemble"),
                "list the models in after",
                on_key=True,
            )
        for weighed in step.ensemble.weights or {}:
            place = (*path, "ensemble", "weights", weighed)
            yield from rules.member(
                weighed, step.after, "after has no step", "unknown-step", place, on_key=True
            )
        if step.ensemble.weights is not None:
            if step.ensemble.combine not in ("mean", "vote"):
                message = f"weights are for mean and vote, not for {step.ensemble.combine}"
                yield Problem(
                    "unused-field", message, (*path, "ensemble", "weights"), "remove them", on_key=True
                )
            for source in step.after:
                if source not in step.ensemble.weights:
                    message = f"{source} has no weight"
                    hint = f"add {source}: 1, or remove weights"
                    yield Problem("weights", message, (*path, "ensemble", "weights"), hint, on_key=True)


def _check_order(spec: ServingGraphSpec, shape: graph.Shape) -> Iterator[Problem]:
    """Views look up the rows that ask; a prediction is none."""
    for name, step in spec.steps.items():
        before = graph.upstream([name], {one: spec.steps[one].after for one in shape.order})
        models = sorted(one for one in before if spec.steps[one].model)
        if step.view is not None and models:
            message = f"the view {step.view} looks up asking rows, but gets the predictions of {models[0]}"
            yield Problem(
                "view-after-model",
                message,
                ("spec", "steps", name, "after"),
                "run the view first",
                on_key=True,
            )


def code(spec: ServingGraphSpec) -> Iterable[CodeUse]:
    """The functions of `python` steps, when they are written in place."""
    for step in spec.steps.values():
        yield from inline(step.python)


def lower(resource: Resource, context: Context) -> Lowered:
    """One service that holds the whole graph; a new model or view is a new document, not a new process."""
    spec = cast(ServingGraphSpec, resource.spec)
    models: dict[str, JSON] = {}
    views: dict[str, JSON | None] = {}
    functions: dict[str, Bound] = {}
    waits: list[str] = []
    for name, step in spec.steps.items():
        if step.model:
            model = context.of(("Model", "TrainingJob"), step.model)
            if model.output is None:
                waits.append(f"once {step.model} has a run that passes its gates")
            else:
                models[step.model] = model.output
        elif step.view:
            views[step.view] = context.of("FeatureView", step.view).output
        elif step.python:
            functions[name] = bind(step.python, resource, context)
    switches = {
        name: found
        for name, one in models.items()
        if (found := _switch(name, resource, context)) is not None and one["previous"]
    }
    chosen = {name: one["previous"] if name in switches else one for name, one in models.items()}
    fixed = [one for name, one in chosen.items() if name in switches or _pinned(name, context)]
    asked: dict[str, JSON] = {}
    for name, view in views.items():
        served = _as_trained(name, view, chosen.values() if view is not None else fixed)
        if served is None:
            waits.append(f"FeatureView/{name}")
        else:
            asked[name] = served
    if waits:
        return Lowered(waits=tuple(waits))
    requirements = {one for model in chosen.values() for one in model.get("requirements", [])}
    requirements |= {one for function in functions.values() for one in function.requirements}
    document = {
        "spec": spec.document(),
        "models": {name: {"run": one["run"], "path": one["path"]} for name, one in chosen.items()},
        "views": asked,
        "code": {name: one.document for name, one in functions.items()},
    }
    service = Service(
        name=resource.name,
        step=Step(
            "serve",
            "serve",
            document,
            spec.resources.needs(),
            requirements=tuple(sorted(requirements)),
            image=next((one.image for one in functions.values() if one.image), None),
        ),
        port=spec.port,
        replicas=(spec.scale.min, spec.scale.max),
        concurrency=spec.scale.concurrency,
    )
    runs = ", ".join(one["run"] for one in chosen.values())
    for name, switch in switches.items():
        why = f": {switch.reason}" if switch.reason else ""
        runs += f", switched from {models[name]['run']} by {switch.by} on {switch.at[:10]}{why}"
    return Lowered(
        version=digest(document)[:8],
        output={"models": models, "views": views},
        workloads=(service,),
        note=f"model {runs}" if runs else "",
    )


def _as_trained(name: str, output: JSON | None, models: Iterable[JSON]) -> JSON | None:
    """The view with the newest data; or as the model was trained with it, while its definition is another now, or is not there yet.

    So a changed feature reaches the graph together with the model that has learned it, and not at all when that model
    does not pass its gates. And a model that a person pins or switches to waits for no view but its own.
    """
    view = definition(output) if output is not None else None
    for model in models:
        trained: JSON | None = model.get("views", {}).get(name)
        if trained is not None and (view is None or _meaning(trained) != _meaning(view)):
            return trained
    return view


def _meaning(view: JSON) -> JSON:
    source = {key: view["dataset"].get(key) for key in ("key", "time")}
    return {
        "spec": view["spec"],
        "source": source,
        "sets": {name: one["spec"] for name, one in view["sets"].items()},
    }


def _pinned(model: str, context: Context) -> bool:
    resource = context.catalog.find("Model", model)
    return resource is not None and cast(ModelSpec, resource.spec).promotion == "pinned"


def _switch(model: str, graph: Resource, context: Context) -> Request | None:
    """The request that leads this graph away from the accepted run of a model, to the one that served before."""
    lowered = context.of(("Model", "TrainingJob"), model)
    return lowered.life.switches.get(graph.name) if lowered.life else None
