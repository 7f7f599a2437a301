"""TrainingJob: a function, its data and its parameters become a model that must pass gates before it serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem, did_you_mean, listed
from mlspec.kind import Catalog, CodeUse, Context, Lowered, RowSql
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec.kinds.function import FunctionUse, bind, check_arguments, inline, use_reference
from mlspec.kinds.resource_pool import ResourcePoolSpec
from mlspec.resource import (
    Base,
    Identifier,
    Interval,
    Moment,
    Name,
    OneOf,
    Path,
    Quantity,
    Ref,
    Resource,
    Share,
    Sql,
    amount,
    moment,
    seconds,
)
from mlspec.workload import JSON, Needs, Record, Run, Step, identify

METRICS: dict[str, Literal["higher", "lower"]] = {
    "auc": "higher",
    "accuracy": "higher",
    "f1": "higher",
    "precision": "higher",
    "recall": "higher",
    "average_precision": "higher",
    "log_loss": "lower",
    "brier": "lower",
    "rmse": "lower",
    "mae": "lower",
    "r2": "higher",
}
"""Metrics that mlspec computes on the evaluation data, and which direction is better."""


class DataUse(OneOf):
    """Rows for the function: a FeatureView (point-in-time features and label) or a Dataset as it is."""

    CHOICES: ClassVar[tuple[str, ...]] = ("view", "dataset")

    view: Name | None = None
    """The FeatureView."""
    dataset: Name | None = None
    """The Dataset."""
    from_: Moment | None = Field(None, alias="from")
    """First moment (inclusive) of the question or event time."""
    to: Moment | None = None
    """Last moment (exclusive)."""
    label: Sql | None = None
    """Label expression of a Dataset's rows; the column `label` of the function's table."""
    where: Sql | None = None
    """Only rows of the asking dataset that meet this condition."""
    share: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    """Rows whose hashed key falls into this interval of [0, 1): a split that is stable when rows are added."""


class Resources(Base):
    """What one process needs."""

    cpu: Quantity = "1"
    """CPU cores."""
    memory: Quantity = "2Gi"
    """Memory."""
    gpu: Annotated[int, Field(ge=1)] | None = None
    """Whole GPUs; not together with `gpuShare`."""
    gpu_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Part of one GPU (time slicing, MPS or MIG); not together with `gpu`."""
    gpu_type: str | None = None
    """GPU product, such as `NVIDIA-H100-80GB-HBM3`."""
    pool: Name | None = None
    """ResourcePool whose queue admits the run."""
    priority: Name | None = None
    """Priority class of that pool."""

    def needs(self, gpu: bool = True) -> Needs:
        """The same as numbers: cores, bytes, GPUs; `gpu=False` for steps that only prepare."""
        return Needs(
            cpu=amount(self.cpu),
            memory=amount(self.memory),
            gpu=float(self.gpu or self.gpu_share or 0) if gpu else 0.0,
            gpu_type=self.gpu_type if gpu else None,
            pool=self.pool,
            priority=self.priority,
        )


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


