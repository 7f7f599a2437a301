"""Workspace: the folder of a project on this machine, its target, and the revision that was applied last.

Commands open one; the controller opens the applied revision, so that edits in the working tree do nothing by themselves.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import os
import socket
import time
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
from mlspec_reconciler.state import Session, StateStore, Table
from mlspec_reconciler.step import DesiredState

HOME = ".mlspec"
LOCAL = "local"
"""Behind the revision of a working tree that differs from it."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A target that answers, and what is remembered about it."""

    cluster: Cluster
    state: StateStore
    holder: str
    """Names this folder among all that apply to the target."""

    def session(self) -> Session:
        """What is remembered, as of now."""
        return Session.open(self.state, self.holder)


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

    @property
    def holder(self) -> str:
        """Who applies from here."""
        return f"{getpass.getuser()}@{socket.gethostname()}:{self.root}"

    def reach(self, desired: DesiredState) -> Reached:
        """The cluster of a target: this machine, or a namespace. Raises `Unavailable` when it cannot be reached."""
        kubernetes = desired.target.kubernetes
        if kubernetes is None:
            local = self.local
            return Reached(local, local.state, self.holder)
        # Only here: the client costs a third of a second, which `validate` must not pay.
        from mlspec_reconciler.clusters.kube.cluster import KubeCluster

        cluster = KubeCluster.open(kubernetes, desired.project.name)
        return Reached(cluster, cluster.state, self.holder)

    def session(self) -> Session:
        """What is remembered in this folder."""
        return Session.open(self.local.state, self.holder)


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded project with everything that a plan needs, or the diagnostics that forbid it."""

    workspace: Workspace
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str]
    wanted: DesiredState | None = None
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
    project = loaded.project
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
    used = {*_contents(loaded.texts, code), *(path for one in files.values() for path in one.paths)}
    project = dataclasses.replace(project, source=checkout.source(workspace.root, used))
    problems = [*loaded.diagnostics, *code_problems, *file_problems]
    if isinstance(chosen, str):
        problems.append(Diagnostic("error", "unknown-target", chosen, Mark(str(path)), "--target names it"))
    if isinstance(chosen, str) or any(one.severity == "error" for one in problems):
        return Opened(workspace, tuple(problems), loaded.texts)
    name, spec = chosen
    wanted = DesiredState(project, _placed(spec, workspace), code, files)
    return Opened(workspace, tuple(problems), loaded.texts, wanted, name, around.inside)


def _placed(target: Target, workspace: Workspace) -> Target:
    """A local target keeps its tracking database in the workspace unless the spec says otherwise."""
    if target.local is None or target.tracking:
        return target
    return target.model_copy(update={"tracking": f"sqlite:///{workspace.home / 'mlflow.db'}"})


def stage(opened: Opened, cluster: Cluster) -> DesiredState:
    """Keep a copy of the specs and the code as the revision that is applied to the target; returns it with its record.

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
    contents = _contents(opened.texts, wanted.code)
    hasher = hashlib.sha256(opened.target_name.encode())
    for name, content in sorted(contents.items()):
        hasher.update(f"\0{name}\0{len(content)}\0".encode() + content)
    revision = hasher.hexdigest()[:16]
    bundle.write_folder(workspace.home / "revisions" / revision, contents)
    record: dict[str, Any] = {
        "kind": wanted.target.choice,
        "cluster": cluster.identity,
        "revision": revision,
        "project": wanted.project.name,
        "target": opened.target_name,
        "commit": checkout.commit(workspace.root),
        "inside": list(opened.inside),
        "source": dict(wanted.project.source),
        "files": {
            name: {"digest": one.digest, "paths": list(one.paths), "versioned": one.versioned}
            for name, one in wanted.files.items()
        },
    }
    if (before := applied(workspace, opened.target_name)) is not None:
        record["at"] = before["at"] if {**before, "at": 0} == {**record, "at": 0} else time.time()
    else:
        record["at"] = time.time()
    if wanted.target.kubernetes is not None:  # the target remembers it too, for everybody
        workspace.session().put([(Table.APPLIED, opened.target_name, record)])
    return dataclasses.replace(wanted, record=record)


def _contents(texts: Mapping[str, str], code: Mapping[str, bundle.Bundle]) -> dict[str, bytes]:
    """The specs and the code, by path in the project."""
    contents = {name: bundle.normal(text.encode()) for name, text in texts.items()}
    for key, one in code.items():
        folder = key.split("|", 1)[0]
        contents |= {
            one.elsewhere.get(name) or os.path.normpath(f"{folder}/{name}"): content
            for name, content in one.files.items()
        }
    return contents


def applied(workspace: Workspace, target: str | None = None) -> Mapping[str, Any] | None:
    """What was applied last from this folder (to this target): revision, target, cluster, commit, pinned source files."""
    records = workspace.session().rows(Table.APPLIED).values()
    found = [one for one in records if target is None or one["target"] == target]
    return max(found, key=lambda one: float(one["at"]), default=None)


def applied_here(workspace: Workspace) -> Mapping[str, Any] | None:
    """What was applied last to this machine."""
    records = workspace.session().rows(Table.APPLIED).values()
    return max(
        (one for one in records if one["kind"] == LOCAL), key=lambda one: float(one["at"]), default=None
    )


def forget(workspace: Workspace, target: str) -> None:
    """Nothing is applied to this target any more."""
    workspace.session().put([(Table.APPLIED, target, None)])


def open_applied(workspace: Workspace, document: Mapping[str, Any]) -> DesiredState | None:
    """The revision of a document from `applied`; None when it cannot be read any more."""
    root = workspace.home / "revisions" / document["revision"]
    loaded = load.load([root], root=root)
    if loaded.project is None:
        return None
    project = dataclasses.replace(loaded.project, name=document["project"], source=document.get("source", {}))
    code, _ = bundle.gather(project, root, searchpath.SearchPath(tuple(document.get("inside", ()))))
    files = {
        name: Files(one["digest"], tuple(one["paths"]), one["versioned"])
        for name, one in document["files"].items()
    }
    chosen = choose_target(project.settings, document["target"])
    if isinstance(chosen, str):
        return None
    return DesiredState(project, _placed(chosen[1], workspace), code, files, document)


@dataclass(frozen=True, slots=True)
class Connected:
    """What is applied to a target, and the cluster that holds it."""

    workspace: Workspace
    target_name: str
    wanted: DesiredState
    reached: Reached
    commit: str = ""

    @property
    def cluster(self) -> Cluster:
        """The cluster of the target."""
        return self.reached.cluster


def connect(path: Path, target: str | None) -> Connected | None:
    """What was applied from this folder (to `target`, or last); a Kubernetes target can be looked at from any clone of the
    repository. None when nothing was applied."""
    place = find(path)
    document = applied(place, target)
    if document is not None:
        wanted = open_applied(place, document)
        if wanted is None:
            raise Unavailable(
                f"the applied revision {document['revision']} in {place.home / 'revisions'} cannot be read any more; "
                "mlspec apply writes it again"
            )
        return Connected(place, document["target"], wanted, place.reach(wanted), document.get("commit") or "")
    opened = open_project(path, target)
    if opened.wanted is None or opened.wanted.target.kubernetes is None:
        return None
    return Connected(place, opened.target_name, opened.wanted, place.reach(opened.wanted))
