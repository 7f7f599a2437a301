"""The Python that satisfies a function's requirements: this one, or a cached virtual environment made with uv.

The reconciler asks `python -m mlspec_runtime.environment --requirements '[...]'` before it starts a step, and starts the
step with the interpreter that is printed.

An environment holds the requirements and what they need; the runtime itself comes from the parent's site-packages, which
follow behind the environment's own. Two halves must not disagree about numpy, so first uv is asked for a solution in which
every package that the parent has keeps the parent's version. When there is none, the environment gets the runtime's own
libraries too, in versions that agree with the requirements.

A training keeps in `environment.json` what it really ran with (`record`), so that `mlspec reproduce` gets the same again
(`restore`), also after an upgrade here, or when the cached environment is gone.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlspec_runtime.task import Document, TaskError, exclusive

RECORD = "environment.json"
"""File of a training step."""
READY = "ready.json"
TIMEOUT = 1800
"""Seconds that an installation may take."""

OURS = "mlspec-gitops"
"""The distribution of the runtime itself."""
RUNTIME = ("duckdb", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "scikit-learn", "scipy", "sqlglot")
"""Libraries of the runtime that must agree with what the function brings."""


def interpreter(requirements: list[str]) -> Path:
    """The Python executable in which all `requirements` (PEP 508) are installed.

    Creates the environment when there is none, once, however many processes ask. Progress goes to stderr. Raises TaskError
    for a requirement that is none, and with uv's message when it cannot be installed.
    """
    wanted = [_parse(text) for text in requirements]
    if all(satisfied(requirement) for requirement in wanted):
        return Path(sys.executable)
    folder = _cache() / _digest(wanted)
    python = folder / "venv" / "bin" / "python"
    if (folder / READY).exists():
        return python
    with exclusive(folder.with_suffix(".lock")):
        if not (folder / READY).exists():
            _create(
                folder,
                [str(requirement) for requirement in wanted],
                lambda add: _install(add, folder, wanted),
            )
    return python


def record() -> Document:
    """What this process runs with: `python`, its `version`, all `packages` that are installed by name, as requirements that
    name one version or one file, and which of them are `used`: the modules of this process come from them."""
    packages = installed()
    modules = {name.partition(".")[0] for name in sys.modules}
    known = distributions()
    names = {canonicalize_name(name) for module in modules for name in known.get(module, [])}
    return {
        "python": sys.executable,
        "version": platform.python_version(),
        "packages": packages,
        "used": sorted(names & packages.keys()),
    }


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """The distributions here by the top-level modules that they bring; half a second for a hundred, once."""
    return importlib.metadata.packages_distributions()


def installed() -> dict[str, str]:
    """Requirements of exactly what is installed here, by name, without mlspec and what is edited in place."""
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        name = canonicalize_name(one.metadata["Name"] or "")
        origin = json.loads(one.read_text("direct_url.json") or "{}")
        if not name or name in found or name == OURS or "dir_info" in origin:
            continue
        url = str(origin.get("url", ""))
        if commit := origin.get("vcs_info", {}).get("commit_id"):
            url = f"{origin['vcs_info']['vcs']}+{url}@{commit}"
        found[name] = f"{name} @ {url}" if url else f"{name}=={one.version}"
    return found


def restore(recorded: Document) -> Path:
    """The Python with the packages that `record` found used: that very one if it still has them, this one if it has the same,
    otherwise one that is made for it. Progress goes to stderr. Raises TaskError when it cannot be made."""
    needed = {name: recorded["packages"][name] for name in recorded["used"]}
    python = Path(recorded["python"])
    if needed.items() <= _installed_in(python).items():
        return python
    here = installed()
    if needed.items() <= here.items():
        return Path(sys.executable)
    major, minor, *_ = recorded["version"].split(".")
    if (int(major), int(minor)) != sys.version_info[:2]:
        message = f"it ran with Python {recorded['version']}, which is gone from {python}"
        raise TaskError(message, f"install mlspec with Python {major}.{minor} for it")
    wanted = [text for name, text in needed.items() if here.get(name) != text]
    every = sorted(recorded["packages"].values())
    name = hashlib.blake2b("\n".join([*wanted, *every, *_foundation()]).encode(), digest_size=8).hexdigest()
    folder = _cache() / name
    with exclusive(folder.with_suffix(".lock")):
        if not (folder / READY).exists():
            _create(folder, wanted, lambda add: _install_again(add, folder, wanted, every))
    return folder / "venv" / "bin" / "python"


def _installed_in(python: Path) -> dict[str, str]:
    """`installed` of another Python; nothing when it is gone or does not know us any more."""
    if str(python) == sys.executable:
        return installed()
    try:
        arguments = [str(python), "-P", "-m", "mlspec_runtime.environment", "--installed"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return found


def satisfied(requirement: Requirement, seen: frozenset[str] = frozenset()) -> bool:
    """Whether this environment has the distribution in a fitting version, with what its extras need."""
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    if requirement.url is not None:  # nobody knows whether what is installed came from there
        return False
    try:
        found = importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if not requirement.specifier.contains(found.version, prereleases=True) or _is_editable(found):
        return False
    key = str(requirement)
    return key in seen or all(
        satisfied(part, seen | {key}) for part in _extras(requirement, found.requires or [])
    )


def _is_editable(found: importlib.metadata.Distribution) -> bool:
    """Whether it is a link to a folder that somebody works in: what it holds is not what its version says.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    try:
        return bool(json.loads(found.read_text("direct_url.json") or "{}")["dir_info"]["editable"])
    except (ValueError, KeyError, TypeError):
        return False


