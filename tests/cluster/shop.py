"""A small repository for a namespace of a real API server, and the commands on it as people run them.

Two graphs without models and a dataset: every sort of object that an apply writes (applied, created once, a run), and nothing
that has to finish first.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed import crds
from cluster.bed.controlplane import ControlPlane
from mlspec.compile import Compiled, compile
from mlspec.kinds.project import Target
from mlspec.manifest import Key, Manifest, Origin
from mlspec.project import Project
from mlspec.workload import Facts
from mlspec_reconciler import cli, inventory, step
from mlspec_reconciler.clusters.kube.cluster import KubeCluster
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import DesiredState
from mlspec_reconciler.workspace import Opened, open_project

API = "mlspec.dev/v1alpha1"
CODE = """\
def rows():
    return [{"n": 1}]


def double(inputs):
    return {"y": inputs["x"] * 2}
"""
KINDS = (
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("apps/v1", "Deployment"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("argoproj.io/v1alpha1", "Workflow"),
)
"""What the compiler makes of the repository."""


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Shop:
    """A repository in `root` whose target `prod` is `namespace`. `options` go into the Project, `target` into its target."""

    root: Path
    plane: ControlPlane
    namespace: str
    graphs: tuple[str, ...] = ("front", "back")
    datasets: tuple[str, ...] = ("rows",)
    options: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    """A number of a graph that changes its autoscaler, its task document and so its Deployment."""

    @property
    def name(self) -> str:
        return "shop"

    def write(self) -> None:
        """Write the repository: one file per resource."""
        self.root.mkdir(parents=True, exist_ok=True)
        for old in self.root.glob("*.yaml"):
            old.unlink()
        target = {"kubernetes": {"namespace": self.namespace, **self.target}, "storage": "pvc://data"}
        self._file("project", "Project", self.name, {"targets": {"prod": target}, **self.options})
        for name in self.graphs:
            size = self.sizes.get(name, 3)
            spec = {
                "steps": {"double": {"python": "steps.py:double"}},
                "scale": {"min": 1, "max": size},
                "limits": {"maxRows": 1000 * size},
            }
            self._file(name, "ServingGraph", name, spec)
        for name in self.datasets:
            self._file(name, "Dataset", name, {"source": {"function": "steps.py:rows"}})
        (self.root / "steps.py").write_text(CODE)

    def _file(self, file: str, kind: str, name: str, spec: Mapping[str, Any]) -> None:
        document = {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}
        (self.root / f"{file}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    def run(self, *arguments: str) -> Done:
        """`mlspec ARGUMENTS` in this process, in the folder of the repository."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
        return Done(code, out.getvalue(), err.getvalue())

    def plan(self, *arguments: str) -> Done:
        return self.run("plan", *arguments)

    def apply(self, *arguments: str) -> Done:
        """Apply what there is, and do not wait for pods: nothing runs them here."""
        return self.run("apply", "--yes", "--timeout", "0", *arguments)

    def applied(self) -> None:
        """Apply until nothing is left to write."""
        self.write()
        done: list[Done] = []
        for _ in range(4):
            done.append(self.apply("--allow-deletes"))
            if self.plan("--detailed-exitcode").code == 0:
                return
        raise AssertionError([one.text for one in done])

    def commit(self) -> None:
        """Commit the working tree."""
        if not (self.root / ".git").exists():
            self.git("init", "-q")
            (self.root / ".gitignore").write_text(".mlspec/\n")
        self.git("add", "-A")
        self.git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "Change")

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(self.root), *arguments], check=True, capture_output=True)

    def opened(self) -> tuple[Opened, DesiredState]:
        """As the commands open it."""
        project = open_project(self.root, None)
        assert project.wanted is not None, project.diagnostics
        return project, project.wanted

    def cluster(self, kubeconfig: Path, cache: Path, **options: Any) -> KubeCluster:
        """A connection of its own; `options` as of `Transport`."""
        transport = Transport.open(None, kubeconfig=kubeconfig, **options)
        target = self.opened()[1].target.kubernetes
        assert target is not None
        return KubeCluster(transport, Discovery(transport, cache), target, self.name)

    def objects(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What is there of the repository, as the API server says, by kind and name; our ledger is left out."""
        return {
            (kind, one["metadata"]["name"]): {"apiVersion": version, "kind": kind, **one}
            for version, kind in KINDS
            for one in self.plane.api.list(
                version, kind, self.namespace, labelSelector=f"mlspec.dev/project={self.name}"
            )
        }

    def uids(self) -> dict[tuple[str, str], str]:
        return {name: one["metadata"]["uid"] for name, one in self.objects().items()}

    def live(self, kind: str, name: str) -> dict[str, Any]:
        """One object, as the API server has it."""
        return self.plane.api.get(self.version(kind), kind, name, self.namespace)

    def edit(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        """A person changes fields (merge patch)."""
        body = {
            "apiVersion": self.version(kind),
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
        }
        self.plane.api.request(
            "PATCH", self.plane.api.path(body), change,
            content_type="application/merge-patch+json", fieldManager="kubectl-edit",
        )  # fmt: skip

    def remake(self, kind: str, name: str, *, marks: bool = False) -> dict[str, Any]:
        """A person deletes an object and makes one of the same name; `marks`: as a backup that keeps our annotations."""
        old = self.live(kind, name)
        self.plane.api.delete(self.version(kind), kind, name, self.namespace)
        metadata = {"name": name, "namespace": self.namespace}
        if marks:
            metadata |= {part: old["metadata"][part] for part in ("labels", "annotations")}
        body = {word: value for word, value in old.items() if word not in ("metadata", "status")}
        if kind == "Service":
            body["spec"] = {word: body["spec"][word] for word in ("selector", "ports")}
        path = self.plane.api.path({"apiVersion": self.version(kind), "kind": kind, "metadata": metadata})
        return self.plane.api.request(
            "POST", path.rpartition("/")[0], {**body, "metadata": metadata}, fieldManager="kubectl-create"
        )

    @staticmethod
    def version(kind: str) -> str:
        return next(version for version, one in KINDS if one == kind)

    def held(self) -> inventory.Inventory:
        """The inventory in the cluster."""
        with self._looking() as cluster:
            return inventory.read(Session.open(cluster.state, "test"), cluster.identity)

    def enter(self, resource: str, *keys: Key) -> None:
        """Put objects into the inventory as if an earlier revision had made them."""
        with self._looking() as cluster:
            session = Session.open(cluster.state, "test")
            held = inventory.read(session, cluster.identity)
            entry = inventory.Entry(resource, {}, "gone.yaml:1", objects=keys)
            after = inventory.Inventory({**held.entries, resource: entry})
            session.put(inventory.changes(held, after, cluster.identity))

    @contextlib.contextmanager
    def _looking(self) -> Iterator[KubeCluster]:
        cluster = self.cluster(self.plane.kubeconfig, self.root / ".discovery")
        try:
            yield cluster
        finally:
            cluster.close()


@cache
def with_runs(plane: ControlPlane) -> ControlPlane:
    """With the definitions of our runs; several files of tests share it."""
    crds.install(plane.api, "argo")
    return plane


def emit(monkeypatch: pytest.MonkeyPatch, *bodies: Mapping[str, Any]) -> None:
    """From now on the compiler also makes these objects, for the Project: what it does not emit today goes the same way."""

    def more(project: Project, target: Target, facts: Facts) -> Compiled:
        compiled = compile(project, target, facts)
        [owner] = project.catalog.of("Project")
        extra = (Manifest(body, Origin(owner.id, owner.mark)) for body in bodies)
        return replace(compiled, manifests=(*compiled.manifests, *extra))

    monkeypatch.setattr(step, "compile", more)
