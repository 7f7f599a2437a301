"""Runs that a person ends on Kubernetes: a Workflow keeps its steps to look at, a Job leaves its memory."""

from __future__ import annotations

from pathlib import Path

from cluster.bed import crds
from cluster.bed.api import document
from cluster.bed.controlplane import ControlPlane
from mlspec.kinds.project import KubernetesTarget
from mlspec_reconciler.cluster import STOPPED
from mlspec_reconciler.clusters.kube.cluster import KubeCluster
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport

STEP = {"name": "step", "container": {"image": "localhost/none:1", "command": ["true"]}}
POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "localhost/none:1"}]}


def test_a_workflow_is_shut_down_and_a_job_is_remembered(control_plane: ControlPlane, tmp_path: Path) -> None:
    """A GPU must be free at once, and the run must not come back by itself."""
    crds.install(control_plane.api, "argo")
    namespace = control_plane.namespace("stop")
    transport = Transport.open(None, kubeconfig=control_plane.kubeconfig)
    cluster = KubeCluster(
        transport, Discovery(transport, tmp_path), KubernetesTarget(namespace=namespace), "stop"
    )
    workflow = cluster.create(
        document(
            "argoproj.io/v1alpha1",
            "Workflow",
            "train-1",
            namespace,
            spec={"entrypoint": "step", "templates": [STEP]},
        ),
        {},
    )
    job = cluster.create(
        document("batch/v1", "Job", "train-2", namespace, spec={"template": {"spec": POD}}), {}
    )
    try:
        cluster.cancel(workflow)
        fact = cluster.cancel(job)
        stopped = cluster.get(workflow.key)
        assert stopped is not None
        assert stopped.body["spec"]["shutdown"] == "Stop"
        left = cluster.get(job.key)
        assert left is None or left.deleting
        assert fact is not None, "nothing in the cluster says it later: whoever cancels remembers it"
        assert (fact.phase, fact.message) == ("failed", STOPPED)
    finally:
        cluster.close()
