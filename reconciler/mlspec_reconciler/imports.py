"""What a Python file imports and defines, read from its text: no code of the user runs when a plan is made."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mlspec.diagnostics import Diagnostic, Mark

_LINE_BREAK = re.compile("\r\n|[\r\n]")
_DYNAMIC = ("import_module", "__import__")
SAVE_AS = "save it as UTF-8, or name its encoding in the first line: # -*- coding: latin-1 -*-"


@dataclass(frozen=True, slots=True)
class Import:
    """An absolute dotted name that is imported. `from a import b` imports `a`, and `a.b` when there is such a module."""

    name: str
    mark: Mark
    runs: bool = True
    """False for an import that only type checkers follow."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the text of a Python file says."""

    imports: tuple[Import, ...] = ()
    names: frozenset[str] = frozenset()
    """What the module defines: functions, classes, values and imported names; `*` when it imports all of another one."""
    folders: tuple[Import, ...] = ()
    """Absolute paths that the file itself adds to `sys.path`."""
    problem: Diagnostic | None = None
    """Why Python cannot read it; then nothing else is known."""


def read(content: bytes, shown: str, module: PurePath) -> Source:
    """Read a file. `shown` is its path in diagnostics, `module` its path relative to the folder from which it is imported."""
    text = _decoded(content, shown)
    if isinstance(text, Diagnostic):
        return Source(problem=text)
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        mark = Mark(shown, error.lineno or 1, max(1, error.offset or 1))
        return Source(
            problem=Diagnostic("error", "python-syntax", f"Python cannot read this: {error.msg}", mark)
        )
    except (ValueError, MemoryError, RecursionError) as error:
        reason = str(error) or "it is nested too deeply"
        return Source(
            problem=Diagnostic("error", "python-syntax", f"Python cannot read this: {reason}", Mark(shown))
        )
    reader = _Reader(tree, _LINE_BREAK.split(text), shown, module)
    return Source(tuple(reader.imports()), frozenset(_names(tree)), tuple(reader.folders()))


def text(content: bytes) -> str:
    """The text of a Python file as far as it can be read, to show a line of it."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError:
        encoding = "utf-8"
    try:
        return content.decode(encoding, "replace")
    except (UnicodeError, LookupError):
        return content.decode("utf-8", "replace")


def _decoded(content: bytes, shown: str) -> str | Diagnostic:
    """The text, in the encoding that the file itself names (PEP 263); otherwise it is UTF-8."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        message = "the file is UTF-16 text, which Python does not read"
        return Diagnostic("error", "encoding", message, Mark(shown), "save it as UTF-8")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = _LINE_BREAK.split(content[: error.start].decode(error.encoding, "replace"))
        message = f"byte 0x{content[error.start]:02X} is not {_shown(error.encoding)} text"
        mark = Mark(shown, len(before), len(before[-1]) + 1)
        return Diagnostic("error", "encoding", message, mark, SAVE_AS)
    except (SyntaxError, LookupError) as error:
        return _bad_declaration(content, str(error), shown)


