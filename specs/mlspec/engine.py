"""The contract of an engine: it lowers a workload to the objects of one runtime, and knows their health.

`mlspec.engines` has one file per runtime; `mlspec.compile` lists which engine serves which workload on which target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlspec.health import Health
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Step, Workload


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine may know about the target. Empty strings where a target has no such thing."""

    project: str
    namespace: str = ""
    image: str = ""
    service_account: str = ""
    storage: str = ""
    """`pvc://CLAIM` on Kubernetes."""
    tracking: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """One runtime.

    `lower` returns the objects of a workload, or a sentence why this engine cannot run it. `health` judges one live
    object from its body and status.
    """

    lower: Callable[[Workload, Settings, Origin], list[Manifest] | str]
    health: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Health]]
    """By kind of the objects."""


def task(owner: str, step: Step) -> dict[str, Any]:
    """The document that the runtime's process reads: what the kind wrote, plus who it is."""
    return {"subject": step.subject, "name": owner, "step": step.name, **step.document}
