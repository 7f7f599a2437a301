"""What every Kubernetes engine shares: containers of steps, restricted, with their storage, code and task document.

`prepare` makes the containers of a workload and the ConfigMaps that they mount; engines put them into their objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mlspec.engine import Settings, task
from mlspec.engines import config
from mlspec.manifest import Manifest, Origin, digest
from mlspec.workload import Needs, Step

ROOT = "/mlspec"
TASKS = "/etc/mlspec"
GPU = "nvidia.com/gpu"
TOLERATIONS = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
"""Of the taint that keeps other pods away from nodes with GPUs."""
TITLE = "mlspec.dev/title"
RUN = "mlspec.dev/run"
FINAL = 2
"""Exit code of the runtime when a step will fail again (`mlspec_runtime.task`)."""
MESSAGE = "/dev/termination-log"
LONGEST_MESSAGE = 4096
MESSAGES = 12 * 2**10
"""Bytes of termination messages that the containers of one pod share:
https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/"""
LONGEST_ARGUMENT = 100 * 2**10
"""Bytes of a task document on the command line; Linux refuses an argument of 128 KiB (MAX_ARG_STRLEN)."""
# https://kubernetes.io/docs/concepts/security/pod-security-standards/ "restricted"
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
EXECUTOR_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
CONTAINER_SECURITY = {**EXECUTOR_SECURITY, "readOnlyRootFilesystem": True}
_BUNDLE = re.compile(r"code/[0-9a-f]{16}")

NO_SHARES = "a share of a GPU (gpuShare) is not supported yet; ask for whole GPUs with gpu"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What pods need to run the steps of one workload."""

    manifests: tuple[Manifest, ...]
    """ConfigMaps, to be made before the object that starts the pods."""
    containers: Mapping[str, dict[str, Any]]
    """By step."""
    volumes: list[dict[str, Any]]


def labels(settings: Settings, origin: Origin) -> dict[str, str]:
    """Labels of every object and every pod: one list by `mlspec.dev/project` finds all of a project."""
    kind, resource = origin.resource.split("/", 1)
    return {
        "app.kubernetes.io/managed-by": "mlspec",
        "app.kubernetes.io/part-of": settings.project,
        "mlspec.dev/project": settings.project,
        "mlspec.dev/kind": kind,
        "mlspec.dev/name": resource,
    }


def metadata(
    name: str, settings: Settings, origin: Origin, more: Mapping[str, str] | None = None, title: str = ""
) -> dict[str, Any]:
    """Metadata of an object: who made it, the file and line in git that it comes from, and the title of a run."""
    return {
        "name": name,
        "namespace": settings.namespace,
        "labels": {**labels(settings, origin), **(more or {})},
        "annotations": {"mlspec.dev/origin": f"{origin.mark.path}:{origin.mark.line}"}
        | ({TITLE: title} if title else {}),
    }


