"""`reproduce` uses the packages that the run was trained with, not those of the day. Real environments, made with uv."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import six

from mlspec_runtime import environment
from mlspec_runtime.reproduce import main, reproduce
from mlspec_runtime.task import TaskError

OTHER = "six==1.16.0"
ANSWERS = """
    import six
    from sklearn.dummy import DummyRegressor

    def train(train):
        version = float(six.__version__.split(".")[1])
        features = train.drop(columns=["label"])
        return DummyRegressor(strategy="constant", constant=version).fit(features, train["label"]), {"six": version}
"""
REGRESSION = {
    "train": {"dataset": "d", "label": "area_error", "share": [0, 0.7]},
    "test": {"dataset": "d", "label": "area_error", "share": [0.7, 1]},
}
ROWS = "return [{'patient': n, 'area_error': float(n)} for n in range(60)]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def python(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of an environment that has another six than this one."""
    assert f"six=={six.__version__}" != OTHER
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    try:
        return environment.interpreter([OTHER])
    except TaskError as error:
        pytest.skip(f"NO PACKAGE INDEX WAS REACHED, SO NO ENVIRONMENT WAS TESTED: {error.message[-300:]}")


@pytest.fixture
def trained(storage: Any, python: Path) -> Path:
    """The step `train` of the run j-1, trained there; the model predicts 16, the minor version of six."""
    taken = storage.rows(ROWS, {"key": ["patient"]})
    storage.frames("j-1", REGRESSION, taken, {"key": ["patient"]})
    folder: Path = storage.root / "runs/j-1/train"
    task = storage.root / "task.json"
    task.write_text(json.dumps(storage.training("j-1", ANSWERS, REGRESSION)))
    arguments = [
        str(python),
        "-P",
        "-m",
        "mlspec_runtime",
        "train",
        "--task",
        str(task),
        "--root",
        str(storage.root),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "result.json").read_text())["metrics"]["six"] == 16
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the run recorded of its environment."""
    document = json.loads((folder / environment.RECORD).read_text())
    change(document)
    (folder / environment.RECORD).write_text(json.dumps(document))


def version_in(python: str | Path) -> str:
    """The six of another Python."""
    done = subprocess.run(
        [str(python), "-c", "import six; print(six.__version__)"], capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_very_environment_of_the_run_is_used(storage: Any, trained: Path, python: Path) -> None:
    """With the six of mlspec the model predicts another number, and the run would be called irreproducible."""
    report = reproduce("j-1", storage.root)
    assert report["python"] == str(python)
    assert report["metrics"]["six"] == {"old": 16, "new": 16, "equal": True}
    assert report["equal"]


def test_an_environment_that_is_gone_is_made_again(storage: Any, trained: Path, python: Path) -> None:
    """Caches are cleaned; a run of last year must still be reproducible."""
    shutil.rmtree(python.parents[2])
    report = reproduce("j-1", storage.root)
    assert report["python"] not in (sys.executable, str(python))
    assert version_in(report["python"]) == "1.16.0"
    assert report["equal"]
    again = reproduce("j-1", storage.root)
    assert again["python"] == report["python"]


def test_it_is_made_of_what_was_installed_then(storage: Any, trained: Path, python: Path) -> None:
    """`six<1.17` was 1.15.0 when the run was trained: the record counts, not what fits today."""

    def older(document: dict[str, Any]) -> None:
        document["packages"]["six"] = "six==1.15.0"

    edit(trained, older)
    report = reproduce("j-1", storage.root)
    assert version_in(report["python"]) == "1.15.0"
    assert report["metrics"]["six"] == {"old": 16, "new": 15, "equal": False}


def test_an_environment_that_was_changed_is_not_used(storage: Any, trained: Path, python: Path) -> None:
    """Somebody installed into the cached environment; its name says nothing any more."""
    install = ["-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([sys.executable, *install, "six==1.14.0"], check=True)
    try:
        report = reproduce("j-1", storage.root)
    finally:
        subprocess.run([sys.executable, *install, OTHER], check=True)
    assert report["python"] != str(python)
    assert report["equal"]


def test_the_same_packages_here_are_good_enough(storage: Any, trained: Path) -> None:
    """After mlspec was moved to another folder nothing has to be installed."""

    def moved(document: dict[str, Any]) -> None:
        document["python"] = "/nowhere/bin/python"
        document["packages"]["six"] = f"six=={six.__version__}"

    edit(trained, moved)
    report = reproduce("j-1", storage.root)
    assert report["python"] == sys.executable


def test_a_run_without_a_record_gets_the_versions_that_its_code_imported(storage: Any, trained: Path) -> None:
    """Runs from before the record have `requirements_frozen` in their result."""
    (trained / environment.RECORD).unlink()
    report = reproduce("j-1", storage.root)
    assert version_in(report["python"]) == "1.16.0"
    assert report["equal"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("packages", "six==99.0.0", "its environment cannot be made again"),
        (
            "packages",
            "six @ file:///nowhere/six-1.16.0-py3-none-any.whl",
            "its environment cannot be made again",
        ),
        ("version", "3.9.18", "it ran with Python 3.9.18, which is gone from /nowhere/bin/python"),
    ],
    ids=["a_release_that_was_withdrawn", "a_wheel_that_is_gone", "another_python"],
)
def test_what_cannot_be_made_again_is_one_sentence(
    storage: Any,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    value: str,
    said: str,
) -> None:
    """No traceback, no half-made repetition, and nothing is trained with other packages instead."""

    def gone(document: dict[str, Any]) -> None:
        document["python"] = "/nowhere/bin/python"
        if field == "packages":
            document["packages"]["six"] = value
        else:
            document[field] = value

    edit(trained, gone)
    monkeypatch.setattr(sys, "argv", ["reproduce", "j-1", "--root", str(storage.root)])
    assert main() == 1
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: could not reproduce j-1: ")
    assert said in last
    assert captured.out == ""
    assert sorted(path.name for path in (storage.root / "runs").iterdir() if path.name != "d-1") == ["j-1"]


def test_what_is_recorded(trained: Path) -> None:
    """Exact versions of all that is there, and which of them the training loaded."""
    recorded = json.loads((trained / environment.RECORD).read_text())
    assert recorded["version"] == ".".join(map(str, sys.version_info[:3]))
    assert recorded["packages"]["six"] == OTHER
    assert {"numpy", "pandas", "six"} <= {*recorded["used"]}
    assert {"mlspec-gitops", "pytest", "ruff"}.isdisjoint(recorded["used"])
    assert Path(recorded["python"]).samefile(sys.executable)  # a venv's python is a link to ours
