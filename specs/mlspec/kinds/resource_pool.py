"""ResourcePool: a quota of GPUs, CPUs and memory that teams share (Kueue on Kubernetes)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlspec.kind import Context, Lowered
from mlspec.resource import Base, Name, Quantity, Resource
from mlspec.workload import Pool


class Toleration(Base):
    """A taint that the pool's pods tolerate."""

    key: str
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """How key and value are compared."""
    value: str | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; all when unset."""


class Quota(Base):
    """How much of one resource."""

    nominal: Quantity
    """What the pool always has."""
    borrow: Quantity | None = None
    """How much more it may borrow from its cohort."""
    lend: Quantity | None = None
    """How much of its own it lends."""


class Flavor(Base):
    """One sort of nodes."""

    name: Name
    """Name of the flavor."""
    node_labels: dict[str, str] = {}
    """Labels of its nodes."""
    tolerations: list[Toleration] = []
    """Taints that its pods tolerate."""
    quota: dict[str, Quota] = Field(min_length=1)
    """Quota by resource name: `cpu`, `memory`, `nvidia.com/gpu`."""


class ResourcePoolSpec(Base):
    """A queue with quotas (the local target has no pool: `plan` says so)."""

    cohort: Name | None = None
    """Pools of one cohort lend to each other."""
    flavors: list[Flavor] = Field(min_length=1)
    """Sorts of nodes, tried in this order."""
    priorities: dict[Name, int] = {}
    """Priority classes and their values."""
    preemption: Literal["never", "lower-priority", "reclaim"] = "reclaim"
    """Whether waiting runs stop others: never, those of lower priority, or also those that borrow."""


def lower(resource: Resource, context: Context) -> Lowered:
    """A quota, for targets with a queueing engine."""
    return Lowered(version="", output={}, workloads=(Pool(resource.name, resource.spec.document()),))
