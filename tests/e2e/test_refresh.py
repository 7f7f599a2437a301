"""A source whose reading takes longer than its interval, with real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.shell import mlspec

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: slow}
spec:
  source: {function: "load.py:slow"}
  key: [shop]
  time: {event: at, delay: 0s}
  refresh: {every: 1s}
---
apiVersion: mlspec.dev/v1alpha1
kind: FeatureSet
metadata: {name: shop}
spec:
  dataset: slow
  key: [shop]
  features: {price: price}
"""
LOAD = """
import datetime, os, pathlib, time

def slow():
    trace = pathlib.Path(os.environ["MLSPEC_TEST_TRACE"])
    with trace.open("a") as file:
        file.write(f"begin {time.time()}\\n")
    time.sleep(2.5)
    with trace.open("a") as file:
        file.write(f"end {time.time()}\\n")
    return [{"shop": 1, "price": time.time(), "at": datetime.datetime.now(datetime.UTC)}]
"""
OTHER = """---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: other}
spec:
  source: {csv: other.csv}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The applied project; its supervisor is stopped afterwards."""
    monkeypatch.setenv("MLSPEC_TEST_TRACE", str(tmp_path / "trace.log"))
    (tmp_path / "project.yaml").write_text(SPECS)
    (tmp_path / "load.py").write_text(LOAD)
    (tmp_path / "other.csv").write_text("a\n1\n")
    mlspec(tmp_path, "apply", "--yes", "--timeout", "2")
    yield tmp_path
    mlspec(tmp_path, "destroy", "--yes", "--purge")


@pytest.mark.slow
def test_readings_follow_one_another_and_everything_else_goes_on(project: Path) -> None:
    """A reading of 2.5 s each second: one at a time, features of each snapshot, and a new dataset is read beside it."""
    trace, until = project / "trace.log", time.monotonic() + 60
    while trace.read_text().count("end") < 3 and time.monotonic() < until:
        time.sleep(0.2)
    (project / "project.yaml").write_text(SPECS + OTHER)
    mlspec(project, "apply", "--yes", "--timeout", "8")
    words = [line.split()[0] for line in trace.read_text().splitlines()]
    assert len(words) >= 6
    assert all(word == ("begin", "end")[index % 2] for index, word in enumerate(words))
    listed = mlspec(project, "runs").stdout.splitlines()
    assert sum(line.startswith("features-shop-") and "succeeded" in line for line in listed) >= 2
    assert sum(line.startswith("data-other-") and "succeeded" in line for line in listed) == 1
