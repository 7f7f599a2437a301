"""TrainingJob: a function, its data and its parameters become a model that must pass gates before it serves."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mlspec.kinds.function import FunctionUse
from mlspec.resource import Base, Duration, Identifier, Moment, Name, OneOf, Quantity, Share, Sql

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
    share: tuple[Share, Share] | None = None
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