class Gate(Base):
    """A condition that a run must meet before its model serves."""

    metric: Identifier
    """A metric of mlspec (see the reference) or one that the function returns."""
    min: float | None = None
    """Smallest acceptable value."""
    max: float | None = None
    """Largest acceptable value."""
    against: Literal["serving"] | None = None
    """Compare with the model that serves now, on the same evaluation data."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """How much worse than the serving model is still accepted."""


class TrainingSchedule(Base):
    """Regular retraining."""

    cron: str
    """Five-field cron expression, UTC."""
    window: Interval | None = None
    """Train on the last `window` of data instead of `from`/`to`."""


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


def pool_reference(resources: Resources, path: Path) -> Iterator[Ref]:
    """The pool of the resources that stand at `path`."""
    if resources.pool is not None:
        yield Ref(("ResourcePool",), resources.pool, (*path, "pool"))


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
    dataset = catalog.find("Dataset", use.dataset) if use.dataset else None
    if dataset is not None and cast(DatasetSpec, dataset.spec).time is None:
        for field, value in (("from", use.from_), ("to", use.to)):
            if value is not None:
                message = f"{field} needs the event time of {use.dataset}"
                hint = "add time: {event: COLUMN} to the dataset"
                yield Problem("missing-time", message, (*path, field), hint, on_key=True)


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


_POOL_NAMES = {"cpu": "cpu", "memory": "memory", "gpu": "nvidia.com/gpu"}


def check_resources(resources: Resources, path: Path, catalog: Catalog) -> Iterator[Problem]:
    """GPUs, and whether the pool has what is asked for."""
    if resources.gpu is not None and resources.gpu_share is not None:
        message = "gpu and gpuShare exclude each other"
        yield Problem("one-of", message, (*path, "gpuShare"), "keep gpu for whole GPUs", on_key=True)
    if resources.gpu_type is not None and resources.gpu is None and resources.gpu_share is None:
        yield Problem(
            "unused-field", "gpuType needs gpu or gpuShare", (*path, "gpuType"), "add gpu: 1", on_key=True
        )
    if resources.priority is not None and resources.pool is None:
        yield Problem(
            "unused-field", "priority needs a pool", (*path, "priority"), "add pool: NAME", on_key=True
        )
    pool = catalog.find("ResourcePool", resources.pool) if resources.pool else None
    if pool is None:
        return
    spec = cast(ResourcePoolSpec, pool.spec)
    if resources.priority is not None:
        what = f"{resources.pool} has no priority"
        yield from rules.member(
            resources.priority, spec.priorities, what, "unknown-priority", (*path, "priority")
        )
    asked = {"cpu": resources.cpu, "memory": resources.memory, "gpu": resources.gpu or resources.gpu_share}
    for field, wanted in asked.items():
        if wanted is None:
            continue
        quotas = [one.quota[_POOL_NAMES[field]] for one in spec.flavors if _POOL_NAMES[field] in one.quota]
        if field != "gpu" and len(quotas) < len(spec.flavors):
            continue  # a flavor limits cores and memory only when it says so (`mlspec.engines.kueue`)
        place = (*path, "gpuShare" if field == "gpu" and resources.gpu is None else field)
        if not quotas:
            message = f"the pool {resources.pool} has no quota of {_POOL_NAMES[field]}"
            yield Problem(
                "pool-quota", message, place, f"add {_POOL_NAMES[field]} to a flavor, or choose another pool"
            )
        elif amount(str(wanted)) > (
            most := max(amount(one.nominal) + amount(one.borrow or 0) for one in quotas)
        ):
            message = (
                f"{wanted} {field} never fits into the pool {resources.pool}, which has at most {most:g}"
            )
            yield Problem("pool-quota", message, place, "ask for less, or raise the quota")


def code(spec: TrainingJobSpec) -> Iterable[CodeUse]:
    """The training function, when it is written in place."""
    return inline(spec.function)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate over one run."""

    passed: bool
    sentence: str
    """`auc 0.755 >= 0.713 (serving 0.718 - 0.005)`."""


def verdicts(gates: Sequence[Gate], result: JSON) -> list[Verdict]:
    """Judge the gates of a job over the committed result of its `train` step. Pure: gates may change without a training."""
    return [_verdict(gate, result["metrics"], result.get("baseline")) for gate in gates]


def _verdict(gate: Gate, metrics: JSON, baseline: JSON | None) -> Verdict:
    value = metrics.get(gate.metric)
    if value is None:
        return Verdict(False, f"the run has no metric {gate.metric}")
    tests: list[tuple[bool, str]] = []
    if gate.min is not None:
        tests.append((value >= gate.min, f">= {gate.min:g}"))
    if gate.max is not None:
        tests.append((value <= gate.max, f"<= {gate.max:g}"))
    if gate.against and baseline and baseline.get("metrics") and gate.metric in baseline["metrics"]:
        other = baseline["metrics"][gate.metric]
        if METRICS.get(gate.metric, "higher") == "higher":
            tests.append((value >= other - gate.tolerance, f">= serving {other:.4g} - {gate.tolerance:g}"))
        else:
            tests.append((value <= other + gate.tolerance, f"<= serving {other:.4g} + {gate.tolerance:g}"))
    elif gate.against:
        tests.append((True, "(no serving model to compare with)"))
    passed = all(ok for ok, _ in tests)
    wanted = " and ".join(text for ok, text in tests if passed or not ok)
    return Verdict(passed, f"{gate.metric} {value:.4g} {'' if passed else 'is not '}{wanted}")


def moved(data: Mapping[str, DataUse], to: str, window: str | None) -> dict[str, DataUse]:
    """The job's data, moved so that its newest moment is `to`; `window` stretches or cuts its oldest end."""
    ends = [moment(use.to) for use in data.values() if use.to]
    if not ends:
        return dict(data)
    shift = moment(to) - max(ends)
    starts = [moment(use.from_) for use in data.values() if use.from_]
    oldest = min(starts, default=None)
    result = {}
    for name, use in data.items():
        start, end = use.from_, use.to
        new_start = moment(start) + shift if start else None
        if new_start and window and oldest and start and moment(start) == oldest:
            new_start = moment(to) - timedelta(seconds=seconds(window))
        new_end = moment(end) + shift if end else None
        result[name] = use.model_copy(
            update={
                "from_": new_start.isoformat() if new_start else None,
                "to": new_end.isoformat() if new_end else None,
            }
        )
    return result


