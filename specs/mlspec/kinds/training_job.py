"""TrainingJob: a function, its data and its parameters become a model that must pass gates before it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeGuard, cast

from pydantic import Field

from mlspec import lifecycle, ranges, rules
from mlspec.diagnostics import Problem, did_you_mean, listed
from mlspec.gates import METRICS, Gate, verdicts
from mlspec.kind import Catalog, CodeUse, Context, Lowered, RowSql
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec.kinds.function import Bound, FunctionUse, bind, check_arguments, inline, use_reference
from mlspec.kinds.resource_pool import Resources, check_resources, pool_reference
from mlspec.lifecycle import PERSON, Attempt, Candidate, Events, Memory, Request, Stage, State
from mlspec.manifest import digest
from mlspec.ranges import DataUse
from mlspec.resource import (
    Base,
    Identifier,
    Interval,
    OneOf,
    Path,
    Ref,
    Resource,
    moment,
    seconds,
)
from mlspec.workload import JSON, Made, Record, Run, RunFact, Step, identify


class Torch(Base):
    """torchrun on several nodes."""

    nodes: int = Field(1, ge=1)
    """Number of nodes."""
    processes_per_node: int | None = Field(None, ge=1)
    """Processes on each node; by default one per GPU."""


class Workers(Base):
    """A number of equal workers."""

    workers: int = Field(1, ge=1)
    """Number of workers."""


class TrainingEngine(OneOf):
    """What runs the training. By default one process."""

    CHOICES: ClassVar[tuple[str, ...]] = ("workflow", "job", "torch", "mpi", "dask", "spark", "ray")

    workflow: dict[str, Any] | None = None
    """Argo Workflow on Kubernetes, one process here (the default)."""
    job: dict[str, Any] | None = None
    """A plain Kubernetes Job."""
    torch: Torch | None = None
    """PyTorch with torchrun (Kubeflow Trainer)."""
    mpi: Workers | None = None
    """MPI (mpi-operator)."""
    dask: Workers | None = None
    """Dask (dask-kubernetes)."""
    spark: Workers | None = None
    """Spark (spark-operator)."""
    ray: Workers | None = None
    """Ray (KubeRay)."""


class TrainingSchedule(Base):
    """Regular retraining."""

    cron: str
    """Five-field cron expression, UTC."""
    window: Interval | None = None
    """Train on the last `window` of data instead of `from`/`to`."""


class Retrain(Base):
    """What else trains again by itself."""

    new_data: bool = False
    """Train again when a dataset that the job reads has other rows than at the last training, although git has not changed. The
    ranges stay; a relative one ends at the newest data."""


class TrainingJobSpec(Base):
    """Training as a content-addressed run: the same code, data and parameters never train twice."""

    function: FunctionUse
    """The training function. It receives each entry of `data` as a pandas DataFrame with a column `label`, each
    parameter by name, `seed` if it takes one, and returns a model, or a dict with `model`, `metrics`, `artifacts`."""
    data: dict[Identifier, DataUse] = Field(min_length=1)
    """Tables by argument name."""
    parameters: dict[Identifier, Any] = {}
    """Keyword arguments of the function."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of Python, numpy and the function."""
    evaluate: Identifier = "test"
    """Entry of `data` on which metrics and gates are computed."""
    metrics: list[Identifier] | None = None
    """Metrics to compute; by default those that fit the label."""
    gates: list[Gate] = []
    """Conditions for promotion; without gates each finished run is promoted."""
    resources: Resources = Resources()
    """What the run needs."""
    engine: TrainingEngine = TrainingEngine.model_validate({"workflow": {}})
    """What runs it."""
    schedule: TrainingSchedule | None = None
    """Regular retraining."""
    retrain: Retrain = Retrain()
    """Retraining on new data; off by default."""
    timeout: Interval = "6h"
    """The run fails after this time."""
    retries: int = Field(1, ge=0, le=10)
    """How often a failed process is started again."""


def references(spec: TrainingJobSpec) -> Iterator[Ref]:
    """The function, the tables and the pool."""
    yield from use_reference(spec.function, ("function",))
    for name, use in spec.data.items():
        if use.view is not None:
            yield Ref(("FeatureView",), use.view, ("data", name, "view"))
        if use.dataset is not None:
            yield Ref(("Dataset",), use.dataset, ("data", name, "dataset"))
    yield from pool_reference(spec.resources, ("resources",))


