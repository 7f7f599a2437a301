"""The Python that satisfies a function's requirements: this one, or a cached virtual environment made with uv.

The reconciler asks `python -m mlspec_runtime.environment --requirements '[...]'` before it starts a step, and starts the
step with the interpreter that is printed.

An environment holds the requirements and what they need; the runtime itself comes from the parent's site-packages, which
follow behind the environment's own. Two halves must not disagree about numpy, so first uv is asked for a solution in which
every package that the parent has keeps the parent's version. When there is none, the environment gets the runtime's own
libraries too, in versions that agree with the requirements.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mlspec_runtime.task import TaskError, exclusive

READY = "ready.json"
TIMEOUT = 1800
"""Seconds that an installation may take."""

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
            _create(folder, wanted)
    return python


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
    parts = [*sorted(str(requirement) for requirement in wanted), sys.version, sys.executable, *_installed()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _installed() -> list[str]:
    """`name==version` of every distribution here, sorted; those without a plain version are left out."""
    found = {
        canonicalize_name(d.metadata["Name"]): d.version
        for d in importlib.metadata.distributions()
        if d.metadata["Name"]
    }
    return sorted(f"{name}=={version}" for name, version in found.items() if "+" not in version)


def _create(folder: Path, wanted: list[Requirement]) -> None:
    """Make the environment in place: its path is written into its scripts, so only the marker file makes it valid."""
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = ", ".join(str(requirement) for requirement in wanted)
    print(f"installing {names}", file=sys.stderr, flush=True)
    _uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    named = {canonicalize_name(requirement.name) for requirement in wanted}
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in _installed() if line.partition("==")[0] not in named))
    python = str(folder / "venv" / "bin" / "python")
    install = ("pip", "install", "--quiet", "--python", python)
    texts = [str(requirement) for requirement in wanted]
    try:
        _uv(*install, "--constraint", str(constraints), *texts)
    except TaskError as first:
        if "solution" not in first.message and "solution" not in first.hint:
            raise
        print(
            "no solution with the installed libraries; the environment gets its own",
            file=sys.stderr,
            flush=True,
        )
        _uv(*install, *texts, *(name for name in RUNTIME if name not in named))
    packages = sysconfig.get_path(
        "purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    )
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in _parents())
    (Path(packages) / "_mlspec_parent.pth").write_text(lines)
    (folder / READY).write_text(json.dumps({"requirements": texts, "parent": sys.executable}))
    print(f"installed {names} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


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
    parser.add_argument("--requirements", required=True, help="JSON list of PEP 508 requirements")
    try:
        print(interpreter(json.loads(parser.parse_args().requirements)))
    except TaskError as error:
        print(f"error: {error.message} ({error.hint})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
