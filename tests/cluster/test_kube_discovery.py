"""What a cluster serves: known, absent and unknown are three answers."""

import json
import stat
import time

import pytest

from cluster import faults
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.kube import discovery, errors
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport

GADGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "gadgets.discovery.test"},
    "spec": {
        "group": "discovery.test",
        "names": {"kind": "Gadget", "plural": "gadgets", "singular": "gadget", "listKind": "GadgetList"},
        "scope": "Cluster",
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}
BROKEN = {
    "apiVersion": "apiregistration.k8s.io/v1",
    "kind": "APIService",
    "metadata": {"name": "v1.broken.test"},
    "spec": {
        "group": "broken.test",
        "version": "v1",
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": {"name": "nowhere", "namespace": "default"},
    },
}


@pytest.fixture(params=["aggregated", "legacy"])
def way(request, monkeypatch):
    """Servers before 1.27, and proxies that drop the Accept header, answer in the old way."""
    if request.param == "legacy":
        monkeypatch.setattr(discovery, "_AGGREGATED", "application/json")
    return request.param


@pytest.fixture
def transport(control_plane):
    transport = Transport.open(None, kubeconfig=control_plane.kubeconfig, budget=10)
    yield transport
    transport.close()


def test_kinds_and_their_paths(way, transport, tmp_path):
    """The paths of every request come from here."""
    found = Discovery(transport, tmp_path)
    deployment = found.resource("apps/v1", "Deployment")
    assert (deployment.plural, deployment.namespaced, deployment.api_version) == (
        "deployments",
        True,
        "apps/v1",
    )
    assert {"get", "list", "watch", "create", "patch", "delete"} <= set(deployment.verbs)
    assert found.path("apps/v1", "Deployment", "ml", "a", "status") == (
        "/apis/apps/v1/namespaces/ml/deployments/a/status"
    )
    assert found.path("v1", "Pod") == "/api/v1/pods"
    assert found.path("v1", "Namespace", "ignored", "ml") == "/api/v1/namespaces/ml"
    role = found.path("rbac.authorization.k8s.io/v1", "ClusterRole", "", "system:node/x")
    assert role == "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode%2Fx"
    assert found.missing([("v1", "Pod"), ("ray.io/v1", "RayJob"), ("apps/v1", "Pod")]) == [
        ("ray.io/v1", "RayJob"),
        ("apps/v1", "Pod"),
    ]
    with pytest.raises(errors.NotServed, match=r"does not serve RayJob \(ray.io/v1\)"):
        found.path("ray.io/v1", "RayJob", "ml")


def test_a_definition_that_comes_is_found_and_one_that_goes_is_missed(
    way, control_plane, transport, tmp_path
):
    """A plan may create the kind and its first object."""
    found = Discovery(transport, tmp_path)
    assert found.resource("discovery.test/v1", "Gadget") is None
    control_plane.apply([GADGETS])
    try:
        until = time.monotonic() + 20
        while found.resource("discovery.test/v1", "Gadget") is None and time.monotonic() < until:
            time.sleep(0.2)
            found.refresh()
        assert found.path("discovery.test/v1", "Gadget", "ml", "a") == "/apis/discovery.test/v1/gadgets/a"
    finally:
        transport.request(
            "DELETE", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{GADGETS['metadata']['name']}"
        )
    until = time.monotonic() + 20
    while found.resource("discovery.test/v1", "Gadget") is not None and time.monotonic() < until:
        time.sleep(0.2)
        found.refresh()
    assert found.resource("discovery.test/v1", "Gadget") is None


def test_an_api_that_is_down_is_unknown_not_absent(way, control_plane, transport, tmp_path):
    """Absent would mean: prune what we know of it. All other kinds go on working."""
    control_plane.apply([BROKEN])
    try:
        found = Discovery(transport, tmp_path)
        until = time.monotonic() + 20
        while "broken.test/v1" not in _unknown(found) and time.monotonic() < until:
            time.sleep(0.2)
            found.refresh()
        with pytest.raises(Unavailable, match=r"the API broken.test/v1 does not answer now"):
            found.resource("broken.test/v1", "Anything")
        assert found.resource("apps/v1", "Deployment")
        assert found.missing([("ray.io/v1", "RayJob")])
    finally:
        transport.request("DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1.broken.test")


def _unknown(found):
    found.resource("v1", "Pod")
    return found._found.unknown


def test_the_next_process_asks_nothing(transport, tmp_path):
    """A no-op plan has no second to spend on discovery; whoever shares the machine cannot write our cache."""
    Discovery(transport, tmp_path / "cache").resource("v1", "Pod")
    before = transport.calls["GET"]
    again = Discovery(transport, tmp_path / "cache")
    assert again.resource("apps/v1", "Deployment").plural == "deployments"
    assert transport.calls["GET"] == before
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert again.resource("ray.io/v1", "RayJob") is None  # what is missing is asked for, once
    asked = transport.calls["GET"]
    assert asked > before
    assert again.missing([("ray.io/v1", "RayCluster")])
    assert transport.calls["GET"] == asked


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0}', '{"format": 1, "time": "x"}'])
def test_a_broken_or_old_cache_is_made_again(transport, tmp_path, content):
    """A process that was killed while it wrote must not break the next one."""
    Discovery(transport, tmp_path).resource("v1", "Pod")
    (file,) = tmp_path.iterdir()
    document = json.loads(file.read_text())
    file.write_text(content or json.dumps(document | {"time": time.time() - 7200, "resources": []}))
    assert Discovery(transport, tmp_path).resource("v1", "Pod")


def test_another_server_has_another_cache(transport, control_plane, tmp_path):
    """What one cluster serves says nothing about the next."""
    Discovery(transport, tmp_path).resource("v1", "Pod")
    with faults.Proxy(control_plane.url) as proxy:
        other = Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path, control_plane.admin_token))
        Discovery(other, tmp_path).resource("v1", "Pod")
        assert proxy.count("GET", "^/apis$") == 1


@pytest.mark.parametrize(
    "fault",
    [
        faults.Answer(503),
        faults.Answer(403, message="no discovery"),
        faults.Cut(),
        faults.Answer(200, body=b"<html>"),
    ],
)
def test_a_server_that_does_not_tell_is_not_an_empty_one(control_plane, tmp_path, fault):
    """Failed discovery is one of the ways in which GitOps tools deleted everything."""
    with faults.Proxy(control_plane.url) as proxy:
        proxy.add(fault, path="^/apis")
        kubeconfig = proxy.kubeconfig(tmp_path, control_plane.admin_token)
        found = Discovery(Transport.open(None, kubeconfig=kubeconfig, budget=0.5), tmp_path)
        with pytest.raises(Unavailable):
            found.resource("v1", "Pod")
        with pytest.raises(Unavailable):
            found.resource("ray.io/v1", "RayJob")


def test_a_server_that_is_not_ready_has_nothing_absent(control_plane, tmp_path):
    """While it starts, its custom kinds are not there yet."""
    with faults.Proxy(control_plane.url) as proxy:
        rule = proxy.add(faults.Answer(500, message="starting"), path="^/readyz")
        kubeconfig = proxy.kubeconfig(tmp_path, control_plane.admin_token)
        found = Discovery(Transport.open(None, kubeconfig=kubeconfig, budget=0.5), tmp_path)
        with pytest.raises(Unavailable, match="starting"):
            found.resource("ray.io/v1", "RayJob")
        rule.left = 0
        assert found.resource("ray.io/v1", "RayJob") is None