def _bad_declaration(content: bytes, reason: str, shown: str) -> Diagnostic:
    """The first two lines, where an encoding is named, cannot be read, or name one that Python does not have."""
    for number, line in enumerate(content.split(b"\n")[:2], 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            message = f"byte 0x{line[error.start]:02X} is not UTF-8 text"
            column = len(line[: error.start].decode("utf-8", "replace")) + 1
            return Diagnostic("error", "encoding", message, Mark(shown, number, column), SAVE_AS)
    return Diagnostic("error", "encoding", f"Python cannot read this: {reason}", Mark(shown), SAVE_AS)


def _shown(encoding: str) -> str:
    return "UTF-8" if encoding.startswith("utf-8") else encoding


class _Reader:
    """Walks over one file."""

    def __init__(self, tree: ast.Module, lines: Sequence[str], shown: str, module: PurePath) -> None:
        self._tree, self._lines, self._path = tree, lines, shown
        self._package = module.parent.parts
        self._module = self._package if module.name == "__init__.py" else (*self._package, module.stem)
        nodes = list(ast.walk(tree))
        self._nodes = nodes
        self._for_types = {
            id(child)
            for node in nodes
            if isinstance(node, ast.If) and _ends_with(node.test, "TYPE_CHECKING")
            for statement in node.body
            for child in ast.walk(statement)
        }
        self._importers = {*_DYNAMIC} | {
            alias.asname
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module == "importlib"
            for alias in node.names
            if alias.name in _DYNAMIC and alias.asname
        }

    def imports(self) -> Iterator[Import]:
        """Everything that is imported by a name that stands in the file."""
        for node in self._nodes:
            runs = id(node) not in self._for_types
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        yield Import(alias.name, self._mark(alias, alias.name), runs)
                case ast.ImportFrom(module=module, names=names, level=level):
                    base = self._package[: len(self._package) - level + 1] if level else ()
                    prefix = ".".join([*base, *([module] if module else [])])
                    mark = self._mark(node, "." * level + (module or ""))
                    if prefix:
                        yield Import(prefix, mark, runs)
                    for alias in names:
                        yield Import(f"{prefix}.{alias.name}" if prefix else alias.name, mark, runs)
                case ast.Call(func=function) if self._imports_dynamically(function):
                    if name := self._dynamic(node):
                        yield Import(name, self._mark(node.args[0] if node.args else node), runs)

    def folders(self) -> Iterator[Import]:
        """`sys.path.insert(0, "/somewhere")` and its like, with paths that stand in the file."""
        for node in self._nodes:
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=("insert" | "append" | "extend"), value=target), args=args
                ):
                    values: Sequence[ast.expr] = args if _is_sys_path(target) else ()
                case ast.Call(func=function, args=args) if _ends_with(function, "addsitedir"):
                    values = args
                case ast.AugAssign(target=target, value=value) if _is_sys_path(target):
                    values = [value]
                case ast.Assign(targets=[target], value=value) if _is_sys_path(target):
                    values = [value]
                case _:
                    continue
            for value in values:
                for part in ast.walk(value):
                    match part:
                        case ast.Constant(value=str(path)) if path.startswith("/"):
                            yield Import(path, self._mark(part))

    def _imports_dynamically(self, function: ast.expr) -> bool:
        match function:
            case ast.Name(id=name):
                return name in self._importers
            case ast.Attribute(attr=name):
                return name in _DYNAMIC
        return False

    def _dynamic(self, call: ast.Call) -> str:
        """The module of `importlib.import_module("a.b")`; empty when only running the code would tell."""
        arguments = dict(zip(("name", "package"), call.args, strict=False))
        arguments |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        match arguments.get("name"):
            case ast.Constant(value=str(name)):
                pass
            case _:
                return ""
        if not name.startswith("."):
            return name if all(part.isidentifier() for part in name.split(".")) else ""
        match arguments.get("package"):
            case ast.Constant(value=str(package)):
                base: Sequence[str] = package.split(".")
            case ast.Name(id="__package__"):
                base = self._package
            case ast.Name(id="__name__"):
                base = self._module
            case _:
                return ""
        rest = name.lstrip(".")
        level = len(name) - len(rest)
        return ".".join([*base[: len(base) - level + 1], *([rest] if rest else [])])

    def _mark(self, node: ast.expr | ast.stmt | ast.alias, name: str = "") -> Mark:
        """The place of a node; of `name` in its first line when it stands there."""
        line = self._lines[node.lineno - 1] if node.lineno <= len(self._lines) else ""
        start = len(line.encode()[: node.col_offset].decode("utf-8", "replace"))
        if name and (place := line.find(name, start)) >= 0:
            return Mark(self._path, node.lineno, place + 1, len(name))
        end = node.end_col_offset if node.end_lineno == node.lineno else None
        length = len(line.encode()[: end or 0].decode("utf-8", "replace")) - start
        return Mark(self._path, node.lineno, start + 1, max(1, length))


def _ends_with(node: ast.expr, name: str) -> bool:
    """Whether it is `name` or `module.name`."""
    match node:
        case ast.Name(id=last) | ast.Attribute(attr=last):
            return last == name
    return False


def _is_sys_path(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(attr="path", value=ast.Name(id="sys")):
            return True
        case ast.Subscript(value=value):
            return _is_sys_path(value)
    return False


def _names(tree: ast.Module) -> Iterator[str]:
    for node in _top_level(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that bind names of the module, also below `if`, `try` and `with`."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from (child for child in ast.walk(node) if isinstance(child, ast.stmt))
