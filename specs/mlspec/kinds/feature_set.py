"""FeatureSet: features of one key, aggregated over windows of a dataset's rows or taken from its newest row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, cast

from pydantic import Field

from mlspec.kind import Context, Lowered
from mlspec.resource import Base, Duration, Identifier, Name, OneOf, Ref, Resource, Sql
from mlspec.workload import Run, Step, identify


class Feature(OneOf):
    """One aggregate of a row expression. Windows are half-open and end at the moment of the question: [t - window, t)."""

    CHOICES: ClassVar[tuple[str, ...]] = (
        "last",
        "first",
        "mean",
        "sum",
        "count",
        "min",
        "max",
        "stddev",
        "distinct",
    )

    last: Sql | None = None
    """Value of the newest row (by event time, then arrival); a NULL there stays NULL."""
    first: Sql | None = None
    """Value of the oldest row of the window."""
    mean: Sql | None = None
    """Arithmetic mean of the values that are not NULL; booleans count as 0 and 1."""
    sum: Sql | None = None
    """Sum of the values that are not NULL; NULL when there is none."""
    count: Sql | None = None
    """Number of values that are not NULL; `"*"` counts rows. 0 over an empty window."""
    min: Sql | None = None
    """Smallest value."""
    max: Sql | None = None
    """Largest value."""
    stddev: Sql | None = None
    """Sample standard deviation; NULL below two values."""
    distinct: Sql | None = None
    """Exact number of distinct values that are not NULL."""
    window: Duration | None = None
    """Length of the window; only `last` may go without, and then sees all history."""


class FeatureSetSpec(Base):
    """Features of one key. A row counts for a question at t only if it had happened and was known before t."""

    dataset: Name
    """The Dataset with the rows; it needs `time` with `known` or `delay`."""
    key: list[Identifier] = Field(min_length=1)
    """Columns of the dataset that the features belong to."""
    where: Sql | None = None
    """Only rows that meet this condition count."""
    features: dict[Identifier, Sql | Feature] = Field(min_length=1)
    """Features by name. A plain SQL expression is short for `{last: ...}`."""
    hop: Duration | None = None
    """Grid on which the far end of the windows snaps: [floor(t - window, hop), t). Unset: exact windows."""


def references(spec: FeatureSetSpec) -> Iterator[Ref]:
    """The Dataset with the rows."""
    yield Ref(("Dataset",), spec.dataset, ("dataset",))


def lower(resource: Resource, context: Context) -> Lowered:
    """One run that prepares the rows for point-in-time joins and fills the online store."""
    spec = cast(FeatureSetSpec, resource.spec)
    dataset = context.of("Dataset", spec.dataset)
    if dataset.output is None:
        return Lowered(waits=(f"Dataset/{spec.dataset}",))
    document = spec.document()
    source = dataset.output["spec"]
    name, parts = identify(
        f"features-{resource.name}",
        {
            "definition": document,
            f"data {spec.dataset}": dataset.version,
            "time": [source.get("time"), source.get("key")],
        },
    )
    version = name.rsplit("-", 1)[1]
    step = Step(
        name="features",
        subject="features",
        document={
            "set": resource.name,
            "version": version,
            "spec": document,
            "dataset": {"path": dataset.output["path"], "spec": source},
        },
    )
    run = Run(name, (step,), f"materialise {resource.name}", parts)
    fact = context.facts.run(name)
    if fact is None or fact.phase != "succeeded":
        failed = fact.message if fact and fact.phase == "failed" else ""
        return Lowered(workloads=(run,), waits=(name,), failed=failed)
    result = fact.results["features"]
    return Lowered(
        version=version,
        output={"path": result["path"], "spec": document},
        workloads=(run,),
        note=f"{result['rows']:,} rows, {result['keys']:,} keys",
    )