def _extras(requirement: Requirement, needs: list[str]) -> Iterator[Requirement]:
    for text in needs:
        part = Requirement(text)
        marker = part.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # needed without the extra: it is there since the distribution is
        if any(marker.evaluate({"extra": extra}) for extra in requirement.extras):
            part.marker = None
            yield part


def _parse(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise TaskError(
            f"{text!r} is not a requirement: {reason}", "write it as pip does: scikit-learn==1.7.*"
        ) from None


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "mlspec" / "envs"


def _digest(wanted: list[Requirement]) -> str:
    """Name of the environment: requirements, this Python, and the packages that it takes over from here."""
    parts = [*sorted(str(requirement) for requirement in wanted), *_foundation()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _foundation() -> list[str]:
    """What an environment stands on: this Python and its packages."""
    return [sys.version, sys.executable, *_installed()]


def _installed() -> list[str]:
    """`name==version` of every distribution here, sorted; those without a plain version are left out."""
    found = {
        canonicalize_name(d.metadata["Name"]): d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }
    return sorted(f"{name}=={version}" for name, version in found.items() if "+" not in version)


Add = Callable[..., None]
"""`uv pip install` into an environment, with these arguments."""


def _create(folder: Path, texts: list[str], install: Callable[[Add], None]) -> None:
    """Make the environment in place: its path is written into its scripts, so only the marker file makes it valid."""
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = ", ".join(texts)
    print(f"installing {names}", file=sys.stderr, flush=True)
    _uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    install(
        functools.partial(
            _uv, "pip", "install", "--quiet", "--python", str(folder / "venv" / "bin" / "python")
        )
    )
    packages = sysconfig.get_path(
        "purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    )
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in _parents())
    (Path(packages) / "_mlspec_parent.pth").write_text(lines)
    (folder / READY).write_text(json.dumps({"requirements": texts, "parent": sys.executable}))
    print(f"installed {names} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _install(add: Add, folder: Path, wanted: list[Requirement]) -> None:
    """The requirements and what they need: in the versions that are here, or with own versions of the runtime's libraries."""
    named = {canonicalize_name(requirement.name) for requirement in wanted}
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in _installed() if line.partition("==")[0] not in named))
    texts = [str(requirement) for requirement in wanted]
    try:
        add("--constraint", str(constraints), *texts)
    except TaskError as first:
        if not _no_solution(first):
            raise
        print(
            "no solution with the installed libraries; the environment gets its own",
            file=sys.stderr,
            flush=True,
        )
        add(*texts, *(name for name in RUNTIME if name not in named))


def _install_again(add: Add, folder: Path, wanted: list[str], every: list[str]) -> None:
    """Exactly these, and what they need in the versions of then. Those of two layers need not agree with one another; then
    only what was used is installed."""
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(text for text in every if "==" in text))
    try:
        add("--constraint", str(constraints), *wanted)
    except TaskError as first:
        if not _no_solution(first):
            raise
        add("--no-deps", *wanted)


def _no_solution(error: TaskError) -> bool:
    return "solution" in error.message or "solution" in error.hint


def _parents() -> list[str]:
    """The site-packages of this interpreter; `addsitedir` also follows its .pth files, as those of editable installs."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _uv(*arguments: str) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "uv", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TaskError(
            f"the installation took more than {TIMEOUT // 60} min", "try again, or pin fewer packages"
        ) from None
    if done.returncode == 0:
        return
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr).strip()
    words = [word for word in text.removeprefix("error: ").split() if not set(word) & set("×╰─▶│├")]
    message = " ".join(words)[:500] or f"uv ended with exit code {done.returncode}"
    raise TaskError(f"the requirements cannot be installed: {message}", "mend `requirements` of the function")


def main() -> int:
    """Print the interpreter's path; exit code 1 with one line on stderr when there is none."""
    about = "Print the path of a Python that satisfies the requirements."
    parser = argparse.ArgumentParser(prog="mlspec_runtime.environment", description=about)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--requirements", help="JSON list of PEP 508 requirements")
    what.add_argument("--installed", action="store_true", help="print what is installed here instead")
    arguments = parser.parse_args()
    try:
        print(
            json.dumps(installed())
            if arguments.installed
            else interpreter(json.loads(arguments.requirements))
        )
    except TaskError as error:
        print(f"error: {error.message} ({error.hint})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
