"""What the compiler makes, run by the controllers that it is made for: Argo Workflows, Kueue and Kubernetes' own.

Nodes are simulated (KWOK), everything else is real: which pods are made, how often, what their failures are called. The
namespace enforces Pod Security "restricted", so Argo's own containers have to pass as well.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.bed.api import ApiError
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import wait_for
from mlspec.compile import lower, readings
from mlspec.diagnostics import Mark
from mlspec.engine import Live, Settings
from mlspec.engines import account, kueue
from mlspec.health import Health, State
from mlspec.kinds.project import Target
from mlspec.manifest import Origin
from mlspec.workload import Needs, Pool, Run, RunFact, Service, Step, Workload

SMALL = Needs(cpu=0.5, memory=2.0**28)
FRAMES = Step("frames", "frames", {"data": {}}, SMALL)
TRAIN = Step("train", "train", {"job": "churn", "gates": []}, SMALL)
TARGET = Target.model_validate({"kubernetes": {"namespace": "any"}})
ORIGIN = Origin("TrainingJob/churn", Mark("specs.yaml", 1, 1))
SIMULATED = "sim.mlspec.dev"
QUEUED = "kueue.x-k8s.io/v1beta2"


@dataclass(frozen=True)
class Site:
    """A namespace with an account and a bound claim, as a platform team gives it."""

    plane: ControlPlane
    namespace: str

    def start(self, workload: Workload, **simulated: str) -> dict[str, Any]:
        """Create the objects of a workload; the one that starts pods, whose end is `simulated`."""
        settings = Settings(
            "demo", self.namespace, "registry.example/runtime:1", "demo-runtime", "pvc://claim"
        )
        made = lower(workload, TARGET, settings, ORIGIN)
        assert not isinstance(made, str), made
        if isinstance(workload, Pool):
            made = [*kueue.shared((workload,), settings, ORIGIN), *made]
        annotations = {f"{SIMULATED}/{name.replace('_', '-')}": value for name, value in simulated.items()}
        started: dict[str, Any] = {}
        for manifest in made:
            body = copy.deepcopy(dict(manifest.body))
            if body["kind"] == "Workflow":
                body["spec"]["podMetadata"]["annotations"] = annotations
                started = body
            elif body["kind"] in ("Job", "Deployment"):
                body["spec"]["template"]["metadata"]["annotations"] = annotations
                started = body
            self.plane.apply([body])
        return started

    def look(self, body: Mapping[str, Any]) -> Live:
        """The live object with its pods and Kueue's Workloads."""
        api, name = self.plane.api, body["metadata"]["name"]
        live = api.get(body["apiVersion"], body["kind"], name, self.namespace)
        label = "service" if body["kind"] == "Deployment" else "run"
        pods = api.list("v1", "Pod", self.namespace, labelSelector=f"mlspec.dev/{label}={name}")
        owners = {name, *(pod["metadata"]["name"] for pod in pods)}
        queued = [
            one
            for one in api.list(QUEUED, "Workload", self.namespace)
            if any(owner["name"] in owners for owner in one["metadata"].get("ownerReferences", []))
        ]
        parts = [{"apiVersion": "v1", "kind": "Pod", **one} for one in pods]
        parts += [{"apiVersion": QUEUED, "kind": "Workload", **one} for one in queued]
        return Live(live, live.get("status") or {}, tuple(parts))

    def wait(self, body: Mapping[str, Any], until: Callable[[Health], bool]) -> tuple[Health, RunFact | None]:
        """What is read of the object as soon as its health is as asked for."""
        read = readings("kubernetes")[body["kind"]]
        deadline = time.monotonic() + 60
        while True:
            live = self.look(body)
            health = read.health(live)
            if until(health):
                return health, read.run(live) if read.run else None
            assert time.monotonic() < deadline, (health, read.run(live) if read.run else None)
            time.sleep(0.2)


def _listable(plane: ControlPlane) -> bool:
    """A fresh CRD answers `429: storage is (re)initializing` for a moment."""
    try:
        plane.api.list(QUEUED, "Workload")
    except ApiError as error:
        if error.status != 429:
            raise
        return False
    return True


@pytest.fixture
def site(gpu_pool: ControlPlane) -> Site:
    """A fresh one."""
    wait_for(lambda: _listable(gpu_pool), "Kueue's Workloads")
    namespace = gpu_pool.namespace("engines", security="restricted")
    settings = Settings("demo", namespace, service_account="demo-runtime")
    gpu_pool.apply([dict(one.body) for one in account.objects(settings, ORIGIN)])
    claim = {"namespace": namespace, "name": "claim"}
    size = {"storage": "1Gi"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    gpu_pool.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": f"{namespace}-claim"},
                "spec": {"capacity": size, "hostPath": {"path": "/tmp"}, "claimRef": claim, **common},
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": claim,
                "spec": {"resources": {"requests": size}, **common},
            },
        ]
    )
    return Site(gpu_pool, namespace)