def expressions(spec: TrainingJobSpec, catalog: Catalog) -> Iterator[RowSql]:
    """Labels and conditions, over the rows of the dataset or of the one that the view asks."""
    for name, use in spec.data.items():
        view = catalog.find("FeatureView", use.view) if use.view else None
        dataset = cast(FeatureViewSpec, view.spec).ask.dataset if view else use.dataset or ""
        for field, text in (("label", use.label), ("where", use.where)):
            if text is not None:
                yield RowSql(text, ("spec", "data", name, field), dataset)


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """Data and evaluation, gates, resources, arguments, the schedule."""
    spec = cast(TrainingJobSpec, resource.spec)
    for name, use in spec.data.items():
        yield from _check_data(use, ("spec", "data", name), catalog)
        if name in spec.parameters:
            path = ("spec", "parameters", name)
            yield Problem(
                "duplicate-name", f"{name} is an entry of data already", path, "rename it", on_key=True
            )
    yield from check_arguments(spec.function, spec.parameters, ("spec", "parameters"), catalog)
    yield from _check_evaluation(spec)
    for index, metric in enumerate(spec.metrics or ()):
        yield from rules.member(
            metric, METRICS, "unknown metric", "unknown-metric", ("spec", "metrics", index)
        )
    for index, gate in enumerate(spec.gates):
        yield from _check_gate(gate, spec, ("spec", "gates", index))
    yield from check_resources(spec.resources, ("spec", "resources"), catalog)
    if spec.schedule is not None:
        yield from rules.cron(spec.schedule.cron, ("spec", "schedule", "cron"))


def _check_data(use: DataUse, path: Path, catalog: Catalog) -> Iterator[Problem]:
    if use.from_ is not None and use.to is not None and moment(use.from_) >= moment(use.to):
        message = f"from {use.from_} is not before to {use.to}"
        yield Problem(
            "empty-range", message, (*path, "from"), "from is the first moment, to the one after the last"
        )
    if use.share is not None and use.share[0] >= use.share[1]:
        message = f"the interval [{use.share[0]:g}, {use.share[1]:g}) is empty"
        yield Problem("empty-range", message, (*path, "share"), "such as [0, 0.8]")
    yield from _check_relative(use, path)
    view = catalog.find("FeatureView", use.view) if use.view else None
    if view is not None:
        if cast(FeatureViewSpec, view.spec).label is None:
            message = f"the view {use.view} has no label to train on"
            yield Problem("missing-label", message, (*path, "view"), f"add label: to FeatureView/{use.view}")
        if use.label is not None:
            message = "the label belongs to the view"
            yield Problem(
                "unused-field", message, (*path, "label"), f"write it in FeatureView/{use.view}", on_key=True
            )
    spine = cast(FeatureViewSpec, view.spec).ask.dataset if view is not None else use.dataset
    dataset = catalog.find("Dataset", spine) if spine else None
    if dataset is not None and cast(DatasetSpec, dataset.spec).time is None:
        given = (("from", use.from_), ("to", use.to)) if use.dataset else ()
        for field, value in (*given, ("last", use.last)):
            if value is not None:
                message = f"{field} needs the event time of {spine}"
                hint = "add time: {event: COLUMN} to the dataset"
                yield Problem("missing-time", message, (*path, field), hint, on_key=True)


def _check_relative(use: DataUse, path: Path) -> Iterator[Problem]:
    if use.last is None:
        if use.skip is not None:
            yield Problem("unused-field", "skip needs last", (*path, "skip"), "add last: 90d", on_key=True)
        return
    for field, value in (("from", use.from_), ("to", use.to)):
        if value is not None:
            message = f"last and {field} exclude each other"
            hint = "last ends at the newest data; write from and to for fixed dates"
            yield Problem("one-of", message, (*path, field), hint, on_key=True)
    if seconds(use.last) == 0:
        yield Problem("empty-range", "last must be longer than nothing", (*path, "last"), "such as 90d")


