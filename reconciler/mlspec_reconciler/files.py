"""Spec files of a repository: found, read and decoded. `mlspec_reconciler.load` and `mlspec validate` start here.

Files are `*.yaml` and `*.yml`, recursively, without hidden folders, `node_modules` and what `.mlspecignore` names.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlspec import source
from mlspec.diagnostics import Diagnostic, Mark

STDIN = Path("-")
IGNORE = ".mlspecignore"
_SKIPPED = ("node_modules", "__pycache__", "venv")
_SUFFIXES = (".yaml", ".yml")


def read(paths: Sequence[Path], root: Path) -> tuple[dict[str, str], list[Diagnostic]]:
    """The texts of all spec files by path, and what could not be read."""
    texts: dict[str, str] = {}
    problems: list[Diagnostic] = []
    for path in paths:
        if path == STDIN:
            text, found = source.decode(sys.stdin.buffer.read(), "stdin")
            texts["stdin"] = text
            problems += found
            continue
        files = list(find(root / path)) if (root / path).is_dir() else [root / path]
        for file in files:
            name = _shown(file, root)
            try:
                with file.open("rb") as stream:
                    text, found = source.decode(stream.read(source.MAX_BYTES + 1), name)
            except OSError as error:
                message = f"cannot be read: {error.strerror or error}"
                text, found = (
                    "",
                    [Diagnostic("error", "unreadable-file", message, Mark(name), "name a file or a folder")],
                )
            texts[name] = text
            problems += found
    if not texts:
        where = ", ".join(_shown(root / path, root) for path in paths)
        hint = "name a file or a folder; mlspec init writes a working project"
        problems.append(Diagnostic("error", "no-specs", "no *.yaml or *.yml file found", Mark(where), hint))
    return texts, problems


def find(folder: Path) -> Iterator[Path]:
    """All spec files under a folder, in the order of their names."""
    ignored = _ignored(folder / IGNORE)
    for current, folders, files in os.walk(folder):
        inside = Path(current)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not _matches(inside / name, folder, ignored)
        )
        for name in sorted(files):
            if (
                name.endswith(_SUFFIXES)
                and not name.startswith(".")
                and not _matches(inside / name, folder, ignored)
            ):
                yield inside / name


def _ignored(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip().rstrip("/") for line in lines if line.strip() and not line.startswith("#")]


def _matches(path: Path, folder: Path, patterns: Sequence[str]) -> bool:
    if not patterns:
        return False
    relative = path.relative_to(folder).as_posix()
    return any(
        fnmatch.fnmatch(relative, pattern.lstrip("/"))
        or ("/" not in pattern and fnmatch.fnmatch(path.name, pattern))
        for pattern in patterns
    )


def _shown(file: Path, root: Path) -> str:
    try:
        return file.absolute().relative_to(root).as_posix()
    except ValueError:
        return file.as_posix()
