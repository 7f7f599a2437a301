"""ResourcePool: a quota of GPUs, CPUs and memory that teams share (Kueue on Kubernetes), and what a process asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered
from mlspec.resource import Base, Name, Path, Quantity, Ref, Resource, amount
from mlspec.workload import Needs, Pool


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


class Resources(Base):
    """What one process needs."""

    cpu: Quantity = "1"
    """CPU cores."""
    memory: Quantity = "2Gi"
    """Memory."""
    gpu: Annotated[int, Field(ge=1)] | None = None
    """Whole GPUs; not together with `gpuShare`."""
    gpu_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Part of one GPU (time slicing, MPS or MIG); not together with `gpu`."""
    gpu_type: str | None = None
    """GPU product, such as `NVIDIA-H100-80GB-HBM3`."""
    pool: Name | None = None
    """ResourcePool whose queue admits the run."""
    priority: Name | None = None
    """Priority class of that pool."""

    def needs(self, gpu: bool = True) -> Needs:
        """The same as numbers: cores, bytes, GPUs; `gpu=False` for steps that only prepare."""
        return Needs(
            cpu=amount(self.cpu),
            memory=amount(self.memory),
            gpu=float(self.gpu or self.gpu_share or 0) if gpu else 0.0,
            gpu_type=self.gpu_type if gpu else None,
            pool=self.pool,
            priority=self.priority,
        )


def pool_reference(resources: Resources, path: Path) -> Iterator[Ref]:
    """The pool of the resources that stand at `path`."""
    if resources.pool is not None:
        yield Ref(("ResourcePool",), resources.pool, (*path, "pool"))


_POOL_NAMES = {"cpu": "cpu", "memory": "memory", "gpu": "nvidia.com/gpu"}


def check_resources(resources: Resources, path: Path, catalog: Catalog) -> Iterator[Problem]:
    """GPUs, and whether the pool has what is asked for."""
    if resources.gpu is not None and resources.gpu_share is not None:
        message = "gpu and gpuShare exclude each other"
        yield Problem("one-of", message, (*path, "gpuShare"), "keep gpu for whole GPUs", on_key=True)
    if resources.gpu_type is not None and resources.gpu is None and resources.gpu_share is None:
        yield Problem(
            "unused-field", "gpuType needs gpu or gpuShare", (*path, "gpuType"), "add gpu: 1", on_key=True
        )
    if resources.priority is not None and resources.pool is None:
        yield Problem(
            "unused-field", "priority needs a pool", (*path, "priority"), "add pool: NAME", on_key=True
        )
    pool = catalog.find("ResourcePool", resources.pool) if resources.pool else None
    if pool is None:
        return
    spec = cast(ResourcePoolSpec, pool.spec)
    if resources.priority is not None:
        what = f"{resources.pool} has no priority"
        yield from rules.member(
            resources.priority, spec.priorities, what, "unknown-priority", (*path, "priority")
        )
    asked = {"cpu": resources.cpu, "memory": resources.memory, "gpu": resources.gpu or resources.gpu_share}
    for field, wanted in asked.items():
        if wanted is None:
            continue
        quotas = [one.quota[_POOL_NAMES[field]] for one in spec.flavors if _POOL_NAMES[field] in one.quota]
        if field != "gpu" and len(quotas) < len(spec.flavors):
            continue  # a flavor limits cores and memory only when it says so (`mlspec.engines.kueue`)
        place = (*path, "gpuShare" if field == "gpu" and resources.gpu is None else field)
        if not quotas:
            message = f"the pool {resources.pool} has no quota of {_POOL_NAMES[field]}"
            yield Problem(
                "pool-quota", message, place, f"add {_POOL_NAMES[field]} to a flavor, or choose another pool"
            )
        elif amount(str(wanted)) > (
            most := max(amount(one.nominal) + amount(one.borrow or 0) for one in quotas)
        ):
            message = (
                f"{wanted} {field} never fits into the pool {resources.pool}, which has at most {most:g}"
            )
            yield Problem("pool-quota", message, place, "ask for less, or raise the quota")
