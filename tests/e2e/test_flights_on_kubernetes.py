"""The flights example on a real node, by the command and in real pods, from the first file to a second model in service."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.bed import controllers, crds
from cluster.bed.node.node import Node
from cluster.bed.processes import wait_for

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "flights"
GRAPH = "late-arrival"
SHARE = "0.1"


class Story:
    """The project in a folder of its own, and the command in it."""

    def __init__(self, folder: Path, node: Node, namespace: str, claim: str) -> None:
        self.folder, self.node, self.namespace = folder, node, namespace
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".mlspec", "__pycache__"))
        target = f'{{namespace: {namespace}, image: "{node.runtime.name}", imagePullPolicy: Never}}'
        (folder / "project.yaml").write_text(
            "apiVersion: mlspec.dev/v1alpha1\nkind: Project\nmetadata: {name: flights}\nspec:\n  targets:\n"
            f"    laptop: {{local: {{}}}}\n    node: {{kubernetes: {target}, storage: 'pvc://{claim}'}}\n"
        )
        self.edit("resources: {cpu: 2, memory: 2Gi}", "resources: {cpu: 1, memory: 2Gi}")
        self.edit("  scale: {min: 1, max: 4", "  resources: {cpu: 0.25}\n  scale: {min: 1, max: 4")
        self.environment = dict(os.environ) | {"KUBECONFIG": str(node.plane.kubeconfig)}

    def edit(self, old: str, new: str) -> None:
        """Change model.yaml: the node may be as small as two cores."""
        file = self.folder / "model.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    def mlspec(self, *arguments: str, codes: tuple[int, ...] = (0,), show: bool = True) -> str:
        """Run the command; everything that it prints, also into the log of the test."""
        done = subprocess.run(
            [sys.executable, "-m", "mlspec_reconciler.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        if show:
            print(f"$ mlspec {' '.join(arguments)}\n{done.stdout}", flush=True)
        assert done.returncode in codes, done.stdout
        return done.stdout

    def apply(self, target: str, codes: tuple[int, ...] = (0,)) -> str:
        """Make the target equal to the specs."""
        return self.mlspec("apply", "--yes", "--target", target, "--timeout", "600", codes=codes)

    def evaluation(self) -> dict[str, Any]:
        """The newest result of the monitoring policy; empty before the first."""
        status = self.mlspec("status", "--target", "node", "--output", "json", codes=(0, 1), show=False)
        document = json.loads(status)
        return (
            next((one["result"] for one in document["objects"] if one["kind"] == "CronWorkflow"), None) or {}
        )

    def ask(self, url: str, since: str, until: str, *more: str, inside: bool = True) -> dict[str, Any]:
        """Passengers who ask; `inside`: from where a pod stands. Their tally."""
        out = self.folder.parent / f"tally-{time.monotonic_ns()}.json"
        program = [sys.executable, REPOSITORY / "tests" / "e2e" / "passengers.py", EXAMPLE, url]
        arguments = ["--since", since, "--until", until, "--share", SHARE, "--out", out, *more]
        if inside:
            self.node.machine.run(*program, *arguments, timeout=600.0)
        else:
            subprocess.run([*map(str, program), *map(str, arguments)], check=True, timeout=600)
        tally: dict[str, Any] = json.loads(out.read_text())
        return tally

    def everything(self) -> set[str]:
        """Names of all objects in the namespace, but for what Kubernetes writes about them."""
        listed = self.node.plane.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name")
        kinds = sorted(
            {
                name
                for name in listed.split()
                if not name.startswith(("events", "endpoints", "bindings", "pods.metrics"))
            }
        )
        found = self.node.plane.kubectl(
            "get", ",".join(kinds), "--namespace", self.namespace, "--output=name", "--ignore-not-found"
        )
        return set(found.split())


@pytest.fixture
def story(real_node: Node, tmp_path: Path) -> Iterator[Story]:
    """The project on a node with Argo Workflows, in a namespace that takes restricted pods only."""
    crds.install(real_node.plane.api, "argo")
    if "workflow-controller" not in real_node.plane.servers:
        controllers.start_argo(real_node.plane)
    namespace = real_node.plane.namespace("flights", security="restricted")
    claim = real_node.claim(namespace, "storage")
    told = Story(tmp_path / "flights", real_node, namespace, claim)
    yield told
    told.mlspec("destroy", "--yes", "--target", "laptop", codes=(0, 1))


def test_flights_from_the_first_file_to_a_second_model(story: Story) -> None:
    """The promise of the product on Kubernetes: the same specs, plan and commands as on a laptop, in real pods."""
    url = f"http://{GRAPH}.{story.namespace}.svc"
    before = story.everything()

    # Materialise, train as an Argo Workflow, gate, serve as a Deployment; again, and nothing changes.
    first = story.apply("node")
    assert f"{GRAPH} answers at {url}" in first
    assert "Nothing changes on node" in story.apply("node")
    assert "==> late-arrival-" in story.mlspec("logs", f"ServingGraph/{GRAPH}", "--target", "node")

    # The same specs on this machine: the same run, and the same predictions to the last bit.
    story.apply("laptop")
    here = story.mlspec("url", GRAPH, "--target", "laptop").strip()
    in_pods = story.ask(url, "2013-04-01", "2013-04-08")
    on_laptop = story.ask(here, "2013-04-01", "2013-04-08", inside=False)
    assert in_pods["requests"] > 20
    assert in_pods == on_laptop
    [served] = in_pods["runs"]

    # Passengers ask until summer; the monitor, a CronWorkflow, finds the model wanting and asks for a retraining.
    asked = story.ask(url, "2013-04-08", "2013-07-01")
    assert asked["failed"] == 0
    wait_for(
        lambda: bool(story.evaluation().get("triggers")), "a retraining is asked for", timeout=240, every=5
    )
    assert story.evaluation()["performance"], "ground truth was joined"

    # Retrain and roll while passengers go on asking: not one request fails, and both models are seen.
    stop, tallies = story.folder.parent / "stop", []
    crowd = threading.Thread(
        target=lambda: tallies.append(story.ask(url, "2013-07-01", "2013-07-15", "--until-file", str(stop)))
    )
    crowd.start()
    try:
        story.apply("node", codes=(0, 1))  # 1: the new model is trained, and refused by a gate
        second = roll(story, served)
        time.sleep(10)  # the old pod ends in these seconds
    finally:
        stop.touch()
        crowd.join()
    [tally] = tallies
    assert tally["failed"] == 0
    assert tally["runs"] == [served, second]

    # What ran and was accepted is remembered, and nothing else; then nothing of us is left.
    story.mlspec("destroy", "--yes", "--target", "node")
    kept = story.node.plane.api.list("v1", "ConfigMap", story.namespace)
    assert any((one["metadata"].get("labels") or {}).get("mlspec.dev/ledger") for one in kept)
    story.mlspec("destroy", "--yes", "--purge", "--target", "node")
    wait_for(lambda: story.everything() == before, "the namespace is as it was", timeout=120, every=2)


def roll(story: Story, served: str) -> str:
    """The run that serves after the apply; when the gates refused the newest model, a person accepts less."""
    now = serving(story)
    if now == served:
        story.edit("min: 0.65", "min: 0.5")
        story.edit("{metric: auc, against: serving, tolerance: 0.005}", "{metric: auc, min: 0.5}")
        story.apply("node")
        now = serving(story)
    assert now != served
    return now


def serving(story: Story) -> str:
    """The run whose model is declared to serve."""
    body = story.node.plane.api.get("v1", "ConfigMap", f"model-{GRAPH}", story.namespace)
    return str(json.loads(body["data"]["record"])["run"])
