"""Verdicts of `mlspec validate`, kept by the content of everything that they depend on.

An entry is found by the hash of all paths and texts and of mlspec itself, so it can never be stale; a missing or
damaged one only costs time. The parsed files are not kept: reading them back takes as long as parsing them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import mlspec
from mlspec.diagnostics import Diagnostic, Mark

KEPT = 64
"""Number of verdicts that are kept; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found."""

    diagnostics: tuple[Diagnostic, ...]
    resources: int
    foreign: int


def folder() -> Path:
    """The user's cache folder of mlspec."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mlspec" / "verdicts"


def key(texts: Mapping[str, str]) -> str:
    """The identity of a validation: mlspec's own code, and every path and text."""
    hasher = hashlib.sha256(f"{mlspec.__version__} {sys.version}".encode())
    for module in sorted(Path(mlspec.__file__).parent.rglob("*.py")):
        state = module.stat()
        hasher.update(f"{module.name} {state.st_mtime_ns} {state.st_size}\n".encode())
    for path, text in sorted(texts.items()):
        content = text.encode("utf-8", "surrogatepass")
        hasher.update(f"{path}\0{len(content)}\0".encode("utf-8", "surrogatepass") + content)
    return hasher.hexdigest()


def get(identity: str) -> Verdict | None:
    """The verdict of an earlier run; None when there is none or it is damaged."""
    try:
        document = json.loads((folder() / f"{identity}.json").read_bytes())
        diagnostics = tuple(
            Diagnostic(one["severity"], one["code"], one["message"], Mark(**one["mark"]), one["hint"])
            for one in document["diagnostics"]
        )
        return Verdict(diagnostics, int(document["resources"]), int(document["foreign"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def put(identity: str, verdict: Verdict) -> None:
    """Keep a verdict; without a writable cache nothing happens."""
    document = {
        "diagnostics": [asdict(one) for one in verdict.diagnostics],
        "resources": verdict.resources,
        "foreign": verdict.foreign,
    }
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        temporary = folder() / f".{identity}.{os.getpid()}"
        temporary.write_text(json.dumps(document), encoding="utf-8")
        temporary.replace(folder() / f"{identity}.json")
        entries = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-KEPT]:
            path.unlink(missing_ok=True)
