"""Model: a name under which the newest accepted run of a job, or a model from elsewhere, is served."""

from __future__ import annotations

from typing import ClassVar, Literal

from mlspec.resource import Base, Name, OneOf


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
