"""The contract of a cluster over a namespace of a real API server, and what only such a cluster can break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.bed import crds
from cluster.bed.api import document
from cluster.bed.controlplane import ControlPlane
from cluster.contract import DIGEST, OTHER, Contract
from mlspec.kinds.project import KubernetesTarget
from mlspec.manifest import Key
from mlspec.workload import RunFact
from mlspec_reconciler import remembered
from mlspec_reconciler.cluster import Cluster, Conflict, Object, Refused, key_of
from mlspec_reconciler.clusters.kube.cluster import KubeCluster
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.state import Session, Table

STEP = {"name": "step", "container": {"image": "localhost/none:1", "command": ["true"]}}


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    crds.install(control_plane.api, "argo")
    return control_plane


@pytest.fixture(scope="module")
def discovered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of discovery for all tests, as a person has it."""
    return tmp_path_factory.mktemp("discovery")


def connect(plane: ControlPlane, namespace: str, cache: Path, project: str = "contract") -> KubeCluster:
    """As the commands connect."""
    transport = Transport.open(None, kubeconfig=plane.kubeconfig)
    return KubeCluster(transport, Discovery(transport, cache), KubernetesTarget(namespace=namespace), project)


@pytest.fixture
def cluster(plane: ControlPlane, discovered: Path) -> Iterator[KubeCluster]:
    made = connect(plane, plane.namespace("contract"), discovered)
    yield made
    made.close()