def ended(health: Health) -> bool:
    """Ready or failed."""
    return health.state in (State.READY, State.FAILED)


def pods(site: Site, run: str) -> int:
    """How many attempts there were."""
    return len(site.plane.api.list("v1", "Pod", site.namespace, labelSelector=f"mlspec.dev/run={run}"))


def test_results_of_a_workflow_are_read_by_step(site: Site) -> None:
    """The next resource is lowered from them."""
    result = {"metrics": {"auc": 0.9}}
    steps = (FRAMES, Step("train", "train", {"gates": []}, SMALL, after=("frames",)))
    health, fact = site.wait(site.start(Run("good-1", steps, "t"), result=json.dumps(result)), ended)
    assert health == Health(State.READY, "succeeded")
    assert fact == RunFact("succeeded", {"frames": result, "train": result})


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_a_mistake_of_the_user_runs_once(site: Site, engine: str) -> None:
    """Exit code 2 costs one pod, not four with GPUs."""
    body = site.start(Run("wrong-1", (TRAIN,), "t", engine=engine), outcome="fail", exit_code="2")
    health, fact = site.wait(body, ended)
    assert health == Health(State.FAILED, "train failed with exit code 2")
    assert fact == RunFact("failed", {}, "train failed with exit code 2")
    assert pods(site, "wrong-1") == 1


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_another_failure_is_tried_as_often_as_asked(site: Site, engine: str) -> None:
    """`retries: 1` is two attempts, on every engine."""
    body = site.start(Run("flaky-1", (TRAIN,), "t", engine=engine), outcome="fail", exit_code="1")
    health, _ = site.wait(body, ended)
    assert health.sentence == "train failed with exit code 1 in attempt 2"
    assert pods(site, "flaky-1") == 2


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_an_evicted_pod_costs_no_attempt(site: Site, engine: str) -> None:
    """The node was short of memory, the step did nothing wrong."""
    step = Step("train", "train", {}, SMALL, retries=0)
    body = site.start(Run("evicted-1", (step,), "t", engine=engine), outcome="evict", duration="100ms")
    deadline = time.monotonic() + 60
    while pods(site, "evicted-1") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert not ended(readings("kubernetes")[body["kind"]].health(site.look(body)))


@pytest.mark.parametrize("engine", ["workflow", "job"])
def test_a_full_pool_says_how_much_is_missing(site: Site, engine: str) -> None:
    """The first question of every team: why does my run not start?"""
    name = f"pool-{site.namespace}"
    quota = {"nvidia.com/gpu": {"nominal": "4"}}
    site.start(Pool(name, {"flavors": [{"name": name, "quota": quota}]}))
    step = Step("train", "train", {}, Needs(1, 2.0**28, gpu=8, pool=name))
    body = site.start(Run("large-1", (step,), "t", engine=engine))
    health, fact = site.wait(body, lambda health: "is the most" in health.sentence)
    arithmetic = f"it asks for 8 nvidia.com/gpu of {name}, and 4 is the most"
    assert health.state is State.WAITING
    assert health.sentence.startswith(f"waits for quota in pool {name}: {arithmetic}")
    assert fact == RunFact("pending")


def test_an_admitted_job_runs(site: Site) -> None:
    """Kueue takes it out of its suspension; nobody else does."""
    name = f"pool-{site.namespace}"
    quota = {"nvidia.com/gpu": {"nominal": "8", "borrow": "4", "lend": "2"}}
    data = {
        "flavors": [{"name": name, "quota": quota}],
        "cohort": f"all-{name}",
        "priorities": {f"now-{name}": 9},
    }
    site.start(Pool(name, data))
    step = Step("train", "train", {}, Needs(1, 2.0**28, gpu=8, pool=name, priority=f"now-{name}"))
    body = site.start(Run("fits-1", (step,), "t", engine="job"), outcome="hang")
    health, fact = site.wait(body, lambda health: health.state is State.PROGRESSING)
    assert health.sentence == "running"
    assert fact == RunFact("running")


def test_a_service_that_cannot_be_replaced_goes_on_answering(site: Site) -> None:
    """A new version whose image is missing never takes the place of one that works."""
    serve = Step("serve", "serve", {"models": {}}, SMALL)
    body = site.start(Service("churn", serve))
    health, _ = site.wait(body, ended)
    assert health == Health(State.READY, "1 replicas")
    changed = Step("serve", "serve", {"models": {"new": {}}}, SMALL)
    site.start(Service("churn", changed), outcome="image-pull")
    health, _ = site.wait(body, lambda health: health.state is State.DEGRADED)
    said = "the image registry.example/runtime:1 cannot be pulled: the registry does not have it"
    assert health.sentence == f"the new version does not start, the old one answers: {said}"
