"""What a target gets from an Argo Server (`argo: {server}`), with the real one: retry in place, stop, archived logs, and its
refusals in words. Pods are simulated."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import archive
from cluster.bed import controllers, kwok, simulation
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import free_ports, wait_for
from cluster.rights import rules
from cluster.shop import Shop
from mlspec_reconciler.cluster import Refused, Unavailable
from mlspec_reconciler.clusters.kube.argo_server import ArgoServer
from s3 import S3, SECRET

ARGO = "argoproj.io/v1alpha1"


@pytest.fixture(scope="module")
def server(gpu_pool: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an Argo Server, whose authority this process trusts."""
    simulation.install(gpu_pool.api)
    url = controllers.start_argo_server(gpu_pool)
    authority = tmp_path_factory.mktemp("authority") / "ca.crt"
    authority.write_text(gpu_pool.authority.bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority))
        yield url


@pytest.fixture
def shop(
    gpu_pool: ControlPlane, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """A repository of one dataset, on a target with the server."""
    monkeypatch.setenv("KUBECONFIG", str(gpu_pool.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace = gpu_pool.namespace("argo-server")
    kwok.claim(gpu_pool.api, namespace, "data")
    target = {"argo": {"server": server}, "image": "registry.example/runtime:1"}
    made = Shop(tmp_path / "shop", gpu_pool, namespace, graphs=(), target=target)
    made.write()
    yield made
    assert "Removed" in made.run("destroy", "--yes").out


def workflow(shop: Shop) -> dict[str, object]:
    """The one run of the repository."""
    [found] = shop.plane.api.list(ARGO, "Workflow", shop.namespace)
    return found


def phase(shop: Shop) -> str:
    """What Argo says of it."""
    status = workflow(shop).get("status")
    return str(status.get("phase")) if isinstance(status, dict) else ""


def name(shop: Shop) -> str:
    """Its name."""
    metadata = workflow(shop)["metadata"]
    assert isinstance(metadata, dict)
    return str(metadata["name"])


def nodes(shop: Shop) -> dict[str, Any]:
    """Argo's account of it."""
    status = workflow(shop)["status"]
    assert isinstance(status, dict)
    return dict(status["nodes"])


def archive_log(shop: Shop, server: S3) -> None:
    """What the executor of a real pod reports; the real one does so in `tests/e2e/test_archived_logs.py`."""
    bucket = server.bucket()
    server.write(bucket, "rows/main.log", b"one\ntwo\nlevel=info msg=done argo=true\n")
    shop.plane.apply([archive.credentials(shop.namespace, server)])
    archived = {"name": "main-logs", "s3": {"key": "rows/main.log", **archive.location(server, bucket)}}
    [node] = [key for key, one in nodes(shop).items() if one["type"] == "Pod"]
    change = {"status": {"nodes": {node: {"outputs": {"artifacts": [archived]}}}}}
    shop.edit("Workflow", name(shop), change)


def test_a_failed_run_goes_on_where_it_failed(shop: Shop) -> None:
    """The object stays the same, so that what has succeeded is not repeated and what is known of it is not lost."""
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "fail", "rows.exit-code": "2"})
    shop.apply()
    wait_for(lambda: phase(shop) == "Failed", "the run to fail", timeout=60)
    run, before = name(shop), workflow(shop)["metadata"]
    assert shop.run("status").code == 1
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "succeed"})

    unknown = shop.run("retry", "no-such-run", "--yes")
    assert unknown.code == 1
    assert (
        f"error[unknown-run]: no-such-run has not failed, or is not wanted any more; these have: {run}"
        in (unknown.err)
    )
    done = shop.run("retry", run, "--yes")
    assert (done.code, done.err) == (0, ""), done.text
    assert done.out == f"Started {run} again. Look with: mlspec status\n"
    wait_for(lambda: phase(shop) == "Succeeded", "the run to succeed", timeout=60)
    after = workflow(shop)["metadata"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["uid"] == before["uid"]
    shop.apply()
    assert "  ok       Dataset/rows" in (found := shop.run("status")).out, found.text
    assert shop.run("retry", run, "--yes").code == 1, "it has not failed any more"


def test_a_run_is_stopped_by_the_server_and_retried_after(shop: Shop) -> None:
    """A stop is an end that a person may take back."""
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "hang"})
    shop.apply()
    wait_for(lambda: phase(shop) == "Running", "the run", timeout=60)
    run = name(shop)
    done = shop.run("stop", run, "--yes")
    assert done.code == 0, done.text
    wait_for(lambda: phase(shop) == "Failed", "the end", timeout=60)
    assert "stopped by hand" in shop.run("status").out
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "succeed"})
    assert shop.run("retry", run, "--yes").code == 0
    wait_for(lambda: phase(shop) == "Succeeded", "the run to succeed", timeout=60)


