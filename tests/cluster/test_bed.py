"""The test bed itself: what other tests take for granted of the control plane, the nodes and the controllers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.bed import crds
from cluster.bed.api import ApiError
from cluster.bed.controlplane import ControlPlane


def test_server_side_apply_reaches_a_real_api_server(control_plane: ControlPlane) -> None:
    """Defaulting and validation are the server's own: the reason to have the bed at all."""
    namespace = control_plane.namespace("apply")
    claim = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"ports": [{"port": 80}], "selector": {"app": "web"}},
    }
    (live,) = control_plane.apply([claim])
    assert live["spec"]["ports"][0]["protocol"] == "TCP"
    assert live["metadata"]["managedFields"][0]["manager"] == "bed"

    claim["spec"] = {"ports": [{"port": 99999}]}
    with pytest.raises(ApiError, match="Invalid value: 99999"):
        control_plane.apply([claim])


def test_rbac_refuses_what_a_service_account_was_not_granted(control_plane: ControlPlane) -> None:
    """Tests of the access check need refusals that are real."""
    namespace = control_plane.namespace("rbac")
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    token = control_plane.service_account(namespace, "reader", [rule])
    path = f"/api/v1/namespaces/{namespace}"
    assert control_plane.api.request("GET", f"{path}/pods", token=token)["items"] == []
    with pytest.raises(ApiError, match='cannot list resource "secrets"') as refused:
        control_plane.api.request("GET", f"{path}/secrets", token=token)
    assert refused.value.status == 403


def test_pod_security_refuses_a_root_pod(control_plane: ControlPlane) -> None:
    """What we compile must pass `restricted`, so the bed must enforce it."""
    namespace = control_plane.namespace("secure", security="restricted")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root", "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "scratch"}]},
    }
    with pytest.raises(ApiError, match='violates PodSecurity "restricted'):
        control_plane.apply([pod])


def test_a_kubeconfig_selects_user_and_namespace(control_plane: ControlPlane) -> None:
    """The product is given a kubeconfig and a context, as users give it."""
    namespace = control_plane.namespace("context")
    token = control_plane.service_account(namespace, "robot")
    kubeconfig = control_plane.kubeconfig_for(token, namespace)
    who = control_plane.kubectl(
        f"--kubeconfig={kubeconfig}", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"
    )
    assert who == f"system:serviceaccount:{namespace}:robot"


EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"


def test_the_api_server_takes_our_own_crds_and_the_example_as_resources(control_plane: ControlPlane) -> None:
    """Our published CRDs must be structural schemas that a real server accepts, and fit what people write."""
    assert "datasets.mlspec.dev" in crds.install(control_plane.api, "mlspec")
    namespace = control_plane.namespace("flights")
    documents = [
        document
        for path in sorted(EXAMPLE.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    for document in documents:
        document["metadata"]["namespace"] = namespace
    live = control_plane.apply(documents)
    assert [each["kind"] for each in live] == [each["kind"] for each in documents]
