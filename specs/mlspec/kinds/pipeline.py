"""Pipeline: runs of other resources in an order of their own, on a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered
from mlspec.kinds.function import FunctionUse, check_arguments, use_reference
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


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """Order of the steps, arguments, the schedule."""
    spec = cast(PipelineSpec, resource.spec)
    for name, step in spec.steps.items():
        path = ("spec", "steps", name)
        for index, before in enumerate(step.after):
            yield from rules.member(
                before, spec.steps, "no step is called", "unknown-step", (*path, "after", index)
            )
        if step.parameters and step.function is None:
            yield Problem(
                "unused-field",
                "parameters need a function",
                (*path, "parameters"),
                "remove them",
                on_key=True,
            )
        yield from check_arguments(step.function, step.parameters, (*path, "parameters"), catalog)
    yield from rules.steps_cycle({name: step.after for name, step in spec.steps.items()})
    if spec.schedule is not None:
        yield from rules.cron(spec.schedule, ("spec", "schedule"))


def lower(resource: Resource, context: Context) -> Lowered:
    """Not executed yet."""
    return Lowered(unsupported="pipelines cannot be run yet; resources order themselves by their references")
