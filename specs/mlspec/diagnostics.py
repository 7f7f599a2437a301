"""Problems as values: every step of the path returns them, nobody raises them.

The lowest step of the path. A `Diagnostic` says what is wrong, where (file, line, column) and what to do next;
`mlspec.report` prints them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a file. `line` and `column` count from 1; `length` is in characters, at least 1."""

    path: str
    line: int = 1
    column: int = 1
    length: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem. `code` is stable (tests and SARIF use it); `hint` is the way out."""

    severity: Severity
    code: str
    message: str
    mark: Mark
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A diagnostic that does not know its place in the text yet: it names a path into a document instead.

    `path` is a tuple of mapping keys and list indices from the root of the resource; `on_key` puts the caret under the
    key instead of the value. `mlspec.source.place` turns it into a `Diagnostic`.
    """

    code: str
    message: str
    path: tuple[str | int, ...] = ()
    hint: str = ""
    severity: Severity = "error"
    on_key: bool = False


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean "x"?` when one candidate is close to `word`, otherwise the empty string."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def listed(words: Iterable[str], limit: int = 12) -> str:
    """The candidates of a hint, comma separated, cut at `limit`."""
    found = sorted(words)
    more = f", ... ({len(found) - limit} more)" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more
