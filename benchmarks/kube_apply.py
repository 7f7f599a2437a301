"""1,000 apps x 4 objects on a real API server: install, a plan that finds nothing to do, one change; beside kubectl.

The workload of Flux's benchmark (https://github.com/fluxcd/flux-benchmark): Deployment with 0 replicas, ServiceAccount,
Service, Ingress. Both tools work on the same control plane (etcd, API server, controller-manager), one after the other in
fresh namespaces. Goals: install < 60 s, no-op plan < 1 s without a call per object, < 250 MB.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from cluster.bed.controlplane import ControlPlane
from mlspec.compile import Compiled
from mlspec.diagnostics import Mark
from mlspec.kinds.project import KubernetesTarget
from mlspec.manifest import Manifest, Origin
from mlspec_reconciler import apply, load
from mlspec_reconciler.cli import spare_collections
from mlspec_reconciler.clusters.kube.cluster import KubeCluster
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import Observation, compare

APPS = 1000
GOALS = {"install": 60.0, "no-op plan": 1.0, "memory": 250.0}


def objects(
    app: str, namespace: str, image: str = "ghcr.io/stefanprodan/podinfo:6.9.0"
) -> list[dict[str, Any]]:
    """The four objects of one app."""
    labels = {"app.kubernetes.io/name": app}
    metadata = {"name": app, "namespace": namespace, "labels": labels}
    container = {
        "name": "podinfo",
        "image": image,
        "command": ["./podinfo", "--port=9898", "--level=info"],
        "ports": [{"name": "http", "containerPort": 9898, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {"serviceAccountName": app, "containers": [container]},
    }
    backend = {"service": {"name": app, "port": {"number": 9898}}}
    rule = {
        "host": f"{app}.example",
        "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 9898, "protocol": "TCP"}]},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": metadata,
            "spec": {"rules": [rule]},
        },
    ]


def compiled(names: list[str], namespace: str, changed: str = "") -> Compiled:
    """What a project of these apps becomes; the app `changed` gets another image."""
    manifests = [
        Manifest(body, Origin(f"Receiver/{name}", Mark(f"{name}.yaml")))
        for name in names
        for body in objects(name, namespace, *(["podinfo:next"] if name == changed else []))
    ]
    return Compiled({}, tuple(manifests), {})


def ours(kubeconfig: Path, namespace: str, apps: int) -> None:
    """Install, plan and change; one line of JSON per phase. Runs in a process of its own, to measure it."""
    spare_collections()
    transport = Transport.open(None, kubeconfig=kubeconfig)
    target = KubernetesTarget.model_validate({"namespace": namespace})
    cluster = KubeCluster(transport, Discovery(transport, kubeconfig.parent / "discovery"), target, "bench")
    names = [f"app-{number:04}" for number in range(apps)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "apps.yaml").write_text(
            "---\n".join(
                f"apiVersion: mlspec.dev/v1alpha1\nkind: Receiver\nmetadata: {{name: {name}}}\n"
                "spec: {webhook: {url: {env: URL}}}\n"
                for name in names
            )
        )
        project = load.load([root], root=root).project
    assert project is not None
    wanted = compiled(names, namespace)

    def look(want: Compiled, *, ask: bool = False) -> Observation:
        session = Session.open(cluster.state, "bench")
        return compare(project, want, tuple(cluster.list()), {}, cluster, session, ask=ask)

    def phase(name: str, want: Compiled, *, ask: bool, perform: bool) -> Observation:
        transport.calls.clear()
        wall, cpu = time.monotonic(), time.process_time()
        seen = look(want, ask=ask)
        errors = (
            [
                one.error
                for one in apply.perform(seen.plan, project, cluster, Session.open(cluster.state, "bench"))
                if one.error
            ]
            if perform
            else []
        )
        assert not errors, errors[:3]
        row = {
            "phase": name,
            "seconds": time.monotonic() - wall,
            "cpu": time.process_time() - cpu,
            "calls": dict(Counter(transport.calls)),
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(row), flush=True)
        return seen

    phase("install", wanted, ask=True, perform=True)  # as the command: every create is asked for first
    phase("no-op plan, first", wanted, ask=True, perform=False)
    seen = phase("no-op plan", wanted, ask=True, perform=False)
    assert seen.plan.empty, [change for change in seen.plan.changes if change.writes][:3]
    changed = compiled(names, namespace, names[apps // 2])
    seen = phase("one change", changed, ask=True, perform=True)
    assert [len(change.writes) for change in seen.plan.changes if change.writes] == [1]


def kubectl(plane: ControlPlane, namespace: str, apps: int) -> list[dict[str, Any]]:
    """The same by `kubectl apply --server-side` and `kubectl diff --server-side`."""
    rows = []
    file = plane.folder / f"{namespace}.yaml"

    def phase(name: str, changed: str, *arguments: str) -> None:
        bodies = [body for app in range(apps) for body in objects(f"app-{app:04}", namespace)]
        for body in bodies:
            if body["kind"] == "Deployment" and body["metadata"]["name"] == changed:
                body["spec"]["template"]["spec"]["containers"][0]["image"] = "podinfo:next"
        file.write_text(yaml.dump_all(bodies, Dumper=yaml.CSafeDumper))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = time.monotonic()
        plane.kubectl(*arguments, "-f", str(file), check=name == "install")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rows.append({"phase": name, "seconds": time.monotonic() - wall, "cpu": cpu})

    phase("install", "", "apply", "--server-side")
    phase("no-op plan", "", "diff", "--server-side", "--concurrency=8")
    phase("one change", f"app-{apps // 2:04}", "apply", "--server-side")
    return rows


def main() -> None:
    """Print both side by side."""
    if sys.argv[1:2] == ["--ours"]:
        ours(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    apps = int(sys.argv[-1]) if sys.argv[-1].isdigit() else APPS
    with tempfile.TemporaryDirectory() as folder, ControlPlane.start(Path(folder)) as plane:
        mine, theirs = plane.namespace("ours"), plane.namespace("kubectl")
        command = [
            sys.executable,
            "-m",
            "benchmarks.kube_apply",
            "--ours",
            str(plane.kubeconfig),
            mine,
            str(apps),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        others = {row["phase"]: row for row in kubectl(plane, theirs, apps)}
    print(f"{apps:,} apps x 4 objects on one control plane; two cores shared with it")
    for row in rows:
        other = others.get(row["phase"])
        beside = f"  kubectl {other['seconds']:7.2f} s ({other['cpu']:.1f} s CPU)" if other else ""
        goal = f"  goal {GOALS[row['phase']]:g} s" if row["phase"] in GOALS else ""
        calls = ", ".join(f"{count} {verb}" for verb, count in sorted(row["calls"].items()))
        print(f"  {row['phase']:<18} {row['seconds']:7.2f} s ({row['cpu']:.1f} s CPU){goal}{beside}  {calls}")
    print(f"  memory of mlspec   {max(row['memory'] for row in rows):7.0f} MB  goal {GOALS['memory']:g} MB")


if __name__ == "__main__":
    main()
