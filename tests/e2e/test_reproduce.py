"""`mlspec reproduce` of a run whose function brings requirements, as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.shell import mlspec

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: numbers}
spec:
  source: {csv: numbers.csv}
  key: [number]
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: versioned}
spec:
  function: {code: "train.py:train", requirements: ["six==1.16.0"]}
  data:
    train: {dataset: numbers, label: value, share: [0, 0.7]}
    test: {dataset: numbers, label: value, share: [0.7, 1]}
"""
TRAIN = """
import six
from sklearn.dummy import DummyRegressor

def train(train):
    version = float(six.__version__.split(".")[1])
    features = train.drop(columns=["label"])
    return DummyRegressor(strategy="constant", constant=version).fit(features, train["label"]), {"six": version}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an applied project."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "versioned"
    folder.mkdir()
    (folder / "project.yaml").write_text(SPECS)
    (folder / "train.py").write_text(TRAIN)
    (folder / "numbers.csv").write_text("number,value\n" + "".join(f"{n},{n % 7}.5\n" for n in range(60)))
    done = mlspec(folder, "apply", "--yes")
    if "cannot be installed" in done.stdout + done.stderr:
        pytest.skip(f"NO PACKAGE INDEX WAS REACHED, SO NOTHING WAS REPRODUCED: {done.stdout[-300:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    mlspec(folder, "destroy", "--yes", "--purge")


@pytest.mark.slow
def test_a_run_with_requirements_is_reproduced_with_them(project: Path) -> None:
    """Also when the cached environment has been cleaned away: without it six of mlspec itself would predict another number."""
    listed = json.loads(mlspec(project, "runs", "--output", "json").stdout)["runs"]
    (run,) = [one["run"] for one in listed if one["run"].startswith("versioned-")]
    first = mlspec(project, "reproduce", run)
    assert (first.returncode, first.stdout) == (0, "the same model to the byte, the same metrics\n"), (
        first.stderr
    )
    shutil.rmtree(project.parent / "cache")
    second = mlspec(project, "reproduce", run)
    assert (second.returncode, second.stdout) == (0, "the same model to the byte, the same metrics\n"), (
        second.stderr
    )