def lower(resource: Resource, context: Context) -> Lowered:
    """A run of two steps (prepare the tables, train and evaluate) and the record of the model that serves."""
    spec = cast(TrainingJobSpec, resource.spec)
    facts = context.facts
    live = facts.records.get(f"model-{resource.name}")
    keep = _keep(resource.name, live)
    trigger = facts.latest("retrain", resource.name)
    data = moved(spec.data, trigger.at, trigger.window) if trigger else spec.data
    function = bind(spec.function, resource, context)
    inputs: dict[str, JSON] = {}
    versions: dict[str, Any] = {"data": {name: use.document() for name, use in data.items()}}
    views: dict[str, JSON] = {}
    waits: list[str] = []
    for name, use in data.items():
        source = context.of("FeatureView", use.view) if use.view else context.of("Dataset", use.dataset or "")
        if source.output is None:
            waits.append(f"FeatureView/{use.view}" if use.view else f"Dataset/{use.dataset}")
            continue
        versions[f"view {use.view}" if use.view else f"dataset {use.dataset}"] = source.version
        view = source.output if use.view else None
        if use.view and view:
            views[use.view] = definition(view)
        inputs[name] = {
            "use": use.document(),
            "dataset": view["dataset"] if view else source.output,
            "view": {"spec": view["spec"], "sets": view["sets"]} if view else None,
            "as_of": trigger.at if trigger else None,
        }
    if waits:
        return dataclasses.replace(keep, waits=tuple(dict.fromkeys(waits)), engine=spec.engine.choice)
    parts = {
        "code": function.identity,
        "parameters": dict(spec.parameters),
        "seed": spec.seed,
        "evaluation": [spec.evaluate, spec.metrics],
        "engine": spec.engine.document(),
        **versions,
    }
    if trigger:
        parts["trigger"] = trigger.id
    name, digests = identify(resource.name, parts)
    serving = live if live and live["run"] != name else None
    run = Run(
        name,
        (
            Step(
                "frames", "frames", {"spec": spec.document(), "data": inputs}, spec.resources.needs(gpu=False)
            ),
            Step(
                "train",
                "train",
                {
                    "job": resource.name,
                    "spec": spec.document(),
                    "code": function.document,
                    "parameters": dict(spec.parameters),
                    "seed": spec.seed,
                    "gates": [gate.document() for gate in spec.gates],
                    "baseline": {"run": serving["run"], "path": serving["path"]} if serving else None,
                    "experiment": resource.name,
                },
                spec.resources.needs(),
                requirements=function.requirements,
                image=function.image,
                timeout=seconds(spec.timeout),
                retries=spec.retries,
                after=("frames",),
            ),
        ),
        f"train {resource.name}",
        digests,
        spec.engine.choice,
    )
    fact = facts.run(name)
    if fact is None or fact.phase != "succeeded":
        failed = fact.message if fact and fact.phase == "failed" else ""
        because = f"{trigger.reason or 'retraining asked for'}, at {trigger.at}" if trigger else ""
        workloads = (run, *keep.workloads)
        return dataclasses.replace(keep, workloads=workloads, waits=(name,), failed=failed, because=because)
    result = fact.results["train"]
    judged = verdicts(spec.gates, result)
    if not all(one.passed for one in judged):
        reasons = "; ".join(one.sentence for one in judged if not one.passed)
        stays = f"; {'it' if live['run'] == name else live['run']} keeps serving" if live else ""
        failed = f"run {name} does not pass its gates: {reasons}{stays}"
        return dataclasses.replace(keep, workloads=(run, *keep.workloads), failed=failed)
    if live and (live["run"] == name or live.get("rejected") == name):
        return dataclasses.replace(keep, workloads=(run, *keep.workloads))
    promoted = {
        "run": name,
        "path": f"runs/{name}/train/model",
        "reference": f"runs/{name}/train/reference.json",
        "inputs": result["inputs"],
        "metrics": result["metrics"],
        "views": views,
        "requirements": list(function.requirements),
        "previous": _without_history(live) if live else None,
        "history": [*(live or {}).get("history", [])[-19:], name],
        "gates": [one.sentence for one in judged],
    }
    promotion = _keep(resource.name, promoted)
    return dataclasses.replace(promotion, workloads=(run, *promotion.workloads))


def definition(view: JSON) -> dict[str, Any]:
    """A view as serving needs it: the question, the sets that it asks, the times, keys and types of its dataset."""
    source = {
        key: value for key, value in view["dataset"]["spec"].items() if key not in ("checks", "refresh")
    }
    return {"spec": view["spec"], "dataset": source, "types": view["dataset"]["types"], "sets": view["sets"]}


def _keep(job: str, record: JSON | None) -> Lowered:
    """The model that serves, whatever else happens."""
    if record is None:
        return Lowered()
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in list(record["metrics"].items())[:2])
    return Lowered(
        version=record["run"],
        output=record,
        workloads=(Record(f"model-{job}", record),),
        note=f"serves {record['run']}: {metrics}",
    )


def _without_history(record: JSON) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("previous", "history")}
