"""The real node itself: what the end-to-end tests take for granted of pods, logs, volumes, names and Services."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.bed import controllers
from cluster.bed.api import Document, document
from cluster.bed.node.machine import Machine
from cluster.bed.node.node import USER, Node
from cluster.bed.processes import wait_for

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
RESTRICTED_EXECUTOR = {
    "initContainers": [{"name": "init", "securityContext": RESTRICTED}],
    "containers": [{"name": "wait", "securityContext": RESTRICTED}],
}
"""Argo's own containers beside ours have no security context unless its administrator or the Workflow gives them one."""


@pytest.fixture
def namespace(real_node: Node) -> str:
    """A namespace that refuses every pod that is not restricted."""
    return real_node.plane.namespace("pods", security="restricted")


def test_a_restricted_job_runs_the_runtime_image_and_its_logs_are_read(
    real_node: Node, namespace: str
) -> None:
    """Our image needs no root, no writable root file system and no registry."""
    run_job(real_node, namespace, "help", ["python", "-m", "mlspec_runtime", "--help"])
    assert "Run one step, schedule or service of mlspec." in real_node.plane.kubectl(
        "logs", "--namespace", namespace, "job/help"
    )


def test_an_image_is_found_by_its_digest(real_node: Node, namespace: str) -> None:
    """What the compiler emits names images by digest; the node has them under that name too."""
    assert "@sha256:" in real_node.runtime_by_digest
    run_job(real_node, namespace, "digest", ["python", "--version"], image=real_node.runtime_by_digest)


def test_a_volume_is_shared_between_pods_and_the_test(real_node: Node, namespace: str) -> None:
    """The storage of a project: written by one pod as uid 10001, read by the next, and inspected from outside."""
    claim = real_node.claim(namespace, "storage")
    folder = real_node.volume(namespace, claim)
    for name, code in (
        ("write", "pathlib.Path('/data/runs').mkdir(); pathlib.Path('/data/runs/a').write_text('one')"),
        ("append", "pathlib.Path('/data/runs/a').open('a').write(' two')"),
    ):
        run_job(real_node, namespace, name, ["python", "-c", f"import pathlib; {code}"], claim=claim)
    assert (folder / "runs" / "a").read_text() == "one two"
    assert (folder / "runs" / "a").stat().st_uid == USER


