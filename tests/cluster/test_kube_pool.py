"""Two teams and 16 GPUs: quota, borrowing, preemption and the sentences of `mlspec status`, with real Kueue and real Argo.

Nodes and the ends of pods are simulated; every object is made by the commands from specs, as people write them. The teams are
two ResourcePools of one cohort, 8 GPUs each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed import kwok, simulation
from cluster.bed.api import Document
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import wait_for
from cluster.shop import API, Done
from health import record
from mlspec_reconciler import cli, workspace

PRODUCT = "NVIDIA-A100-SXM4-80GB"
CODE = """\
def rows():
    return [{"number": 1}]


def train(train, depth=1):
    return None
"""
NODES = {f"{kwok.GPU}.product": PRODUCT}
RESERVED = [{"key": "team", "value": "robots", "effect": "NoSchedule"}]
RUNS = {"job": ("batch/v1", "Job"), "workflow": ("argoproj.io/v1alpha1", "Workflow")}


@dataclass
class Teams:
    """A repository whose training jobs run in the pools of two teams, `vision` and `language`."""

    root: Path
    plane: ControlPlane
    namespace: str
    engine: str = "job"
    project: str = "research"
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Spec of each training job beside its data and function."""
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> None:
        for old in self.root.glob("*.yaml"):
            old.unlink()
        target = {"kubernetes": {"namespace": self.namespace, "image": "registry.example/runtime:1"}}
        self._file(
            "project", "Project", self.project, {"targets": {"gpus": target | {"storage": "pvc://data"}}}
        )
        self._file("numbers", "Dataset", "numbers", {"source": {"function": "steps.py:rows"}})
        for team, spec in self.pools.items():
            self._file(team, "ResourcePool", team, spec)
        data = {
            name: {"dataset": "numbers", "label": "number", "share": share}
            for name, share in (("train", [0, 0.8]), ("test", [0.8, 1]))
        }
        for name, spec in self.jobs.items():
            common = {"function": {"code": "steps.py:train"}, "data": data, "engine": {self.engine: {}}}
            self._file(name, "TrainingJob", name, common | spec)
        (self.root / "steps.py").write_text(CODE)

    def _file(self, file: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        document = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
        (self.root / f"{file}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def train(self, name: str, team: str | None, gpu: int = 8, **resources: Any) -> None:
        """Declare a training job of a team."""
        pool = {"pool": team} if team else {}
        self.jobs[name] = {"resources": {"gpu": gpu, **pool, **resources}}

    def wish(self, **outcomes: str) -> None:
        """How the training pods of these jobs end: `hang` until they are released, `fail`, ..."""
        wishes = {f"{name}.train.outcome": outcome for name, outcome in outcomes.items()}
        simulation.wish(self.plane.api, self.namespace, wishes)

    def mlspec(self, *arguments: str) -> Done:
        """`mlspec ARGUMENTS` in the folder of the repository."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
        return Done(code, out.getvalue(), err.getvalue())

    def apply_until(self, what: str, check: Callable[[], Any]) -> float:
        """Apply as a person does who looks again and again; seconds until `check` holds."""
        self.write()
        started = time.monotonic()
        done = self.mlspec("apply", "--yes", "--timeout", "0")
        while not check():
            if time.monotonic() > started + 60 or "error[" in done.err:
                raise AssertionError((what, done.text, self.mlspec("status").text))
            time.sleep(0.1)
            done = self.mlspec("apply", "--yes", "--timeout", "0")
        return time.monotonic() - started

    def status(self) -> dict[str, str]:
        """What `mlspec status` says, by the name of the resource: the word and the sentence."""
        done = self.mlspec("status", "--output", "json")
        rows = json.loads(done.out)["resources"]
        return {row["resource"].partition("/")[2]: f"{row['word']}: {row['sentence']}" for row in rows}

    def says(self, name: str, pattern: str) -> str:
        """The sentence of a resource, when it is like `pattern`; it must come within half a minute."""

        def found() -> str | None:
            sentence = self.status().get(name, "")
            return sentence if re.search(pattern, sentence) else None

        try:
            return wait_for(found, f"{name} to say {pattern}", every=0.2) or ""
        except TimeoutError:
            raise AssertionError(self.mlspec("status").text) from None

    def record(self, name: str, verdict: str) -> None:
        """With MLSPEC_RECORD write a case of `tests/health` from an object as it is now: that of the one run of a job, or
        the queue of a pool."""
        if not os.environ.get("MLSPEC_RECORD"):
            return
        connected = workspace.connect(self.root, None)
        assert connected is not None
        objects = [
            one for one in connected.cluster.list() if one.key.kind in ("ClusterQueue", RUNS[self.engine][1])
        ]
        [live] = [one for one in objects if re.fullmatch(rf"{name}(-[0-9a-f]{{8}})?", one.key.name)]
        record.write(live, verdict)

    def training(self, name: str) -> bool:
        """Whether a job trains now: its pod runs, and Argo has seen that."""
        label = f"mlspec.dev/name={name}"
        pods = self.plane.api.list("v1", "Pod", self.namespace, labelSelector=label)
        seen = self.engine == "job" or any(
            node["phase"] == "Running" and node["type"] == "Pod" and node["templateName"] == "train"
            for one in self.plane.api.list(*RUNS[self.engine], self.namespace, labelSelector=label)
            for node in one.get("status", {}).get("nodes", {}).values()
        )
        return seen and any(_trains(pod) for pod in pods)

    def release(self, *names: str) -> None:
        """Let the training of these jobs succeed, as soon as it runs."""
        simulation.wish(self.plane.api, self.namespace, {"nobody.outcome": "hang"})
        for name in names:
            simulation.release(self.plane.api, self.namespace, name)

    def runs(self) -> list[Document]:
        """The run objects of the training jobs."""
        version, kind = RUNS[self.engine]
        found = self.plane.api.list(
            version, kind, self.namespace, labelSelector="mlspec.dev/kind=TrainingJob"
        )
        return sorted(found, key=lambda one: str(one["metadata"]["name"]))

    def successes(self, one: Document) -> int:
        """How many times the training of a run object has succeeded."""
        if self.engine == "workflow":
            nodes = one["status"].get("nodes", {}).values()
            pods = [each for each in nodes if each["type"] == "Pod" and each["templateName"] == "train"]
            return sum(each["phase"] == "Succeeded" for each in pods)
        selector = f"batch.kubernetes.io/job-name={one['metadata']['name']}"
        pods = self.plane.api.list("v1", "Pod", self.namespace, labelSelector=selector)
        return sum(each["status"]["phase"] == "Succeeded" for each in pods)


def _trains(pod: Document) -> bool:
    hangs = (pod["metadata"].get("annotations") or {}).get("sim.mlspec.dev/outcome") == "hang"
    return hangs and pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]


@pytest.fixture(scope="module")
def gpus(gpu_pool: ControlPlane) -> Iterator[ControlPlane]:
    """16 GPUs that no other test uses."""
    names = kwok.gpu_nodes(gpu_pool.api, 2, product=PRODUCT, name="teams")
    simulation.install(gpu_pool.api)
    yield gpu_pool
    for name in names:
        gpu_pool.api.delete("v1", "Node", name)


@pytest.fixture
def teams(
    gpus: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Teams]:
    """Two teams with 8 GPUs each, which they lend each other."""
    monkeypatch.setenv("KUBECONFIG", str(gpus.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = project(gpus, tmp_path / "research", "research")
    found.engine = getattr(request, "param", "job")
    for team in ("vision", "language"):
        found.pools[team] = pool(found.namespace)
    yield found
    assert "Removed" in found.mlspec("destroy", "--yes").out


def project(plane: ControlPlane, root: Path, name: str) -> Teams:
    """An empty repository and its namespace, with storage."""
    namespace = plane.namespace("teams")
    kwok.claim(plane.api, namespace, "data")
    root.mkdir()
    return Teams(root, plane, namespace, project=name)


def pool(of: str) -> dict[str, Any]:
    """Half of the 16 GPUs, in the cohort of the test whose namespace is `of`."""
    quota = {kwok.GPU: {"nominal": 8, "borrow": 8}}
    return {"cohort": f"teams-{of}", "flavors": [{"name": f"a100-{of}", "nodeLabels": NODES, "quota": quota}]}


@pytest.mark.parametrize("teams", ["job", "workflow"], indirect=True)
def test_what_was_lent_is_taken_back_and_the_borrower_finishes_later(teams: Teams) -> None:
    """Teams lend idle GPUs only because they get them back at once, and borrow only because nothing is lost by it."""
    teams.wish(detector="hang", segmenter="hang", translator="hang")
    teams.train("detector", "vision")
    teams.train("segmenter", "vision")
    teams.apply_until("both of vision's", lambda: teams.training("detector") and teams.training("segmenter"))
    flavor = f"a100-{teams.namespace}"
    usage = f"ok: 16 nvidia.com/gpu of {flavor} in use (quota 8, 8 borrowed); 2 admitted, 0 waiting"
    teams.says("vision", re.escape(usage))
    teams.record(f"{teams.namespace}-vision", "ready_borrows")

    before = {one["metadata"]["name"]: one for one in teams.runs()}
    teams.train("translator", "language")
    reclaimed = teams.apply_until("the owner's run", lambda: teams.training("translator"))
    print(f"the owner trains after {reclaimed:.1f} s")

    [kept] = [name for name in ("detector", "segmenter") if teams.training(name)]
    stopped = "segmenter" if kept == "detector" else "detector"
    quota = f"waits for quota in pool vision: 8 more nvidia.com/gpu of {flavor} must become free"
    why = "stopped because pool language took back what it had lent; "
    if (
        teams.engine == "workflow"
    ):  # Kueue forgets its reason with the pod, and Argo makes a pod anew that had just started
        why = "(train was stopped; )?"
    teams.says(stopped, f"^waits: {stopped}-[0-9a-f]+: {why}{re.escape(quota)}$")
    teams.record(stopped, "waiting_what_was_lent_is_taken_back")
    print(teams.mlspec("status").out)

    # Kueue has rewritten the run objects by now: suspend, node selectors, tolerations, labels, gates.
    assert teams.mlspec("plan", "--detailed-exitcode").code == 0
    now = {one["metadata"]["name"]: one for one in teams.runs()}
    teams.mlspec("apply", "--yes", "--timeout", "0")
    after = {one["metadata"]["name"]: one for one in teams.runs()}
    for name, one in before.items():
        assert after[name]["metadata"]["uid"] == one["metadata"]["uid"]
        assert after[name]["spec"].get("suspend") == now[name]["spec"].get("suspend")
        assert after[name]["metadata"]["generation"] == now[name]["metadata"]["generation"]
        [created] = _written(one)
        assert _written(after[name]) == [created], "written once, by the create"

    started = time.monotonic()
    teams.release(kept, "translator")
    teams.apply_until("the borrower again", lambda: _succeeded(teams, stopped))
    print(f"the borrower has finished {time.monotonic() - started:.1f} s after the owner could")
    teams.apply_until("all", lambda: teams.mlspec("plan", "--detailed-exitcode").code == 0)
    for name in ("detector", "segmenter", "translator"):
        assert teams.status()[name].startswith(f"ok: serves {name}-")
    assert {one["metadata"]["uid"] for one in teams.runs()} >= {
        one["metadata"]["uid"] for one in before.values()
    }
    assert [teams.successes(one) for one in teams.runs()] == [1, 1, 1]
    ledger = json.loads(teams.mlspec("runs", "--output", "json").out)["runs"]
    names = [one["metadata"]["name"] for one in teams.runs()]
    assert (
        sorted(row["run"] for row in ledger if row["phase"] == "succeeded" and row["run"] in names) == names
    )


def _written(one: Document) -> list[Document]:
    """What the managed fields say of our writes."""
    return [each for each in one["metadata"]["managedFields"] if each["manager"].startswith("mlspec")]


def _succeeded(teams: Teams, name: str) -> bool:
    teams.release(name)
    return teams.status()[name].startswith("ok")


def test_status_says_why_a_run_waits_and_what_to_do(teams: Teams) -> None:
    """Why something does not run is the first question of everybody who shares GPUs."""
    flavor, priority = f"other-{teams.namespace}", f"high-{teams.namespace}"
    quota = {"flavors": [{"name": flavor, "nodeLabels": NODES, "quota": {kwok.GPU: {"nominal": 18}}}]}
    teams.pools = {"spare": quota | {"priorities": {priority: 100}}}
    kwok.gpu_nodes(teams.plane.api, 1, product="NVIDIA-B200", name="reserved", taints=RESERVED)
    teams.wish(first="hang", urgent="hang", unpullable="image-pull", breaks="fail")
    teams.train("giant", "spare", gpu=16)
    teams.train("elsewhere", None, gpu=1, gpuType="NVIDIA-GB300")
    teams.train("reserved", None, gpu=1, gpuType="NVIDIA-B200")
    teams.train("unpullable", "spare", gpu=1)
    teams.train("breaks", "spare", gpu=1)
    teams.jobs["breaks"]["retries"] = 0
    teams.apply_until("runs", lambda: len(teams.runs()) == 5)
    teams.says(
        "giant",
        r"^waits: giant-\w+: no node takes it: 2 of \d have too little nvidia.com/gpu free \(16 asked for\), "
        r".*\d do not match nvidia.com/gpu.product=\S+; wait, ask for less, or add nodes$",
    )
    teams.record("giant", "waiting_no_node_is_large_enough")
    teams.says("elsewhere", r"no node takes it: .*\d do not match nvidia.com/gpu.product=NVIDIA-GB300; ")
    teams.says("reserved", r"no node takes it: 1 of \d has a taint .* do not match \S+=NVIDIA-B200; if such")
    teams.record("reserved", "waiting_nodes_are_reserved")
    teams.says(
        "unpullable", "the image registry.example/runtime:1 cannot be pulled: the registry does not have it$"
    )
    teams.says("breaks", "^failed: .*train failed with exit code 1")

    # What holds quota without running is found by the pool's line; without the giant there is room.
    teams.says("spare", rf"^ok: 17 nvidia.com/gpu of {flavor} in use \(quota 18\); 2 admitted, 0 waiting$")
    del teams.jobs["giant"], teams.jobs["breaks"]
    teams.train("first", "spare", gpu=8)
    teams.apply_until("the first", lambda: teams.training("first"))
    teams.train("waiting", "spare", gpu=16)
    teams.apply_until("the second", lambda: len(teams.runs()) == 5)
    teams.says(
        "waiting", f"waits for quota in pool spare: 7 more nvidia.com/gpu of {flavor} must become free$"
    )
    teams.train("urgent", "spare", gpu=16, priority=priority)
    teams.apply_until("a stop", lambda: not teams.training("first"))
    teams.says(
        "first",
        "stopped for a run of higher priority; waits for quota in pool spare: 7 more nvidia.com/gpu",
    )
    teams.record("first", "waiting_for_a_run_of_higher_priority")
    print(teams.mlspec("status").out)
    teams.plane.api.delete("v1", "Node", "reserved-1")


def test_projects_share_what_one_of_them_has_made(teams: Teams, tmp_path: Path) -> None:
    """Teams have repositories and namespaces of their own. None may overwrite the flavors of another, and all need them."""
    del teams.pools["language"]
    teams.wish(detector="hang", segmenter="hang")
    teams.write()
    teams.mlspec("apply", "--yes", "--timeout", "0")
    name = f"a100-{teams.namespace}"
    flavor = teams.plane.api.get("kueue.x-k8s.io/v1beta2", "ResourceFlavor", name)

    other = project(teams.plane, tmp_path / "language", "language")
    other.pools["language"] = pool(teams.namespace)
    other.wish(translator="hang")
    other.write()
    refused = other.mlspec("apply", "--yes", "--timeout", "0")
    assert refused.code == 1
    assert f"ResourceFlavor {name} exists already, made by" in refused.text
    assert teams.plane.api.get("kueue.x-k8s.io/v1beta2", "ResourceFlavor", name) == flavor

    other.pools["language"]["existing"] = True
    other.apply_until("a pool", lambda: "0 admitted" in other.status().get("language", ""))
    teams.train("detector", "vision")
    teams.train("segmenter", "vision")
    teams.apply_until("both of vision's", lambda: teams.training("detector") and teams.training("segmenter"))
    other.train("translator", "language")
    other.apply_until("the owner's run", lambda: other.training("translator"))
    [stopped] = [name for name in ("detector", "segmenter") if not teams.training(name)]
    teams.says(
        stopped,
        f"stopped because pool {other.namespace}-language took back what it had lent; waits for quota",
    )
    assert teams.mlspec("plan", "--detailed-exitcode").code == 0
    other.release("translator")
    teams.apply_until("the borrower again", lambda: teams.training(stopped))
    assert "Removed" in other.mlspec("destroy", "--yes").out
