"""Kubernetes' own objects: services become Deployment, Service, autoscaler, disruption budget and HTTPRoute, records
become ConfigMaps.

A service reads its task document from an immutable ConfigMap that is named by its content. So a changed document (a new
model) is a new pod template, and Kubernetes replaces one replica after the other, only while the new ones are ready. The
process could follow a changed file in place as it does on a laptop, but then a bad document would reach all replicas at
once, each at a moment of its own (the kubelet syncs within about a minute), and nobody could say which version answers.
"""

from __future__ import annotations

import json
from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import account, config, observed, pod
from mlspec.engines.account import stored
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import JSON, Record, Service, Workload

PORT = 8080
DRAIN = 5
"""Seconds between the withdrawal of an endpoint and the signal to its process."""


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """The objects of a service or a record."""
    match workload:
        case Service(step=step):
            prepared = pod.prepare(workload.name, (step,), settings, origin, port=PORT)
            if isinstance(prepared, str):
                return prepared
            bodies = _service(workload, prepared, settings, origin)
            return [*prepared.manifests, *(Manifest(body, origin) for body in bodies)]
        case Record():
            data = {"record": json.dumps(workload.data, sort_keys=True)}
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": pod.metadata(workload.name, settings, origin, {config.PART: "record"}),
                "data": data,
            }
            return [Manifest(body, origin)]
        case _:
            return "Deployments run services"


def _service(
    service: Service, prepared: pod.Prepared, settings: Settings, origin: Origin
) -> list[dict[str, Any]]:
    selector = {"mlspec.dev/service": service.name}
    metadata = pod.metadata(
        service.name, settings, origin, selector | {"app.kubernetes.io/name": service.name}
    )
    low, high = service.replicas
    objects = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata | {"labels": metadata["labels"] | pod.queue(service.step.needs)},
            "spec": _deployment(service, selector, metadata["labels"], prepared, settings),
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "selector": selector,
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        },
    ]
    if high > low:
        objects.append(_autoscaler(service, metadata))
    if low > 1:
        objects.append(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": metadata,
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
            }
        )
    if settings.gateway is not None:
        objects.append(_route(service, metadata, settings))
    return objects


def _deployment(
    service: Service,
    selector: dict[str, str],
    labels: dict[str, str],
    prepared: pod.Prepared,
    settings: Settings,
) -> dict[str, Any]:
    low, high = service.replicas
    needs = service.step.needs
    main = prepared.containers[service.step.name] | {
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        # Models are loaded before the port opens; ten minutes for it, and then the process is started again.
        "startupProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 2,
            "failureThreshold": 300,
        },
        "readinessProbe": {"httpGet": {"path": service.ready_path, "port": "http"}, "periodSeconds": 2},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
        # Endpoints are withdrawn while the pod still answers, so that no request meets a closed port.
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN}}},
    }
    # The server gives its requests 30 s to finish (`mlspec_runtime.serve.server`).
    pod_spec = pod.spec(prepared, [main], settings, needs) | {"terminationGracePeriodSeconds": 60}
    # A surge pod of a GPU service waits for the GPU that the old pod holds, for ever.
    surge = {"maxSurge": 0, "maxUnavailable": 1} if needs.gpu else {"maxSurge": 1, "maxUnavailable": 0}
    return {
        **({"replicas": low} if high <= low else {}),
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
        "minReadySeconds": 2,
        "progressDeadlineSeconds": 660,
        "revisionHistoryLimit": 2,
        "template": {"metadata": {"labels": labels | pod.queue(needs)}, "spec": pod_spec},
    }


def _autoscaler(service: Service, metadata: dict[str, Any]) -> dict[str, Any]:
    low, high = service.replicas
    target = {"type": "Utilization", "averageUtilization": 70}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
            "minReplicas": max(1, low),
            "maxReplicas": high,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        },
    }


