"""Kueue: a pool becomes ResourceFlavors, a ClusterQueue, a LocalQueue, a Cohort and WorkloadPriorityClasses.

API v1beta2: https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta2/

Kueue admits nothing that asks for a resource which its queue does not cover, and every pod asks for cpu and memory. So
what a flavor says nothing about is not limited there, for cpu and memory, and is not there at all, for GPUs and others.

Pools lend to each other only what has one name, so flavors, cohorts and priorities are shared by the pools of a project:
they belong to the Project (`shared`), as its account does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import pod
from mlspec.engines.account import stored
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Pool, Workload

API_VERSION = "kueue.x-k8s.io/v1beta2"
PREEMPTION = {
    "never": {"reclaimWithinCohort": "Never", "withinClusterQueue": "Never"},
    "lower-priority": {"reclaimWithinCohort": "LowerPriority", "withinClusterQueue": "LowerPriority"},
    "reclaim": {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"},
}

UNLIMITED = {"cpu": "1M", "memory": "1Pi"}
"""Resources that every pod asks for -> a quota that no pool reaches."""


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """The queue of a pool, and its door in the namespace."""
    if not isinstance(workload, Pool):
        return "Kueue holds pools"
    spec = workload.data
    covered = sorted({*UNLIMITED, *(name for flavor in spec["flavors"] for name in flavor["quota"])})
    cohort = bool(spec.get("cohort"))
    queue: dict[str, Any] = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
        # StrictFIFO blocks across flavors: https://github.com/kubernetes-sigs/kueue/issues/8309
        "queueingStrategy": "BestEffortFIFO",
        "preemption": PREEMPTION[spec.get("preemption", "reclaim")],
        "resourceGroups": [
            {
                "coveredResources": covered,
                "flavors": [_flavor(flavor, covered, cohort) for flavor in spec["flavors"]],
            }
        ],
    }
    if cohort:
        queue["cohortName"] = spec["cohort"]
    # Cluster-wide, and yet of this namespace: another target or project may have a pool of that name, too.
    name = f"{settings.namespace}-{workload.name}"
    door = {
        "apiVersion": API_VERSION,
        "kind": "LocalQueue",
        "metadata": pod.metadata(workload.name, settings, origin),
        "spec": {"clusterQueue": name},
    }
    bodies = [_cluster_wide("ClusterQueue", name, settings, origin, spec=queue), door]
    return [Manifest(body, origin) for body in bodies]


def shared(pools: Iterable[Pool], settings: Settings, origin: Origin) -> list[Manifest]:
    """What the pools of a project have in common: flavors, cohorts and priorities, each once, unless they exist already."""
    bodies: dict[tuple[str, str], dict[str, Any]] = {}

    def once(kind: str, name: str, **content: Any) -> None:
        bodies.setdefault((kind, name), _cluster_wide(kind, name, settings, origin, **content))

    for pool in pools:
        if pool.data.get("existing"):
            continue
        for flavor in pool.data["flavors"]:
            nodes = {"nodeLabels": flavor.get("nodeLabels", {}), "tolerations": _tolerations(flavor)}
            once("ResourceFlavor", flavor["name"], spec=nodes)
        if cohort := pool.data.get("cohort"):
            once("Cohort", cohort, spec={})
        for name, value in pool.data.get("priorities", {}).items():
            once("WorkloadPriorityClass", name, value=value, description="")
    return [Manifest(body, origin) for body in bodies.values()]


def _tolerations(flavor: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the spec, where an unset operator is Exists and not Kubernetes' Equal; and on nodes with GPUs also the steps
    that use none tolerate what GPU steps do (`pod.placement`)."""
    found = [{"operator": "Exists"} | one for one in flavor.get("tolerations", [])]
    known = any(one["key"] == pod.GPU for one in found)
    return found if known or pod.GPU not in flavor["quota"] else [*found, *pod.TOLERATIONS]


def _cluster_wide(kind: str, name: str, settings: Settings, origin: Origin, **content: Any) -> dict[str, Any]:
    metadata = pod.metadata(name, settings, origin)
    del metadata["namespace"]
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, **content}


def _flavor(flavor: dict[str, Any], covered: list[str], cohort: bool) -> dict[str, Any]:
    resources = []
    for name in covered:
        quota = flavor["quota"].get(name)
        if quota is None:
            resource = {"name": name, "nominalQuota": UNLIMITED.get(name, "0")}
            if cohort and name in UNLIMITED:
                resource["lendingLimit"] = "0"  # what has no limit here keeps its limit in the other pools
        else:
            resource = {"name": name, "nominalQuota": quota["nominal"]}
            if "borrow" in quota:
                resource["borrowingLimit"] = quota["borrow"]
            if "lend" in quota:
                resource["lendingLimit"] = quota["lend"]
        resources.append(resource)
    return {"name": flavor["name"], "resources": resources}


def queue_health(live: Live) -> Health:
    """Health of a ClusterQueue or LocalQueue: active, what is used of its quotas, and how much waits in it."""
    for condition in live.status.get("conditions") or []:
        if condition.get("type") != "Active":
            continue
        if condition.get("status") != "True":
            return Health(
                State.WAITING, f"admits nothing: {condition.get('message') or condition.get('reason')}"
            )
        running, pending = live.status.get("admittedWorkloads", 0), live.status.get("pendingWorkloads", 0)
        return Health(State.READY, "; ".join([*_usage(live), f"{running} admitted, {pending} waiting"]))
    return Health(State.WAITING, "Kueue has not seen it yet")


def _usage(live: Live) -> Iterator[str]:
    """`12 nvidia.com/gpu of h100 in use (quota 8, 4 borrowed)`, for every quota that somebody has set."""
    used = {
        (flavor["name"], resource["name"]): resource
        for flavor in live.status.get("flavorsUsage") or []
        for resource in flavor.get("resources") or []
    }
    for group in (live.body.get("spec") or {}).get("resourceGroups") or []:
        for flavor in group["flavors"]:
            for resource in flavor["resources"]:
                name, quota = resource["name"], str(resource["nominalQuota"])
                if quota == UNLIMITED.get(name, "0") and "borrowingLimit" not in resource:
                    continue
                now = used.get((flavor["name"], name), {})
                total, borrowed = str(now.get("total", "0")), str(now.get("borrowed", "0"))
                more = f", {borrowed} borrowed" if borrowed != "0" else ""
                yield f"{total} {name} of {flavor['name']} in use (quota {quota}{more})"


ENGINE = Engine(
    lower,
    {
        "ClusterQueue": Reading(queue_health),
        "LocalQueue": Reading(queue_health),
        "ResourceFlavor": Reading(stored),
        "Cohort": Reading(stored),
        "WorkloadPriorityClass": Reading(stored),
    },
)
