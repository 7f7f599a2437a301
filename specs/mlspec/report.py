"""Diagnostics as text for people, JSON for programs, annotations for GitHub, and SARIF for code scanning.

The last step of `mlspec validate`; other commands print their errors through `text` too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mlspec import __version__
from mlspec.diagnostics import Diagnostic

Format = Literal["text", "json", "github", "sarif"]
Texts = Mapping[str, str]

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_COLOURS = {"error": "31", "warning": "33"}
_WIDTH = 140


def text(diagnostics: Sequence[Diagnostic], texts: Texts, colour: bool = False) -> str:
    """Each problem with its place, its source line, a caret and the way out."""
    lines: dict[str, list[str]] = {}
    blocks = []
    for one in diagnostics:
        if one.mark.path not in lines:
            lines[one.mark.path] = _LINE_BREAK.split(texts.get(one.mark.path, ""))
        blocks.append(_block(one, lines[one.mark.path], colour))
    return "\n".join(blocks)


def _block(one: Diagnostic, lines: Sequence[str], colour: bool) -> str:
    head = _paint(f"{one.severity}[{one.code}]", _COLOURS[one.severity], colour)
    block = (
        f"{head}{_paint(':', '1', colour)} {_clean(one.message)}\n  {_paint(str(one.mark), '36', colour)}\n"
    )
    source_line = _visible(lines[one.mark.line - 1]) if one.mark.line <= len(lines) else ""
    hint = _clean(one.hint)
    if not source_line.strip():
        return f"{block}      = {hint}\n" if hint else block
    number = f"{one.mark.line:>5}"
    start = one.mark.column - 1
    shown, start = _window(source_line, start)
    length = max(1, min(one.mark.length, len(shown) - start))
    carets = _paint("^" * length, _COLOURS[one.severity], colour)
    below = f"      | {' ' * start}{carets}"
    if not hint:
        return f"{block}{number} | {shown}\n{below}\n"
    if start + length + len(hint) <= _WIDTH:
        return f"{block}{number} | {shown}\n{below} {hint}\n"
    return f"{block}{number} | {shown}\n{below}\n      = {hint}\n"


def _window(line: str, start: int) -> tuple[str, int]:
    """The part of a long line around the caret."""
    if len(line) <= _WIDTH:
        return line, start
    cut = max(0, start - 60)
    part = line[cut : cut + _WIDTH - 6]
    head = "..." if cut else ""
    tail = "..." if cut + _WIDTH - 6 < len(line) else ""
    return f"{head}{part}{tail}", start - cut + len(head)


def _visible(line: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _clean(words: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)


def _paint(words: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{words}\x1b[0m" if colour else words


def summary(diagnostics: Sequence[Diagnostic], files: int) -> str:
    """`2 errors, 1 warning in 7 files.`"""
    errors = sum(one.severity == "error" for one in diagnostics)
    warnings = len(diagnostics) - errors
    counts = [_count(number, word) for number, word in ((errors, "error"), (warnings, "warning")) if number]
    return f"{', '.join(counts) or 'No errors'} in {_count(files, 'file')}."


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def as_json(diagnostics: Sequence[Diagnostic], texts: Texts) -> str:
    """One object: `diagnostics` with severity, code, message, hint, path, line, column, length; counts."""
    entries = [
        {
            "severity": one.severity,
            "code": one.code,
            "message": one.message,
            "hint": one.hint,
            "path": one.mark.path,
            "line": one.mark.line,
            "column": one.mark.column,
            "length": one.mark.length,
        }
        for one in diagnostics
    ]
    errors = sum(one.severity == "error" for one in diagnostics)
    document = {
        "version": 1,
        "files": len(texts),
        "errors": errors,
        "warnings": len(entries) - errors,
        "diagnostics": entries,
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def github(diagnostics: Sequence[Diagnostic], texts: Texts) -> str:
    """Workflow commands that GitHub shows beside the lines of a pull request.

    https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
    """
    return "\n".join(
        f"::{one.severity} file={_property(one.mark.path)},line={one.mark.line},col={one.mark.column},"
        f"endColumn={one.mark.column + one.mark.length},title={_property(one.code)}::{_data(_sentence(one))}"
        for one in diagnostics
    )


def _sentence(one: Diagnostic) -> str:
    return f"{one.message} ({one.hint})" if one.hint else one.message


def _data(words: str) -> str:
    return words.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(words: str) -> str:
    return _data(words).replace(":", "%3A").replace(",", "%2C")


def sarif(diagnostics: Sequence[Diagnostic], texts: Texts) -> str:
    """SARIF 2.1.0, https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html"""
    codes = sorted({one.code for one in diagnostics})
    results: list[dict[str, Any]] = [
        {
            "ruleId": one.code,
            "ruleIndex": codes.index(one.code),
            "level": one.severity,
            "message": {"text": _sentence(one)},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": _uri(one.mark.path)},
                        "region": {
                            "startLine": one.mark.line,
                            "startColumn": one.mark.column,
                            "endColumn": one.mark.column + one.mark.length,
                        },
                    }
                }
            ],
        }
        for one in diagnostics
    ]
    driver = {
        "name": "mlspec",
        "version": __version__,
        "rules": [{"id": code, "shortDescription": {"text": code.replace("-", " ")}} for code in codes],
    }
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _uri(path: str) -> str:
    safe = "/-_.~"
    return "".join(
        letter
        if (letter.isascii() and letter.isalnum()) or letter in safe
        else "".join(f"%{byte:02X}" for byte in letter.encode())
        for letter in path
    )


FORMATS: dict[Format, Callable[[Sequence[Diagnostic], Texts], str]] = {
    "text": text,
    "json": as_json,
    "github": github,
    "sarif": sarif,
}
