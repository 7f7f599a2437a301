"""A project with its storage in S3 on a real node: no claim, code larger than a ConfigMap, and the run of the laptop."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def server(real_argo: Node) -> Iterator[S3]:
    """S3 where the node's pods reach it: on the address of the host."""
    running = S3(real_argo.machine.host_address)
    yield running
    running.stop()


def test_a_bucket_takes_the_place_of_a_claim(real_argo: Node, server: S3, tmp_path: Path) -> None:
    """Dataset, training, service and monitoring find each other's files in the bucket; run and prediction are the laptop's."""
    node, bucket = real_argo, server.bucket()
    namespace = node.plane.namespace("tumours", security="restricted")
    project = Project("minimal", tmp_path / "tumours")
    target = f'{{namespace: {namespace}, image: "{node.runtime.name}", imagePullPolicy: Never}}'
    (project.folder / "target.yaml").write_text(
        "apiVersion: mlspec.dev/v1alpha1\nkind: Project\nmetadata: {name: tumours}\nspec:\n  targets:\n"
        f"    laptop: {{local: {{}}}}\n    node: {{kubernetes: {target}, storage: 's3://{bucket}/team'}}\n"
    )
    # Two MiB that the function needs: more than a ConfigMap holds.
    (project.folder / "table.bin").write_bytes(random.Random(0).randbytes(2 * 2**20))
    project.edit("project.yaml", '"train.py:train", ', '"train.py:train", include: [table.bin], ')
    project.edit("project.yaml", "  gates:\n", "  resources: {cpu: 0.5, memory: 1Gi}\n  gates:\n")
    project.edit("project.yaml", "  steps:\n", "  resources: {cpu: 0.25}\n  log: {flush: 1s}\n  steps:\n")
    project.edit("train.py", "    model =", "    assert len(TABLE) == 2 << 20\n    model =")
    project.edit(
        "train.py",
        "import pandas as pd\n",
        'from pathlib import Path\n\nimport pandas as pd\n\nTABLE = Path(__file__).with_name("table.bin").read_bytes()\n',
    )
    with (project.folder / "project.yaml").open("a") as file:
        file.write(POLICY)

    def mlspec(*arguments: str, code: int | None = 0, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlspec_reconciler.cli", *arguments],
            cwd=project.folder,
            env=dict(os.environ) | {"KUBECONFIG": str(node.plane.kubeconfig)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        if code is not None:
            print(f"$ mlspec {' '.join(arguments)}\n{done.stdout}", flush=True)
        assert code in (None, done.returncode), done.stdout
        return done.stdout

    # Without credentials nothing is applied, and the way out is said.
    apply = ("apply", "--yes", "--target", "node", "--timeout", "600")
    nobody = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": server.endpoint}
    assert "AWS_ACCESS_KEY_ID" in mlspec(*apply, code=1, **nobody)
    assert "workflows" not in node.plane.kubectl("get", "workflows", "-n", namespace, "-o", "name")

    # Pods have the environment of the SDK from the project's Secret.
    node.plane.kubectl(
        "create", "secret", "generic", "tumours-env", "-n", namespace,
        *(f"--from-literal={name}={value}" for name, value in server.environment.items()),
    )  # fmt: skip
    told = mlspec(*apply, **server.environment)
    assert "tumour answers at" in told
    assert SECRET not in told
    assert "persistentVolumeClaim" not in node.plane.kubectl("get", "pods", "-n", namespace, "-o", "yaml")

    # The same run, the same prediction, as on this machine.
    there = json.loads(node.plane.kubectl("get", "configmap", "model-tumour", "-n", namespace, "-o", "json"))
    run = json.loads(there["data"]["record"])["run"]
    mlspec("apply", "--yes", "--target", "laptop")
    try:
        here = mlspec("url", "tumour", "--target", "laptop").strip()
        case = json.dumps(
            {
                "inputs": [
                    {"name": name, "datatype": "FP64", "shape": [1], "data": [value]}
                    for name, value in json.loads((project.folder / "case.json").read_text()).items()
                ]
            }
        )
        laptop = ask(here, case)
        pods = json.loads(
            node.machine.run("curl", *CURL, case, f"http://tumour.{namespace}.svc/v2/models/tumour/infer")
        )
        assert pods["outputs"] == laptop["outputs"]
        assert pods["model_version"] == laptop["model_version"] == run
    finally:
        mlspec("destroy", "--yes", "--target", "laptop")
    objects = server.objects(bucket, "team/")
    model = (project.folder / f".mlspec/store/runs/{run}/train/model/model.pkl").read_bytes()
    assert objects[f"team/runs/{run}/train/model/model.pkl"] == model

    # The request log reaches the bucket, and the policy that reads it keeps its state there.
    wait_for(
        lambda: any("/logs/tumour/" in key for key in server.objects(bucket)), "the request log", timeout=60
    )

    def counted() -> bool:
        status = json.loads(
            mlspec("status", "--target", "node", "--output", "json", code=None, **server.environment)
        )
        results = (one["result"] or {} for one in status["objects"] if one["kind"] == "CronWorkflow")
        return any(result.get("windows") for result in results)

    wait_for(counted, "the policy counts the request", timeout=240, every=5)
    assert "team/monitors/tumour/state.sqlite" in server.objects(bucket)


CURL = ("-sSf", "-H", "content-type: application/json", "-d")


def ask(url: str, case: str) -> dict[str, Any]:
    """One prediction of a process on this machine."""
    done = subprocess.run(
        ["curl", *CURL, case, f"{url}/v2/models/tumour/infer"], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
