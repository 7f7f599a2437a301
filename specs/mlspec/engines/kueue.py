"""Kueue: a pool becomes ResourceFlavors, a ClusterQueue, a LocalQueue, a Cohort and WorkloadPriorityClasses.

API v1beta2: https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta2/

Kueue admits nothing that asks for a resource which its queue does not cover, and every pod asks for cpu and memory. So
what a flavor says nothing about is not limited there, for cpu and memory, and is not there at all, for GPUs and others.
"""

from __future__ import annotations

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
    """The objects of a pool."""
    if not isinstance(workload, Pool):
        return "Kueue holds pools"
    return [Manifest(body, origin) for body in _objects(workload, settings, origin)]


def _objects(pool: Pool, settings: Settings, origin: Origin) -> list[dict[str, Any]]:
    def cluster_wide(kind: str, name: str, **content: Any) -> dict[str, Any]:
        metadata = pod.metadata(name, settings, origin)
        del metadata["namespace"]
        return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, **content}

    spec = pool.data
    objects = []
    for flavor in spec["flavors"]:
        objects.append(
            cluster_wide(
                "ResourceFlavor",
                flavor["name"],
                spec={
                    "nodeLabels": flavor.get("nodeLabels", {}),
                    "tolerations": flavor.get("tolerations", []),
                },
            )
        )
    if spec.get("cohort"):
        objects.append(cluster_wide("Cohort", spec["cohort"], spec={}))
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
    if spec.get("cohort"):
        queue["cohortName"] = spec["cohort"]
    objects.append(cluster_wide("ClusterQueue", pool.name, spec=queue))
    objects.append(
        {
            "apiVersion": API_VERSION,
            "kind": "LocalQueue",
            "metadata": pod.metadata(pool.name, settings, origin),
            "spec": {"clusterQueue": pool.name},
        }
    )
    for name, value in spec.get("priorities", {}).items():
        objects.append(cluster_wide("WorkloadPriorityClass", name, value=value, description=""))
    return objects


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
    """Health of a ClusterQueue or LocalQueue: active, and how much waits in it."""
    for condition in live.status.get("conditions") or []:
        if condition.get("type") != "Active":
            continue
        if condition.get("status") != "True":
            return Health(
                State.WAITING, f"admits nothing: {condition.get('message') or condition.get('reason')}"
            )
        admitted, pending = live.status.get("admittedWorkloads", 0), live.status.get("pendingWorkloads", 0)
        return Health(State.READY, f"{admitted} admitted, {pending} waiting")
    return Health(State.WAITING, "Kueue has not seen it yet")


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
