"""Code bundles: a function's file and the project's own modules that it imports, known by their content.

Called by `workspace` (to know the digests) and by `apply` (to put the files into the target's storage). A change of one
file touches only the functions that can see it, because imports are followed and nothing else is taken along. What a function
could import although it is neither taken along nor installed is refused: an edit of it would not be seen.

Modules are looked for where Python would, in the project first: below the spec's folder, in the `src` folders up to the root,
and in folders of the project that are on this machine's search path (`searchpath`). In a bundle all have one root.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath

from mlspec.diagnostics import Diagnostic, Severity, did_you_mean, listed
from mlspec.kind import CodeUse
from mlspec.kind_table import KINDS
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.workload import code_key, code_path
from mlspec_reconciler import imports
from mlspec_reconciler.searchpath import OWN, Found, SearchPath, is_environment

LARGEST = 32 * 2**20
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\v\f\r\x1b"})
"""Characters that text does not have."""
_LOCAL_REQUIREMENT = re.compile(r"@\s*file:(?!.*#sha256=)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files of one function: path relative to the spec's folder -> content. The digest covers names and content."""

    digest: str
    files: Mapping[str, bytes]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """The files that do not lie below the spec's folder -> their path in the project."""


def gather(
    project: Project, root: Path, around: SearchPath | None = None, *, here: bool = True
) -> tuple[dict[str, Bundle], list[Diagnostic]]:
    """The bundles of all functions of a project by `code_key`, and what is wrong with their files.

    `around` is where else Python looks on this machine. `here` is whether the functions run on this machine: if not, code
    outside of the project is not importable there, unless an image has it.
    """
    bundles: dict[str, Bundle] = {}
    problems: list[Diagnostic] = []
    files = _Files(root, around or SearchPath())
    for resource in project.order:
        for use in KINDS[resource.kind].code(resource.spec):
            key = code_key(resource.mark.path, use.entry, use.include, use.requirements)
            if key in bundles:
                continue
            bundling = _Bundling(files, resource, use, here)
            bundles[key] = bundling.bundle()
            problems.extend(bundling.problems)
    return bundles, list({(each.code, each.mark, each.message): each for each in problems}.values())


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


def normal(content: bytes, python: bool = False) -> bytes:
    """The content with line feeds and without a byte order mark, whatever the checkout or an editor made of them.

    So the same commit is the same code everywhere, and what runs is what was hashed. What is not text stays as it is: it does
    not decode as UTF-8, or it has control characters. A Python file (`python`) is text in whatever encoding it names.
    """
    if not python and not _is_text(content):
        return content
    return content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")


def _is_text(content: bytes) -> bool:
    if content.translate(None, _CONTROLS) != content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Module:
    """A Python file of the project, and the folder from which it is imported."""

    base: Path
    path: Path

    @property
    def name(self) -> str:
        """Its name in a bundle."""
        return self.path.relative_to(self.base).as_posix()


