"""The test bed itself: what other tests take for granted of the control plane, the nodes and the controllers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed import controllers, crds, kwok
from cluster.bed.api import ApiError, Document, document
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import StartFailed, wait_for

TESTS = Path(__file__).parents[1]
EXAMPLE = TESTS.parent / "examples" / "flights"
ARGO = "argoproj.io/v1alpha1"
KUEUE = "kueue.x-k8s.io/v1beta2"
QUEUE = "kueue.x-k8s.io/queue-name"


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


def test_a_failed_start_shows_the_log_and_leaves_nothing(tmp_path: Path) -> None:
    """A wrong flag or a taken port must be read in the test's own output, and etcd must not outlive it."""
    with pytest.raises(StartFailed, match="unknown flag: --no-such-flag"):
        ControlPlane.start(tmp_path, api_server_arguments=["--no-such-flag"])
    assert processes_with(tmp_path) == []


def test_nothing_outlives_a_killed_test_run(tmp_path: Path) -> None:
    """A run that is killed (a timeout in CI) cannot clean up; the kernel does."""
    program = (
        "import pathlib, sys, time; from cluster.bed.controlplane import ControlPlane;"
        "plane = ControlPlane.start(pathlib.Path(sys.argv[1])); print('up', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"up\n"
    assert len(processes_with(tmp_path)) >= 4
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_for(lambda: processes_with(tmp_path) == [], "the servers to end", timeout=5)


def test_without_go_the_tests_skip_and_the_end_of_the_run_says_so(tmp_path: Path) -> None:
    """A machine without Go runs the other tests, and nobody takes that for the whole proof."""
    without = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "rbac"],
        cwd=TESTS.parent,
        env=without,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert (
        "WARNING: 1 tests of the real control plane did NOT run: the real control plane needs Go"
        in done.stdout
    )


def test_the_api_server_takes_our_own_crds_and_the_example_as_resources(gpu_pool: ControlPlane) -> None:
    """Our published CRDs must be structural schemas that a real server accepts, and fit what people write."""
    assert "datasets.mlspec.dev" in crds.install(gpu_pool.api, "mlspec")
    namespace = gpu_pool.namespace("flights")
    documents = [
        each for path in sorted(EXAMPLE.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())
    ]
    for each in documents:
        each["metadata"]["namespace"] = namespace
    live = gpu_pool.apply(documents)
    assert [each["kind"] for each in live] == [each["kind"] for each in documents]


def test_simulated_pods_end_as_their_annotation_says(gpu_pool: ControlPlane) -> None:
    """Health, retries and status are tested on these outcomes: they must look like a kubelet's."""
    namespace = gpu_pool.namespace("outcomes")
    gpu_pool.apply(
        [
            job(namespace, "succeed"),
            job(namespace, "fail", outcome="fail", exit_code="7"),
            job(namespace, "evict", outcome="evict"),
            job(namespace, "hang", outcome="hang", duration="1ms"),
            job(namespace, "image-pull", outcome="image-pull"),
            job(namespace, "crash-loop", outcome="crash-loop"),
        ]
    )
    for name, condition in (("succeed", "Complete"), ("fail", "Failed"), ("evict", "Failed")):
        assert ended(gpu_pool, "batch/v1", "Job", name, namespace) == condition

    terminated = state(gpu_pool, namespace, "fail")["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (7, "Error")
    evicted = pod(gpu_pool, namespace, "evict")["status"]
    assert evicted["reason"] == "Evicted"
    assert {"type": "DisruptionTarget", "status": "True"}.items() <= next(
        each for each in evicted["conditions"] if each["type"] == "DisruptionTarget"
    ).items()
    assert "running" in state(gpu_pool, namespace, "hang")
    assert state(gpu_pool, namespace, "image-pull")["waiting"]["reason"] == "ImagePullBackOff"
    assert state(gpu_pool, namespace, "crash-loop")["waiting"]["reason"] == "CrashLoopBackOff"


def test_a_pod_that_mounts_a_claim_is_scheduled(gpu_pool: ControlPlane) -> None:
    """Every pod of ours mounts the project's storage; the scheduler waits until a claim is bound."""
    namespace = gpu_pool.namespace("storage")
    kwok.claim(gpu_pool.api, namespace, "data")
    mounting = job(namespace, "mounts", duration="1ms")
    mounting["spec"]["template"]["spec"]["volumes"] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    ]
    gpu_pool.apply([mounting])
    assert ended(gpu_pool, "batch/v1", "Job", "mounts", namespace) == "Complete"


