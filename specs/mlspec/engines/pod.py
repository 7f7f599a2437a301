"""What every Kubernetes engine shares: the container of a step, restricted, with its storage and its task document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mlspec.engine import Settings, task
from mlspec.manifest import Origin
from mlspec.workload import Needs, Step

ROOT = "/mlspec"
GPU = "nvidia.com/gpu"
# https://kubernetes.io/docs/concepts/security/pod-security-standards/ "restricted"
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def metadata(
    name: str, settings: Settings, origin: Origin, labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Metadata of an object: who made it, and the file and line in git that it comes from."""
    kind, resource = origin.resource.split("/", 1)
    return {
        "name": name,
        "namespace": settings.namespace,
        "labels": {
            "app.kubernetes.io/managed-by": "mlspec",
            "app.kubernetes.io/part-of": settings.project,
            "mlspec.dev/kind": kind,
            "mlspec.dev/name": resource,
            **(labels or {}),
        },
        "annotations": {"mlspec.dev/origin": f"{origin.mark.path}:{origin.mark.line}"},
    }


def container(owner: str, step: Step, settings: Settings, port: int | None = None) -> dict[str, Any]:
    """The container that runs one step; a service is told its address, the others commit a result."""
    document = task(owner, step)
    if port is not None:
        document |= {"host": "0.0.0.0", "port": port}
    if step.subject == "train":
        document["tracking"] = settings.tracking or None
    return {
        "name": "main",
        "image": step.image or settings.image,
        "command": ["python", "-m", "mlspec_runtime"],
        "args": [step.subject, "--task", json.dumps(document, sort_keys=True, separators=(",", ":"))],
        "env": [
            {"name": "MLSPEC_ROOT", "value": ROOT},
            {"name": "HOME", "value": "/tmp"},
        ],
        "resources": resources(step.needs),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": volume["name"], "mountPath": path} for volume, path in _volumes(settings)],
    }


def volumes(settings: Settings) -> list[dict[str, Any]]:
    """Volumes of a pod: the storage claim and a writable /tmp."""
    return [volume for volume, _ in _volumes(settings)]


def _volumes(settings: Settings) -> list[tuple[dict[str, Any], str]]:
    found: list[tuple[dict[str, Any], str]] = [({"name": "tmp", "emptyDir": {}}, "/tmp")]
    if settings.storage.startswith("pvc://"):
        claim = settings.storage.removeprefix("pvc://").split("/", 1)[0]
        found.append(({"name": "storage", "persistentVolumeClaim": {"claimName": claim}}, ROOT))
    return found


def resources(needs: Needs) -> dict[str, Any]:
    """Requests and limits: CPU may burst, memory and GPUs may not."""
    memory = _memory(needs.memory)
    limits: dict[str, str] = {"memory": memory}
    requests: dict[str, str] = {"cpu": _cpu(needs.cpu), "memory": memory}
    if needs.gpu >= 1:
        limits[GPU] = requests[GPU] = str(int(needs.gpu))
    return {"requests": requests, "limits": limits}


def cannot(steps: Iterable[Step]) -> str:
    """Why pods cannot have what these steps need; empty when they can."""
    if any(0 < step.needs.gpu < 1 for step in steps):
        return "a share of a GPU (gpuShare) is not supported on Kubernetes yet; ask for whole GPUs with gpu"
    return ""


def queue(needs: Needs) -> dict[str, str]:
    """Labels by which Kueue admits a Job or a pod: https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/"""
    labels = {"kueue.x-k8s.io/queue-name": needs.pool} if needs.pool else {}
    if needs.pool and needs.priority:
        labels["kueue.x-k8s.io/priority-class"] = needs.priority
    return labels


def placement(needs: Needs) -> dict[str, Any]:
    """Node selection of a GPU step."""
    if not needs.gpu:
        return {}
    found: dict[str, Any] = {"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]}
    if needs.gpu_type:
        found["nodeSelector"] = {"nvidia.com/gpu.product": needs.gpu_type}
    return found


def _cpu(cores: float) -> str:
    return str(int(cores)) if cores == int(cores) else f"{round(cores * 1000)}m"


def _memory(size: float) -> str:
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size % factor == 0:
            return f"{int(size // factor)}{unit}"
    return str(int(size))
