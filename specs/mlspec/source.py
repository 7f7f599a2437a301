"""YAML text becomes documents: the first step of the path. `mlspec.project` calls it; only this module knows YAML.

The dialect is YAML 1.2 core with merge keys. What YAML 1.1 tools (kubectl, PyYAML) would read differently is an error with
its fix, so that a spec means the same to everybody who reads it. Budgets of size, depth and alias expansion hold before
anything is built: no text crashes this module.

Speed: libyaml composes nodes without resolving tags, and plain scalars are resolved here through a memo. Places in the text
are looked up only for a diagnostic, by composing its file again (`locate`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml
from yaml._yaml import CParser

from mlspec.diagnostics import Diagnostic, Mark, Problem

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 100
MAX_NODES = 500_000
"""Entries of one document after its aliases are expanded."""

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""What libyaml counts as the end of a line."""
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SEPARATOR = re.compile(r"^(?:---|\.\.\.)(?=\s|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document as plain JSON data. `line` is its first line in the file `path`, `index` its position there."""

    path: str
    index: int
    line: int
    data: Any
    text: str
    """The YAML stream it was read from: the file, or a part of a file that has a syntax error elsewhere."""
    shift: int = 0
    """Number of lines of the file before `text`."""
    misread: tuple[Diagnostic, ...] = ()
    """What breaks the dialect; `data` holds it as it was probably meant."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a document that cannot be read seems to define, so that references to it are not reported as well."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Source:
    """What one file holds."""

    documents: tuple[Document, ...] = ()
    unreadable: tuple[Declared, ...] = ()
    errors: tuple[Diagnostic, ...] = ()
    """Why parts of the file are no documents."""

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything that is wrong with the YAML."""
        return (*self.errors, *(one for document in self.documents for one in document.misread))


def decode(data: bytes, path: str) -> tuple[str, list[Diagnostic]]:
    """The text of a file: UTF-8 (or UTF-16 with a byte order mark), at most `MAX_BYTES`."""
    if len(data) > MAX_BYTES:
        message = f"the file is larger than {MAX_BYTES // 2**20} MiB"
        return "", [
            Diagnostic("error", "too-large", message, Mark(path), "split it, or move data out of the specs")
        ]
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig"), []
    except UnicodeDecodeError as error:
        mark = _mark_of_offset(data[: error.start].decode("utf-8", "replace"), path)
        message = f"byte 0x{data[error.start]:02X} is not {'UTF-16' if utf16 else 'UTF-8'} text"
        return "", [Diagnostic("error", "encoding", message, mark, "save the file as UTF-8")]


def parse_text(text: str, path: str) -> Source:
    """All documents of a file. A syntax error costs only the document that has it."""
    try:
        return _read(text, path)
    except (yaml.reader.ReaderError, UnicodeEncodeError) as error:
        bad = _FORBIDDEN.search(text)
        message = (
            f"character U+{ord(bad[0]):04X} is not allowed in YAML"
            if bad
            else f"not readable as YAML: {error}"
        )
        mark = _mark_of_offset(text[: bad.start()] if bad else "", path)
        hint = "remove it, or write it as an escape in double quotes"
        return Source((), (), (Diagnostic("error", "encoding", message, mark, hint),))
    except (yaml.YAMLError, _TooDeep) as error:
        if not _SEPARATOR.search(text):
            return Source((), _declared(text), (_syntax_error(error, text, path, 0),))
    documents: list[Document] = []
    unreadable: list[Declared] = []
    errors: list[Diagnostic] = []
    for shift, chunk in _chunks(text):
        try:
            part = _read(chunk, path, shift, len(documents))
        except (yaml.YAMLError, _TooDeep) as error:
            part = Source((), _declared(chunk), (_syntax_error(error, chunk, path, shift),))
        documents += part.documents
        unreadable += part.unreadable
        errors += part.errors
    return Source(tuple(documents), tuple(unreadable), tuple(errors))


def fixed(text: str) -> str:
    """The text with every ambiguous scalar written so that all tools read the same; all else stays as it is.

    Grouped numbers lose their underscores; everything else is quoted, because only its author knows what was meant.
    """
    try:
        roots = list(_compose(text))
    except (yaml.YAMLError, _TooDeep, UnicodeEncodeError):
        return text
    edits: dict[int, tuple[int, str]] = {}
    pending: list[yaml.Node] = roots
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            found = _resolve(node.value) if not node.style and not node.tag else None
            if found.__class__ is _Ambiguous:
                edits[node.start_mark.index] = (node.end_mark.index, found.fix)
        elif isinstance(node, yaml.MappingNode):
            pending += (part for entry in node.value for part in entry)
        else:
            pending += node.value
    for start, (end, replacement) in sorted(edits.items(), reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def yaml_text(value: Any) -> str:
    """Plain data as YAML that every tool reads the same."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


class _Dumper(yaml.SafeDumper):
    """No anchors: repeated data is written again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def place(document: Document, problem: Problem) -> Diagnostic:
    """The problem with its place in the text."""
    mark = locate(document, problem.path, problem.on_key)
    return Diagnostic(problem.severity, problem.code, problem.message, mark, problem.hint)


def locate(document: Document, path: tuple[str | int, ...], on_key: bool = False) -> Mark:
    """The place of a key or value. A path that leaves the document points at the key of the nearest mapping that exists."""
    node = _roots(document.text).get(document.line - document.shift)
    if node is None:
        return Mark(document.path, document.line)
    key: yaml.Node | None = None
    for step in path:
        entry = _entry(node, step)
        if entry is None:
            on_key = True
            break
        key, node = entry
    if key is None:
        entry = _entry(node, "kind")
        node = entry[1] if entry else node
    return _mark(key if on_key and key is not None else node, document.text, document.path, document.shift)


def locate_in(document: Document, path: tuple[str | int, ...], offset: int, length: int = 1) -> Mark:
    """The place of a part of a string value; of the whole value if it is written with escapes or on several lines."""
    mark = locate(document, path)
    written = _lines(document.text)[mark.line - 1 - document.shift][mark.column - 1 :][: mark.length]
    value: Any = document.data
    for step in path:
        value = value[step]
    start = written.find(str(value))
    if start < 0 or offset >= len(written) - start:
        return mark
    return Mark(mark.path, mark.line, mark.column + start + offset, length)


# Reading


class _Composer(CParser):
    """libyaml's composer without the resolution of tags, which costs two thirds of PyYAML's loading time."""

    def resolve(self, kind: object, value: object, implicit: object) -> str:
        return ""

    def descend_resolver(self, parent: object, index: object) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


class _TooDeep(Exception):
    """A text is nested deeper than the budget; raised before libyaml's composer, which recurses in C, sees it."""

    def __init__(self, mark: Any) -> None:
        super().__init__("too deep")
        self.problem_mark = mark


def _compose(text: str) -> Iterator[yaml.Node]:
    """The root nodes of a stream; YAMLError or _TooDeep."""
    # Each level of nesting takes a bracket or a column, so a text with few brackets and short lines is not deep.
    if text.count("[") + text.count("{") > 1000 or re.search(r"[^\n]{500}", text):
        _check_depth(text)
    parser = _Composer(text)
    try:
        while parser.check_node():
            node = parser.get_node()
            assert node is not None
            yield node
    finally:
        parser.dispose()


def _check_depth(text: str) -> None:
    parser = _Composer(text)
    depth = 0
    try:
        while parser.check_event():
            event = parser.get_event()
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _TooDeep(event.start_mark)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    finally:
        parser.dispose()


def _read(text: str, path: str, shift: int = 0, first: int = 0) -> Source:
    documents: list[Document] = []
    errors: list[Diagnostic] = []
    for node in _compose(text):
        builder = _Builder(text, path, shift)
        data = builder.value(node, 0)
        if data is None:
            errors += builder.found
            continue
        line, index = node.start_mark.line + 1 + shift, first + len(documents)
        documents.append(Document(path, index, line, data, text, shift, tuple(builder.found)))
    return Source(tuple(documents), (), tuple(errors))


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """The texts between document separators, each with the number of lines before it."""
    starts = [0, *(match.start() for match in _SEPARATOR.finditer(text))]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        chunk = text[start:end]
        if any(line and line[0] not in "#%" for line in LINE_BREAK.split(chunk)):
            yield len(LINE_BREAK.split(text[:start])) - 1, chunk


def _declared(text: str) -> tuple[Declared, ...]:
    kind = re.search(r"^kind:[ \t]*([A-Za-z]+)", text, re.MULTILINE)
    name = re.search(r"^metadata:\s*(?:\{[ \t]*|\n[ \t]+)name:[ \t]*[\"']?([a-z0-9-]+)", text, re.MULTILINE)
    return (Declared(kind[1], name[1]),) if kind and name else ()


class _Builder:
    """Plain data of one document's nodes; what breaks the dialect is collected in `found` and read as it was meant."""

    def __init__(self, text: str, path: str, shift: int) -> None:
        self.text, self.path, self.shift = text, path, shift
        self.found: list[Diagnostic] = []
        self.entries = 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        if node.tag and node.tag not in _PLAIN_TAGS:
            message = f"tag {_tag_name(node.tag)} is not allowed; a spec is plain data"
            self.error(
                "yaml-tag", message, node, "remove the tag; write text in quotes and numbers as they are"
            )
        if node.__class__ is yaml.ScalarNode:
            text: str = node.value
            if node.style or node.tag:
                return text
            found = _SCALARS.get(text, _SCALARS)
            if found is _SCALARS:
                found = _resolve(text)
            if found.__class__ is _Ambiguous:
                self.error("ambiguous-scalar", found.message, node, found.hint)
                return found.value
            return found
        if depth >= MAX_DEPTH:
            self.error(
                "too-deep",
                f"nested deeper than {MAX_DEPTH} levels",
                node,
                "flatten it, or break the alias loop",
            )
            return None
        self.entries += len(node.value)
        if self.entries > MAX_NODES:
            if not any(problem.code == "alias-budget" for problem in self.found):
                message = f"the aliases of this document expand to more than {MAX_NODES:,} entries"
                self.error("alias-budget", message, node, "write less through aliases")
            return None
        if node.__class__ is yaml.SequenceNode:
            return [self.value(item, depth + 1) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        return self.mapping(node, depth)

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            key = (
                _KEYS.get(key_node.value)
                if key_node.__class__ is yaml.ScalarNode and not key_node.style
                else None
            )
            if key is None:
                if key_node.__class__ is not yaml.ScalarNode:
                    hint = "a value that starts with { or [ must be quoted"
                    self.error(
                        "yaml-key", "a key must be plain text", node if node.flow_style else key_node, hint
                    )
                    continue
                key = self.key(key_node)
            if key == "<<" and not key_node.style:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if key in result:
                first = next(k for k, _ in node.value if k.value == key_node.value)
                line = first.start_mark.line + 1 + self.shift
                hint = "keep one of them"
                self.error("duplicate-key", f'key "{key}" is already set in line {line}', key_node, hint)
                continue
            result[key] = self.value(value_node, depth + 1)
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self.error(
                    "yaml-merge",
                    "<< merges mappings only",
                    source,
                    "merge an alias of a mapping: `<<: *base`",
                )
                continue
            for key, value in self.value(source, depth + 1).items() if depth < MAX_DEPTH else ():
                result.setdefault(key, value)
        return result

    def key(self, node: yaml.ScalarNode) -> str:
        text: str = node.value
        if node.style or node.tag:
            return text
        found = _resolve(text)
        if found.__class__ is _Ambiguous:
            message = f"key `{text}` is {found.reading}"
            self.error("ambiguous-scalar", message, node, f'write "{text}" in quotes')
            return text
        if not (
            found.__class__ is str
            or text in ("true", "false")
            or (found.__class__ is int and str(found) == text)
        ):
            self.error("yaml-key", f"key `{text or 'null'}` is not text", node, f'write "{text}" in quotes')
            return text
        if len(_KEYS) > _MEMO:
            _KEYS.clear()
        _KEYS[text] = text
        return text

    def error(self, code: str, message: str, node: yaml.Node, hint: str) -> None:
        if len(self.found) < 1000:
            mark = _mark(node, self.text, self.path, self.shift)
            self.found.append(Diagnostic("error", code, message, mark, hint))


# Plain scalars

_PLAIN_TAGS = ("!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MEMO = 100_000
_SCALARS: dict[str, Any] = {}
_KEYS: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Ambiguous:
    """A plain scalar that tools read differently: what it is to them, its fix, and what was probably meant."""

    message: str
    reading: str
    hint: str
    value: Any
    fix: str


_WORDS = {"y": True, "yes": True, "on": True, "n": False, "no": False, "off": False}
_CONSTANTS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_BASED = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_OTHER_BASE = re.compile(r"[-+]?0(b[01_]+|o[0-7_]+|x[0-9a-fA-F_]+)")
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_SEXAGESIMAL = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([Tt \t].*)?")


def _resolve(text: str) -> Any:
    """The value of a plain scalar in YAML 1.2 core, or `_Ambiguous`."""
    value = _interpret(text) if len(text) <= 80 else text
    if len(_SCALARS) > _MEMO:
        _SCALARS.clear()
    _SCALARS[text] = value
    return value


def _interpret(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    lower = text.lower()
    if lower in _WORDS and text in (lower, lower.capitalize(), lower.upper()):
        meant = "true" if _WORDS[lower] else "false"
        return _ambiguous(text, f"{meant} to some tools and text to others", f"write {meant}", _WORDS[lower])
    if text[0] not in "0123456789+-.":
        return text
    if _INTEGER.fullmatch(text) or _BASED.fullmatch(text):
        number = int(text, 0)
        if -(2**63) <= number < 2**63:
            return number
        return _ambiguous(text, "a whole number of more than 64 bits, which tools round differently")
    if _LEADING_ZERO.fullmatch(text) or _OTHER_BASE.fullmatch(text):
        digits = text.replace("_", "")
        number = int(digits, 0) if _OTHER_BASE.fullmatch(text) else int(digits)
        reading = "octal, decimal or binary to some tools and something else to others"
        return _ambiguous(text, reading, f"write {number}", number)
    if _FLOAT.fullmatch(text):
        real = float(text)
        return real if math.isfinite(real) else _ambiguous(text, "too large for a number")
    if _NOT_FINITE.fullmatch(text):
        return _ambiguous(text, "a number that JSON does not have")
    if "_" in text and _UNDERSCORED.fullmatch(text):
        digits = text.replace("_", "")
        grouped = float(digits) if any(letter in digits for letter in ".eE") else int(digits)
        return _ambiguous(
            text, "a number to some tools and text to others", f"write {digits}", grouped, digits
        )
    if _SEXAGESIMAL.fullmatch(text):
        return _ambiguous(text, "a number in base 60 to some tools and text to others")
    if _DATE.fullmatch(text):
        return _ambiguous(text, "a date to some tools and text to others")
    return text


def _ambiguous(text: str, reading: str, better: str = "", value: Any = None, fix: str = "") -> _Ambiguous:
    hint = f'{better}, or "{text}" for the text' if better else f'write "{text}" in quotes'
    return _Ambiguous(
        f"`{text}` is {reading}", reading, hint, text if value is None else value, fix or f'"{text}"'
    )


# Places


@lru_cache(maxsize=4)
def _roots(text: str) -> dict[int, yaml.Node]:
    """Root nodes by the line that they start in, from 1."""
    return {node.start_mark.line + 1: node for node in _compose(text)}


@lru_cache(maxsize=4)
def _lines(text: str) -> list[str]:
    return LINE_BREAK.split(text)


def _entry(node: yaml.Node, step: str | int) -> tuple[yaml.Node | None, yaml.Node] | None:
    """The key node and value node of one step of a path, through merge keys too."""
    if isinstance(node, yaml.SequenceNode):
        return (None, node.value[step]) if isinstance(step, int) and step < len(node.value) else None
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value == step:
            return key, value
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "<<" and not key.style:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if (
                    isinstance(source, yaml.MappingNode)
                    and source is not node
                    and (found := _entry(source, step))
                ):
                    return found
    return None


def _mark(node: yaml.Node, text: str, path: str, shift: int) -> Mark:
    """The place of a node; its length ends with its first line, and is 1 for a block collection."""
    start, end = node.start_mark, node.end_mark
    length = 1
    if isinstance(node, yaml.ScalarNode) or (isinstance(node, yaml.CollectionNode) and node.flow_style):
        offset = 1 if text.startswith("\ufeff") else 0
        piece = text[start.index + offset : end.index + offset]
        length = max(1, len(LINE_BREAK.split(piece)[0].rstrip()))
    return Mark(path, start.line + 1 + shift, start.column + 1, length)


def _mark_of_offset(before: str, path: str) -> Mark:
    lines = LINE_BREAK.split(before)
    return Mark(path, len(lines), len(lines[-1]) + 1)


def _tag_name(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


# Syntax errors

_SYNTAX = (
    (r"mapping values are not allowed", "`: ` cannot stand here", 'quote a value that contains ": ", and check the indentation'),
    (r"could not find expected ':'", "a key without `:`", "write `key: value`, or indent the line under the text it continues"),
    (r"did not find expected ',' or '\]'", "the list in [ ] is not closed", "close it with ], or put a comma between its items"),
    (r"did not find expected ',' or '\}'", "the mapping in { } is not closed", "close it with }, or put a comma between its entries"),
    (r"did not find expected node content", "a value is expected here", "close the [ or {, or quote the value"),
    (r"did not find expected key", "a key is expected here", "check the indentation: keys of one mapping stand in one column"),
    (r"did not find expected '-' indicator", "a list item is expected here", "check the indentation: the dashes of one list stand in one column"),
    (r"block sequence entries are not allowed", "a list item cannot stand here", "start the list on a line of its own"),
    (r"unexpected end of stream", "the quotes are not closed", "close the quotes"),
    (r"unexpected document indicator", "the quotes are not closed", "close the quotes"),
    (r"undefined alias", "the alias is not defined before", "define it with & earlier in the same document"),
    (r"cannot start any token", "this character cannot start a value", "put the value in quotes"),
    (r"did not find expected alphabetic|while scanning an? (alias|anchor)", "a name must follow * or &", "put the value in quotes"),
    (r"unknown escape character", "unknown escape in double quotes", "write \\\\ for a backslash, or use single quotes"),
    (r"undefined tag handle", "the tag is not defined; a spec is plain data", "remove the tag, or put the value in quotes"),
)  # fmt: skip


def _syntax_error(error: yaml.YAMLError | _TooDeep, text: str, path: str, shift: int) -> Diagnostic:
    context = str(getattr(error, "context", None) or "")
    mark = getattr(error, "problem_mark", None)
    opening = getattr(error, "context_mark", None)
    if mark is None or (opening and re.search("quoted scalar|flow (sequence|mapping)|simple key", context)):
        mark = opening  # where it begins, not where the parser gave up
    place = Mark(path, shift + 1)
    if mark is not None:
        written = len(text.rstrip())
        if mark.index >= written:  # the end of the text: show the last thing that is there
            place = _mark_of_offset(text[: max(0, written - 1)], path)
            place = Mark(path, place.line + shift, place.column)
        else:
            place = Mark(path, mark.line + 1 + shift, mark.column + 1)
    if isinstance(error, _TooDeep):
        return Diagnostic("error", "too-deep", f"nested deeper than {MAX_DEPTH} levels", place, "flatten it")
    problem = str(getattr(error, "problem", None) or error)
    if mark and "cannot start any token" in problem and text[mark.index : mark.index + 1] == "\t":
        return Diagnostic("error", "yaml-syntax", "a tab cannot indent a line", place, "indent with spaces")
    for pattern, message, hint in _SYNTAX:
        if re.search(pattern, problem) or re.search(pattern, context):
            return Diagnostic("error", "yaml-syntax", message, place, hint)
    return Diagnostic(
        "error", "yaml-syntax", f"not YAML: {problem}", place, "check quotes, brackets and indentation"
    )