def _check_evaluation(spec: TrainingJobSpec) -> Iterator[Problem]:
    test = spec.data.get(spec.evaluate)
    if test is None:
        stated = "evaluate" in spec.model_fields_set
        if stated:
            what = "data has no entry"
            yield from rules.member(spec.evaluate, spec.data, what, "unknown-data", ("spec", "evaluate"))
        elif spec.gates:
            message = f'gates are computed on the entry "{spec.evaluate}" of data, which does not exist'
            yield Problem(
                "unknown-data",
                message,
                ("spec", "gates"),
                "add it, or name another with evaluate:",
                on_key=True,
            )
        return
    for name, use in spec.data.items():
        if name != spec.evaluate and _overlap(use, test):
            message = f"{name} and {spec.evaluate} share rows, so the metrics look better than they are"
            hint = "separate them by from and to, or by share"
            yield Problem("overlap", message, ("spec", "data", name), hint, "warning", on_key=True)


def _overlap(one: DataUse, other: DataUse) -> bool:
    """Whether two uses can have rows in common. Different conditions count as different rows."""
    if (one.view, one.dataset) != (other.view, other.dataset) or one.where != other.where:
        return False
    if one.last and other.last:
        ends = [(seconds(use.skip or "0s"), seconds(use.last or "0s")) for use in (one, other)]
        (skip, last), (other_skip, other_last) = ends
        if skip >= other_skip + other_last or other_skip >= skip + last:
            return False
    for first, second in ((one, other), (other, one)):
        if first.to is not None and second.from_ is not None and moment(first.to) <= moment(second.from_):
            return False
        if first.share is not None and second.share is not None and first.share[1] <= second.share[0]:
            return False
    return True


def _check_gate(gate: Gate, spec: TrainingJobSpec, path: Path) -> Iterator[Problem]:
    known = METRICS.get(gate.metric)
    if known is None:
        close = did_you_mean(gate.metric, METRICS)
        if close:
            message = f'metric "{gate.metric}" is unknown{close}'
            yield Problem("unknown-metric", message, (*path, "metric"), listed(METRICS))
        else:
            message = f'"{gate.metric}" is not a metric of mlspec; the function must return it'
            hint = f"metrics of mlspec: {listed(METRICS)}"
            yield Problem("unknown-metric", message, (*path, "metric"), hint, severity="warning")
    elif spec.metrics is not None and gate.metric not in spec.metrics:
        message = f"metric {gate.metric} is not computed"
        yield Problem("unknown-metric", message, (*path, "metric"), f"add {gate.metric} to metrics")
    if gate.min is None and gate.max is None and gate.against is None:
        yield Problem(
            "empty-gate",
            "the gate has no condition",
            (*path, "metric"),
            "add min, max or against: serving",
            on_key=True,
        )
    if gate.against is None and gate.tolerance:
        yield Problem(
            "unused-field",
            "tolerance needs against",
            (*path, "tolerance"),
            "add against: serving",
            on_key=True,
        )
    yield from rules.ordered(gate.min, gate.max, "min", "max", path)
    for field, value, good in (("max", gate.max, "higher"), ("min", gate.min, "lower")):
        if value is not None and known == good and (gate.min is None or gate.max is None):
            other = "min" if field == "max" else "max"
            message = f"{good} {gate.metric} is better, but {field} refuses the best models"
            yield Problem("gate-direction", message, (*path, field), f"write {other}", "warning", on_key=True)


def code(spec: TrainingJobSpec) -> Iterable[CodeUse]:
    """The training function, when it is written in place."""
    return inline(spec.function)


@dataclass(frozen=True, slots=True)
class _Job:
    """One job at this moment: what git says about it, and what is known."""

    resource: Resource
    spec: TrainingJobSpec
    function: Bound
    context: Context
    sources: Mapping[str, Lowered]
    """By entry of `data`: the view or dataset that it reads."""
    said: str
    """`S`: digest of what git says about its run."""

    @property
    def job(self) -> str:
        return self.resource.name


