"""FeatureSet: features of one key, aggregated over windows of a dataset's rows or taken from its newest row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, cast

from pydantic import Field

from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered, RowSql
from mlspec.kinds.dataset import DatasetSpec, check_column
from mlspec.manifest import digest
from mlspec.resource import Base, Identifier, Interval, Name, OneOf, Path, Ref, Resource, Sql, seconds
from mlspec.workload import Made, Run, RunFact, Step, identify


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
    window: Interval | None = None
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
    hop: Interval | None = None
    """Grid on which the far end of the windows snaps: [floor(t - window, hop), t). Unset: exact windows."""


def references(spec: FeatureSetSpec) -> Iterator[Ref]:
    """The Dataset with the rows."""
    yield Ref(("Dataset",), spec.dataset, ("dataset",))


def expressions(spec: FeatureSetSpec, catalog: Catalog) -> Iterator[RowSql]:
    """The condition and the features, over the rows of the dataset."""
    if spec.where is not None:
        yield RowSql(spec.where, ("spec", "where"), spec.dataset)
    for name, feature in spec.features.items():
        if isinstance(feature, str):
            yield RowSql(feature, ("spec", "features", name), spec.dataset)
        elif (text := getattr(feature, feature.choice)) != "*" or feature.choice != "count":
            yield RowSql(text, ("spec", "features", name, feature.choice), spec.dataset)


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """Times of the dataset, windows, the grid, the key."""
    spec = cast(FeatureSetSpec, resource.spec)
    dataset = catalog.find("Dataset", spec.dataset)
    if dataset is not None:
        source = cast(DatasetSpec, dataset.spec)
        if source.time is None or (source.time.known is None and source.time.delay is None):
            message = f"{spec.dataset} does not say when its rows are known"
            hint = "add time: {event: COLUMN, known: COLUMN} to the dataset, or delay: 0s"
            yield Problem("missing-time", message, ("spec", "dataset"), hint)
        for index, column in enumerate(spec.key):
            yield from check_column(column, source, spec.dataset, ("spec", "key", index))
    for name, feature in spec.features.items():
        if name in spec.key:
            message = f"{name} is a key already"
            yield Problem(
                "duplicate-name", message, ("spec", "features", name), "rename the feature", on_key=True
            )
        if isinstance(feature, Feature):
            yield from _check_window(feature, spec.hop, ("spec", "features", name))
    if spec.hop is not None and not any(
        isinstance(one, Feature) and one.window for one in spec.features.values()
    ):
        yield Problem(
            "unused-field",
            "hop needs a feature with a window",
            ("spec", "hop"),
            on_key=True,
            severity="warning",
        )


def _check_window(feature: Feature, hop: str | None, path: Path) -> Iterator[Problem]:
    if feature.window is None:
        if feature.choice != "last":
            message = f"{feature.choice} needs a window"
            yield Problem("missing-window", message, (*path, feature.choice), "add window: 1d", on_key=True)
    elif hop is not None and seconds(feature.window) % seconds(hop):
        message = f"the hop {hop} does not divide the window {feature.window}"
        yield Problem(
            "hop", message, (*path, "window"), f"make it a multiple of {hop}, or choose another hop"
        )


def lower(resource: Resource, context: Context) -> Lowered:
    """One run that prepares the rows for point-in-time joins and fills the online store."""
    spec = cast(FeatureSetSpec, resource.spec)
    dataset = context.of("Dataset", spec.dataset)
    document = spec.document()
    recipe = digest([document, dataset.recipe])[:16]
    if dataset.output is None:
        return Lowered(waits=(f"Dataset/{spec.dataset}",), recipe=recipe)
    source = dataset.output["spec"]
    name, parts = identify(
        f"features-{resource.name}",
        {
            "definition": document,
            f"dataset {spec.dataset}": dataset.version,
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
    run = Run(name, (step,), f"materialise {resource.name}", parts, made=Made(resource.id, recipe))
    lowered = Lowered(workloads=(run,), recipe=recipe, reading=dataset.reading)
    fact = context.facts.run(name)
    if fact is not None and fact.phase == "succeeded":
        done: tuple[str, RunFact] | None = (name, fact)
    else:  # those who read it go on with the rows before, until the new ones are there
        done = context.facts.newest(resource.id, recipe)
        failed = fact.message if fact and fact.phase == "failed" else ""
        lowered = replace(lowered, waits=(name,), failed=failed, reading=dataset.reading or 0.0)
    if done is None:
        return lowered
    result = done[1].results["features"]
    return replace(
        lowered,
        version=done[0].rsplit("-", 1)[1],
        output={"path": result["path"], "spec": document},
        note=f"{result['rows']:,} rows, {result['keys']:,} keys",
    )
