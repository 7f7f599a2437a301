"""Environments: what is satisfied here, and a real installation with uv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mlspec_runtime import environment
from mlspec_runtime.task import TaskError


@pytest.mark.parametrize(
    ("requirement", "here"),
    [
        ("numpy", True),
        ("NumPy>=2", True),
        ("numpy<2", False),
        ("no-such-distribution-of-ours", False),
        ('no-such-distribution-of-ours; python_version < "3"', True),
        ("httpx[no-such-extra]", True),
        ("httpx[http2]", False),
        ("pydantic @ https://example.org/pydantic.whl", False),
    ],
)
def test_what_this_environment_satisfies(requirement: str, here: bool) -> None:
    """The common case costs nothing: the running Python is used."""
    assert environment.satisfied(Requirement(requirement)) is here
    if here:
        assert environment.interpreter([requirement]) == Path(sys.executable)


def test_text_that_is_no_requirement(tmp_path: Path) -> None:
    """Told with pip's spelling."""
    with pytest.raises(TaskError, match="'scikit learn' is not a requirement"):
        environment.interpreter(["scikit learn"])


def ask(requirements: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """As the supervisor asks."""
    command = [sys.executable, "-m", "mlspec_runtime.environment", "--requirements", requirements]
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def test_a_requirement_is_installed_once_beside_the_runtime(tmp_path: Path) -> None:
    """A real wheel from the real index: the function's library and the runtime are importable together."""
    first = ask('["cowsay>=6"]', tmp_path)
    if first.returncode and (
        "network" in first.stderr or "fetch" in first.stderr or "connect" in first.stderr
    ):
        pytest.skip(f"NO PACKAGE INDEX WAS REACHED, SO NO INSTALLATION WAS TESTED: {first.stderr[-300:]}")
    assert first.returncode == 0, first.stderr
    python = first.stdout.strip()
    assert python.startswith(str(tmp_path))
    program = "import cowsay, pandas, mlspec_runtime.task; print(cowsay.__file__); print(pandas.__version__)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    place, version = done.stdout.splitlines()
    assert place.startswith(str(tmp_path))
    assert version == pytest.importorskip("pandas").__version__

    second = ask('["cowsay>=6"]', tmp_path)
    assert (second.stdout.strip(), second.stderr) == (python, "")


def test_what_cannot_be_installed_leaves_no_environment(tmp_path: Path) -> None:
    """uv's reason in one line; a half-made environment is never used."""
    done = ask('["numpy==0.0.1.dev99999"]', tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: the requirements cannot be installed: ")
    assert not list(tmp_path.rglob(environment.READY))