def lower(resource: Resource, context: Context) -> Lowered:
    """The run that is to be trained now, if any, and the record of the model that serves (`mlspec.lifecycle`)."""
    spec = cast(TrainingJobSpec, resource.spec)
    function = bind(spec.function, resource, context)
    sources = {
        name: context.of("FeatureView", use.view) if use.view else context.of("Dataset", use.dataset or "")
        for name, use in spec.data.items()
    }
    said = _said(spec, function, sources)
    job = _Job(resource, spec, function, context, sources, said)
    state, run, again, waits = _next(job, context.facts.memories.get(resource.id, Memory()))
    serving = _output(job, state)
    runs = tuple(one for one in (run, again) if one is not None)
    return Lowered(
        version=serving["run"] if serving else None,
        output=serving,
        workloads=(*runs, *((Record(f"model-{resource.name}", serving),) if serving else ())),
        waits=waits or ((run.name,) if state.train is not None and run is not None else ()),
        note=_note(state, serving),
        warning=_warning(state) or (_dated(state, run, serving) if run is not None else ""),
        because=_because(state.train or state.retry, runs[0]) if runs else "",
        engine=spec.engine.choice if state.train is not None else "",
        recipe=said,
        life=state,
        asks=_asks(job, state),
        data=str(serving.get("data", "")) if serving else "",
        steady=state.train is None and not spec.retrain.new_data,
        failed=_failed(state),
    )


def _said(spec: TrainingJobSpec, function: Bound, sources: Mapping[str, Lowered]) -> str:
    """Rule 1: code, requirements, parameters, evaluation, engine, ranges, schedule, and the definitions that are read; not
    gates, resources, snapshots, nor how the file is written."""
    return digest(
        {
            "code": function.identity,
            "parameters": dict(spec.parameters),
            "seed": spec.seed,
            "evaluation": [spec.evaluate, spec.metrics],
            "engine": spec.engine.document(),
            "data": {name: use.document() for name, use in spec.data.items()},
            "schedule": spec.schedule.document() if spec.schedule else None,
            "reads": {name: source.recipe for name, source in sources.items()},
        }
    )[:16]


def said_of_data(spec: TrainingJobSpec) -> str:
    """The digest for which requests of the job's own schedule are made: ranges of data and schedule alone, not the label or a
    condition (rule 9)."""
    schedule = spec.schedule.document() if spec.schedule else None
    dates = {name: [use.from_, use.to, use.last, use.skip] for name, use in spec.data.items()}
    return digest([dates, schedule])[:16]


def _next(job: _Job, memory: Memory) -> tuple[State, Run | None, Run | None, tuple[str, ...]]:
    """The state of the model, the run to make now (or that is under way), the failed one that only a person starts again, and what
    the first waits for.

    What a candidate needs may have run before under another `S`: the identity of a run says so, its result counts for this
    candidate too, and from then on that is remembered.
    """
    alike: dict[str, Made] = {}
    while True:
        state = lifecycle.advance(memory, _events(job, memory, alike))
        again = _again(job, state)
        candidate = state.train
        if candidate is None:
            return state, None if again else _finished(job, state), again, ()
        run, waits = _run(job, candidate, state)
        if candidate.stage is Stage.TRAINING:  # its inputs may have changed since; its name has not
            under_way = replace(run, name=candidate.run) if run is not None else None
            return state, under_way, again, (candidate.run,)
        if run is None or job.context.facts.run(run.name) is None:
            return state, run, again, waits
        alike[run.name] = run.made
        memory = lifecycle.counting(state.memory, run.name, job.said, candidate)


def _again(job: _Job, state: State) -> Run | None:
    """The newest failed run: under a name of its own where its inputs are others by now."""
    candidate = state.retry
    run = _run(job, candidate, state)[0] if candidate is not None else None
    if run is None or candidate is None or run.name == candidate.run:
        return run
    return replace(run, after=candidate.run)


def _finished(job: _Job, state: State) -> Run | None:
    """The run of the newest candidate, while it is still what git and the data say: it is there already, and `render` shows
    it."""
    last = next((one for one in reversed(state.candidates) if one.run), None)
    run = _run(job, last, state)[0] if last is not None else None
    return run if run is not None and last is not None and run.name == last.run else None


