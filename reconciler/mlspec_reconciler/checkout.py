"""The checkout: what git says about the project's folder on this machine. Only this module asks git about the working tree.

A folder outside of git is complete, and the project is what lies in it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

TIMEOUT = 10.0
"""Seconds that git may take for an answer."""
_POINTER = "version https://git-lfs.github.com/spec/"
"""How the small file begins that stands for a large one: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
_SPECS = (".yaml", ".yml")
_LINK = "160000"
"""Mode of a submodule in git's index."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A file (or submodule) that the commit has and the working tree has not."""

    path: str
    why: str = "not in the working tree"
    way_out: str = "git restore FILE, or commit the deletion"
    """How to get it; `FILE` stands for the path."""

    def command(self) -> str:
        """The way out for this one file."""
        return self.way_out.replace("FILE", shlex.quote(self.path))


_SPARSE = Missing("", "not part of this sparse checkout", "git sparse-checkout disable")
_HIDDEN = Missing(
    "", "hidden from git (skip-worktree)", "git update-index --no-skip-worktree FILE && git restore FILE"
)
_SUBMODULE = Missing("", "its submodule is not checked out", "git submodule update --init --recursive")
_LFS = Missing("", "only as a pointer of Git LFS in the working tree", "git lfs pull")
_NO_CHECKOUT = Missing("", "nothing was checked out", "git checkout HEAD -- .")


class Unknown(Exception):
    """Git cannot say; the message is its reason."""


def commit(root: Path) -> str:
    """`4f2c1d0 "Retrain weekly"` of the repository around `root`; empty outside of git."""
    short, _, subject = _answer(root, "log", "-1", "--format=%h %s").partition(" ")
    return f'{short} "{subject}"' if subject else ""


EDITED = "-edited"
"""Ends the revision of a tree with edits."""


def source(root: Path, used: Container[str] = ()) -> dict[str, str]:
    """`revision` and `repository` of the specs in `root`, without the credentials that an address may hold; a tree with
    edits is `REVISION-edited`. `used` are the files that the project is made of."""
    revision = _answer(root, "rev-parse", "HEAD")
    if not revision:
        return {}
    origin = {"revision": f"{revision}{EDITED}" if edited(root, used) else revision}
    if address := re.sub(r"//[^/@]*@", "//", _answer(root, "remote", "get-url", "origin")):
        origin["repository"] = address
    return origin


def edited(root: Path, used: Container[str] = ()) -> bool:
    """Whether the files in `root` are not those of the commit. A file that git does not know counts when it is used (by its
    path, relative or absolute): a plan that was saved beside the specs is no change."""
    if _answer(root, "status", "--porcelain", "--untracked-files=no", "--", "."):
        return True
    new = _answer(root, "ls-files", "--others", "--exclude-standard", "-z", "--", ".").split("\0")
    return any(name in used or str(root / name) in used for name in new if name)


def uncommitted(source: Mapping[str, str]) -> bool:
    """Whether what is described by `source` is not a commit."""
    return source.get("revision", "").endswith(EDITED)


def missing(root: Path, specs: Mapping[str, str]) -> list[Missing]:
    """What the commit has in `root` and the working tree has not; empty outside of git. Raises `Unknown`.

    A deletion that was staged (`git rm`) is meant, as one that was committed. `specs` are the texts of the spec files by path
    relative to `root`, because a pointer of Git LFS is a file, but not the spec.
    """
    if not _in_repository(root):
        return []
    pointers = [replace(_LFS, path=path) for path, text in specs.items() if text.startswith(_POINTER)]
    return sorted([*_missing(root), *pointers], key=lambda each: (not each.path.endswith(_SPECS), each.path))


def ignored(root: Path, paths: Iterable[Path]) -> set[Path]:
    """Those of `paths` (absolute, or relative to `root`) that git does not version: it ignores them, or they lie outside of the
    repository around `root`, also by way of a symbolic link. A new file that can still be added is not among them.

    Outside of git the folder stands for the repository. Raises `Unknown`.
    """
    top = Path(_demand(root, "rev-parse", "--show-toplevel")) if _in_repository(root) else None
    real = {path: Path(os.path.realpath(root / path)) for path in paths}
    if top is None:
        folder = Path(os.path.realpath(root))
        return {path for path, place in real.items() if not place.is_relative_to(folder)}
    unversioned = _ignored(Path(os.path.realpath(top)), set(real.values()))
    return {path for path, place in real.items() if place in unversioned}


