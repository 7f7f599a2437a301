"""Where Python finds modules on this machine that are neither below a spec nor installed: PYTHONPATH and editable installs.

`bundle` asks, so that such code is either taken along or refused; the local cluster asks which part of PYTHONPATH a step may
keep. Everything is looked up by paths. Nothing is imported: the process that plans is not the one that runs the function.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import site
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from urllib.parse import unquote, urlparse

DISTRIBUTION = "mlspec-gitops"
OWN = ("mlspec", "mlspec_reconciler", "mlspec_runtime", "mlspec_storage")
"""The packages of mlspec itself, which may run from a checkout."""
PACKAGES = frozenset({"site-packages", "dist-packages"})
LAYOUTS = ("src", ".", "python", "lib")
"""Where the packages of a Python project lie, below the folder that was installed."""
INSTALL = "the editable install"
_IMPORT = re.compile(r"import\s+(\w+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder (or zip archive) outside of the project from which Python imports: PYTHONPATH or another `origin` says so."""

    folder: Path
    origin: str
    modules: tuple[tuple[str, Path], ...] = ()
    """Its only importable modules, each with its file or folder; without any the whole folder is importable."""
    distribution: str = ""
    """What was installed there, where that is known."""


@dataclass(frozen=True, slots=True)
class Found:
    """A module that is not part of the project and not installed."""

    file: Path
    origin: str
    distribution: str = ""

    def __str__(self) -> str:
        return f"{self.file} ({self.origin}{f' of {self.distribution}' if self.distribution else ''})"


@dataclass(frozen=True, slots=True)
class SearchPath:
    """`inside` are folders of the project, relative to its root; what lies there goes before all else. The rest is in the
    order in which Python looks: `before` the `installed` packages and `after` them."""

    inside: tuple[str, ...] = ()
    before: tuple[Entry, ...] = ()
    installed: tuple[Path, ...] = ()
    after: tuple[Entry, ...] = ()
    _known: dict[str, Found | None] = field(default_factory=dict, compare=False, repr=False)

    def find(self, module: str) -> Found | None:
        """The file outside of the project from which Python would import `module` (or the package that it is part of)."""
        if not self.before and not self.after:
            return None
        if module not in self._known:
            self._known[module] = self._find(module.split("."))
        return self._known[module]

    def _find(self, names: Sequence[str]) -> Found | None:
        if found := _first(self.before, names):
            return found
        if not self.after or any(_locate(folder, names) for folder in self.installed):
            return None
        return _first(self.after, names)


