"""Workspace: the folder of a project on this machine, its target, and the revision that was applied last.

Commands open one; the controller opens the applied revision, so that edits in the working tree do nothing by themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlspec.compile import choose_target
from mlspec.diagnostics import Diagnostic, Mark
from mlspec.kinds.project import Target
from mlspec.workload import Files
from mlspec_reconciler import bundle, load, observe
from mlspec_reconciler.cluster import Unavailable
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

    def cluster(self) -> LocalCluster:
        """The local cluster of this project."""
        return LocalCluster(self.home)


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded project with everything that a plan needs, or the diagnostics that forbid it."""

    workspace: Workspace
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str]
    wanted: Wanted | None = None
    target_name: str = ""


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
    code, code_problems = bundle.gather(project, workspace.root)
    files, file_problems = observe.source_files(project, workspace.root)
    problems = [*loaded.diagnostics, *code_problems, *file_problems]
    chosen = choose_target(project.settings, target)
    if isinstance(chosen, str):
        problems.append(Diagnostic("error", "unknown-target", chosen, Mark(str(path)), "--target names it"))
    if isinstance(chosen, str) or any(one.severity == "error" for one in problems):
        return Opened(workspace, tuple(problems), loaded.texts)
    name, spec = chosen
    return Opened(
        workspace, tuple(problems), loaded.texts, Wanted(project, _placed(spec, workspace), code, files), name
    )


def _placed(target: Target, workspace: Workspace) -> Target:
    """A local target keeps its tracking database in the workspace unless the spec says otherwise."""
    if target.local is None or target.tracking:
        return target
    return target.model_copy(update={"tracking": f"sqlite:///{workspace.home / 'mlflow.db'}"})


def stage(opened: Opened) -> str:
    """Keep a copy of the specs and the code as the applied revision; returns its digest.

    From here on the controller works on this copy.
    """
    assert opened.wanted is not None
    workspace, wanted = opened.workspace, opened.wanted
    for one in wanted.code.values():
        bundle.store(one, workspace.storage)
    contents = {name: text.encode() for name, text in opened.texts.items()}
    for key, one in wanted.code.items():
        folder = key.split("|", 1)[0]
        contents |= {os.path.normpath(f"{folder}/{name}"): content for name, content in one.files.items()}
    hasher = hashlib.sha256(opened.target_name.encode())
    for name, content in sorted(contents.items()):
        hasher.update(f"\0{name}\0{len(content)}\0".encode() + content)
    revision = hasher.hexdigest()[:16]
    bundle.write_folder(workspace.home / "revisions" / revision, contents)
    write_json(
        workspace.home / APPLIED,
        {
            "revision": revision,
            "project": wanted.project.name,
            "target": opened.target_name,
            "commit": commit(workspace.root),
            "files": {name: {"digest": one.digest, "paths": one.paths} for name, one in wanted.files.items()},
        },
    )
    return revision


def applied(workspace: Workspace) -> Mapping[str, Any] | None:
    """What was applied last: revision, target, commit, pinned source files."""
    path = workspace.home / APPLIED
    if not path.exists():
        return None
    try:
        document: Mapping[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise Unavailable(f"{path} is damaged ({error}); mlspec apply writes it again") from None
    return document


def open_applied(workspace: Workspace) -> Wanted | None:
    """The applied revision; None when nothing is applied."""
    document = applied(workspace)
    if document is None:
        return None
    root = workspace.home / "revisions" / document["revision"]
    loaded = load.load([root], root=root)
    if loaded.project is None:
        return None
    project = dataclasses.replace(loaded.project, name=document["project"])
    code, _ = bundle.gather(project, root)
    files = {name: Files(one["digest"], tuple(one["paths"])) for name, one in document["files"].items()}
    chosen = choose_target(project.settings, document["target"])
    if isinstance(chosen, str):
        return None
    return Wanted(project, _placed(chosen[1], workspace), code, files)


def commit(root: Path) -> str:
    """`4f2c1d0 "Retrain weekly"` of the repository around `root`; empty outside of git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "log", "-1", "--format=%h %s"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return ""
    words = done.stdout.strip().split(" ", 1)
    return f'{words[0]} "{words[1]}"' if done.returncode == 0 and len(words) == 2 else ""
