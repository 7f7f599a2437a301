"""Model: a name under which the newest accepted run of a job, or a model from elsewhere, is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal, cast

from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered
from mlspec.kinds.training_job import record
from mlspec.lifecycle import Stage
from mlspec.resource import Name, OneOf, Ref, Resource
from mlspec.workload import Record


class ModelSpec(OneOf):
    """A served model. A TrainingJob is a Model of its own name already; write one to pin, approve or import."""

    CHOICES: ClassVar[tuple[str, ...]] = ("job", "path")

    job: Name | None = None
    """The TrainingJob whose accepted runs this model follows."""
    path: str | None = None
    """A model directory in MLflow format, relative to the file of the spec."""
    run: str | None = None
    """Pin: serve this run of the job, whatever comes after."""
    promotion: Literal["gates", "pinned"] = "gates"
    """`gates`: follow the newest run that passed its gates. `pinned`: only `run`."""


def references(spec: ModelSpec) -> Iterator[Ref]:
    """The job whose runs it follows."""
    if spec.job is not None:
        yield Ref(("TrainingJob",), spec.job, ("job",))


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """A pin and its run go together."""
    spec = cast(ModelSpec, resource.spec)
    if spec.promotion == "pinned" and spec.run is None:
        hint = "add run: NAME; mlspec runs lists them"
        yield Problem("missing-run", "promotion: pinned needs a run", ("spec", "promotion"), hint)
    if spec.promotion != "pinned" and spec.run is not None:
        yield Problem(
            "unused-field",
            "run needs promotion: pinned",
            ("spec", "run"),
            "add it, or remove run",
            on_key=True,
        )
    if spec.path is not None and spec.run is not None:
        yield Problem("one-of", "path and run exclude each other", ("spec", "run"), "remove run", on_key=True)


def lower(resource: Resource, context: Context) -> Lowered:
    """The record of the run that serves under this name."""
    spec = cast(ModelSpec, resource.spec)
    if spec.path is not None:
        return Lowered(unsupported="a model from a path cannot be served yet; train it with a TrainingJob")
    job = context.of("TrainingJob", spec.job or "")
    if spec.promotion == "gates":
        return dataclasses.replace(job, workloads=(), failed="", asks=())
    fact = context.facts.run(spec.run or "")
    if fact is None or fact.phase != "succeeded" or "train" not in fact.results:
        return Lowered(
            failed=f"run {spec.run} has not succeeded on this target; see: mlspec runs TrainingJob/{spec.job}",
            recipe=job.recipe,
        )
    # Its own views, data and requirements: it was trained with them, whatever the job says now.
    pinned = {**record(spec.run or "", fact), "previous": None, "history": [spec.run]}
    held = [one for one in job.life.candidates if one.stage is Stage.HELD] if job.life else []
    note = f"pinned to {spec.run}"
    if held:
        note += f"; {len(held)} request{'' if len(held) == 1 else 's'} held by the pin"
    return Lowered(
        version=spec.run,
        output=pinned,
        workloads=(Record(f"pin-{resource.name}", pinned),),
        note=note,
        recipe=job.recipe,
        data=str(pinned["data"]),
    )