def _events(job: _Job, memory: Memory, alike: Mapping[str, Made]) -> Events:
    facts, catalog = job.context.facts, job.context.catalog
    models = job.context.users("TrainingJob", job.job, "Model")
    pinned = [one for one in models if one.spec.document().get("promotion") == "pinned"]
    followers = [*job.context.users("TrainingJob", job.job, "ServingGraph")]
    for model in models:
        if model not in pinned:
            followers += job.context.users("Model", model.name, "ServingGraph")
    graphs = sorted({one.name for one in followers})
    requests = [*facts.asked("retrain", job.job)]
    for graph in graphs:
        requests += facts.asked("switch", graph)
    may = {one.asker for one in requests if one.asker in catalog}
    if not job.spec.retrain.new_data:
        may.discard(job.resource.id)
    return Events(
        made_for=job.said,
        made_for_data=said_of_data(job.spec) if job.spec.schedule else "",
        requests=requests,
        askers=frozenset(may),
        attempts=[*_attempts(job, memory, alike)],
        pins=[run for one in pinned if _has_model(facts.run(run := str(one.spec.document().get("run", ""))))],
        held=bool(pinned) and not graphs,
        graphs=graphs,
        now=facts.now,
        end=_end(job) if ranges.relative(job.spec.data) else "",
    )


def _attempts(job: _Job, memory: Memory, alike: Mapping[str, Made]) -> Iterator[Attempt]:
    """The runs of the job, each for what it was made for and for all that it counts for. `alike`: what those that count from now
    on would be made for, as nothing is remembered of a run that an earlier release has made."""
    facts = job.context.facts
    for name, fact in facts.runs_of(job.resource.id).items():
        yield _attempt(name, fact, job.spec.gates)
    for (made_for, request), name in memory.counts.items():
        counting = facts.run(name)
        if counting is not None:
            made = counting.made if counting.made.record else alike.get(name, counting.made)
            made = replace(made, made_for=made_for, request=request)
            yield _attempt(name, replace(counting, made=made), job.spec.gates)


def _attempt(name: str, fact: RunFact, gates: Sequence[Gate]) -> Attempt:
    """A run as its gates judge it now."""
    result = fact.results.get("train", {}) if fact.phase == "succeeded" else {}
    judged = verdicts(gates, result) if result else []
    refused = [one.sentence for one in judged if not one.passed]
    return Attempt(
        run=name,
        made_for=fact.made.made_for,
        request=fact.made.request,
        phase=fact.phase,
        passed=bool(result) and not refused,
        reason="; ".join(refused) or fact.message,
        record=record(name, fact, [one.sentence for one in judged]) if result else {},
        created=fact.created,
    )


def record(name: str, fact: RunFact, gates: Sequence[str] = ()) -> dict[str, Any]:
    """What serving needs of a run that has succeeded: its own requirements and views, not those of now (rule 11)."""
    result = fact.results["train"]
    return {
        "run": name,
        "path": f"runs/{name}/train/model",
        "reference": f"runs/{name}/train/reference.json",
        "inputs": result["inputs"],
        "metrics": result["metrics"],
        "views": {},
        "requirements": [],
        **fact.made.record,
        "data": fact.made.data,
        "gates": list(gates),
    }


def _end(job: _Job) -> str:
    """Where relative ranges end now: after the newest row of every dataset that they read; empty while that is unknown."""
    ends = []
    for name, use in job.spec.data.items():
        if use.last is None:
            continue
        output = job.sources[name].output
        found = (output["dataset"] if use.view else output).get("newest") if output is not None else None
        if not found:
            return ""
        ends.append(ranges.end_of(found))
    return min(ends, key=moment, default="")


def _ranges(job: _Job, request: Request | None, state: State) -> Mapping[str, DataUse] | None:
    """The data of a candidate with dates; None while they are not known."""
    data = job.spec.data
    if request is not None:
        return ranges.shifted(data, request.end or request.at, request.window)
    end = state.memory.seen.get(job.said, "")
    if ranges.relative(data) and not end:
        return None
    return ranges.resolved(data, end)