def test_a_deployment_becomes_available_and_a_deleted_pod_is_gone(gpu_pool: ControlPlane) -> None:
    """A service's pods run for ever, and nothing waits for a kubelet that does not exist."""
    namespace = gpu_pool.namespace("service")
    labels = {"app": "web"}
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        },
    }
    gpu_pool.apply([document("apps/v1", "Deployment", "web", namespace, spec=spec)])

    def available() -> bool:
        status = gpu_pool.api.get("apps/v1", "Deployment", "web", namespace).get("status", {})
        return bool(status.get("availableReplicas") == 2)

    wait_for(available, "two pods of the Deployment")
    gpu_pool.api.delete("apps/v1", "Deployment", "web", namespace)
    wait_for(lambda: not gpu_pool.api.list("v1", "Pod", namespace), "no pod")


def test_argo_passes_the_result_of_one_step_to_the_next(gpu_pool: ControlPlane) -> None:
    """Our Workflows declare the output parameter `result` on every step; later steps and the status read it."""
    namespace = gpu_pool.namespace("argo")
    gpu_pool.service_account(namespace, "workflow", controllers.EXECUTOR_RULES)
    first = step("extract", result='{"rows": 3}', duration="200ms")
    second = step("fit", duration="200ms", inputs=["rows"])
    tasks = [
        {"name": "extract", "template": "extract"},
        {
            "name": "fit",
            "template": "fit",
            "depends": "extract",
            "arguments": {
                "parameters": [{"name": "rows", "value": "{{tasks.extract.outputs.parameters.result}}"}]
            },
        },
    ]
    main = {"name": "main", "dag": {"tasks": tasks}}
    gpu_pool.apply([workflow(namespace, "train", main, first, second)])
    assert ended(gpu_pool, ARGO, "Workflow", "train", namespace) == "Succeeded"
    nodes = gpu_pool.api.get(ARGO, "Workflow", "train", namespace)["status"]["nodes"].values()
    inputs = {node["displayName"]: node.get("inputs") for node in nodes}
    assert inputs["fit"] == {"parameters": [{"name": "rows", "value": '{"rows": 3}'}]}


def test_argo_reports_the_exit_code_of_a_failed_step(gpu_pool: ControlPlane) -> None:
    """The status of a run names the exit code."""
    namespace = gpu_pool.namespace("argo-fails")
    gpu_pool.service_account(namespace, "workflow", controllers.EXECUTOR_RULES)
    failing = step("main", outcome="fail", exit_code="7")
    gpu_pool.apply([workflow(namespace, "train", failing)])
    assert ended(gpu_pool, ARGO, "Workflow", "train", namespace) == "Failed"
    status = gpu_pool.api.get(ARGO, "Workflow", "train", namespace)["status"]
    assert status["message"] == "main: Error (exit code 7)"


def test_kueue_admits_within_the_quota_and_says_why_it_does_not(gpu_pool: ControlPlane) -> None:
    """Queue-managed runs are created suspended: only Kueue may start them, and its reason is what status shows."""
    namespace = gpu_pool.namespace("kueue")
    gpu_pool.apply([*queue(namespace, "quota", gpus=8)])
    gpu_pool.apply(
        [job(namespace, "fits", queue="quota", gpus=8), job(namespace, "big", queue="quota", gpus=16)]
    )
    assert ended(gpu_pool, "batch/v1", "Job", "fits", namespace) == "Complete"
    assert pod(gpu_pool, namespace, "fits")["spec"]["nodeName"].startswith("gpu-node-")
    reason = wait_for(lambda: pending(gpu_pool, namespace, "big"), "the reason of the pending Job")
    assert "insufficient quota for nvidia.com/gpu in flavor quota" in str(reason)
    assert gpu_pool.api.get("batch/v1", "Job", "big", namespace)["spec"]["suspend"] is True