def of_this_python(root: Path) -> SearchPath:
    """What this interpreter would search for the functions of the project in `root`."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    installed = [Path(folder) for folder in folders if Path(folder).is_dir()]
    return search_path(root, os.environ.get("PYTHONPATH", ""), installed)


def search_path(root: Path, pythonpath: str, installed: Sequence[Path]) -> SearchPath:
    """The search path for the project in `root`, from the variable and from the folders of installed packages."""
    importlib.invalidate_caches()
    inside: dict[str, None] = {}
    outside: list[tuple[Entry, ...]] = []
    for entries in (
        [Entry(folder, "PYTHONPATH") for folder in _folders(pythonpath)],
        [entry for folder in installed for entry in _of_site(folder, root)],
    ):
        places = {entry: _inside(entry, root) for entry in entries if not is_environment(entry.folder)}
        inside |= {place: None for place in places.values() if place is not None}
        outside.append(tuple(entry for entry, place in places.items() if place is None))
    before, after = outside
    return SearchPath(tuple(inside), before, tuple(installed), after)


def is_environment(folder: Path) -> bool:
    """Whether a folder holds installed packages, the standard library or mlspec itself: code that nobody edits in place."""
    if PACKAGES & set(folder.parts) or any((folder / name / "__init__.py").exists() for name in OWN):
        return True
    library = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return any(folder.is_relative_to(path) for path in library)


def without_unidentified(pythonpath: str) -> str:
    """PYTHONPATH for a process that runs functions: only installed packages and mlspec itself."""
    return os.pathsep.join(str(folder) for folder in _folders(pythonpath) if is_environment(folder))


def _folders(pythonpath: str) -> list[Path]:
    """The entries of PYTHONPATH; an empty one is the working folder, as for Python."""
    return [Path(entry).absolute() for entry in pythonpath.split(os.pathsep)] if pythonpath else []


def _inside(entry: Entry, root: Path) -> str | None:
    """The folder relative to `root` when it is part of the project and its modules lie there under their own names."""
    usual = all(path.name in (name, f"{name}.py") for name, path in entry.modules)
    return _relative(entry.folder, root) if usual and entry.folder.is_dir() else None


def _relative(folder: Path, root: Path) -> str | None:
    real, real_root = Path(os.path.realpath(folder)), Path(os.path.realpath(root))
    return real.relative_to(real_root).as_posix() if real.is_relative_to(real_root) else None


def _of_site(folder: Path, root: Path) -> Iterator[Entry]:
    """What a folder of installed packages adds to the search path. A copy of a folder of the project (`pip install .`) counts
    as that folder, so that the same commit is the same code wherever it was installed."""
    distributions = [each for each in _from_folders(folder) if each.name != DISTRIBUTION]
    owners = {file: each.name for each in distributions for file in each.files}
    entries = [entry for file in sorted(folder.glob("*.pth")) for entry in _of_pth_file(file, owners)]
    yield from entries
    for each in distributions:
        known = any(entry.folder.is_relative_to(each.folder) for entry in entries)
        if _relative(each.folder, root) is not None or (each.editable and not known):
            places = [each.folder / layout for layout in LAYOUTS]
            yield from (Entry(place, INSTALL, distribution=each.name) for place in places if place.is_dir())


def _of_pth_file(file: Path, owners: Mapping[str, str]) -> Iterator[Entry]:
    """The folders that a `.pth` file names, and the modules of the PEP 660 finder that it starts.

    https://docs.python.org/3/library/site.html
    """
    owner = owners.get(file.name, "")
    origin = INSTALL if owner else file.name
    for line in map(str.strip, _text(file).splitlines()):
        if started := _IMPORT.match(line):
            for name, place in _of_finder(file.with_name(f"{started[1]}.py")):
                yield Entry(place.parent, origin, ((name, place),), owner)
        elif line and not line.startswith("#") and (place := file.parent / line).exists():
            yield Entry(Path(os.path.normpath(place)), origin, distribution=owner)


def _of_finder(file: Path) -> Iterator[tuple[str, Path]]:
    """The modules that a finder of an editable install maps to paths: `{"ourpkg": "/src/ourpkg"}` in setuptools' finders,
    `map_module("ourpkg", "/src/ourpkg/__init__.py")` in those of hatch and PDM."""
    try:
        tree = ast.parse(_text(file))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        for key, value in _pairs(node):
            name, place = _text_of(key), Path(_text_of(value))
            if name.isidentifier() and place.is_absolute() and place.exists():
                yield name, place.parent if place.name == "__init__.py" else place


def _pairs(node: ast.AST) -> Iterator[tuple[ast.expr | None, ast.expr]]:
    match node:
        case ast.Dict(keys=keys, values=values):
            yield from zip(keys, values, strict=True)
        case ast.Call(args=[key, value]):
            yield key, value


def _text_of(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@dataclass(frozen=True, slots=True)
class _Distribution:
    """A distribution that was installed from a folder; `files` are those that it has beside its metadata."""

    name: str
    folder: Path
    editable: bool
    files: tuple[str, ...]


def _from_folders(installed: Path) -> Iterator[_Distribution]:
    """https://packaging.python.org/en/latest/specifications/direct-url/"""
    for file in sorted(installed.glob("*.dist-info/direct_url.json")):
        try:
            document = json.loads(_text(file))
            url, editable = urlparse(document["url"]), bool(document["dir_info"].get("editable"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # not from a folder, or damaged
        if url.scheme == "file":
            name = file.parent.name.removesuffix(".dist-info").rpartition("-")[0].replace("_", "-").lower()
            record = tuple(line.partition(",")[0] for line in _text(file.with_name("RECORD")).splitlines())
            yield _Distribution(name, Path(unquote(url.path)), editable, record if editable else ())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first(entries: Sequence[Entry], names: Sequence[str]) -> Found | None:
    for entry in entries:
        if entry.modules:
            file = _mapped(dict(entry.modules).get(names[0]), names[1:])
        else:
            file = _locate(entry.folder, names)
        if file is not None:
            return Found(file, entry.origin, entry.distribution)
    return None


def _mapped(place: Path | None, rest: Sequence[str]) -> Path | None:
    if place is None or place.is_file():
        return place
    if (package := place / "__init__.py").is_file():
        return package
    return _locate(place, rest) if rest else place


def _locate(folder: Path, names: Sequence[str]) -> Path | None:
    """The file of the outermost regular package, or of the module, that `names` leads to from a folder; folders without
    `__init__.py` are namespace packages and only lead on."""
    for depth, name in enumerate(names):
        spec = PathFinder.find_spec(name, [str(folder.joinpath(*names[:depth]))])
        if spec is None:
            return None
        if spec.origin:
            return Path(spec.origin)
    return None
