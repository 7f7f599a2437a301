"""Load: read the spec files of a repository and build the project. Every command that needs a project starts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlspec import project
from mlspec.diagnostics import Diagnostic
from mlspec_reconciler import cache, files


@dataclass(frozen=True, slots=True)
class Loaded:
    """A project, or the errors that forbid it. `texts` holds the read files by their path relative to the root."""

    project: project.Project | None
    diagnostics: tuple[Diagnostic, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    resources: int = 0
    foreign: int = 0


def load(paths: Sequence[Path] | None = None, root: Path | None = None) -> Loaded:
    """Read and link the specs under `paths` (the root when none). Marks are relative to `root` (the working folder)."""
    root = (root or Path.cwd()).absolute()
    texts, problems = files.read(paths or [root], root)
    return build(texts, problems, root)


def build(texts: Mapping[str, str], problems: Sequence[Diagnostic], root: Path) -> Loaded:
    """Link texts that `files.read` has read."""
    known = cache.Expressions()
    built = project.build(texts, name_of(root), known.analyse)
    known.save()
    diagnostics = (*problems, *built.diagnostics)
    if any(one.severity == "error" for one in problems):
        return Loaded(None, diagnostics, texts, built.resources, built.foreign)
    return Loaded(built.project, diagnostics, texts, built.resources, built.foreign)


def name_of(root: Path) -> str:
    """A project name from the name of a folder."""
    letters = "".join(
        letter if letter.isalnum() and letter.isascii() else "-" for letter in root.name.lower()
    )
    return letters.strip("-")[:63].strip("-") or "project"