def test_kueue_gates_the_pods_of_a_workflow(gpu_pool: ControlPlane) -> None:
    """Argo knows nothing of Kueue: its webhook on pods is what shares the GPUs with Workflows."""
    namespace = gpu_pool.namespace("kueue-pods")
    gpu_pool.apply([*queue(namespace, "gated", gpus=8)])
    gpu_pool.service_account(namespace, "workflow", controllers.EXECUTOR_RULES)
    main = step("main", gpus=8)
    main["metadata"]["labels"] = {QUEUE: "gated"}
    gpu_pool.apply([workflow(namespace, "train", main)])
    assert ended(gpu_pool, ARGO, "Workflow", "train", namespace) == "Succeeded"
    (workload,) = gpu_pool.api.list(KUEUE, "Workload", namespace)
    assert workload["status"]["admission"]["clusterQueue"] == "gated"


def test_kueue_preempts_a_borrower_and_runs_it_again(gpu_pool: ControlPlane) -> None:
    """Teams lend their idle GPUs because they get them back: the borrower's pods end and it is queued again."""
    namespace = gpu_pool.namespace("borrow")
    gpu_pool.apply([document(KUEUE, "Cohort", "teams")])
    gpu_pool.apply([*queue(namespace, "owner", gpus=8, cohort="teams")])
    gpu_pool.apply([*queue(namespace, "guest", gpus=8, cohort="teams")])
    gpu_pool.apply([job(namespace, "borrows", queue="guest", gpus=16, duration="3s")])
    wait_for(lambda: running(gpu_pool, namespace, "borrows") == 2, "the borrower on all 16 GPUs")
    gpu_pool.apply([job(namespace, "owns", queue="owner", gpus=8)])
    assert ended(gpu_pool, "batch/v1", "Job", "owns", namespace) == "Complete"
    assert gpu_pool.api.get("batch/v1", "Job", "borrows", namespace)["status"].get("succeeded") is None
    assert ended(gpu_pool, "batch/v1", "Job", "borrows", namespace) == "Complete"


