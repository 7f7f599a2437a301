"""Code bundles: a function's file and the local modules that it imports, known by their content.

Called by `observe` (to know the digests) and by `apply` (to put the files into the target's storage). A change of one
file touches only the functions that can see it, because imports are followed and nothing else is taken along.
"""

from __future__ import annotations

import ast
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mlspec.diagnostics import Diagnostic, Mark, did_you_mean, listed
from mlspec.kind import CodeUse
from mlspec.kind_table import KINDS
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.workload import code_key, code_path

LARGEST = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files of one function: path relative to the spec's folder -> content. The digest covers names and content."""

    digest: str
    files: Mapping[str, bytes]


def gather(project: Project, root: Path) -> tuple[dict[str, Bundle], list[Diagnostic]]:
    """The bundles of all functions of a project by `code_key`, and what is wrong with their files."""
    bundles: dict[str, Bundle] = {}
    problems: list[Diagnostic] = []
    for resource in project.order:
        for use in KINDS[resource.kind].code(resource.spec):
            key = code_key(resource.mark.path, use.entry, use.include)
            if key in bundles:
                continue
            folder = (root / resource.mark.path).parent
            bundle, found = _bundle(folder, use, resource)
            problems.extend(found)
            bundles[key] = bundle
    return bundles, problems


def store(bundle: Bundle, storage: Path) -> None:
    """Write a bundle into the storage; one that is there already is kept."""
    if bundle.files:
        write_folder(storage / code_path(bundle.digest), bundle.files)


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with these files, all at once; a folder that is there already has the same content and is kept."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    for name, content in files.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        temporary.rename(target)
    except OSError:  # another process wrote the same content first
        shutil.rmtree(temporary, ignore_errors=True)


def _bundle(folder: Path, use: CodeUse, resource: Resource) -> tuple[Bundle, list[Diagnostic]]:
    location, function = use.entry.rsplit(":", 1)
    problems: list[Diagnostic] = []
    if outside := [name for name in (location, *use.include) if _leaves(name)]:
        words = f"{outside[0]} lies outside of {resource.mark.path.rpartition('/')[0] or 'the project'}/"
        hint = "a function takes along only files below its spec; move the spec up, or the file down"
        return Bundle("", {}), [_problem("outside-code", words, resource, hint)]
    if location.endswith(".py"):
        start = folder / location
        if not start.is_file():
            found = (path for path in folder.glob("**/*.py") if not _hidden(path, folder))
            near = sorted(str(path.relative_to(folder)) for path in islice(found, 200))
            problem = _problem(
                "missing-code",
                f"{location} does not exist{did_you_mean(location, near)}",
                resource,
                listed(near),
            )
            return Bundle("", {}), [problem]
    else:
        module = _module(folder, location)
        if module is None:  # an installed module: its version is part of the requirements
            return Bundle("", {}), []
        start = module
    paths = {start, *_imported(folder, start, problems, resource)}
    problems.extend(_missing_function(start, function, use.entry, resource))
    for pattern in use.include:
        matched = [path for path in folder.glob(pattern) if path.is_file() and not _hidden(path, folder)]
        if not matched:
            problems.append(_problem("missing-code", f"include {pattern!r} matches no file", resource))
        paths.update(matched)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
    if sum(map(len, files.values())) > LARGEST:
        problems.append(
            _problem(
                "large-code",
                f"the code of {use.entry} is larger than {LARGEST >> 20} MiB",
                resource,
                "put data into a Dataset",
            )
        )
    hasher = hashlib.sha256()
    for name, content in files.items():
        hasher.update(f"{name}\0{len(content)}\0".encode() + content)
    return Bundle(hasher.hexdigest(), files), problems


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def _hidden(path: Path, folder: Path) -> bool:
    """Version control, environments and caches are never code, however wide a pattern is."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)


def _module(folder: Path, name: str) -> Path | None:
    base = folder.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imported(folder: Path, start: Path, problems: list[Diagnostic], resource: Resource) -> set[Path]:
    """Local files that `start` imports, directly or through others."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except SyntaxError as error:
            mark = Mark(_shown(path, folder, resource), error.lineno or 1, error.offset or 1)
            problems.append(
                Diagnostic("error", "python-syntax", f"Python cannot read this: {error.msg}", mark)
            )
            continue
        for name in _imports(tree, path, folder):
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                found = _module(folder, ".".join(parts[:depth]))
                if found is not None:
                    todo.append(found)
    return seen


def _imports(tree: ast.AST, path: Path, folder: Path) -> Iterable[str]:
    package = list(path.relative_to(folder).parent.parts)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                if prefix:
                    yield prefix
                yield from (f"{prefix}.{alias.name}" if prefix else alias.name for alias in names)


def _missing_function(path: Path, function: str, entry: str, resource: Resource) -> list[Diagnostic]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []
    names: set[str] = set()
    for node in _top_level(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names.update(target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update(alias.asname or alias.name for alias in aliases)
    if function in names or "*" in names:
        return []
    hint = listed(name for name in names if not name.startswith("_"))
    return [
        _problem(
            "missing-code",
            f"{entry.rsplit(':', 1)[0]} has no function {function}{did_you_mean(function, names)}",
            resource,
            hint,
        )
    ]


def _top_level(tree: ast.Module) -> Iterable[ast.stmt]:
    """The statements that bind names of the module, also below `if`, `try` and `with`."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from (child for child in ast.walk(node) if isinstance(child, ast.stmt))


def _problem(code: str, message: str, resource: Resource, hint: str = "") -> Diagnostic:
    return Diagnostic("error", code, f"{resource.id}: {message}", resource.mark, hint)


def _shown(path: Path, folder: Path, resource: Resource) -> str:
    parent = Path(resource.mark.path).parent
    return str(parent / path.relative_to(folder))
