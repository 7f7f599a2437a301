"""The user's code: load a function from a code bundle, call it, and speak of its faults in the user's own terms.

A bundle is a folder (`code/<digest>/`) with the files as they lie in git. Dataset sources, training functions and Python
steps of serving graphs come through here. The module of an entry file gets a name of its own per bundle, so that two
versions can live in one process, as they do in serving while a model is swapped.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mlspec_runtime.task import TaskError

Function = Callable[..., Any]


def load(entry: str, folder: Path) -> Function:
    """The function `file.py:function` of the bundle `folder`, or `package.module:function` (from there or installed).

    The folder goes first into `sys.path`, so its modules are importable. Raises TaskError when the file, the function or
    an import is missing, and when the module's own code fails.
    """
    place, _, name = entry.rpartition(":")
    folder = folder.absolute()
    _make_importable(folder)
    module = _file(place, folder) if place.endswith(".py") else _module(place, folder)
    function = getattr(module, name, None)
    if function is None:
        known = ", ".join(
            key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"
        )
        raise TaskError(
            f"{place} has no function {name}", f"it defines: {known}" if known else "it defines no function"
        )
    if not callable(function):
        raise TaskError(f"{entry} is not a function but of type {type(function).__name__}", "name a function")
    return function  # type: ignore[no-any-return]


def call(
    function: Function, folder: Path, arguments: Mapping[str, Any], *, within: Path | None = None
) -> Any:
    """`function(**arguments)`; a failure inside becomes a TaskError `train.py:14: ValueError: ...`, its trace the log's.

    `within` is the working directory of the call (the process's own one is restored). The arguments are checked against
    the signature first: unknown and missing ones raise a TaskError that names them.
    """
    check_arguments(function, arguments)
    with faults(folder.absolute()), _directory(within):
        return function(**arguments)


def accepts(function: Function, name: str) -> bool:
    """Whether the function takes an argument of this name, named or through `**`."""
    parameters = _parameters(function)
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def local_modules(folder: Path) -> list[ModuleType]:
    """The loaded modules whose file lies in the bundle: a pickled model must carry their classes by value."""
    folder = folder.absolute()
    return [
        module for module in list(sys.modules.values()) if _lies_in(getattr(module, "__file__", None), folder)
    ]


@contextmanager
def faults(folder: Path) -> Iterator[None]:
    """Turn an exception of the user's code into a TaskError; the log keeps the user's part of the traceback."""
    try:
        yield
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise _fault(error, folder) from error


def _make_importable(folder: Path) -> None:
    """Put the bundle first; modules of the same name from another bundle are forgotten (who holds them keeps them)."""
    path = str(folder)
    if path in sys.path:
        sys.path.remove(path)
    sys.path.insert(0, path)
    if not folder.is_dir():
        return
    local = {
        item.stem if item.suffix == ".py" else item.name
        for item in folder.iterdir()
        if item.suffix in (".py", "")
    }
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if (
            name.partition(".")[0] in local
            and file
            and not _lies_in(file, folder)
            and not _is_installed(file)
        ):
            del sys.modules[name]
    importlib.invalidate_caches()


def _file(place: str, folder: Path) -> ModuleType:
    file = folder / place
    name = (
        f"mlspec_code_{folder.name}_{place.removesuffix('.py')}".replace("/", "_")
        .replace("-", "_")
        .replace(".", "_")
    )
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        found = ", ".join(sorted(str(item.relative_to(folder)) for item in folder.rglob("*.py"))[:10])
        raise TaskError(
            f"the code bundle has no file {place}", f"it has: {found}" if found else "it has no Python file"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with faults(folder), _directory(folder):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(name: str, folder: Path) -> ModuleType:
    with faults(folder):
        return importlib.import_module(name)


def _fault(error: BaseException, folder: Path) -> TaskError:
    """The user's view of an exception: location in their file, one line, and the trace from their code on in the log."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if _lies_in(frame.filename, folder)), None)
    if first is None:
        first = next((i for i, frame in enumerate(frames) if not _is_machinery(frame.filename)), len(frames))
    theirs = frames[first:]
    for frame in theirs:
        if _lies_in(frame.filename, folder):
            frame.filename = str(Path(frame.filename).absolute().relative_to(folder))
    described = "".join(traceback.format_exception_only(error))
    if theirs:
        print(
            "Traceback (most recent call last):",
            *traceback.format_list(theirs),
            sep="\n",
            end="",
            file=sys.stderr,
        )
    print(described, end="", file=sys.stderr, flush=True)

    own = [
        one
        for one in theirs
        if not Path(one.filename).is_absolute() and not one.filename.startswith("<frozen")
    ]
    place = f"{(own or theirs)[-1].filename}:{(own or theirs)[-1].lineno}: " if theirs else ""
    if isinstance(error, SyntaxError) and error.filename:
        file = (
            Path(error.filename).name
            if not _lies_in(error.filename, folder)
            else str(Path(error.filename).relative_to(folder))
        )
        return TaskError(
            f"{file}:{error.lineno}: {type(error).__name__}: {error.msg}",
            "mend the code; the log shows the line",
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        hint = f"add the package of {top} to `requirements` of the function, or, if it is a local file, to `include`"
        return TaskError(f"{place}the module {error.name} is not installed", hint)
    if isinstance(error, SystemExit):
        return TaskError(
            f"{place}the code ended the process with exit code {error.code}",
            "return a value or raise an error instead",
        )
    line = next(iter(str(error).strip().splitlines()), "")
    return TaskError(
        f"{place}{type(error).__name__}" + (f": {line}" if line else ""), "the log has the traceback"
    )


def _parameters(function: Function) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature takes what it is given
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def check_arguments(function: Function, arguments: Mapping[str, Any]) -> None:
    parameters = _parameters(function)
    name = getattr(function, "__name__", "the function")
    named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = [key for key in arguments if not accepts(function, key)]
    missing = [key for key, p in named.items() if p.default is p.empty and key not in arguments]
    missing += [key for key, p in parameters.items() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if not unknown and not missing:
        return
    faults_found = [f"has no parameter {', '.join(unknown)}"] if unknown else []
    faults_found += [f"needs {', '.join(missing)}, which the spec does not give"] if missing else []
    raise TaskError(
        f"{name}() {' and '.join(faults_found)}",
        f"it takes ({', '.join(parameters)}); the spec gives {', '.join(arguments) or 'nothing'} (data and parameters)",
    )


@contextmanager
def _directory(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _lies_in(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).is_absolute() and Path(file).is_relative_to(folder)


def _is_installed(file: str) -> bool:
    return "site-packages" in file or file.startswith((sys.base_prefix, sys.prefix)) or _is_machinery(file)


def _is_machinery(file: str) -> bool:
    return file.startswith("<frozen") or _lies_in(file, Path(__file__).parent)
