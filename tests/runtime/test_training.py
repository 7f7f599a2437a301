"""The training step: calls, results, gates, the baseline, MLflow, and restarts at bad moments."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from mlspec_runtime import model, task, tracking, train
from mlspec_runtime.monitor import reference
from mlspec_runtime.task import TaskError


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store; its migrations take 2.5 s, so they run once."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}", "none", path.parent)
    return path


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def runs(store: str, identity: str) -> list[Any]:
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`mlspec.run` = '{identity}'"))


def test_a_run_leaves_a_model_metrics_a_reference_and_its_record(
    storage: Any, cancer: Any, split: Any, logistic: str, store: str
) -> None:
    """The whole step on real data: what is evaluated is the model that serving loads."""
    cancer("j-1")
    document = storage.training(
        "j-1", logistic, split, parameters={"C": 0.5}, tracking=store, tags={"git": "4f2c1d0"}
    )
    result = storage.train(document)
    assert result["metrics"]["auc"] > 0.98
    assert result["rows"]["train"] + result["rows"]["test"] == 569
    assert "patient" not in [item["name"] for item in result["inputs"]]
    assert any(line.startswith("scikit-learn==") for line in result["requirements_frozen"])
    loaded = model.load(storage.root / result["model"]["path"])
    assert [field.name for field in loaded.inputs] == [item["name"] for item in result["inputs"]]
    frozen = reference.load(storage.root / "runs/j-1/train/reference.json")
    assert set(frozen.features) == {field.name for field in loaded.inputs}
    assert set(frozen.predictions) == {"prediction", "probability"}

    (recorded,) = runs(store, "j-1")
    assert recorded.info.run_id == result["mlflow_run"]
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params == {"C": "0.5", "seed": "0"}
    assert recorded.data.metrics["auc"] == pytest.approx(result["metrics"]["auc"])
    assert recorded.data.tags["git"] == "4f2c1d0"
    names = {item.path for item in MlflowClient(store).list_artifacts(recorded.info.run_id)}
    assert names == {"model", "reference.json"}


def test_the_baseline_is_measured_on_the_same_rows(
    storage: Any, cancer: Any, split: Any, logistic: str
) -> None:
    """A gate `against: serving` compares two models on one table, not two numbers of two days."""
    cancer("j-1")
    first = storage.train(storage.training("j-1", logistic, split, parameters={"C": 1e-6}))
    cancer("j-2")
    serving = {"run": "j-1", "path": first["model"]["path"]}
    second = storage.train(storage.training("j-2", logistic, split, baseline=serving))
    assert second["baseline"] == {"run": "j-1", "metrics": first["metrics"]}
    assert second["metrics"]["log_loss"] < first["metrics"]["log_loss"]


def test_a_baseline_of_other_inputs_does_not_stop_the_run(
    storage: Any, cancer: Any, split: Any, logistic: str
) -> None:
    """Removing a feature must stay possible; the gate then has nothing to compare with, and the result says so."""
    cancer("j-1")
    folder = storage.root / storage.train(storage.training("j-1", logistic, split))["model"]["path"]
    manifest = json.loads((folder / "mlspec.json").read_text())
    manifest["inputs"][0]["name"] = "removed"
    (folder / "mlspec.json").write_text(json.dumps(manifest))
    cancer("j-2")
    serving = {"run": "j-1", "path": "runs/j-1/train/model"}
    baseline = storage.train(storage.training("j-2", logistic, split, baseline=serving))["baseline"]
    assert baseline == {"run": "j-1", "metrics": None, "reason": "the model needs the input removed"}


def test_the_same_inputs_give_the_same_bytes(storage: Any, cancer: Any, split: Any) -> None:
    """Reproduction compares bytes; the seed reaches numpy's and Python's generators and the function."""
    code = """
        import random
        import numpy as np
        from sklearn.ensemble import RandomForestClassifier

        def train(train, seed):
            forest = RandomForestClassifier(10, random_state=seed).fit(train.drop(columns="label"), train["label"])
            return forest, {"a": random.random(), "b": np.random.rand(), "seed": seed}
    """
    found = []
    for run, seed in (("j-1", 7), ("j-2", 7), ("j-3", 8)):
        cancer(run)
        result = storage.train(storage.training(run, code, split, seed=seed))
        found.append(((storage.root / result["model"]["path"] / "model.pkl").read_bytes(), result["metrics"]))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1]["a"] == random.Random(7).random()
    assert found[0][1]["b"] == np.random.RandomState(7).rand()


def test_a_users_own_class_travels_with_the_model(storage: Any, cancer: Any, split: Any) -> None:
    """Serving has no train.py: the class is in the pickle. And it loads without MLflow, which would take 2.7 s."""
    code = """
        from sklearn.base import BaseEstimator, ClassifierMixin

        class Rule(ClassifierMixin, BaseEstimator):
            def fit(self, X, y):
                self.classes_, self.feature_names_in_, self.bound_ = [False, True], X.columns, X["mean_radius"].median()
                return self
            def predict(self, X):
                return X["mean_radius"].to_numpy() < self.bound_

        def train(train):
            return Rule().fit(train[["mean_radius"]], train["label"])
    """
    cancer("j-1")
    code = code.replace("[False, True]", "__import__('numpy').array([False, True])")
    path = storage.root / storage.train(storage.training("j-1", code, split))["model"]["path"]
    program = (
        "import sys, pathlib, numpy; from mlspec_runtime import model; m = model.load(pathlib.Path(sys.argv[1]));"
        " print(m.predict({'mean_radius': numpy.array([1.0, 99.0])}, 2)['prediction'].tolist());"
        " print([name for name in ('mlflow', 'duckdb', 'sqlglot') if name in sys.modules])"
    )
    shutil.rmtree(storage.root / "code")
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[True, False]", "[]"]


def test_artifacts_are_kept_in_a_fitting_format(storage: Any, cancer: Any, split: Any, logistic: str) -> None:
    """A report, a table, a number: what the function returned is found again beside the model."""
    code = logistic.replace(
        "return make_pipeline",
        'open("/dev/null").close(); import pandas; notes = {"model": None, "artifacts": {"report": "# good", "sizes": [1, 2],'
        ' "table": pandas.DataFrame({"a": [1]})}}; notes["model"] = make_pipeline',
    )
    code = code.rstrip() + "\n        return notes\n"
    cancer("j-1")
    storage.train(storage.training("j-1", code, split))
    folder = storage.root / "runs/j-1/train/artifacts"
    assert sorted(path.name for path in folder.iterdir()) == ["report.txt", "sizes.json", "table.parquet"]


@pytest.mark.parametrize(
    ("body", "changes", "message"),
    [
        ("return 3", {}, "train.py:train returned int, which has no method predict"),
        ("return {'model': 3, 'metric': {}}", {}, "returned a dict with metric"),
        ("raise ValueError('bad rate')", {}, "train.py:3: ValueError: bad rate"),
        ("return None", {"parameters": {"rtae": 1}}, "train() has no parameter rtae"),
        ("from sklearn.dummy import DummyClassifier as D; return D().fit(train.drop(columns='label'), train['label']), {'m': 'x'}", {}, "m is str"),
        ("from sklearn.dummy import DummyClassifier as D; return D().fit(train, train['label'])", {}, "was fitted on label"),
        (
            "from sklearn.linear_model import LogisticRegression as L; return L().fit(train[['mean_area']].to_numpy(), train['label'])",
            {},
            "was fitted on 1 unnamed columns, the data has 31 features",
        ),
        (
            "from sklearn.linear_model import LogisticRegression as L; return L().fit(train.assign(ratio=1.0)[['ratio']], train['label'])",
            {},
            "was fitted on ratio, which the data does not have",
        ),
        (
            "from sklearn.dummy import DummyClassifier as D; return D().fit(train.drop(columns='label'), train['label'])",
            {"gates": [{"metric": "profit", "min": 1}]},
            "a gate asks for the metric profit",
        ),
        (
            "from sklearn.dummy import DummyClassifier as D; return D().fit(train.drop(columns='label'), train['label'].astype(str))",
            {},
            "the model predicts False, True, but the label is like",
        ),
    ],
)  # fmt: skip
def test_what_cannot_become_a_model_is_told_in_one_sentence(
    storage: Any, cancer: Any, split: Any, body: str, changes: dict[str, Any], message: str
) -> None:
    """Each of these is a real first attempt; none may end in our traceback."""
    cancer("j-1")
    code = f"\ndef train(train):\n    {body}\n"
    with pytest.raises(TaskError) as caught:
        train.run(storage.training("j-1", code, split, **changes), storage.root)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_function_may_see_the_evaluation_rows_or_not(
    storage: Any, cancer: Any, split: Any, logistic: str
) -> None:
    """A hold-out that the function does not take is the cleanest one; other data must be taken."""
    cancer("j-1")
    seen = logistic.replace("train, C=1.0", "train, test, C=1.0").replace(
        "features =", "assert len(test); features ="
    )
    assert storage.train(storage.training("j-1", seen, split))["metrics"]["auc"] > 0.98
    frames = {"train": 1, "test": 2, "extra": 3}
    spec = train.TrainingJobSpec.model_validate({"function": "train.py:f", "data": split})
    with pytest.raises(TaskError, match="has no parameter extra"):
        train.arrange(lambda train: None, frames, {}, 0, spec)  # type: ignore[arg-type]


def test_a_failed_function_is_failed_in_mlflow(storage: Any, cancer: Any, split: Any, store: str) -> None:
    """Nobody should wait for a run that is dead."""
    cancer("j-1")
    document = storage.training(
        "j-1", "def train(train):\n    raise ValueError('no')\n", split, tracking=store
    )
    assert task.perform(train.run, document, storage.root) == task.FINAL
    assert [run.info.status for run in runs(store, "j-1")] == ["FAILED"]
    assert json.loads(storage.error("j-1", "train"))["message"] == "train.py:2: ValueError: no"


def test_a_killed_training_is_taken_up_again(
    storage: Any, cancer: Any, split: Any, logistic: str, store: str, tmp_path: Path
) -> None:
    """kill -9 in the middle of the user's function: the next start trains, the dead MLflow run is KILLED, one is FINISHED."""
    cancer("j-1")
    flag = tmp_path / "started"
    code = logistic.replace(
        "features =",
        f"import pathlib, time; f = pathlib.Path({str(flag)!r}); s = f.exists(); f.touch(); s or time.sleep(60); features =",
    )
    document = storage.training("j-1", code, split, tracking=store)
    command = [
        sys.executable,
        "-m",
        "mlspec_runtime",
        "train",
        "--task",
        json.dumps(document),
        "--root",
        str(storage.root),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert flag.exists()
    result = storage.train(document)
    assert sorted(run.info.status for run in runs(store, "j-1")) == ["FINISHED", "KILLED"]
    assert [run.info.run_id for run in runs(store, "j-1") if run.info.status == "FINISHED"] == [
        result["mlflow_run"]
    ]


@pytest.mark.parametrize("moment", ["before FINISHED", "after FINISHED"])
def test_a_crash_before_the_commit_does_not_train_twice(
    storage: Any, cancer: Any, split: Any, logistic: str, store: str, moment: str
) -> None:
    """The outcome is on disk: only the closing of the MLflow run is left, and it happens once."""
    cancer("j-1")
    document = storage.training("j-1", logistic, split, tracking=store)
    first = storage.train(document)
    (storage.root / "runs/j-1/train/result.json").unlink()  # the process died before task.perform wrote it
    if moment == "before FINISHED":
        MlflowClient(store).update_run(first["mlflow_run"], status="RUNNING")
    (storage.root / document["code"]["path"] / "train.py").write_text("raise SystemExit('trained twice')")
    second = storage.train(document)
    assert second["metrics"] == first["metrics"]
    assert [(run.info.run_id, run.info.status) for run in runs(store, "j-1")] == [
        (first["mlflow_run"], "FINISHED")
    ]


def test_an_unreachable_store_is_named(
    storage: Any, cancer: Any, split: Any, logistic: str, tmp_path: Path
) -> None:
    """Before anything is trained."""
    cancer("j-1")
    (tmp_path / "file").write_text("")
    document = storage.training("j-1", logistic, split, tracking=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TaskError, match="MLflow at sqlite"):
        train.run(document, storage.root)
