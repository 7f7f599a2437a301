"""Kubernetes' own objects: services become Deployment, Service, HorizontalPodAutoscaler and PodDisruptionBudget,
records become ConfigMaps."""

from __future__ import annotations

import json
from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import pod
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Record, Service, Workload

PORT = 8080


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """The objects of a service or a record."""
    match workload:
        case Service(step=step) if pod.cannot((step,)):
            return pod.cannot((step,))
        case Service():
            return [Manifest(body, origin) for body in _service(workload, settings, origin)]
        case Record():
            data = {"record": json.dumps(workload.data, sort_keys=True)}
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": pod.metadata(workload.name, settings, origin),
                "data": data,
            }
            return [Manifest(body, origin)]
        case _:
            return "Deployments run services"


def _service(service: Service, settings: Settings, origin: Origin) -> list[dict[str, Any]]:
    labels = {"app.kubernetes.io/name": service.name}
    low, high = service.replicas
    main = pod.container(service.name, service.step, settings, PORT) | {
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": service.ready_path, "port": "http"}, "periodSeconds": 2},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
        # Endpoints are withdrawn while the pod still answers, so that no request meets a closed port.
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
    }
    pod_spec = {
        "serviceAccountName": settings.service_account,
        "securityContext": pod.POD_SECURITY,
        "containers": [main],
        "volumes": pod.volumes(settings),
        "terminationGracePeriodSeconds": 60,
        **pod.placement(service.step.needs),
    }
    # A surge pod of a GPU service waits for the GPU that the old pod holds, for ever.
    surge = (
        {"maxSurge": 0, "maxUnavailable": 1}
        if service.step.needs.gpu
        else {"maxSurge": 1, "maxUnavailable": 0}
    )
    spec: dict[str, Any] = {
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
        "progressDeadlineSeconds": 600,
        "template": {"metadata": {"labels": labels}, "spec": pod_spec},
    }
    if high <= low:
        spec["replicas"] = low
    objects: list[dict[str, Any]] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": pod.metadata(service.name, settings, origin, labels),
            "spec": spec,
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": pod.metadata(service.name, settings, origin, labels),
            "spec": {
                "selector": labels,
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        },
    ]
    if high > low:
        objects.append(
            {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": pod.metadata(service.name, settings, origin, labels),
                "spec": {
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
                    "minReplicas": max(1, low),
                    "maxReplicas": high,
                    "metrics": [
                        {
                            "type": "Resource",
                            "resource": {
                                "name": "cpu",
                                "target": {"type": "Utilization", "averageUtilization": 70},
                            },
                        }
                    ],
                },
            }
        )
    if low > 1:
        objects.append(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": pod.metadata(service.name, settings, origin, labels),
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
            }
        )
    return objects


def deployment_health(live: Live) -> Health:
    """Health of a Deployment, as `kubectl rollout status` reads it."""
    body, status = live.body, live.status
    generation = body.get("metadata", {}).get("generation", 0)
    if status.get("observedGeneration", 0) < generation:
        return Health(State.PROGRESSING, "waits for the controller to see the change")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            return Health(State.FAILED, str(condition.get("message")))
    wanted = body.get("spec", {}).get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if updated < wanted or status.get("replicas", 0) > updated:
        return Health(State.PROGRESSING, f"{updated} of {wanted} replicas are new")
    if available < wanted:
        return Health(
            State.DEGRADED if available else State.PROGRESSING,
            f"{available} of {wanted} replicas are available",
        )
    return Health(State.READY, f"{available} replicas")


def stored(live: Live) -> Health:
    """Objects that only exist."""
    return Health(State.READY, "")


ENGINE = Engine(
    lower,
    {
        "Deployment": Reading(deployment_health),
        "Service": Reading(stored),
        "HorizontalPodAutoscaler": Reading(stored),
        "PodDisruptionBudget": Reading(stored),
        "ConfigMap": Reading(stored),
    },
)