class TestKube(Contract):
    """In a namespace of a real API server."""

    def body(self, cluster: KubeCluster, name: str, **data: Any) -> dict[str, Any]:
        return document("v1", "ConfigMap", name, cluster.namespace, data=data)

    def run(self, cluster: KubeCluster, name: str, **data: Any) -> dict[str, Any]:
        parameters = [{"name": each, "value": value} for each, value in data.items()]
        spec = {"entrypoint": "step", "templates": [STEP], "arguments": {"parameters": parameters}}
        return document("argoproj.io/v1alpha1", "Workflow", name, cluster.namespace, spec=spec)

    def holds(self, live: Object | None, body: Mapping[str, Any]) -> bool:
        """All that was written is there, beside what the server adds."""
        return live is not None and _within(body, live.body)

    def announce(self, cluster: Any, *keys: Key) -> None:
        rows = [[*key_row(key), "", 0] for key in keys]
        Session.open(cluster.state, "test").put([(Table.INVENTORY, "Dataset/a", {"objects": rows})])

    def test_a_run_is_remembered(self, cluster: Cluster) -> None:
        """Facts about runs outlive their objects: the StateStore keeps their ends, the object says the rest."""
        body = self.run(cluster, "r-1")
        made = cluster.create(body, {})
        assert cluster.runs() == {}
        end = RunFact("succeeded", {"train": {"auc": 0.7}}, "")
        for _ in range(2):
            Session.open(cluster.state, "test").put([remembered.run_row("r-1", end)])
        cluster.delete(made.key, made.uid)
        assert cluster.get(made.key) is None
        assert remembered.runs(Session.open(cluster.state, "test")) == {"r-1": end}
        assert cluster.create(body, {}).uid != made.uid

    def test_what_is_being_deleted_is_not_written(self, cluster: KubeCluster, plane: ControlPlane) -> None:
        """What is written to a dying object dies with it, while the plan takes it for done."""
        waiting = {"finalizers": ["example.org/wait"]}
        body = document("v1", "ConfigMap", "a", cluster.namespace, metadata=waiting)
        plane.api.apply([body], manager="theirs")
        old = cluster.apply(self.body(cluster, "a", x="1"), {})
        cluster.delete(old.key, old.uid)
        cluster.delete(old.key, old.uid)
        live = cluster.get(old.key)
        assert live is not None
        assert live.deleting
        for write in (
            lambda: cluster.create(self.body(cluster, "a", x="2"), {}),
            lambda: cluster.apply(self.body(cluster, "a", x="2"), {}),
            lambda: cluster.apply(self.body(cluster, "a", x="2"), {}, old.version),
            lambda: cluster.apply(self.body(cluster, "a", x="2"), {}, live.version),
        ):
            with pytest.raises(Conflict):
                write()
        plane.api.request(
            "PATCH",
            plane.api.path(body),
            {"metadata": {"finalizers": None}},
            content_type="application/merge-patch+json",
        )
        assert cluster.get(old.key) is None
        assert cluster.create(self.body(cluster, "a", x="2"), {}).uid != old.uid

    def test_what_another_maker_made_meanwhile_stays_theirs(
        self, cluster: KubeCluster, plane: ControlPlane, discovered: Path
    ) -> None:
        """Between a look and a write somebody else may take the name: kubectl, a controller, or another project of ours."""
        other = connect(plane, cluster.namespace, discovered, "other")
        kubectl = document("v1", "ConfigMap", "a", cluster.namespace, data={"theirs": "1"})
        bare = document("v1", "ServiceAccount", "a", cluster.namespace)
        ours = document("v1", "ConfigMap", "b", cluster.namespace, data={"y": "1"})
        wanted = [self.body(cluster, "a", x="1"), {**bare}, self.body(cluster, "b", x="1")]
        cluster.preview([(body, DIGEST, None) for body in wanted])  # as a plan looks: nothing is there
        folder = f"/api/v1/namespaces/{cluster.namespace}"
        plane.api.request("POST", f"{folder}/configmaps", kubectl, fieldManager="kubectl-create")
        plane.api.request("POST", f"{folder}/serviceaccounts", bare, fieldManager="kubectl-create")
        other.create(ours, OTHER)
        before = [cluster.get(key_of(body)) for body in wanted]
        for body in wanted:
            with pytest.raises((Conflict, Refused)):
                cluster.create(body, DIGEST)
        for was, body in zip(before, wanted, strict=True):
            now = cluster.get(key_of(body))
            assert was is not None
            assert now is not None
            assert _owners(now) == _owners(was)
            assert now.content == was.content
        other.close()

    def test_what_others_decide_about_from_now_on_keeps_its_value(
        self, cluster: KubeCluster, plane: ControlPlane, discovered: Path
    ) -> None:
        """A service of three replicas that gets an autoscaler must not be one of one replica until that looks for the first
        time, and a rule that leaves a field to others must not empty it."""
        fixed = deployment(cluster.namespace, replicas=3)
        scaled = deployment(cluster.namespace)
        cluster.create(fixed, DIGEST)
        self.announce(cluster, key_of(fixed))
        [live] = cluster.list()
        [preview] = cluster.preview([(scaled, OTHER, live)])
        assert [one.path for one in preview.differences] == []
        assert cluster.apply(scaled, OTHER, live.version).body["spec"]["replicas"] == 3
        [live] = cluster.list()
        assert cluster.holds(scaled, live)
        path = f"{plane.api.path(live.body | {'apiVersion': 'apps/v1', 'kind': 'Deployment'})}/scale"
        plane.api.request(
            "PATCH", path, {"spec": {"replicas": 5}}, content_type="application/merge-patch+json"
        )
        [live] = cluster.list()
        assert cluster.holds(scaled, live)
        assert cluster.apply(fixed, OTHER, live.version).body["spec"]["replicas"] == 3

        image = 'spec.template.spec.containers[name="main"].image'
        rule = {"kind": "Deployment", "field": image, "owner": "other"}
        target = KubernetesTarget.model_validate({"namespace": cluster.namespace, "fields": [rule]})
        left = KubeCluster(cluster.transport, Discovery(cluster.transport, discovered), target, "contract")
        [live] = left.list()
        assert left.holds(fixed, live) is False
        assert (
            left.apply(fixed, OTHER, live.version).body["spec"]["template"]["spec"]["containers"][0]["image"]
            == "a:1"
        )
        [live] = left.list()
        assert left.holds(fixed, live)
        assert "f:image" not in str(_owners(live))


def deployment(namespace: str, **spec: Any) -> dict[str, Any]:
    """A Deployment whose pods nobody starts."""
    labels = {"app": "a"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "a:1"}]}}
    spec |= {"selector": {"matchLabels": labels}, "template": pod}
    return document("apps/v1", "Deployment", "a", namespace, spec=spec)


def key_row(key: Key) -> list[str]:
    """A key as the inventory writes it."""
    return [key.api_version, key.kind, key.namespace, key.name]


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(name in whole and _within(value, whole[name]) for name, value in part.items())
    return bool(part == whole)


def _owners(live: Object) -> list[tuple[str, Any]]:
    return [(entry["manager"], entry["fieldsV1"]) for entry in live.body["metadata"].get("managedFields", ())]