def test_a_log_outlives_its_pod(shop: Shop, s3_server: S3) -> None:
    """The first question about a run of last week is what it has printed."""
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "succeed"})
    shop.apply()
    wait_for(lambda: phase(shop) == "Succeeded", "the run to succeed", timeout=60)
    pods = f"/api/v1/namespaces/{shop.namespace}/pods"
    wait_for(lambda: not shop.plane.api.request("GET", pods)["items"], "Argo to remove the pod", timeout=60)
    nothing = shop.run("logs", "Dataset/rows")
    assert nothing.code == 1
    assert "Argo has archived none: archiveLogs of its artifact repository does" in nothing.err

    archive_log(shop, s3_server)
    done = shop.run("logs", name(shop))
    assert (done.code, done.out) == (0, "==> dataset (archived)\none\ntwo\n"), done.text
    assert shop.run("logs", "Dataset/rows", "--lines", "1").out.endswith("(archived)\ntwo\n")

    s3_server.fault = lambda method, path: "AccessDenied"
    try:
        lost = shop.run("logs", "Dataset/rows")
    finally:
        s3_server.fault = None
    assert "the Argo Server" in lost.out
    assert SECRET not in lost.text


def test_the_rights_of_the_page_are_enough(
    shop: Shop, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server acts as whoever asks: a retry that may delete pods and not update the Workflow would lose its logs."""
    token = shop.plane.service_account(shop.namespace, "deployer", rules("Role", "kubernetes.md"))
    monkeypatch.setenv("KUBECONFIG", str(shop.plane.kubeconfig_for(token, shop.namespace)))
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "hang"})
    shop.apply()
    wait_for(lambda: phase(shop) == "Running", "the run", timeout=60)
    stopped = shop.run("stop", name(shop), "--yes")
    assert stopped.code == 0, stopped.text
    wait_for(lambda: phase(shop) == "Failed", "the end", timeout=60)
    simulation.wish(shop.plane.api, shop.namespace, {"rows.outcome": "succeed"})
    again = shop.run("retry", name(shop), "--yes")
    assert again.code == 0, again.text
    wait_for(lambda: phase(shop) == "Succeeded", "the run to succeed", timeout=60)
    wait_for(lambda: "no-logs" in shop.run("logs", "Dataset/rows").err, "Argo to remove the pod", timeout=60)
    archive_log(shop, s3_server)
    done = shop.run("logs", "Dataset/rows")
    assert done.out.endswith("(archived)\none\ntwo\n"), done.text


def test_what_the_server_refuses_is_said_in_words(
    gpu_pool: ControlPlane, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback, no token, and the way out."""
    token = f"Bearer {gpu_pool.admin_token}"
    namespace = gpu_pool.namespace("argo-server")
    known = ArgoServer(server, namespace, lambda: token)
    with pytest.raises(Refused, match="does not know Workflow no-such-run: "):
        known.stop("no-such-run", "")
    with pytest.raises(Refused, match="does not know Workflow no-such-run: "):
        known.retry("no-such-run")
    with pytest.raises(Refused, match="does not know the archived log of node: "):
        known.log("no-such-run", "node")

    nobody = ArgoServer(server, namespace, lambda: "Bearer wrong-token")
    with pytest.raises(Refused, match=r"does not permit it: .*ARGO_TOKEN") as refused:
        nobody.retry("no-such-run")
    assert "wrong-token" not in str(refused.value)
    poor = gpu_pool.service_account(namespace, "poor")
    with pytest.raises(Refused, match=r"does not permit it: .*cannot get resource"):
        ArgoServer(server, namespace, lambda: f"Bearer {poor}").retry("no-such-run")

    certificate = ArgoServer(server, namespace, lambda: "")
    with pytest.raises(Refused, match="logs in with a certificate"):
        certificate.retry("no-such-run")
    monkeypatch.setenv("ARGO_TOKEN", token)
    with pytest.raises(Refused, match="does not know Workflow"):
        certificate.retry("no-such-run")

    for broken in ("Bearer very-secret\nX-Other: 1", "Bearer vèry-secret"):
        monkeypatch.setenv("ARGO_TOKEN", broken)
        with pytest.raises(Refused, match=r"^ARGO_TOKEN holds characters that no token has") as refused:
            certificate.retry("no-such-run")
        assert "secret" not in str(refused.value)
    monkeypatch.setenv("ARGO_TOKEN", f"{token}\n")  # of a file
    with pytest.raises(Refused, match="does not know Workflow"):
        certificate.retry("no-such-run")
    monkeypatch.delenv("ARGO_TOKEN")

    (port,) = free_ports(1)
    with monkeypatch.context() as proxy:
        proxy.setenv("https_proxy", f"http://127.0.0.1:{port}")
        with pytest.raises(Refused, match="does not know Workflow"):  # no proxy leads to this machine
            ArgoServer(server, namespace, lambda: token).retry("no-such-run")
        with pytest.raises(Unavailable, match=r"does not answer: .*refused"):
            ArgoServer("https://argo.example:2746", namespace, lambda: token).retry("no-such-run")
    with pytest.raises(Unavailable, match=rf"127.0.0.1:{port} does not answer: .*refused"):
        ArgoServer(f"https://127.0.0.1:{port}", namespace, lambda: token).retry("run")
    monkeypatch.setenv("SSL_CERT_FILE", ssl.get_default_verify_paths().openssl_cafile)
    with pytest.raises(Unavailable, match="certificate"):
        ArgoServer(server, namespace, lambda: token).retry("run")
