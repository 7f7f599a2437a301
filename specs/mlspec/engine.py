"""The contract of an engine: it lowers a workload to the objects of one runtime, and knows their health.

`mlspec.engines` has one file per runtime; `mlspec.compile` lists which engine serves which workload on which target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlspec.health import Health
from mlspec.manifest import Body, Manifest, Origin
from mlspec.workload import JSON, RunFact, Step, Workload


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway through which services are reached from outside; an empty `host` means by path."""

    name: str
    namespace: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine may know about the target. Empty strings where a target has no such thing."""

    project: str
    namespace: str = ""
    image: str = ""
    service_account: str = ""
    storage: str = ""
    """`pvc://CLAIM` or `s3://BUCKET/PREFIX` on Kubernetes."""
    tracking: str = ""
    image_pull_policy: str = ""
    gateway: Gateway | None = None
    bundles: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Code of the project: folder relative to the storage root (`code/...`) -> path in it -> content."""

    @property
    def bucket(self) -> str:
        """The storage where it is `s3://...`; empty elsewhere."""
        return self.storage if self.storage.startswith("s3://") else ""


@dataclass(frozen=True, slots=True)
class Live:
    """A live object as an engine reads it: what was applied, what its controller says, and what was made for it."""

    body: Body
    status: JSON
    parts: tuple[Body, ...] = ()
    """Objects that controllers made for it, complete with their status: pods, Kueue's Workloads, Workflows of a
    CronWorkflow."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine reads from live objects of one kind. All functions are pure.

    Exactly the kinds that are runs have `run`, services `url`, schedules `result`, and records `record`; the others
    (a Service beside a Deployment, an autoscaler) are parts of something that has one.
    """

    health: Callable[[Live], Health]
    run: Callable[[Live], RunFact] | None = None
    """Phase and results by step."""
    url: Callable[[Live], str] | None = None
    """Address that answers inside the target; empty while it is not known."""
    result: Callable[[Live], JSON] | None = None
    """Result of the newest evaluation; empty before the first."""
    record: Callable[[Live], JSON] | None = None
    """The declared fact."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One runtime.

    `lower` returns the objects of a workload, or a sentence why this engine cannot run it. `reads` says how its live
    objects are understood, by their kind.
    """

    lower: Callable[[Workload, Settings, Origin], list[Manifest] | str]
    reads: Mapping[str, Reading]


def task(owner: str, step: Step) -> dict[str, Any]:
    """The document that the runtime's process reads: what the kind wrote, plus who it is."""
    return {"subject": step.subject, "name": owner, "step": step.name, **step.document}
