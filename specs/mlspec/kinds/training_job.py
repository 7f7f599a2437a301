"""TrainingJob: a function, its data and its parameters become a model that must pass gates before it serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from mlspec.kind import CodeUse, Context, Lowered
from mlspec.kinds.function import FunctionUse, bind, inline, use_reference
from mlspec.resource import (
    Base,
    Duration,
    Identifier,
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
    window: Duration | None = None
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
    timeout: Duration = "6h"
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
    versions: dict[str, Any] = {}
    waits: list[str] = []
    for name, use in data.items():
        source = context.of("FeatureView", use.view) if use.view else context.of("Dataset", use.dataset or "")
        if source.output is None:
            waits.append(f"FeatureView/{use.view}" if use.view else f"Dataset/{use.dataset}")
            continue
        versions[f"data {name}"] = [use.document(), source.version]
        view = source.output if use.view else None
        inputs[name] = {
            "use": use.document(),
            "dataset": view["dataset"] if view else source.output,
            "view": {"spec": view["spec"], "sets": view["sets"]} if view else None,
            "as_of": trigger.at if trigger else None,
        }
    if waits:
        return dataclasses.replace(keep, waits=tuple(dict.fromkeys(waits)))
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
        return dataclasses.replace(keep, workloads=(run, *keep.workloads), waits=(name,), failed=failed)
    result = fact.results["train"]
    judged = verdicts(spec.gates, result)
    if not all(one.passed for one in judged):
        reasons = "; ".join(one.sentence for one in judged if not one.passed)
        return dataclasses.replace(
            keep, workloads=(run, *keep.workloads), failed=f"run {name} did not pass its gates: {reasons}"
        )
    if live and (live["run"] == name or live.get("rejected") == name):
        return dataclasses.replace(keep, workloads=(run, *keep.workloads))
    promoted = {
        "run": name,
        "path": f"runs/{name}/train/model",
        "reference": f"runs/{name}/train/reference.json",
        "inputs": result["inputs"],
        "metrics": result["metrics"],
        "requirements": list(function.requirements),
        "previous": _without_history(live) if live else None,
        "history": [*(live or {}).get("history", [])[-19:], name],
        "gates": [one.sentence for one in judged],
    }
    promotion = _keep(resource.name, promoted)
    return dataclasses.replace(promotion, workloads=(run, *promotion.workloads))


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
