"""Workspace: the folder of a project on this machine, its target, and the revision that was applied last.

Commands open one; the controller opens the applied revision, so that edits in the working tree do nothing by themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlspec.compile import choose_target, uploads
from mlspec.diagnostics import Diagnostic, Mark
from mlspec.kinds.project import Target
from mlspec.workload import Files
from mlspec_reconciler import bundle, checkout, load, observe, searchpath
from mlspec_reconciler.cluster import Cluster, Unavailable
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.clusters.local.launch import write_json
from mlspec_reconciler.reconcile import Wanted

HOME = ".mlspec"
APPLIED = "applied.json"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A project folder. `root` holds the specs, `home` (`root/.mlspec`) everything that mlspec makes on this machine."""

    root: Path
    home: Path

    @property
    def storage(self) -> Path:
        """Root of the local storage: data, models, logs."""
        return self.home / "store"

    @property
    def lock(self) -> Path:
        """Lock of the reconciler."""
        return self.home / "reconcile.lock"

    @property
    def local(self) -> LocalCluster:
        """The local cluster of this folder."""
        return LocalCluster(self.home)

    def cluster(self, wanted: Wanted) -> Cluster:
        """The cluster of a target: this machine, or a namespace. Raises `Unavailable` when it cannot be reached."""
        kubernetes = wanted.target.kubernetes
        if kubernetes is None:
            return self.local
        # Only here: the client costs a third of a second, which `validate` must not pay.
        from mlspec_reconciler.clusters.kube.cluster import KubeCluster

        return KubeCluster.open(kubernetes, wanted.project.name)


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded project with everything that a plan needs, or the diagnostics that forbid it."""

    workspace: Workspace
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str]
    wanted: Wanted | None = None
    target_name: str = ""
    inside: tuple[str, ...] = ()
    """Folders of the project, relative to its root, that Python searches on this machine."""


def find(path: Path) -> Workspace:
    """The workspace of a project folder."""
    root = path.absolute()
    return Workspace(root, root / HOME)


def open_project(path: Path, target: str | None) -> Opened:
    """Load, link and gather: the project as it stands in the working tree."""
    workspace = find(path)
    loaded = load.load([workspace.root], root=workspace.root)
    if loaded.project is None:
        return Opened(workspace, tuple(loaded.diagnostics), loaded.texts)
    project = dataclasses.replace(loaded.project, source=checkout.source(workspace.root))
    if not project.order:  # what is left of a broken checkout must not delete everything
        mark = Mark(str(path))
        hint = "mlspec init writes a working project; mlspec destroy removes what was applied"
        nothing = Diagnostic("error", "no-specs", "there is no resource of mlspec in these files", mark, hint)
        return Opened(workspace, (*loaded.diagnostics, nothing), loaded.texts)
    chosen = choose_target(project.settings, target)
    around = searchpath.of_this_python(workspace.root)
    here = isinstance(chosen, str) or chosen[1].kubernetes is None
    code, code_problems = bundle.gather(project, workspace.root, around, here=here)
    files, file_problems = observe.source_files(project, workspace.root)
    problems = [*loaded.diagnostics, *code_problems, *file_problems]
    if isinstance(chosen, str):
        problems.append(Diagnostic("error", "unknown-target", chosen, Mark(str(path)), "--target names it"))
    if isinstance(chosen, str) or any(one.severity == "error" for one in problems):
        return Opened(workspace, tuple(problems), loaded.texts)
    name, spec = chosen
    wanted = Wanted(project, _placed(spec, workspace), code, files)
    return Opened(workspace, tuple(problems), loaded.texts, wanted, name, around.inside)


def _placed(target: Target, workspace: Workspace) -> Target:
    """A local target keeps its tracking database in the workspace unless the spec says otherwise."""
    if target.local is None or target.tracking:
        return target
    return target.model_copy(update={"tracking": f"sqlite:///{workspace.home / 'mlflow.db'}"})


def stage(opened: Opened, cluster: Cluster) -> str:
    """Keep a copy of the specs and the code as the revision that was applied to the target; returns its digest.

    From here on the controller works on this copy. Raises `Unavailable` when code that pods will pull cannot be put where
    they look.
    """
    assert opened.wanted is not None
    workspace, wanted = opened.workspace, opened.wanted
    if wanted.target.kubernetes is None:
        for one in wanted.code.values():
            bundle.store(one, workspace.storage)
    elif large := uploads(wanted.target, {one.digest: one.files for one in wanted.code.values()}):
        # Only here: the client costs a third of a second. Other code goes with the objects.
        from mlspec_reconciler.upload import upload

        upload(str(wanted.target.storage), large)
    contents = {name: bundle.normal(text.encode()) for name, text in opened.texts.items()}
    for key, one in wanted.code.items():
        folder = key.split("|", 1)[0]
        contents |= {
            one.elsewhere.get(name) or os.path.normpath(f"{folder}/{name}"): content
            for name, content in one.files.items()
        }
    hasher = hashlib.sha256(opened.target_name.encode())
    for name, content in sorted(contents.items()):
        hasher.update(f"\0{name}\0{len(content)}\0".encode() + content)
    revision = hasher.hexdigest()[:16]
    bundle.write_folder(workspace.home / "revisions" / revision, contents)
    write_json(
        workspace.home / _applied_name(opened.target_name, wanted.target),
        {
            "cluster": cluster.identity,
            "revision": revision,
            "project": wanted.project.name,
            "target": opened.target_name,
            "commit": checkout.commit(workspace.root),
            "inside": opened.inside,
            "source": dict(wanted.project.source),
            "files": {name: {"digest": one.digest, "paths": one.paths} for name, one in wanted.files.items()},
        },
    )
    return revision


def _applied_name(name: str, target: Target) -> str:
    return APPLIED if target.kubernetes is None else f"applied-{name}.json"


def applied(workspace: Workspace, target: str | None = None) -> Mapping[str, Any] | None:
    """What was applied last (to this target): revision, target, cluster, commit, pinned source files."""
    paths = sorted(workspace.home.glob("applied*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    documents = (_document(path) for path in paths)
    return next((one for one in documents if target is None or one["target"] == target), None)


def applied_here(workspace: Workspace) -> Mapping[str, Any] | None:
    """What was applied last to this machine."""
    path = workspace.home / APPLIED
    return _document(path) if path.exists() else None


def forget(workspace: Workspace, target: str) -> None:
    """Nothing is applied to this target any more."""
    for path in workspace.home.glob("applied*.json"):
        if _document(path)["target"] == target:
            path.unlink()


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document: Mapping[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise Unavailable(f"{path} is damaged ({error}); mlspec apply writes it again") from None
    return document


def open_applied(workspace: Workspace, document: Mapping[str, Any]) -> Wanted | None:
    """The revision of a document from `applied`; None when it cannot be read any more."""
    root = workspace.home / "revisions" / document["revision"]
    loaded = load.load([root], root=root)
    if loaded.project is None:
        return None
    project = dataclasses.replace(loaded.project, name=document["project"], source=document.get("source", {}))
    code, _ = bundle.gather(project, root, searchpath.SearchPath(tuple(document.get("inside", ()))))
    files = {name: Files(one["digest"], tuple(one["paths"])) for name, one in document["files"].items()}
    chosen = choose_target(project.settings, document["target"])
    if isinstance(chosen, str):
        return None
    return Wanted(project, _placed(chosen[1], workspace), code, files)


@dataclass(frozen=True, slots=True)
class Connected:
    """What is applied to a target, and the cluster that holds it."""

    workspace: Workspace
    target_name: str
    wanted: Wanted
    cluster: Cluster
    commit: str = ""


def connect(path: Path, target: str | None) -> Connected | None:
    """What was applied from this folder (to `target`, or last); a Kubernetes target can be looked at from any clone of the
    repository. None when nothing was applied."""
    place = find(path)
    document = applied(place, target)
    if document is not None:
        wanted = open_applied(place, document)
        if wanted is None:
            return None
        return Connected(
            place, document["target"], wanted, place.cluster(wanted), document.get("commit") or ""
        )
    opened = open_project(path, target)
    if opened.wanted is None or opened.wanted.target.kubernetes is None:
        return None
    return Connected(place, opened.target_name, opened.wanted, place.cluster(opened.wanted))