def test_a_pod_reaches_a_deployment_by_the_name_of_its_service(real_node: Node, namespace: str) -> None:
    """Readiness, endpoints, cluster DNS and kube-proxy: the way of every prediction."""
    page = "<p>from a pod</p>"
    serve = f"echo '{page}' > /tmp/index.html && exec python -m http.server 8080 --directory /tmp"
    pod = pod_spec(real_node, ["sh", "-c", serve])
    pod["containers"][0] |= {
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    }
    labels = {"app": "web"}
    real_node.plane.apply(
        [
            document(
                "apps/v1",
                "Deployment",
                "web",
                namespace,
                spec={
                    "replicas": 2,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            ),
            document(
                "v1",
                "Service",
                "web",
                namespace,
                spec={"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
            ),
        ]
    )
    wait_for(lambda: available(real_node, namespace, "web") == 2, "two ready replicas", timeout=120)
    ask = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
    for number, url in enumerate(("http://web", f"http://web.{namespace}.svc.cluster.local:80/")):
        run_job(real_node, namespace, f"ask-{number}", ["python", "-c", ask, url])
        answer = real_node.plane.kubectl("logs", "--namespace", namespace, f"job/ask-{number}")
        assert answer.strip() == page
    # A test may stand where a pod stands, and ask without a Job.
    assert page in real_node.machine.run("python3", "-c", ask, f"http://web.{namespace}")


def test_a_pod_reaches_the_machine_of_the_test_and_the_api_server(real_node: Node, namespace: str) -> None:
    """Tracking servers and webhooks of a test listen on `host_address`; Argo's executor asks the API server from a pod."""
    script = """
import pathlib, ssl, urllib.request
account = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
context = ssl.create_default_context(cafile=account / "ca.crt")
print(urllib.request.urlopen("https://kubernetes.default.svc/version", context=context).read().decode())
"""
    run_job(real_node, namespace, "version", ["python", "-c", script])
    logs = real_node.plane.kubectl("logs", "--namespace", namespace, "job/version")
    assert re.search(r'"gitVersion": "v1\.\d+', logs)


def test_a_workflow_hands_a_value_from_pod_to_pod(real_argo: Node, namespace: str) -> None:
    """Real executors report outputs through the API server; a simulated pod cannot prove that ours may."""
    account = "workflow"
    real_argo.plane.service_account(namespace, account, controllers.EXECUTOR_RULES)
    make = workflow_step(real_argo, "make", "import pathlib; pathlib.Path('/tmp/value').write_text('41')")
    make["outputs"] = {"parameters": [{"name": "value", "valueFrom": {"path": "/tmp/value"}}]}
    use = workflow_step(real_argo, "use", "print({{inputs.parameters.value}} + 1)")
    use["inputs"] = {"parameters": [{"name": "value"}]}
    value = {"name": "value", "value": "{{tasks.make.outputs.parameters.value}}"}
    tasks = [
        {"name": "make", "template": "make"},
        {"name": "use", "template": "use", "depends": "make", "arguments": {"parameters": [value]}},
    ]
    real_argo.plane.apply(
        [
            document(
                "argoproj.io/v1alpha1",
                "Workflow",
                "sum",
                namespace,
                spec={
                    "entrypoint": "main",
                    "serviceAccountName": account,
                    "securityContext": pod_spec(real_argo, [])["securityContext"],
                    "podSpecPatch": json.dumps(RESTRICTED_EXECUTOR),
                    "templates": [{"name": "main", "dag": {"tasks": tasks}}, make, use],
                },
            )
        ]
    )

    def ended() -> Document | None:
        live = real_argo.plane.api.get("argoproj.io/v1alpha1", "Workflow", "sum", namespace)
        status: Document = live.get("status", {})
        return status if status.get("finishedAt") else None

    status = wait_for(ended, "the workflow", timeout=180, every=0.5)
    assert status
    assert status["phase"] == "Succeeded", [each.get("message") for each in status["nodes"].values()]
    pods = real_argo.plane.api.list(
        "v1", "Pod", namespace, labelSelector="workflows.argoproj.io/workflow=sum"
    )
    (used,) = (each["metadata"]["name"] for each in pods if "-use-" in each["metadata"]["name"])
    logs = real_argo.plane.kubectl("logs", "--namespace", namespace, used, "--container=main")
    assert logs.splitlines()[0] == "42"  # a line of Argo's executor follows


def test_nothing_is_left_when_a_node_ends(real_node: Node, tmp_path: Path) -> None:
    """A machine with processes, mounts and rules is killed: only then may a developer run this on a laptop."""
    machine = Machine.start(tmp_path)
    machine.run("mount", "-t", "tmpfs", "tmpfs", tmp_path / "sys")
    machine.run("iptables", "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT")
    machine.run("setsid", "--fork", "sh", "-c", "exec sleep 1000 >/dev/null 2>&1")
    wait_for(lambda: "sleep 1000" in machine.run("ps", "ax"), "the orphan")
    machine.stop()
    assert not Path("/sys/class/net", machine.name).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{machine.name}"))
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if path.read_bytes() == b"sleep\x001000\x00"
    ]


def pod_spec(node: Node, command: list[str], *, image: str = "", claim: str = "") -> Document:
    """A pod that the security standard `restricted` takes."""
    volumes: list[Document] = [{"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": "/data"})
    return {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": volumes,
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "main",
                "image": image or node.runtime.name,
                "imagePullPolicy": "Never",
                "command": command,
                "volumeMounts": mounts,
                "securityContext": RESTRICTED,
            }
        ],
    }


def workflow_step(node: Node, name: str, code: str) -> Document:
    """A template of one restricted pod; without a registry Argo must be told the command."""
    pod = pod_spec(node, ["python", "-c", code])
    return {"name": name, "container": pod["containers"][0], "volumes": pod["volumes"]}


def run_job(
    node: Node, namespace: str, name: str, command: list[str], *, image: str = "", claim: str = ""
) -> None:
    """Run a Job of one pod to its end; the failure carries what the pod printed."""
    pod = {"restartPolicy": "Never", **pod_spec(node, command, image=image, claim=claim)}
    node.plane.apply(
        [document("batch/v1", "Job", name, namespace, spec={"backoffLimit": 0, "template": {"spec": pod}})]
    )

    def ended() -> set[str]:
        status = node.plane.api.get("batch/v1", "Job", name, namespace).get("status", {})
        true = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
        return true & {"Complete", "Failed"}

    try:
        result = wait_for(ended, f"job {name}", timeout=120, every=0.2)
    except TimeoutError as late:
        late.add_note(
            node.plane.kubectl("describe", "pods", "--namespace", namespace, f"--selector=job-name={name}")
        )
        raise
    assert result == {"Complete"}, node.plane.kubectl(
        "logs", "--namespace", namespace, f"job/{name}", check=False
    )


def available(node: Node, namespace: str, name: str) -> int:
    status = node.plane.api.get("apps/v1", "Deployment", name, namespace).get("status", {})
    return int(status.get("availableReplicas", 0))
