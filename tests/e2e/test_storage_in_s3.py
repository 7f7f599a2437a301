"""Storage and large code on a real node: a bucket in the place of a claim, and code of several ConfigMaps beside one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.bed.node.node import Node
from cluster.bed.processes import wait_for
from e2e.project import Project
from s3 import S3, SECRET

POLICY = """\
---
apiVersion: mlspec.dev/v1alpha1
kind: MonitoringPolicy
metadata: {name: tumour}
spec:
  graph: tumour
  window: 1m
  lateness: 0s
  every: 1m
  alerts:
    drift: {drift: {features: all}}
"""
CURL = ("-sSf", "-H", "content-type: application/json", "-d")


class Tumours(Project):
    """`examples/minimal` with a target on the node, and with files that its function needs."""

    def __init__(self, folder: Path, node: Node, storage: str, files: dict[str, int]) -> None:
        super().__init__("minimal", folder)
        self.node = node
        self.namespace = node.plane.namespace("tumours", security="restricted")
        target = f'{{namespace: {self.namespace}, image: "{node.runtime.name}", imagePullPolicy: Never}}'
        (self.folder / "target.yaml").write_text(
            "apiVersion: mlspec.dev/v1alpha1\nkind: Project\nmetadata: {name: tumours}\nspec:\n  targets:\n"
            f"    laptop: {{local: {{}}}}\n    node: {{kubernetes: {target}, storage: '{storage}'}}\n"
        )
        for name, size in files.items():
            (self.folder / name).write_bytes(random.Random(name).randbytes(size))
        include = ", ".join(files)
        self.edit("project.yaml", '"train.py:train", ', f'"train.py:train", include: [{include}], ')
        self.edit("project.yaml", "  gates:\n", "  resources: {cpu: 0.5, memory: 1Gi}\n  gates:\n")
        self.edit("project.yaml", "  steps:\n", "  resources: {cpu: 0.25}\n  log: {flush: 1s}\n  steps:\n")
        self.edit("train.py", "import pandas", "from pathlib import Path\n\nimport pandas")
        checks = "".join(
            f'    assert Path(__file__).with_name("{name}").stat().st_size == {size}\n'
            for name, size in files.items()
        )
        self.edit("train.py", "    model =", f"{checks}    model =")

    def mlspec(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """The command; everything that it prints, also into the log of the test."""
        done = subprocess.run(
            [sys.executable, "-m", "mlspec_reconciler.cli", *arguments],
            cwd=self.folder,
            env=dict(os.environ) | {"KUBECONFIG": str(self.node.plane.kubeconfig)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        print(f"$ mlspec {' '.join(arguments)}\n{done.stdout}", flush=True)
        assert done.returncode == code, done.stdout
        return done.stdout

    def apply(self, code: int = 0, **environment: str) -> str:
        """Make the node equal to the specs."""
        return self.mlspec("apply", "--yes", "--target", "node", "--timeout", "600", code=code, **environment)

    def names(self, kind: str) -> list[str]:
        """Objects in the namespace."""
        return self.node.plane.kubectl("get", kind, "-n", self.namespace, "-o", "name").split()

    def serving(self) -> str:
        """The run that serves on the node."""
        record = self.node.plane.api.get("v1", "ConfigMap", "model-tumour", self.namespace)["data"]["record"]
        return str(json.loads(record)["run"])

    def case(self) -> str:
        """One request."""
        values = json.loads((self.folder / "case.json").read_text())
        inputs = [
            {"name": name, "datatype": "FP64", "shape": [1], "data": [value]}
            for name, value in values.items()
        ]
        return json.dumps({"inputs": inputs})

    def evaluation(self) -> dict[str, Any]:
        """The newest result of the policy; empty before the first."""
        status = subprocess.run(
            [sys.executable, "-m", "mlspec_reconciler.cli", "status", "--target", "node", "--output", "json"],
            cwd=self.folder,
            env=dict(os.environ) | {"KUBECONFIG": str(self.node.plane.kubeconfig)},
            capture_output=True,
            text=True,
        )
        objects = json.loads(status.stdout)["objects"]
        return next((one["result"] for one in objects if one["kind"] == "CronWorkflow"), None) or {}


def test_a_bucket_takes_the_place_of_a_claim(real_argo: Node, node_s3: S3, tmp_path: Path) -> None:
    """Dataset, training, service and monitoring find each other's files in the bucket; run, model and prediction are the
    laptop's."""
    bucket = node_s3.bucket()
    project = Tumours(tmp_path / "tumours", real_argo, f"s3://{bucket}/team", {"table.bin": 2 * 2**20})
    with (project.folder / "project.yaml").open("a") as file:
        file.write(POLICY)

    # The code is larger than a ConfigMap. Without credentials nothing is applied, and the way out is said.
    nobody = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": node_s3.endpoint}
    assert "AWS_ACCESS_KEY_ID" in project.apply(code=1, **nobody)
    assert not project.names("workflows")

    # Pods have the environment of the SDK from the project's Secret.
    real_argo.plane.kubectl(
        "create", "secret", "generic", "tumours-env", "-n", project.namespace,
        *(f"--from-literal={name}={value}" for name, value in node_s3.environment.items()),
    )  # fmt: skip
    told = project.apply(**node_s3.environment)
    assert "tumour answers at" in told
    assert SECRET not in told
    assert not project.names("persistentvolumeclaims")
    run = project.serving()

    # The same on this machine.
    project.mlspec("apply", "--yes", "--target", "laptop")
    try:
        here = project.mlspec("url", "tumour", "--target", "laptop").strip()
        ask = ("curl", *CURL, project.case())
        laptop = json.loads(subprocess.check_output([*ask, f"{here}/v2/models/tumour/infer"]))
        url = f"http://tumour.{project.namespace}.svc/v2/models/tumour/infer"
        pods = json.loads(real_argo.machine.run(*ask, url))
    finally:
        project.mlspec("destroy", "--yes", "--target", "laptop")
    assert pods["model_version"] == laptop["model_version"] == run
    assert pods["outputs"] == laptop["outputs"]
    model = f"runs/{run}/train/model/model.pkl"
    there = node_s3.objects(bucket, "team/")
    assert there[f"team/{model}"] == (project.folder / ".mlspec/store" / model).read_bytes()

    # The request log reaches the bucket, and the policy that reads it keeps its state there.
    wait_for(lambda: bool(project.evaluation().get("windows")), "the policy counts", timeout=240, every=5)
    kept = {key.split("/")[1] for key in node_s3.objects(bucket, "team/")}
    assert kept == {"code", "datasets", "logs", "monitors", "runs"}


def test_code_of_several_config_maps_is_one_folder_in_a_pod(real_argo: Node, tmp_path: Path) -> None:
    """With a claim: the kubelet joins them, and the function finds every file beside it."""
    project = Tumours(
        tmp_path / "tumours", real_argo, "pvc://storage", {f"table-{n}.bin": 600_000 for n in range(3)}
    )
    real_argo.claim(project.namespace, "storage")
    project.apply()
    run = project.serving()
    assert sum(name.startswith(f"configmap/{run}-code-") for name in project.names("configmaps")) == 3
