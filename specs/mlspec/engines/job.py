"""A plain Kubernetes Job for runs of one step or of steps in a row (init containers run the earlier ones)."""

from __future__ import annotations

from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import pod
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Run, Workload

KEEP_FINISHED = 7 * 86400


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """One Job; the last step is its container, the others are init containers, which run one after the other."""
    if not isinstance(workload, Run):
        return "Jobs run things that end"
    if reason := pod.cannot(workload.steps):
        return reason
    containers = [
        pod.container(workload.name, step, settings) | {"name": step.name} for step in workload.steps
    ]
    last = workload.steps[-1]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "securityContext": pod.POD_SECURITY,
        "containers": containers[-1:],
        "volumes": pod.volumes(settings),
        **pod.placement(last.needs),
    }
    if containers[:-1]:
        spec["initContainers"] = containers[:-1]
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": pod.metadata(workload.name, settings, origin, pod.queue(last.needs)),
        "spec": {
            "backoffLimit": last.retries,
            "activeDeadlineSeconds": int(sum(step.timeout for step in workload.steps)),
            "ttlSecondsAfterFinished": KEEP_FINISHED,
            "podReplacementPolicy": "Failed",
            # A preempted pod is not the job's fault: https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
                ]
            },
            "template": {"metadata": {"labels": {"mlspec.dev/run": workload.name}}, "spec": spec},
        },
    }
    return [Manifest(body, origin, True, workload.title, workload.parts)]


def health(live: Live) -> Health:
    """Health of a Job: only the conditions Complete and Failed end it."""
    for condition in live.status.get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") == "Complete":
            return Health(State.READY, "succeeded")
        if condition.get("status") == "True" and condition.get("type") == "Failed":
            return Health(State.FAILED, str(condition.get("message") or condition.get("reason") or "failed"))
    if live.body.get("spec", {}).get("suspend"):
        return Health(State.WAITING, "suspended until its queue admits it")
    if live.status.get("active"):
        return Health(State.PROGRESSING, "running")
    return Health(State.WAITING, "has no pod yet")


ENGINE = Engine(lower, {"Job": Reading(health)})
