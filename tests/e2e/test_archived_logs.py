"""Logs of real pods that are gone: Argo's executor archives them, the Argo Server reads them, `mlspec logs` prints them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster import archive
from cluster.bed import controllers
from cluster.bed.node.node import Node
from cluster.bed.processes import wait_for
from s3 import S3

SPECS = """\
apiVersion: mlspec.dev/v1alpha1
kind: Project
metadata: {{name: numbers}}
spec:
  targets:
    node:
      kubernetes: {{namespace: {namespace}, image: "{image}", imagePullPolicy: Never, argo: {{server: "{server}"}}}}
      storage: pvc://{claim}
---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {{name: numbers}}
spec:
  source: {{function: "load.py:rows"}}
"""
LOAD = 'def rows():\n    print("seventeen rows came")\n    return [{"n": n} for n in range(17)]\n'


def test_a_finished_run_still_says_what_it_has_printed(real_argo: Node, node_s3: S3, tmp_path: Path) -> None:
    """Pods of steps that succeeded are removed at once; who asks a week later gets an answer all the same."""
    plane = real_argo.plane
    namespace = plane.namespace("archived", security="restricted")
    plane.apply(archive.repository(namespace, node_s3, node_s3.bucket()))
    url = controllers.start_argo_server(plane)
    authority = tmp_path / "ca.crt"
    authority.write_text(plane.authority.bundle)
    folder = tmp_path / "numbers"
    folder.mkdir()
    claim = real_argo.claim(namespace, "storage")
    image = real_argo.runtime.name
    specs = SPECS.format(namespace=namespace, image=image, server=url, claim=claim)
    (folder / "numbers.yaml").write_text(specs)
    (folder / "load.py").write_text(LOAD)

    def mlspec(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlspec_reconciler.cli", *arguments],
            cwd=folder,
            env={**os.environ, "KUBECONFIG": str(plane.kubeconfig), "SSL_CERT_FILE": str(authority)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    mlspec("apply", "--yes", "--timeout", "300")
    pods = ("get", "pods", "--namespace", namespace, "--output=name")
    wait_for(lambda: plane.kubectl(*pods) == "", "Argo to remove the pods", timeout=60)
    logs = mlspec("logs", "Dataset/numbers")
    assert logs.startswith("==> dataset (archived)\n"), logs
    assert "seventeen rows came\n" in logs
    assert "argo=true" not in logs
    mlspec("destroy", "--yes")
