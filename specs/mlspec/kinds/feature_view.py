"""FeatureView: the question that a model asks: at which moment, about which rows, with which features and label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, cast

from pydantic import Field
from pydantic.alias_generators import to_camel

from mlspec import rules
from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered, RowSql
from mlspec.kinds.dataset import DatasetSpec, check_column
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.manifest import digest
from mlspec.resource import Base, Identifier, Interval, Name, OneOf, Path, Ref, Resource, Sql


class Ask(Base):
    """The rows that ask, and when."""

    dataset: Name
    """Each row of this Dataset (or of a request) is one question."""
    at: Sql | None = None
    """Moment of the question as an expression of the row; by default its event time."""


class Features(OneOf):
    """Features of one FeatureSet, or expressions of the asking row itself."""

    CHOICES: ClassVar[tuple[str, ...]] = ("set", "row")

    set: Name | None = None
    """The FeatureSet."""
    names: list[Identifier] | None = Field(None, min_length=1)
    """Which features of the set; all by default."""
    key: dict[Identifier, Sql] = {}
    """Key column of the set -> expression of the asking row; by default the column of the same name."""
    max_age: Interval | None = None
    """Values whose newest row is older than this at the moment of the question are NULL."""
    prefix: str = Field("", pattern=r"^[A-Za-z_]?[A-Za-z0-9_]*$")
    """Put before each feature name."""
    row: dict[Identifier, Sql] | None = Field(None, min_length=1)
    """Features computed from the asking row: name -> expression."""


class FeatureViewSpec(Base):
    """One row of features for each question, never seeing what was not yet known."""

    ask: Ask
    """Who asks, and when."""
    label: Sql | None = None
    """What the model shall predict, as an expression of the asking row."""
    features: list[Features] = Field(min_length=1)
    """Where the features come from. The model's inputs are in the order of this list, within an entry in that of `names`,
    otherwise by name."""


def references(spec: FeatureViewSpec) -> Iterator[Ref]:
    """The asking Dataset and the FeatureSets."""
    yield Ref(("Dataset",), spec.ask.dataset, ("ask", "dataset"))
    for index, features in enumerate(spec.features):
        if features.set is not None:
            yield Ref(("FeatureSet",), features.set, ("features", index, "set"))


def expressions(spec: FeatureViewSpec, catalog: Catalog) -> Iterator[RowSql]:
    """Everything is an expression of the asking row."""
    asking = spec.ask.dataset
    if spec.ask.at is not None:
        yield RowSql(spec.ask.at, ("spec", "ask", "at"), asking)
    if spec.label is not None:
        yield RowSql(spec.label, ("spec", "label"), asking)
    for index, features in enumerate(spec.features):
        for field, texts in (("key", features.key), ("row", features.row or {})):
            for name, text in texts.items():
                yield RowSql(text, ("spec", "features", index, field, name), asking)


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """The moment of the question, names and keys of the features."""
    spec = cast(FeatureViewSpec, resource.spec)
    found = catalog.find("Dataset", spec.ask.dataset)
    asking = cast(DatasetSpec, found.spec) if found else None
    if asking is not None and asking.time is None and spec.ask.at is None:
        message = f"{spec.ask.dataset} has no event time, so nobody knows when its rows ask"
        yield Problem(
            "missing-time",
            message,
            ("spec", "ask", "dataset"),
            "add at: to ask, or time.event to the dataset",
        )
    taken: dict[str, int] = {}
    for index, features in enumerate(spec.features):
        path = ("spec", "features", index)
        yield from _check_fields(features, path)
        names: list[tuple[str, Path]] = [(name, (*path, "row", name)) for name in features.row or {}]
        source = catalog.find("FeatureSet", features.set) if features.set else None
        if source is not None and features.set is not None:
            provided = cast(FeatureSetSpec, source.spec)
            for position, name in enumerate(features.names or ()):
                what = f"{features.set} has no feature"
                yield from rules.member(
                    name, provided.features, what, "unknown-feature", (*path, "names", position)
                )
            yield from _check_keys(features, provided.key, spec.ask.dataset, asking, path)
            chosen = features.names or list(provided.features)
            names = [(features.prefix + name, (*path, "set")) for name in chosen]
        for name, place in names:
            if taken.setdefault(name, index) != index:
                message = f"two features are called {name}"
                yield Problem(
                    "duplicate-name",
                    message,
                    place,
                    "choose by names, or add a prefix",
                    on_key=features.set is None,
                )


def feature_names(spec: FeatureViewSpec, catalog: Catalog) -> set[str]:
    """The features of a view by the names that its model sees."""
    found: set[str] = set()
    for features in spec.features:
        found |= set(features.row or {})
        source = catalog.find("FeatureSet", features.set) if features.set else None
        if source is not None:
            names = features.names or list(cast(FeatureSetSpec, source.spec).features)
            found |= {features.prefix + name for name in names}
    return found


def _check_fields(features: Features, path: Path) -> Iterator[Problem]:
    if features.row is not None:
        for field in ("names", "key", "max_age", "prefix"):
            if getattr(features, field):
                name = to_camel(field)
                yield Problem(
                    "unused-field",
                    f"{name} belongs to set, not to row",
                    (*path, name),
                    "remove it",
                    on_key=True,
                )


def _check_keys(
    features: Features, keys: list[str], asking_name: str, asking: DatasetSpec | None, path: Path
) -> Iterator[Problem]:
    for key in features.key:
        what = f"{features.set} has no key column"
        yield from rules.member(key, keys, what, "unknown-key", (*path, "key", key), on_key=True)
    for key in keys:
        if key not in features.key and asking is not None:
            for problem in check_column(key, asking, asking_name, (*path, "set")):
                message = f'{features.set} has the key "{key}"; {problem.message}'
                hint = f"add key: {{{key}: COLUMN}}"
                yield replace(problem, code="missing-key", message=message, hint=hint)


def lower(resource: Resource, context: Context) -> Lowered:
    """Nothing runs: a view is the question that training and serving ask of the feature sets."""
    spec = cast(FeatureViewSpec, resource.spec)
    asked = context.of("Dataset", spec.ask.dataset)
    names = list(dict.fromkeys(one.set for one in spec.features if one.set))
    sets = {name: context.of("FeatureSet", name) for name in names}
    document = spec.document()
    recipe = digest([document, asked.recipe, {name: one.recipe for name, one in sets.items()}])[:16]
    readings = [one.reading for one in (asked, *sets.values()) if one.reading is not None]
    waits = [f"FeatureSet/{name}" for name, one in sets.items() if one.output is None]
    if asked.output is None:
        waits.insert(0, f"Dataset/{spec.ask.dataset}")
    if waits or asked.output is None:
        return Lowered(waits=tuple(waits), recipe=recipe)
    source = asked.output["spec"]
    version = digest(
        [
            document,
            asked.version,
            source.get("time"),
            source.get("key"),
            {name: one.version for name, one in sets.items()},
        ]
    )[:8]
    return Lowered(
        version=version,
        output={
            "spec": document,
            "dataset": asked.output,
            "sets": {name: one.output for name, one in sets.items()},
        },
        recipe=recipe,
        reading=min(readings, default=None),
    )
