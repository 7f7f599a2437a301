"""Layer 2 of the bed: a control plane with two simulated GPU machines, Argo Workflows and Kueue."""

from __future__ import annotations

from pathlib import Path

from cluster.bed import controllers, crds, kwok
from cluster.bed.controlplane import ControlPlane

GPU_NODES = 2
GPUS_PER_NODE = 8


def start(folder: Path) -> ControlPlane:
    """16 GPUs on two nodes, one node without, all CRDs, both controllers; about 12 s, most of it Argo's CRDs.

    Raises: as `ControlPlane.start`; everything is stopped again then.
    """
    plane = ControlPlane.start(folder)
    try:
        crds.install(plane.api, "argo", "kueue", "gateway", "mlspec")
        kwok.start(plane)
        kwok.gpu_nodes(plane.api, GPU_NODES, gpus=GPUS_PER_NODE)
        kwok.cpu_nodes(plane.api, 1)
        controllers.start_argo(plane)
        controllers.start_kueue(plane)
    except BaseException:
        plane.stop()
        raise
    return plane
