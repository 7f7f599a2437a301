"""`apply` of `examples/flights` on a real API server, killed after its writes: nothing is lost, left over or done twice.

Three revisions (create, update, prune), each killed somewhere and started again. By default after each write, with
MLSPEC_LONG=1 after every call. Runs are ended as Argo would (`acting`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster import acting, dying, faults
from cluster.bed import crds
from cluster.bed.api import Document, document
from cluster.bed.controlplane import ControlPlane
from e2e.project import Project
from mlspec.engine import Live
from mlspec.engines import argo
from mlspec.manifest import Key
from mlspec_reconciler import apply, inventory
from mlspec_reconciler.clusters.kube.cluster import KubeCluster
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.drivers.once import reconcile
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import Consent, Observation
from mlspec_reconciler.workspace import open_project, stage
from stepping import look

LONG = bool(os.environ.get("MLSPEC_LONG"))
KILLED = {"create": (7, 14, 21, 28), "update": (3, 7), "prune": (2, 4)}
"""Writes after which real processes are killed, one after the other."""
AT_ONCE = 3
PATIENCE = 90.0
KINDS = (
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("apps/v1", "Deployment"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("argoproj.io/v1alpha1", "Workflow"),
    ("argoproj.io/v1alpha1", "CronWorkflow"),
)
OURS = {
    "app.kubernetes.io/managed-by": "mlspec",
    "mlspec.dev/project": "flights",
    "mlspec.dev/kind": "ServingGraph",
    "mlspec.dev/name": "late-arrival",
}
PHASES = ("create", "update", "prune")


class Settled(Exception):
    """Every run has ended, and a round found nothing to write."""


@dataclass
class Flights:
    """A copy of the example, in a namespace with objects of others that look like ours."""

    plane: ControlPlane
    folder: Path
    namespace: str
    made: Counter[str] = field(default_factory=Counter)
    """What was made in the namespace, by all processes."""

    def __post_init__(self) -> None:
        self.project = Project("flights", self.folder)
        self.project.edit("project.yaml", "namespace: flights", f"namespace: {self.namespace}")
        (self.folder / "demo.py").unlink()
        self.theirs = {
            (one["kind"], one["metadata"]["name"]): one
            for one in self.plane.apply(_look_alikes(self.namespace))
        }

    def revise(self, phase: str) -> None:
        """Edit the specs."""
        match phase:
            case "update":
                self.project.edit("model.yaml", "trees: 100", "trees: 101")
                self.project.edit("model.yaml", "max: 4", "max: 5")
            case "prune":
                specs = (self.folder / "model.yaml").read_text().split("---\n")
                (self.folder / "model.yaml").write_text(specs[0])

    def connect(self, life: dying.Life) -> KubeCluster:
        """As a command connects; waiting for a change ends all runs."""
        transport = life.watch_over(Transport.open(None, kubeconfig=self.plane.kubeconfig))
        discovery = Discovery(transport, self.folder.parent / "discovery")
        target = open_project(self.folder, "prod").wanted
        assert target is not None
        assert target.target.kubernetes is not None
        cluster = KubeCluster(transport, discovery, target.target.kubernetes, "flights")

        def watch(timeout: float) -> Iterator[Key]:
            acting.end_runs(self.plane.api, self.namespace)
            return iter(())

        cluster.watch = watch  # type: ignore[method-assign]
        return cluster

    def apply(self, life: dying.Life) -> bool:
        """As `mlspec apply --yes`, until nothing moves but pods; False when it was killed."""
        cluster = self.connect(life)
        project = open_project(self.folder, "prod")
        assert project.wanted is not None

        def report(seen: Observation, outcomes: list[apply.Outcome]) -> None:
            assert not [one.error for one in outcomes if one.error]
            runs = [one for one in seen.objects if one.key.kind == "Workflow"]
            if not outcomes and all(_ended(one.body) for one in runs):
                raise Settled

        try:
            look(project.wanted, cluster, ask=True)
            wanted = stage(project, cluster)
            until = time.monotonic() + PATIENCE
            reconcile(
                wanted, cluster, cluster.state, project.workspace.lock, report, Consent(), deadline=until
            )
        except Settled:
            return True
        except dying.Killed:
            return False
        finally:
            self.made += life.made
            cluster.close()
        raise AssertionError(f"has not settled after {PATIENCE} s")

    def objects(self) -> dict[tuple[str, str], Document]:
        """Everything with our label."""
        return {
            (kind, one["metadata"]["name"]): one
            for version, kind in KINDS
            for one in self.plane.api.list(
                version, kind, self.namespace, labelSelector="mlspec.dev/project=flights"
            )
        }

    def state(self) -> dict[tuple[str, str], str]:
        """What is there of ours, without what differs between two namespaces."""
        theirs = self.theirs
        return {
            name: _essence(one, self.namespace) for name, one in self.objects().items() if name not in theirs
        }

    def held(self) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """The objects of the inventory, and those of them that stay until their resource goes."""
        cluster = self.connect(dying.Life())
        try:
            entries = inventory.read(Session.open(cluster.state, "test"), cluster.identity).entries.values()
        finally:
            cluster.close()
        held = {(key.kind, key.name) for entry in entries for key in entry.objects}
        return held, {(key.kind, key.name) for entry in entries for key in entry.kept}

    def judge(self, *, done: bool) -> list[str]:
        """What is wrong now."""
        wrong = []
        live = self.objects().keys() - self.theirs.keys()
        held, kept = self.held()
        if orphans := live - held:
            wrong.append(f"orphans: {sorted(orphans)}")
        # What was announced and never made may still come while nobody knows how its maker ended: it stays announced.
        if done and (missing := held - live - kept):
            wrong.append(f"not there: {sorted(missing)}")
        for (kind, name), before in self.theirs.items():
            now = self.plane.api.find(before["apiVersion"], kind, name, self.namespace)
            if now is None or _edited(now) != _edited(before):
                wrong.append(
                    f"{kind} {name} of somebody else {'was deleted' if now is None else 'was changed'}"
                )
        twice = {name: count for name, count in self.made.items() if count > 1}
        if twice:
            wrong.append(f"made twice: {twice}")
        return wrong


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    crds.install(control_plane.api, "argo")
    return control_plane


@dataclass(frozen=True)
class Smooth:
    """An apply that nobody disturbs: what is there after each phase, and how many calls it took."""

    states: Mapping[str, Mapping[tuple[str, str], str]]
    calls: Mapping[str, int]
    writes: Mapping[str, int]


@pytest.fixture(scope="module")
def smooth(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Smooth:
    folder = tmp_path_factory.mktemp("smooth")
    flights = Flights(plane, folder / "flights", plane.namespace("crash"))
    states, calls, writes = {}, {}, {}
    for phase in PHASES:
        flights.revise(phase)
        life = dying.Life()
        assert flights.apply(life)
        assert flights.judge(done=True) == []
        states[phase], calls[phase], writes[phase] = flights.state(), life.calls, life.writes
    created = {name for kind, name in states["create"] if kind == "Workflow"}
    assert len(created) >= 6, "materialisations and a training"
    assert ("Deployment", "late-arrival") in states["update"]
    assert ("Deployment", "late-arrival") not in states["prune"]
    return Smooth(states, calls, writes)


class Cell:
    """One namespace through all phases, each killed at a place of its own and started again."""

    def __init__(self, plane: ControlPlane, folder: Path, smooth: Smooth, number: int) -> None:
        self.flights = Flights(plane, folder / "flights", plane.namespace("crash"))
        self.smooth = smooth
        self.number = number
        self.kills = 0
        self.wrong: list[str] = []

    def run(self) -> Cell:
        """All phases; what is wrong stands in `wrong`."""
        for phase in PHASES:
            self.flights.revise(phase)
            life = dying.Life(left=self.number, every_call=LONG)
            if not self.flights.apply(life):
                self.kills += 1
                self._expect(phase, "killed", self.flights.judge(done=False))
                assert self.flights.apply(dying.Life())
            self._expect(phase, "done", self.flights.judge(done=True))
            self._expect(phase, "done", _differences(self.smooth.states[phase], self.flights.state()))
        return self

    def _expect(self, phase: str, when: str, wrong: list[str]) -> None:
        self.wrong += [f"{phase} after {self.number}, {when}: {words}" for words in wrong]


def test_an_apply_that_is_killed_anywhere_is_finished_by_the_next(
    plane: ControlPlane, tmp_path: Path, smooth: Smooth
) -> None:
    """Pipelines are cancelled, laptops are closed: the next apply must find its way from any state."""
    most = max((smooth.calls if LONG else smooth.writes).values())
    begun = time.monotonic()

    def run(number: int) -> Cell:
        folder = tmp_path / str(number)
        folder.mkdir()
        return Cell(plane, folder, smooth, number).run()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        cells = [*pool.map(run, range(1, most + 1))]
    kills, seconds = sum(cell.kills for cell in cells), time.monotonic() - begun
    print(
        f"calls {smooth.calls}, writes {smooth.writes}; {kills} kills in {len(cells)} cells, {seconds:.0f} s"
    )
    assert kills > len(cells)
    assert [words for cell in cells for words in cell.wrong] == []


def test_a_process_that_is_really_killed_leaves_the_same(
    plane: ControlPlane, tmp_path: Path, smooth: Smooth
) -> None:
    """SIGKILL, with everything that a process holds: threads, watches, the lock of the workspace."""
    flights = Flights(plane, tmp_path / "flights", plane.namespace("crash"))
    kills = 0
    with faults.Proxy(plane.url) as proxy:
        kubeconfig = proxy.kubeconfig(tmp_path, plane.admin_token)
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        for phase in PHASES:
            flights.revise(phase)
            with acting.ending_runs(plane.api, flights.namespace):
                for writes in KILLED[phase]:
                    program = [sys.executable, str(Path(dying.__file__)), str(writes)]
                    arguments = ["apply", "--yes", "--allow-deletes", "--target", "prod", "--timeout", "4"]
                    done = subprocess.run(
                        [*program, *arguments],
                        cwd=flights.folder,
                        env=environment,
                        capture_output=True,
                        text=True,
                        timeout=120,
                    )
                    late = done.returncode == 0 or "Not done after" in done.stderr
                    assert done.returncode == -9 or late, done.stdout + done.stderr
                    kills += done.returncode == -9
                    assert flights.judge(done=False) == []
                    if done.returncode != -9:
                        break
            assert flights.apply(dying.Life())
            assert flights.judge(done=True) == []
            assert _differences(_used(smooth.states[phase]), _used(flights.state())) == []
        made = Counter(
            json.loads(body)["metadata"]["name"]
            for verb, path, status, body in proxy.done
            if verb == "POST" and status == 201 and "/workflows" in path and "dryRun" not in path
        )
    print(f"{kills} processes killed; {sum(made.values())} runs created")
    assert max(made.values()) == 1
    assert kills >= len(PHASES)


def _ended(workflow: Mapping[str, Any]) -> bool:
    fact = argo.workflow_run(Live(workflow, workflow.get("status") or {}))
    return fact.phase in ("succeeded", "failed")


def _look_alikes(namespace: str) -> list[Document]:
    """Objects that look like ours and are not: by name, by label, and with the marks of a copy."""
    marks = {"mlspec.dev/digest": "0" * 64, "mlspec.dev/resource": "ServingGraph/late-arrival"}
    copied: Document = {"labels": OURS, "annotations": marks}
    pod = {
        "metadata": {"labels": {"app": "canary"}},
        "spec": {"containers": [{"name": "main", "image": "canary:1"}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "canary"}}, "template": pod}
    run = {"entrypoint": "main", "templates": [{"name": "main", "container": {"image": "x:1"}}]}
    ended = {"phase": "Succeeded", "nodes": {}}
    argo_version = "argoproj.io/v1alpha1"
    return [
        document("v1", "ConfigMap", "late-arrival", namespace, data={"theirs": "1"}),
        document("v1", "ConfigMap", "late-arrival-notes", namespace, metadata={"labels": OURS}, data={}),
        document("v1", "ConfigMap", "model-late-arrival-copy", namespace, metadata=copied, data={"a": "b"}),
        document("v1", "ConfigMap", "mlspec-flights-inventory-old", namespace, data={"document": "x"}),
        document("apps/v1", "Deployment", "late-arrival-canary", namespace, metadata=copied, spec=spec),
        document(
            argo_version, "Workflow", "late-arrival-0000", namespace, metadata=copied, spec=run, status=ended
        ),
    ]


def _edited(live: Document) -> Any:
    """What people and appliers have written."""
    metadata = {name: live["metadata"].get(name) for name in ("uid", "labels")}
    notes = live["metadata"].get("annotations") or {}
    kept = {name: value for name, value in notes.items() if not name.startswith("deployment.kubernetes.io/")}
    owners = [one["manager"] for one in live["metadata"]["managedFields"] if not one.get("subresource")]
    body = {name: value for name, value in live.items() if name not in ("metadata", "status")}
    return body, metadata, kept, [one for one in owners if one != "kube-controller-manager"]


def _essence(live: Document, namespace: str) -> str:
    """As text, without identities, times and what controllers report; the namespace has the same name in all."""
    metadata = live["metadata"]
    mine = [
        {name: value for name, value in one.items() if name != "time"}
        for one in metadata["managedFields"]
        if one["manager"].startswith("mlspec")
    ]
    kept = {name: metadata.get(name) for name in ("name", "labels", "annotations", "finalizers")}
    spec = {name: value for name, value in live.items() if name not in ("metadata", "status")}
    if "clusterIP" in spec.get("spec", {}):
        spec = {**spec, "spec": {**spec["spec"], "clusterIP": "", "clusterIPs": []}}
    text = json.dumps([spec, kept, mine], sort_keys=True)
    text = re.sub(r'("mlspec.dev/digest": )"\w*"', r"\1 DIGEST", text)  # of a body with its namespace
    text = re.sub(
        r'("deployment.kubernetes.io/revision": )"\d*"', r"\1 COUNT", text
    )  # of rollouts on the way
    return re.sub(rf"\b{namespace}\b", "NAMESPACE", text)


def _used(state: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """Without task documents that no pod reads: which of them come in between depends on when a run ends."""
    return {
        name: text
        for name, text in state.items()
        if '"immutable": true' not in text
        or any(name[1] in other for one, other in state.items() if one != name)
    }


def _differences(wanted: Mapping[tuple[str, str], str], found: Mapping[tuple[str, str], str]) -> list[str]:
    return [
        f"{name} is {'missing' if name not in found else 'too much' if name not in wanted else 'different'}: "
        f"{wanted.get(name)} -> {found.get(name)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
