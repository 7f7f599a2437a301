"""Pipeline: runs of other resources in an order of their own, on a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from mlspec.kind import Context, Lowered
from mlspec.kinds.function import FunctionUse, use_reference
from mlspec.resource import Base, Identifier, Name, OneOf, Ref, Resource


class PipelineStep(OneOf):
    """One step: a dataset refresh, a training, or a function."""

    CHOICES: ClassVar[tuple[str, ...]] = ("dataset", "job", "function")

    dataset: Name | None = None
    """Refresh this Dataset."""
    job: Name | None = None
    """Run this TrainingJob."""
    function: FunctionUse | None = None
    """Call this function."""
    parameters: dict[Identifier, Any] = {}
    """Keyword arguments of the function."""
    after: list[Name] = []
    """Steps that must have succeeded."""


class PipelineSpec(Base):
    """A DAG of steps (not executed by the local target yet: resources order themselves by their references)."""

    steps: dict[Name, PipelineStep] = Field(min_length=1)
    """Steps by name."""
    schedule: str | None = None
    """Five-field cron expression, UTC."""


def references(spec: PipelineSpec) -> Iterator[Ref]:
    """What the steps run."""
    for name, step in spec.steps.items():
        if step.dataset is not None:
            yield Ref(("Dataset",), step.dataset, ("steps", name, "dataset"))
        if step.job is not None:
            yield Ref(("TrainingJob",), step.job, ("steps", name, "job"))
        yield from use_reference(step.function, ("steps", name, "function"))


def lower(resource: Resource, context: Context) -> Lowered:
    """Not executed yet."""
    return Lowered(unsupported="pipelines cannot be run yet; resources order themselves by their references")
