"""A controller that keeps ending: what it died of is known, and said, until it runs again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cli.shell import mlspec
from cluster.harness import Home, home
from mlspec_reconciler.clusters.local.cluster import LocalCluster

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: birds}
spec:
  source: {csv: birds.csv}
"""
WAYS = [
    ("raise", "ZeroDivisionError: float divmod()"),
    ("say", "the revision is gone"),
    ("exit", "line 1"),
    ("killed", "was killed by SIGKILL"),
    ("leave", "exited with code 0: hello"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An applied project whose supervisor does not run."""
    folder = tmp_path_factory.mktemp("birds")
    (folder / "project.yaml").write_text(SPECS)
    (folder / "birds.csv").write_text("name,weight\nwren,9\n")
    done = mlspec(folder, "apply", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    cluster = LocalCluster(folder / ".mlspec")
    cluster.stop()
    cluster.close()
    return folder


@pytest.fixture
def failing(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A supervisor whose controller does what the file `how` says."""
    monkeypatch.setenv("MLSPEC_TEST_CONTROLLER", "fails")
    (project / ".mlspec/how").write_text("raise")
    with home(project / ".mlspec", start=False) as made:
        yield made
        made.cluster.store.set_failing("controller", None)


def failures(own: Home) -> int:
    known = own.cluster.store.failing().get("controller")
    return known.failures if known is not None else 0


def rows(project: Path) -> list[str]:
    """All that the store holds."""
    with closing(sqlite3.connect(project / ".mlspec/state.db")) as base:
        return list(base.iterdump())


@pytest.mark.parametrize(("how", "message"), WAYS, ids=[how for how, _ in WAYS])
def test_status_names_a_controller_that_keeps_failing(
    project: Path, failing: Home, how: str, message: str
) -> None:
    """Nothing moves without it, and "all is well" would hide that from the one on call."""
    (project / ".mlspec/how").write_text(how)
    failing.start()
    failing.wait(lambda: failures(failing) > 1)
    status = mlspec(project, "status")
    assert status.returncode == 1
    assert status.stdout.splitlines()[:2] == [
        f"{project.name} on local - the controller needs attention",
        f"  the controller keeps failing: {message}; see: mlspec logs controller",
    ]
    logs = mlspec(project, "logs", "controller")
    assert logs.returncode == 0
    assert "hello" in logs.stdout


def test_one_resource_and_the_document_say_it_too(project: Path, failing: Home) -> None:
    """Scripts read the document, and who looks at one resource must know why it does not move."""
    failing.start()
    failing.wait(lambda: failures(failing) > 1)
    one = mlspec(project, "status", "Dataset/birds")
    assert one.returncode == 1
    assert "the controller keeps failing: ZeroDivisionError: float divmod()" in one.stdout
    document = json.loads(mlspec(project, "status", "--output", "json").stdout)
    assert document["controller"]["failures"] > 1
    assert document["controller"]["message"] == "ZeroDivisionError: float divmod()"


def test_it_is_well_once_the_controller_runs_again(project: Path, failing: Home) -> None:
    """A sentence that stays is not believed the next time."""
    failing.start()
    failing.wait(lambda: failures(failing) > 1)
    (project / ".mlspec/how").write_text("well")
    failing.wait(lambda: failures(failing) == 0)
    status = mlspec(project, "status")
    assert (status.returncode, status.stdout.splitlines()[0]) == (0, f"{project.name} on local - all is well")


def test_failures_are_counted_on_by_the_next_supervisor(project: Path, failing: Home) -> None:
    """A supervisor that is restarted by hand must not begin with "all is well"."""
    failing.start()
    failing.wait(lambda: failures(failing) > 2)
    failing.kill()
    before = failures(failing)
    failing.start()
    failing.wait(lambda: failures(failing) > before)


def test_looking_writes_nothing(project: Path, failing: Home) -> None:
    """What is known about the controller is written by the supervisor, not by who asks."""
    failing.start()
    failing.wait(lambda: failures(failing) > 1)
    failing.kill()
    before = rows(project)
    assert any("failing controller" in line for line in before)
    assert "the supervisor is not running" in mlspec(project, "status").stdout
    assert rows(project) == before


def test_one_crash_is_no_alarm(project: Path, failing: Home) -> None:
    """It was started again a second later, and nothing was missed."""
    (project / ".mlspec/how").write_text("well")
    failing.start()
    (controller,) = failing.wait(failing.alive)

    os.kill(controller, signal.SIGKILL)
    failing.wait(lambda: failures(failing) == 1)
    assert mlspec(project, "status").returncode == 0
