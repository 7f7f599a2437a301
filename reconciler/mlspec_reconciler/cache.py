"""Verdicts of `mlspec validate`, kept by the content of everything that they depend on.

An entry is found by the hash of all paths and texts and of mlspec itself, so it can never be stale; a missing or
damaged one only costs time. The parsed files are not kept: reading them back takes as long as parsing them again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import mlspec
from mlspec.diagnostics import Diagnostic, Mark
from mlspec.sql import SqlFact, analyse

KEPT = 64
"""Number of verdicts that are kept; the oldest go first."""
KEPT_EXPRESSIONS = 20_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found."""

    diagnostics: tuple[Diagnostic, ...]
    resources: int
    foreign: int


def folder() -> Path:
    """The user's cache folder of mlspec."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "mlspec"


@functools.cache
def code() -> str:
    """The identity of mlspec's own code: its version, its files and the Python that runs it."""
    hasher = hashlib.sha256(f"{mlspec.__version__} {sys.version}".encode())
    for module in sorted(Path(mlspec.__file__).parent.rglob("*.py")):
        state = module.stat()
        hasher.update(f"{module.name} {state.st_mtime_ns} {state.st_size}\n".encode())
    return hasher.hexdigest()


def key(texts: Mapping[str, str]) -> str:
    """The identity of a validation: mlspec's own code, and every path and text."""
    hasher = hashlib.sha256(code().encode())
    for path, text in sorted(texts.items()):
        content = text.encode("utf-8", "surrogatepass")
        hasher.update(f"{path}\0{len(content)}\0".encode("utf-8", "surrogatepass") + content)
    return hasher.hexdigest()


def get(identity: str) -> Verdict | None:
    """The verdict of an earlier run; None when there is none or it is damaged."""
    try:
        document = json.loads((folder() / "verdicts" / f"{identity}.json").read_bytes())
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
    _write(folder() / "verdicts" / f"{identity}.json", document)
    with contextlib.suppress(OSError):
        entries = sorted((folder() / "verdicts").glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-KEPT]:
            path.unlink(missing_ok=True)


class Expressions:
    """What is known about SQL expressions, so that an edit elsewhere does not pay for importing a SQL parser."""

    def __init__(self) -> None:
        self._path = folder() / "expressions.json"
        self._known: dict[str, Any] | None = None
        self._changed = False

    def analyse(self, text: str) -> SqlFact:
        """`mlspec.project.analyse`, remembered."""
        if self._known is None:
            self._known = self._read()
        try:
            columns, normal, sql, problem, offset, hint = self._known[text]
            return SqlFact(tuple(columns), normal, sql, problem, offset, hint)
        except (KeyError, ValueError, TypeError):
            fact = analyse(text)
            self._known[text] = list(astuple(fact))
            self._changed = True
            return fact

    def save(self) -> None:
        """Keep what is new."""
        if self._changed and self._known is not None:
            newest = dict(list(self._known.items())[-KEPT_EXPRESSIONS:])
            _write(self._path, {"code": code(), "known": newest})

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_bytes())
            known = document["known"] if document["code"] == code() else {}
            return known if isinstance(known, dict) else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}


def _write(path: Path, document: object) -> None:
    with contextlib.suppress(OSError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(document), encoding="utf-8")
        temporary.replace(path)