def _run(job: _Job, candidate: Candidate, state: State) -> tuple[Run | None, tuple[str, ...]]:
    """Two steps: prepare the tables, train and evaluate. None and what it waits for while an input is missing."""
    request, spec, function = candidate.request, job.spec, job.function
    data = _ranges(job, request, state)
    waits = list(_missing(job, request, data is None))
    if waits or data is None:
        return None, tuple(dict.fromkeys(waits))
    inputs: dict[str, JSON] = {}
    parts: dict[str, Any] = {"data": {name: use.document() for name, use in data.items()}}
    views: dict[str, JSON] = {}
    versions: dict[str, str] = {}
    for name, use in data.items():
        source = job.sources[name]
        output = source.output or {}
        subject = f"view {use.view}" if use.view else f"dataset {use.dataset}"
        versions[subject] = source.version or ""
        if use.view:
            views[use.view] = definition(output)
        inputs[name] = {
            "use": use.document(),
            "dataset": output["dataset"] if use.view else output,
            "view": {"spec": output["spec"], "sets": output["sets"]} if use.view else None,
            "as_of": request.at if request else None,
        }
    parts |= {
        **versions,
        "code": function.identity,
        "parameters": dict(spec.parameters),
        "seed": spec.seed,
        "evaluation": [spec.evaluate, spec.metrics],
        "engine": spec.engine.document(),
    }
    if request:
        parts["request"] = request.id
    name, digests = identify(job.job, parts)
    baseline = (
        _served(job, state, state.really) if state.really != name else None
    )  # rule 10: what really serves
    frames = {"spec": spec.document(), "data": inputs}
    train = {
        "job": job.job,
        "spec": spec.document(),
        "code": function.document,
        "parameters": dict(spec.parameters),
        "seed": spec.seed,
        "gates": [gate.document() for gate in spec.gates],
        "baseline": {"run": baseline["run"], "path": baseline["path"]} if baseline else None,
        "experiment": job.job,
    }
    made = Made(
        job.resource.id,
        job.said,
        candidate.id,
        _data_words(job, data, request, state),
        versions,
        {"views": views, "requirements": list(function.requirements), "until": _until(data)},
    )
    steps = (
        Step("frames", "frames", frames, spec.resources.needs(gpu=False)),
        Step(
            "train",
            "train",
            train,
            spec.resources.needs(),
            requirements=function.requirements,
            image=function.image,
            timeout=seconds(spec.timeout),
            retries=spec.retries,
            after=("frames",),
        ),
    )
    return Run(name, steps, f"train {job.job}", digests, spec.engine.choice, made), ()


def _missing(job: _Job, request: Request | None, undated: bool) -> Iterator[str]:
    """Inputs that are not there yet, and readings that were asked for before this run was."""
    for name, use in job.spec.data.items():
        source = job.sources[name]
        earlier = source.reading is not None and (
            source.reading == 0.0 or (request is not None and request.made >= source.reading)
        )
        if source.output is None or earlier or (undated and use.last is not None):
            yield f"FeatureView/{use.view}" if use.view else f"Dataset/{use.dataset}"


def _has_model(fact: RunFact | None) -> TypeGuard[RunFact]:
    return fact is not None and fact.phase == "succeeded" and "train" in fact.results


def _served(job: _Job, state: State, run: str) -> JSON | None:
    """The record of a run that serves or has served: of one that was only pinned, or refused later, no gate ever made one."""
    if (accepted := state.memory.record(run)) is not None:
        return accepted
    fact = job.context.facts.run(run)
    return record(run, fact) if _has_model(fact) else None


def _data_words(job: _Job, data: Mapping[str, DataUse], request: Request | None, state: State) -> str:
    """`data 2013-03-25 to 2013-06-23, moved by the policy late-arrival on 2013-06-26: auc 0.71 is below 0.72; git says ...`."""
    span = ranges.span(data)
    if not span:
        return ""
    end = state.memory.seen.get(job.said, "")
    git = (
        ranges.span(ranges.resolved(job.spec.data, end)) if end or not ranges.relative(job.spec.data) else ""
    )
    if request is None:
        length = " and ".join(dict.fromkeys(f"last {use.last}" for use in job.spec.data.values() if use.last))
        return f"data {span} (git{f': {length}; the end is kept until git changes' if length else ''})"
    why = f": {request.reason}" if request.reason else ""
    verb = "asked for" if request.end or git == span else "moved"
    return f"data {span}, {verb} by {request.by} on {_asked_on(request)}{why}" + (
        f"; git says {git}" if git and git != span else ""
    )


def _asked_on(request: Request) -> str:
    """The day in the time of the data; of a person, who says where the data end, the day on the wall."""
    if request.asker == PERSON:
        return datetime.fromtimestamp(request.made, UTC).strftime("%Y-%m-%d")
    return ranges.day(moment(request.at))


def _until(data: Mapping[str, DataUse]) -> str | None:
    """The end of the newest range, ISO 8601."""
    end = ranges.newest(data)
    return end.isoformat() if end is not None else None