def _missing(root: Path) -> Iterator[Missing]:
    """Files of HEAD that the index has too, which would hold no deletion that is meant, but the working tree has not."""
    if _run(root, ["rev-parse", "--verify", "--quiet", "HEAD"]).returncode:
        return  # nothing was committed yet
    committed = [entry.partition("\t")[2] for entry in _entries(root, "ls-tree", "-r", "HEAD")]
    if not (root / _demand(root, "rev-parse", "--git-path", "index")).exists():
        yield from (replace(_NO_CHECKOUT, path=path) for path in committed if not _is_there(root / path))
        return
    index: dict[str, list[str]] = {}
    for entry in _entries(root, "ls-files", "--stage", "-t"):
        state, _, path = entry.partition("\t")
        index[path] = state.split(" ")  # a letter, the mode, the object, the stage
    left_out = _left_out(root)
    for path in committed:
        letter, mode, revision = index.get(path, ["", "", ""])[:3]
        if mode == _LINK:
            yield from _missing_in_submodule(root, path, revision)
        elif mode and not _is_there(root / path):
            yield replace(left_out if letter == "S" else Missing(path), path=path)


def _missing_in_submodule(root: Path, path: str, revision: str) -> Iterator[Missing]:
    """A submodule is complete when it has the files of the revision that its parent names."""
    folder = root / path
    if not (folder / ".git").exists():
        yield replace(_SUBMODULE, path=path)
    elif _answer(folder, "rev-parse", "HEAD") == revision:
        yield from (replace(inner, path=f"{path}/{inner.path}") for inner in _missing(folder))
    else:
        try:
            files = _entries(folder, "ls-tree", "-r", "--name-only", revision)
        except Unknown:  # it was not fetched
            files = [""]
        names = (name for name in files if not name or not _is_there(folder / name))
        yield from (replace(_SUBMODULE, path=f"{path}/{name}".rstrip("/")) for name in names)


def _left_out(root: Path) -> Missing:
    """What a file with the mark `skip-worktree` is."""
    sparse = _answer(root, "config", "--type=bool", "core.sparseCheckout") == "true"
    return _SPARSE if sparse else _HIDDEN


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _ignored(top: Path, paths: set[Path]) -> set[Path]:
    """As `ignored`, for real paths and the repository in `top`."""
    unversioned: set[Path] = set()
    own: list[str] = []
    nested: dict[Path, set[Path]] = {}
    for path in paths:
        if not path.is_relative_to(top) or ".git" in path.relative_to(top).parts:
            unversioned.add(path)
        elif (inner := _outermost(top, path)) is not None:
            nested.setdefault(inner, set()).add(path)
        elif path != top:
            own.append(f"./{path.relative_to(top).as_posix()}")
    for inner, inside in nested.items():
        place = f":(literal){inner.relative_to(top).as_posix()}"
        entries = _entries(top, "ls-files", "--stage", "--", place)
        is_submodule = any(entry.startswith(_LINK) for entry in entries)
        unversioned |= _ignored(inner, inside) if is_submodule else inside
    if own:
        done = _run(top, ["check-ignore", "-z", "--stdin"], "\0".join(own))
        if done.returncode not in (0, 1):  # 1: none of them
            raise Unknown(_reason(done))
        unversioned |= {top / name for name in done.stdout.split("\0") if name}
    return unversioned


def _outermost(top: Path, path: Path) -> Path | None:
    """The first folder below `top` on the way to `path` that is a repository of its own."""
    folders = [folder for folder in path.parents if folder != top and folder.is_relative_to(top)]
    return next((folder for folder in reversed(folders) if (folder / ".git").exists()), None)


def _in_repository(root: Path) -> bool:
    """Whether `root` is in the working tree of a repository. Raises `Unknown` when there is one that git cannot read: it
    is damaged or a copied worktree, it belongs to somebody else, or git is not installed."""
    try:
        return _demand(root, "rev-parse", "--is-inside-work-tree") == "true"
    except Unknown:
        if any((folder / ".git").exists() for folder in (root.absolute(), *root.absolute().parents)):
            raise
        return False


def _entries(root: Path, *arguments: str) -> list[str]:
    """The entries of `ls-tree` or `ls-files` with paths relative to `root`; nothing of what lies beside it."""
    command, *rest = arguments
    return [entry for entry in _demand(root, command, "-z", *rest).split("\0") if entry]


def _demand(root: Path, *arguments: str) -> str:
    """What git answers. Raises `Unknown` when it fails."""
    done = _run(root, arguments)
    if done.returncode:
        raise Unknown(_reason(done))
    return done.stdout.rstrip("\n")


def _answer(root: Path, *arguments: str) -> str:
    """What git answers; empty when it fails."""
    try:
        done = _run(root, arguments)
    except Unknown:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(root: Path, arguments: Iterable[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Ask git; it changes nothing, not even its index."""
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=environment,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unknown(f"git {next(iter(arguments))} takes longer than {TIMEOUT:.0f} s") from None
    except OSError as error:
        raise Unknown(f"git cannot be run: {error.strerror or error}") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines() or [f"git ended with exit code {done.returncode}"]
    return lines[0].removeprefix("fatal: ")