def _route(service: Service, metadata: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """By host `SERVICE.HOST`, or by path `/SERVICE/`, which the service does not see."""
    gateway = settings.gateway
    assert gateway is not None
    rule: dict[str, Any] = {"backendRefs": [{"name": service.name, "port": 80}]}
    if not gateway.host:
        rewrite = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}
        rule |= {
            "matches": [{"path": {"type": "PathPrefix", "value": f"/{service.name}"}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": rewrite}],
        }
    parent = {"name": gateway.name} | ({"namespace": gateway.namespace} if gateway.namespace else {})
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {
            "parentRefs": [parent],
            **({"hostnames": [f"{service.name}.{gateway.host}"]} if gateway.host else {}),
            "rules": [rule],
        },
    }


def deployment_health(live: Live) -> Health:
    """Health of a Deployment, as `kubectl rollout status` reads it, with the reason why a pod does not start."""
    body, status = live.body, live.status
    if status.get("observedGeneration", 0) < body.get("metadata", {}).get("generation", 0):
        return Health(State.PROGRESSING, "waits for the controller to see the change")
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    trouble = observed.admission(live.parts) or observed.trouble(live.parts)
    if conditions.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded":
        return Health(
            State.FAILED, trouble.sentence if trouble else str(conditions["Progressing"]["message"])
        )
    if conditions.get("ReplicaFailure", {}).get("status") == "True":
        refusal = observed.nameless(str(conditions["ReplicaFailure"].get("message")))
        trouble = observed.Trouble(State.WAITING, f"no pod is made: {refusal}")
    wanted = (body.get("spec") or {}).get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if updated >= wanted and status.get("replicas", 0) <= updated and available >= wanted:
        return Health(State.READY, f"{available} replicas")
    if trouble is None:
        if updated < wanted or status.get("replicas", 0) > updated:
            return Health(State.PROGRESSING, f"{updated} of {wanted} replicas are new")
        state = State.DEGRADED if available else State.PROGRESSING
        return Health(state, f"{available} of {wanted} replicas are available")
    if available >= wanted:
        return Health(
            State.DEGRADED, f"the new version does not start, the old one answers: {trouble.sentence}"
        )
    if available:
        return Health(State.DEGRADED, f"{available} of {wanted} replicas are available: {trouble.sentence}")
    return Health(trouble.state, trouble.sentence)


def service_url(live: Live) -> str:
    """Address inside the cluster: https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/"""
    metadata = live.body["metadata"]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc"


def route_health(live: Live) -> Health:
    """Health of an HTTPRoute: every Gateway that it names accepts it."""
    generation = live.body.get("metadata", {}).get("generation", 0)
    parents = live.status.get("parents") or []
    for parent in parents:
        for condition in parent.get("conditions") or []:
            known = condition.get("type") in ("Accepted", "ResolvedRefs")
            seen = condition.get("observedGeneration", generation) >= generation
            if known and seen and condition.get("status") == "False":
                return Health(State.FAILED, f"{condition.get('reason')}: {condition.get('message')}")
    accepted = [
        condition.get("status") == "True"
        for parent in parents
        for condition in parent.get("conditions") or []
        if condition.get("type") == "Accepted"
    ]
    if accepted and all(accepted):
        return Health(State.READY, "accepted by its Gateway")
    return Health(State.WAITING, "waits for its Gateway to accept it")


def record(live: Live) -> JSON:
    """The declared fact; empty for ConfigMaps that hold code or a task."""
    if (live.body["metadata"].get("labels") or {}).get(config.PART) != "record":
        return {}
    return observed.result(str((live.body.get("data") or {}).get("record") or "")) or {}


ENGINE = Engine(
    lower,
    {
        "Deployment": Reading(deployment_health, url=service_url),
        "Service": Reading(stored),
        "HorizontalPodAutoscaler": Reading(stored),
        "PodDisruptionBudget": Reading(stored),
        "HTTPRoute": Reading(route_health),
        "ConfigMap": Reading(stored, record=record),
        **account.READS,
    },
)
