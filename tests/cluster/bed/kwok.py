"""Simulated nodes and the pods on them: KWOK with stages of ours (`stages/*.yaml`).

What a pod does is chosen by its annotations: `sim.mlspec.dev/outcome` (succeed, fail, evict, hang, image-pull,
crash-loop), `sim.mlspec.dev/duration` (1s), `sim.mlspec.dev/exit-code` (1), and `sim.mlspec.dev/result` and the like for
the output parameters of a Workflow's step. Without any, pods of Jobs and Workflows succeed after a second and all others
(a Deployment's) run for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cluster.bed import build
from cluster.bed.api import Api, Document, document
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import Server, wait_for

STAGES = Path(__file__).parent / "stages"
GPU = "nvidia.com/gpu"
GPU_PRODUCT = "NVIDIA-H100-80GB-HBM3"


def start(plane: ControlPlane) -> Server:
    """KWOK for all nodes with the label `type: kwok`. It stops with `plane`."""
    return plane.run(
        Server(
            "kwok",
            [
                build.binary("kwok"),
                f"--kubeconfig={plane.kubeconfig}",
                *(f"--config={path}" for path in sorted(STAGES.glob("*.yaml"))),
                "--manage-all-nodes=false",
                "--manage-nodes-with-label-selector=type=kwok",
                "--cidr=198.19.0.0/16",
                "--node-ip=127.0.0.1",
                "--node-lease-duration-seconds=40",
            ],
            plane.folder / "logs",
        )
    )


def gpu_nodes(
    api: Api,
    count: int,
    *,
    gpus: int = 8,
    product: str = GPU_PRODUCT,
    name: str = "gpu-node",
    taints: Iterable[dict[str, str]] = (),
) -> list[str]:
    """`gpu-node-1` and so on, with the labels and the taint that NVIDIA's operator gives (and more `taints`); ready when
    returned."""
    return _create(
        api,
        [
            _node(
                f"{name}-{number}",
                {"cpu": "96", "memory": "1Ti", "pods": "110", GPU: str(gpus)},
                labels={
                    f"{GPU}.present": "true",
                    f"{GPU}.product": product,
                    f"{GPU}.count": str(gpus),
                    "node.kubernetes.io/instance-type": f"gpu-{gpus}",
                },
                taints=[{"key": GPU, "value": "present", "effect": "NoSchedule"}, *taints],
            )
            for number in range(1, count + 1)
        ],
    )


def cpu_nodes(api: Api, count: int) -> list[str]:
    """`cpu-node-1` and so on, for everything that asks for no GPU; ready when returned."""
    allocatable = {"cpu": "64", "memory": "256Gi", "pods": "250"}
    return _create(api, [_node(f"cpu-node-{number}", allocatable) for number in range(1, count + 1)])


def claim(api: Api, namespace: str, name: str, *, size: str = "10Gi") -> None:
    """A volume and a claim bound to it: the project's storage, for pods that do not really mount it."""
    shape = {
        "storageClassName": "",
        "accessModes": ["ReadWriteMany"],
    }
    volume = f"{namespace}-{name}"
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name}
    api.apply(
        [
            document(
                "v1",
                "PersistentVolume",
                volume,
                spec={
                    **shape,
                    "capacity": {"storage": size},
                    "hostPath": {"path": f"/nowhere/{volume}"},
                    "claimRef": reference,
                },
            ),
            document(
                "v1",
                "PersistentVolumeClaim",
                name,
                namespace,
                spec={**shape, "volumeName": volume, "resources": {"requests": {"storage": size}}},
            ),
        ]
    )
    wait_for(
        lambda: (
            api.get("v1", "PersistentVolumeClaim", name, namespace).get("status", {}).get("phase") == "Bound"
        ),
        f"the claim {name}",
    )


def _node(
    name: str,
    allocatable: dict[str, str],
    *,
    labels: dict[str, str] | None = None,
    taints: list[dict[str, str]] | None = None,
) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "type": "kwok",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **(labels or {}),
            },
        },
        "spec": {"taints": taints or []},
        "status": {"allocatable": allocatable, "capacity": allocatable},
    }


def _create(api: Api, nodes: list[Document]) -> list[str]:
    for node in nodes:
        # Not by apply, which drops the status.
        api.request("POST", "/api/v1/nodes", node)
    names = [node["metadata"]["name"] for node in nodes]
    wait_for(lambda: all(_schedulable(api.get("v1", "Node", name)) for name in names), f"nodes {names}")
    return names


def _schedulable(node: Document) -> bool:
    """Ready, and free of the taint that the node controller keeps until it has seen that."""
    ready = any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node["status"].get("conditions") or []
    )
    waits = any(taint["key"] == "node.kubernetes.io/not-ready" for taint in node["spec"].get("taints") or [])
    return ready and not waits
