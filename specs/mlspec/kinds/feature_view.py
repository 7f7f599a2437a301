"""FeatureView: the question that a model asks: at which moment, about which rows, with which features and label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, cast

from pydantic import Field

from mlspec.kind import Context, Lowered
from mlspec.manifest import digest
from mlspec.resource import Base, Duration, Identifier, Name, OneOf, Ref, Resource, Sql


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
    on: dict[Identifier, Sql] = {}
    """Key column of the set -> expression of the asking row; by default the column of the same name."""
    max_age: Duration | None = None
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
    """Where the features come from; their order is the order of the model's inputs."""


def references(spec: FeatureViewSpec) -> Iterator[Ref]:
    """The asking Dataset and the FeatureSets."""
    yield Ref(("Dataset",), spec.ask.dataset, ("ask", "dataset"))
    for index, features in enumerate(spec.features):
        if features.set is not None:
            yield Ref(("FeatureSet",), features.set, ("features", index, "set"))


def lower(resource: Resource, context: Context) -> Lowered:
    """Nothing runs: a view is the question that training and serving ask of the feature sets."""
    spec = cast(FeatureViewSpec, resource.spec)
    asked = context.of("Dataset", spec.ask.dataset)
    names = list(dict.fromkeys(one.set for one in spec.features if one.set))
    sets = {name: context.of("FeatureSet", name) for name in names}
    waits = [f"FeatureSet/{name}" for name, one in sets.items() if one.output is None]
    if asked.output is None:
        waits.insert(0, f"Dataset/{spec.ask.dataset}")
    if waits or asked.output is None:
        return Lowered(waits=tuple(waits))
    document = spec.document()
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
    )