def processes_with(folder: Path) -> list[int]:
    """The processes that name `folder` in their command line: the servers of a bed in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def job(namespace: str, name: str, *, queue: str | None = None, gpus: int = 0, **simulation: str) -> Document:
    """A Job of one pod, or of one pod per 8 GPUs; suspended when it belongs to a queue."""
    pods = max(1, gpus // 8)
    return document(
        "batch/v1",
        "Job",
        name,
        namespace,
        metadata={"labels": {QUEUE: queue}} if queue else {},
        spec={
            "suspend": queue is not None,
            "parallelism": pods,
            "completions": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"annotations": simulated(simulation)},
                "spec": {"restartPolicy": "Never", "containers": [container(gpus // pods)]},
            },
        },
    )


def step(name: str, *, gpus: int = 0, inputs: list[str] | None = None, **simulation: str) -> dict[str, Any]:
    """A template of a Workflow with the output parameter `result`, as our compiler emits it."""
    return {
        "name": name,
        "metadata": {"annotations": simulated(simulation)},
        "inputs": {"parameters": [{"name": each} for each in inputs or ()]},
        "outputs": {"parameters": [{"name": "result", "valueFrom": {"path": "/tmp/result.json"}}]},
        "container": {**container(gpus), "command": ["step"]},
        **({"tolerations": [{"operator": "Exists"}]} if gpus else {}),
    }


def workflow(namespace: str, name: str, *templates: dict[str, Any]) -> Document:
    """A Workflow whose entry is the first of `templates`."""
    entry = templates[0]["name"]
    spec = {"entrypoint": entry, "serviceAccountName": "workflow", "templates": list(templates)}
    return document(ARGO, "Workflow", name, namespace, spec=spec)


def queue(namespace: str, name: str, *, gpus: int, cohort: str | None = None) -> list[Document]:
    """Quota for `gpus` GPUs: a flavor (one for a cohort), a ClusterQueue and a LocalQueue of the same name."""
    flavor = cohort or name
    quotas = {"cpu": "64", "memory": "512Gi", kwok.GPU: str(gpus)}
    return [
        document(
            KUEUE,
            "ResourceFlavor",
            flavor,
            spec={
                "nodeLabels": {f"{kwok.GPU}.product": kwok.GPU_PRODUCT},
                "tolerations": [{"key": kwok.GPU, "operator": "Exists", "effect": "NoSchedule"}],
            },
        ),
        document(
            KUEUE,
            "ClusterQueue",
            name,
            spec={
                **({"cohortName": cohort, "preemption": {"reclaimWithinCohort": "Any"}} if cohort else {}),
                "namespaceSelector": {},
                "resourceGroups": [
                    {
                        "coveredResources": list(quotas),
                        "flavors": [
                            {
                                "name": flavor,
                                "resources": [
                                    {"name": resource, "nominalQuota": quota}
                                    for resource, quota in quotas.items()
                                ],
                            }
                        ],
                    }
                ],
            },
        ),
        document(KUEUE, "LocalQueue", name, namespace, spec={"clusterQueue": name}),
    ]


def container(gpus: int) -> dict[str, Any]:
    wanted = {"cpu": "1", "memory": "1Gi", **({kwok.GPU: str(gpus)} if gpus else {})}
    return {"name": "main", "image": "train", "resources": {"requests": wanted, "limits": wanted}}


def simulated(simulation: dict[str, str]) -> dict[str, str]:
    return {f"sim.mlspec.dev/{name.replace('_', '-')}": value for name, value in simulation.items()}


def ended(plane: ControlPlane, api_version: str, kind: str, name: str, namespace: str) -> str:
    """How it ended: the final condition of a Job, the phase of a Workflow."""

    def final() -> str | None:
        status = plane.api.get(api_version, kind, name, namespace).get("status", {})
        if kind == "Workflow":
            phase: str = status.get("phase", "")
            return phase if phase in ("Succeeded", "Failed", "Error") else None
        conditions = [each["type"] for each in status.get("conditions", []) if each["status"] == "True"]
        return next((each for each in conditions if each in ("Complete", "Failed")), None)

    return wait_for(final, f"the end of {kind} {name}") or ""


def pod(plane: ControlPlane, namespace: str, name: str) -> Document:
    """The one pod of a Job."""
    (found,) = plane.api.list("v1", "Pod", namespace, labelSelector=f"batch.kubernetes.io/job-name={name}")
    return found


def state(plane: ControlPlane, namespace: str, name: str) -> dict[str, Any]:
    """The state of the first container of a Job's pod, when a kubelet has reported one."""

    def reported() -> dict[str, Any] | None:
        statuses = pod(plane, namespace, name)["status"].get("containerStatuses") or [{}]
        found: dict[str, Any] | None = statuses[0].get("state")
        return found

    return wait_for(reported, f"a container of {name}") or {}


def running(plane: ControlPlane, namespace: str, name: str) -> int:
    """How many pods of a Job run."""
    pods = plane.api.list("v1", "Pod", namespace, labelSelector=f"batch.kubernetes.io/job-name={name}")
    return sum(each["status"].get("phase") == "Running" for each in pods)


def pending(plane: ControlPlane, namespace: str, name: str) -> str | None:
    """Why Kueue does not admit a Job."""
    for workload in plane.api.list(KUEUE, "Workload", namespace):
        if workload["metadata"]["ownerReferences"][0]["name"] == name:
            for condition in workload.get("status", {}).get("conditions", []):
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    message: str = condition["message"]
                    return message
    return None