def prepare(
    owner: str,
    steps: Sequence[Step],
    settings: Settings,
    origin: Origin,
    *,
    once: bool = False,
    together: bool = False,
    port: int | None = None,
) -> Prepared | str:
    """Containers, volumes and ConfigMaps for the steps of a workload, or a sentence why pods cannot run them.

    `once`: the workload is named by its content (a run), so its ConfigMaps need no digest in their names. `together`: the
    steps are containers of one pod. `port`: the workload is a service that listens there, and reads its document from a
    file.
    """
    if any(0 < step.needs.gpu < 1 for step in steps):
        return NO_SHARES
    documents = {step.name: _document(owner, step, settings, port) for step in steps}
    as_files = {
        f"{name}.json": json.dumps(document, sort_keys=True, indent=1).encode()
        for name, document in documents.items()
        if port is not None or len(_argument(document)) > LONGEST_ARGUMENT
    }
    bundles = sorted(set(_bundles(list(documents.values()))))
    code = {
        path.removeprefix("code/") + "/" + name: content
        for path in bundles
        for name, content in settings.bundles.get(path, {}).items()
    }
    if settings.bucket and not all(in_config_map(path, settings.bundles.get(path, {})) for path in bundles):
        code = {}  # the process pulls it from the bucket, all of it: a volume at its folder would be in the way
    volumes: list[tuple[dict[str, Any], str]] = [({"name": "tmp", "emptyDir": {}}, "/tmp")]
    if settings.storage.startswith("pvc://"):
        claim = settings.storage.removeprefix("pvc://").split("/", 1)[0]
        volumes.append(({"name": "storage", "persistentVolumeClaim": {"claimName": claim}}, ROOT))
    elif settings.bucket:
        volumes.append(({"name": "storage", "emptyDir": {}}, ROOT))
    manifests: list[Manifest] = []
    for part, files, path in (("code", code, f"{ROOT}/code"), ("task", as_files, TASKS)):
        if not files:
            continue
        parts = config.split(files)
        if isinstance(parts, str):
            return parts
        named: dict[str, Mapping[str, bytes]] = {}
        for one in parts:
            content = config.content(one)
            whole = once and len(parts) == 1
            name = f"{owner}-{part}" if whole else f"{owner}-{part}-{digest(content)[:8]}"
            body = config.config_map(metadata(name, settings, origin, {config.PART: part}), content)
            manifests.append(Manifest(body, origin, create_only=True))
            named[name] = one
        volumes.append((config.volume(part, named), path))
    mounts = [
        {"name": volume["name"], "mountPath": path}
        | ({"readOnly": True} if volume.keys() & {"configMap", "projected"} else {})
        for volume, path in volumes
    ]
    limit = min(LONGEST_MESSAGE, MESSAGES // len(steps)) if together else LONGEST_MESSAGE
    containers = {
        step.name: _container(
            step,
            f"{TASKS}/{step.name}.json"
            if f"{step.name}.json" in as_files
            else _argument(documents[step.name]),
            settings,
            mounts,
            limit,
        )
        for step in steps
    }
    return Prepared(tuple(manifests), containers, [volume for volume, _ in volumes])


def in_config_map(path: str, files: Mapping[str, bytes]) -> bool:
    """Whether a code bundle (`code/...` -> its files) is small enough to travel with the objects. With storage in S3 larger
    ones are pulled from the bucket."""
    return config.fits({path.removeprefix("code/") + "/" + name: content for name, content in files.items()})


def spec(
    prepared: Prepared, containers: Sequence[Mapping[str, Any]], settings: Settings, needs: Needs
) -> dict[str, Any]:
    """A pod's spec for these containers. The runtime never speaks to the API server, so it gets no token for it."""
    return {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "containers": list(containers),
        "volumes": prepared.volumes,
        **placement(needs),
    }


def queue(needs: Needs) -> dict[str, str]:
    """Labels by which Kueue admits a Job or a pod: https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/"""
    found = {"kueue.x-k8s.io/queue-name": needs.pool} if needs.pool else {}
    if needs.pool and needs.priority:
        found["kueue.x-k8s.io/priority-class"] = needs.priority
    return found


def placement(needs: Needs) -> dict[str, Any]:
    """Node selection of a GPU step."""
    if not needs.gpu:
        return {}
    found: dict[str, Any] = {"tolerations": deepcopy(TOLERATIONS)}
    if needs.gpu_type:
        found["nodeSelector"] = {"nvidia.com/gpu.product": needs.gpu_type}
    return found


def _document(owner: str, step: Step, settings: Settings, port: int | None) -> dict[str, Any]:
    document = task(owner, step)
    if port is not None:
        document |= {"host": "0.0.0.0", "port": port}
    if step.subject == "train":
        document["tracking"] = settings.tracking or None
    return document


def _argument(document: Mapping[str, Any]) -> str:
    """A document on a command line. Kubernetes expands `$(NAME)` there and Argo `{{name}}`; both stand only inside of
    JSON strings, where an escaped character means the same."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return text.replace("{{", "{\\u007b").replace("$(", "\\u0024(")


def _bundles(value: Any) -> Iterator[str]:
    """Every code bundle that a document names as `{path, entry}`, however deep."""
    match value:
        case {"path": str(path), "entry": _} if _BUNDLE.fullmatch(path):
            yield path
        case Mapping():
            for one in value.values():
                yield from _bundles(one)
        case list() | tuple():
            for one in value:
                yield from _bundles(one)


def _container(
    step: Step, task: str, settings: Settings, mounts: Iterable[Mapping[str, Any]], limit: int
) -> dict[str, Any]:
    env = {
        "MLSPEC_ROOT": ROOT,
        **({"MLSPEC_STORAGE": settings.bucket} if settings.bucket else {}),
        "MLSPEC_MESSAGE": MESSAGE,
        **({"MLSPEC_MESSAGE_LIMIT": str(limit)} if limit < LONGEST_MESSAGE else {}),
        "HOME": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {
        "name": "main",
        "image": step.image or settings.image,
        **({"imagePullPolicy": settings.image_pull_policy} if settings.image_pull_policy else {}),
        "command": ["python", "-m", "mlspec_runtime"],
        "args": [step.subject, "--task", task],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        # What specs name as `{env: NAME}`; the platform team makes the Secret, mlspec never sees its values.
        "envFrom": [{"secretRef": {"name": f"{settings.project}-env", "optional": True}}],
        "resources": _resources(step.needs),
        "securityContext": deepcopy(CONTAINER_SECURITY),
        "terminationMessagePath": MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [dict(mount) for mount in mounts],
    }


def _resources(needs: Needs) -> dict[str, Any]:
    """Requests and limits: CPU may burst, memory and GPUs may not."""
    memory = _memory(needs.memory)
    limits: dict[str, str] = {"memory": memory}
    requests: dict[str, str] = {"cpu": _cpu(needs.cpu), "memory": memory}
    if needs.gpu >= 1:
        limits[GPU] = requests[GPU] = str(int(needs.gpu))
    return {"requests": requests, "limits": limits}


def _cpu(cores: float) -> str:
    return str(int(cores)) if cores == int(cores) else f"{round(cores * 1000)}m"


def _memory(size: float) -> str:
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if size % factor == 0:
            return f"{int(size // factor)}{unit}"
    return str(int(size))
