"""ResourcePool: a quota of GPUs, CPUs and memory that teams share (Kueue on Kubernetes)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

from pydantic import Field

from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered
from mlspec.resource import Base, Name, Quantity, Resource, amount
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
    existing: bool = False
    """The flavors, the cohort and the priorities exist already, made by another project or by hand: only the queue is made.
    So the pools of several projects lend to each other."""
    preemption: Literal["never", "lower-priority", "reclaim"] = "reclaim"
    """Whether waiting runs stop others: never, those of lower priority, or also those that borrow."""


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """Flavors have names of their own, and lend only what they have."""
    spec = cast(ResourcePoolSpec, resource.spec)
    names: set[str] = set()
    for index, flavor in enumerate(spec.flavors):
        path = ("spec", "flavors", index)
        if flavor.name in names:
            yield Problem(
                "duplicate-name", f"two flavors are called {flavor.name}", (*path, "name"), "rename one"
            )
        names.add(flavor.name)
        for name, quota in flavor.quota.items():
            if quota.lend is not None and amount(quota.lend) > amount(quota.nominal):
                message = f"lends {quota.lend} of {quota.nominal}"
                yield Problem("empty-range", message, (*path, "quota", name, "lend"), "lend at most nominal")
            for field in ("borrow", "lend"):
                if getattr(quota, field) is not None and spec.cohort is None:
                    message = f"{field} needs a cohort"
                    hint = "add cohort: NAME; pools of one cohort lend to each other"
                    yield Problem("unused-field", message, (*path, "quota", name, field), hint, on_key=True)
        for number, toleration in enumerate(flavor.tolerations):
            if (toleration.operator == "Equal") != (toleration.value is not None):
                message = "Equal needs a value" if toleration.value is None else "Exists takes no value"
                place = (*path, "tolerations", number, "operator" if toleration.value is None else "value")
                yield Problem("unused-field", message, place, "operator: Equal and value go together")
    yield from _check_shared(resource, catalog)


def _check_shared(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """A flavor and a priority are the same thing in all pools: what two pools lend each other has one name."""
    spec = cast(ResourcePoolSpec, resource.spec)
    others = [one for one in catalog.of("ResourcePool") if one.name < resource.name]
    for other in others:
        first = cast(ResourcePoolSpec, other.spec)
        flavors = {one.name: one for one in first.flavors}
        for index, flavor in enumerate(spec.flavors):
            same = flavors.get(flavor.name, flavor)
            for field, key in (("node_labels", "nodeLabels"), ("tolerations", "tolerations")):
                if getattr(same, field) != getattr(flavor, field):
                    message = f"{other.id} has a flavor {flavor.name} with other {key}"
                    hint = "flavors of one name are the same nodes: make them equal, or rename one"
                    yield Problem("shared-name", message, ("spec", "flavors", index, "name"), hint)
        for name, value in spec.priorities.items():
            if first.priorities.get(name, value) != value:
                message = f"in {other.id} the priority {name} is {first.priorities[name]}"
                hint = "priorities of one name are equal in all pools: give it that value, or rename it"
                yield Problem("shared-name", message, ("spec", "priorities", name), hint)


def lower(resource: Resource, context: Context) -> Lowered:
    """A quota, for targets with a queueing engine."""
    return Lowered(version="", output={}, workloads=(Pool(resource.name, resource.spec.document()),))