def _because(candidate: Candidate | None, run: Run) -> str:
    """Who asked for a run, when it was not a change of the specs. Why stands at its range of data, where it has one."""
    request = candidate.request if candidate else None
    if request is None:
        return ""
    why = f": {request.reason}" if request.reason and not run.made.data else ""
    return f"asked for by {request.by}{why}"


def _output(job: _Job, state: State) -> dict[str, Any] | None:
    """The record of the model that serves, with the one that a switch leads back to."""
    serving = _served(job, state, state.serves)
    if serving is None:
        return None
    previous = _served(job, state, lifecycle.led_to(state.serves, state.memory, job.said))
    return {
        **serving,
        "previous": dict(previous) if previous else None,
        "history": list(dict.fromkeys(state.memory.served[-20:])),
    }


def _note(state: State, serving: JSON | None) -> str:
    if serving is None:
        return ""
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in list(serving["metrics"].items())[:2])
    words = f"serves {serving['run']}: {metrics}"
    if state.really != state.serves:
        words = f"accepted {serving['run']}: {metrics}; {state.really} serves instead"
    if serving.get("data"):
        words += f"; {serving['data']}"
    return f"{words}; it no longer passes its gates: {state.warning}" if state.warning else words


def _warning(state: State) -> str:
    """Rule 7: stricter gates never stop what serves."""
    words = f"{state.serves} no longer passes its gates: {state.warning}; it keeps serving"
    return words if state.warning else ""


def _dated(state: State, run: Run, serving: JSON | None) -> str:
    """Rule 9: a request that had moved the data ends with a commit that changes what is trained; git may be behind then."""
    candidate = state.train
    if candidate is None or candidate.request is not None or serving is None:
        return ""
    old, new = serving.get("until"), run.made.record.get("until")
    if not old or not new or moment(new) >= moment(old):
        return ""
    return (
        f"git's data end on {ranges.day(moment(new))}, before those of the model that serves "
        f"({ranges.day(moment(old))}); give the job newer dates, or last: 90d"
    )


def _failed(state: State) -> str:
    """Why the newest candidate does not become the model, when nothing is under way that might."""
    if state.train is not None:
        return ""
    if state.retry is not None:
        return state.retry.reason or "failed"
    last = next((one for one in reversed(state.candidates) if one.stage is not Stage.HELD), None)
    if last is None or last.stage is not Stage.REFUSED:
        return ""
    stays = f"; {state.serves} keeps serving" if state.serves else ""
    return f"run {last.run} does not pass its gates: {last.reason}{stays}"


def _asks(job: _Job, state: State) -> tuple[Request, ...]:
    """With `retrain.newData`: a request when the rows are others than those of the newest candidate's run. Asked once, so that
    one that was taken back stays so; with the ranges of that candidate, so that a window that has moved does not move back."""
    sources = job.sources.values()
    if (
        not job.spec.retrain.new_data
        or state.train is not None
        or any(source.output is None or source.reading == 0.0 for source in sources)
    ):
        return ()
    current = {
        f"view {use.view}" if use.view else f"dataset {use.dataset}": job.sources[name].version or ""
        for name, use in job.spec.data.items()
    }
    last = state.candidates[-1]
    fact = job.context.facts.run(last.run)
    if fact is None or not fact.made.versions or dict(fact.made.versions) == current:
        return ()
    name = digest([job.resource.id, job.said, last.id, current])[:12]
    if any(one.id == name for one in job.context.facts.requests):
        return ()
    stale = [name for name, version in current.items() if fact.made.versions.get(name) != version]
    before = last.request.end or last.request.at if last.request else _until(job.spec.data)
    return (
        Request(
            id=name,
            action="retrain",
            subject=job.job,
            asker=job.resource.id,
            at=datetime.fromtimestamp(job.context.facts.now, UTC).isoformat(timespec="seconds"),
            made=job.context.facts.now,
            made_for=job.said,
            window=last.request.window if last.request else None,
            end=_end(job) or before or "",
            reason=f"{', '.join(stale)} has new rows",
        ),
    )


def definition(view: JSON) -> dict[str, Any]:
    """A view as serving needs it: the question, the sets that it asks, the times, keys and types of its dataset."""
    source = {
        key: value for key, value in view["dataset"]["spec"].items() if key not in ("checks", "refresh")
    }
    return {"spec": view["spec"], "dataset": source, "types": view["dataset"]["types"], "sets": view["sets"]}