class _Files:
    """The files of a project as functions see them; each is read once, however many functions use it."""

    def __init__(self, root: Path, around: SearchPath) -> None:
        self.root = root
        self.around = around
        self.content = cache(self._content)
        self.source = cache(self._source)
        self.places = cache(self._places)
        self.find = cache(self._find)
        self._tops = cache(_top_names)

    def shown(self, path: Path) -> str:
        """The path in diagnostics and in a staged revision."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def _content(self, path: Path) -> bytes:
        return normal(path.read_bytes(), path.suffix == ".py")

    def _source(self, module: _Module) -> imports.Source:
        """What a Python file says."""
        return imports.read(module.path.read_bytes(), self.shown(module.path), PurePosixPath(module.name))

    def _places(self, folder: Path) -> tuple[Path, ...]:
        """The folders of the project from which a function of a spec in `folder` imports, in their order."""
        above = [parent for parent in (folder, *folder.parents) if parent.is_relative_to(self.root)]
        sources = [parent / "src" for parent in above if (parent / "src").is_dir()]
        return tuple(
            dict.fromkeys([folder, *sources, *(self.root / inside for inside in self.around.inside)])
        )

    def _find(self, places: tuple[Path, ...], module: str) -> tuple[_Module, ...]:
        """The file of a module of the project after those of its packages; empty when the project has none.

        As for Python a package with `__init__.py` goes before folders without, wherever these lie.
        """
        names = module.split(".")
        places = tuple(place for place in places if names[0] in self._tops(place))
        if not places:
            return ()
        regular = next((place for place in places if _file(place, names[:1])), None)
        if regular is None and self.around.find(names[0]) is not None:
            return ()
        for place in places if regular is None else (regular,):
            depths = range(1, len(names) + 1)
            if files := [file for depth in depths if (file := _file(place, names[:depth]))]:
                return tuple(_Module(place, file) for file in files)
        return ()


class _Bundling:
    """Makes one bundle, and collects what is wrong."""

    def __init__(self, files: _Files, resource: Resource, use: CodeUse, here: bool) -> None:
        self._files, self._resource, self._use, self._here = files, resource, use, here
        self._folder = (files.root / resource.mark.path).parent
        self._required = {_plain(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in use.requirements}
        self._shadowing: set[Path] = set()
        self.problems: list[Diagnostic] = []

    def bundle(self) -> Bundle:
        """The bundle; it is empty when there is no such code, or when it is installed."""
        location, function = self._use.entry.rsplit(":", 1)
        self._check_requirements()
        if outside := [name for name in (location, *self._use.include) if _leaves(name)]:
            place = self._resource.mark.path.rpartition("/")[0] or "the project"
            hint = "a function takes along only files below its spec; move the spec up, or the file down"
            self._error("outside-code", f"{outside[0]} lies outside of {place}/", hint)
            return Bundle("", {})
        start = self._file(location) if location.endswith(".py") else self._module(location)
        if not start:
            return Bundle("", {})
        source = self._files.source(start[-1])
        if source.problem is None and function not in source.names and "*" not in source.names:
            hint = listed(name for name in source.names if not name.startswith("_"))
            message = f"{location} has no function {function}{did_you_mean(function, source.names)}"
            self._error("missing-code", message, hint)
        modules = self._closure(start)
        paths = dict(self._included(modules)) | {module.name: module.path for module in reversed(modules)}
        self._check_names(paths)
        files = {name: self._files.content(paths[name]) for name in sorted(paths, key=PurePosixPath)}
        if sum(map(len, files.values())) > LARGEST:
            message = f"the code of {self._use.entry} is larger than {LARGEST >> 20} MiB"
            self._error("large-code", message, "put data into a Dataset")
        hasher = hashlib.sha256()
        for name, content in files.items():
            hasher.update(f"{name}\0{len(content)}\0".encode() + content)
        elsewhere = {
            name: self._files.shown(path) for name, path in paths.items() if path != self._folder / name
        }
        return Bundle(hasher.hexdigest(), files, elsewhere)

    def _check_requirements(self) -> None:
        for requirement in filter(_LOCAL_REQUIREMENT.search, self._use.requirements):
            self._error(
                "outside-code",
                f"the requirement {requirement!r} is a file of this machine: an edit of it would not be seen",
                "publish it as a package, or name what the file holds: append #sha256=...",
            )

    def _file(self, location: str) -> Sequence[_Module]:
        """The file of `file.py:function`."""
        start = self._folder / location
        if start.is_file():
            return [_Module(self._folder, start)]
        paths = (path for path in self._folder.glob("**/*.py") if not _hidden(path, self._folder))
        near = sorted(path.relative_to(self._folder).as_posix() for path in islice(paths, 200))
        self._error("missing-code", f"{location} does not exist{did_you_mean(location, near)}", listed(near))
        return ()

    def _module(self, location: str) -> Sequence[_Module]:
        """The file of `package.module:function` after those of its packages; none when it is installed: then its version is
        part of the requirements."""
        modules = self._resolve(imports.Import(location, self._resource.mark))
        if modules and modules[-1].path != _file(modules[-1].base, location.split(".")):
            self._error("missing-code", f"{location} does not exist; there is only {modules[-1].name}")
            return ()
        return modules

    def _closure(self, start: Iterable[_Module]) -> list[_Module]:
        """The modules of the project that are imported from the first ones, and these."""
        seen: dict[_Module, None] = {}
        todo = list(start)
        while todo:
            module = todo.pop()
            if module in seen:
                continue
            seen[module] = None
            source = self._files.source(module)
            if source.problem is not None:
                self.problems.append(source.problem)
            for name in source.imports:
                todo += self._resolve(name)
            for folder in source.folders if self._here else ():
                if Path(folder.name).exists() and not is_environment(Path(folder.name)):
                    self._refuse(folder, f"the code itself adds {folder.name} to sys.path, which is")
        return list(seen)

    def _resolve(self, name: imports.Import) -> Sequence[_Module]:
        """The modules of the project that an import reads; a problem when it reads others that nobody would know of."""
        top = name.name.partition(".")[0]
        if top in OWN:
            return ()
        places = self._files.places(self._folder)
        if _plain(top) in self._required:  # the spec says that it is the published one
            places = places[:1]
        modules = self._files.find(places, name.name)
        if modules and top in sys.stdlib_module_names:
            self._shadowed(name, top, modules[0].path)
        if modules or top in sys.stdlib_module_names or _plain(top) in self._required or not name.runs:
            return modules
        other = self._files.around.find(name.name)
        if other is not None and _plain(other.distribution) not in self._required:
            self._outside(name, top, other)
        return ()

    def _outside(self, name: imports.Import, top: str, other: Found) -> None:
        if self._here:
            self._refuse(name, f"{top} comes from {other}, which is")
            return
        message = f"{top} lies in {other}, outside of the project: pods have it only from their image"
        self.problems.append(replace(self._refusal(name, message), severity="warning"))

    def _refuse(self, name: imports.Import, message: str) -> None:
        message += " neither part of what is applied nor installed: an edit there would not be seen"
        self.problems.append(self._refusal(name, message))

    def _refusal(self, name: imports.Import, message: str) -> Diagnostic:
        place = self._files.shown(self._folder)
        hint = (
            f"move it into {'the project' if place == '.' else f'{place}/'} or its src/, "
            "or publish it as a package and name that in `requirements`"
        )
        return Diagnostic("error", "outside-code", message, name.mark, hint)

    def _shadowed(self, name: imports.Import, top: str, file: Path) -> None:
        self._shadowing.add(file)
        message = (
            f"{self._files.shown(file)} has the name of Python's own module {top}: "
            "which of the two an import reads depends on what was imported before"
        )
        self.problems.append(Diagnostic("error", "shadowed-module", message, name.mark, "rename the file"))

    def _check_names(self, paths: Mapping[str, Path]) -> None:
        """Files that nobody imports by name, but that stand in the way of Python's own modules when something else does."""
        for name, path in paths.items():
            top = name.removesuffix("/__init__.py").removesuffix(".py")
            if name.endswith(".py") and top in sys.stdlib_module_names and path not in self._shadowing:
                message = f"{name} hides Python's own module {top} from the libraries that import it"
                self._error("shadowed-module", message, "rename the file", "warning")

    def _included(self, modules: Iterable[_Module]) -> Iterator[tuple[str, Path]]:
        """The files that patterns of `include` match, by name. A pattern counts from the spec's folder, and in the packages
        that the function imports from elsewhere, so that their data lies beside them."""
        packages: dict[Path, set[str]] = {}
        for module in modules:
            if module.base != self._folder:
                packages.setdefault(module.base, set()).add(module.name.partition("/")[0])
        for pattern in self._use.include:
            matched = {
                path.relative_to(base).as_posix(): path
                for base in (*packages, self._folder)
                for path in base.glob(pattern)
                if path.is_file()
                and not _hidden(path, base)
                and (base == self._folder or path.relative_to(base).parts[0] in packages[base])
            }
            if not matched:
                self._error("missing-code", f"include {pattern!r} matches no file")
            yield from matched.items()

    def _error(self, code: str, message: str, hint: str = "", severity: Severity = "error") -> None:
        """A problem of the resource, where no line of its code is to blame."""
        message = f"{self._resource.id}: {message}"
        self.problems.append(Diagnostic(severity, code, message, self._resource.mark, hint))


@cache
def _plain(name: str) -> str:
    """A name of a distribution or module, so that `Our-Pkg` and `our_pkg` are one."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def _hidden(path: Path, folder: Path) -> bool:
    """Version control, environments and caches are never code, however wide a pattern is."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)


def _top_names(folder: Path) -> frozenset[str]:
    """Names of the modules and packages that may lie in a folder: most imports are of none of them."""
    try:
        return frozenset(path.name.removesuffix(".py") for path in folder.iterdir())
    except OSError:
        return frozenset()


def _file(folder: Path, names: Sequence[str]) -> Path | None:
    base = folder.joinpath(*names)
    for candidate in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if candidate.is_file():
            return candidate
    return None
