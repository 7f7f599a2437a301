"""Models: what serving loads is what was trained, in every layout, cheaply and without MLflow."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from mlspec_runtime import code, model, save
from mlspec_runtime.task import TaskError
from mlspec_runtime.train import columns_of


def stored(estimator: Any, rows: pd.DataFrame, folder: Path) -> model.Model:
    """Save as the training step does and load as serving does."""
    manifest = save.describe(estimator, rows, folder)
    save.write(estimator, manifest, folder / "model", ["scikit-learn"], folder)
    return model.load(folder / "model")


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", b""), ("utf-8", b"\xef\xbb\xbf"), ("latin-1", b"")])
def test_requirements_are_read_from_code_in_its_own_encoding(
    tmp_path: Path, encoding: str, mark: bytes
) -> None:
    """A long training must not end with an error about a letter; a module of the project is no requirement."""
    folder = tmp_path / f"{encoding}{len(mark)}"
    folder.mkdir()
    text = (
        f"# -*- coding: {encoding} -*-\nimport httpx, hatchling\nNAME = 'Zürich'\ndef f():\n    return NAME\n"
    )
    (folder / "entry.py").write_bytes(mark + text.encode(encoding))
    (folder / "hatchling.py").write_text("")
    assert code.load("entry.py:f", folder)() == "Zürich"
    found = [line.partition("==")[0] for line in save.frozen(LogisticRegression(), folder)]
    assert "httpx" in found
    assert "hatchling" not in found


def cancer() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features, and the frame with `label`."""
    features, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    features = (features - features.mean()) / features.std()
    return features, features.assign(label=labels == 1)


CLASSIFIERS = [
    LogisticRegression(max_iter=500),
    HistGradientBoostingClassifier(max_iter=20),
    RandomForestClassifier(20, random_state=0),
    make_pipeline(StandardScaler(), LogisticRegression()),
    FixedThresholdClassifier(LogisticRegression(max_iter=500), threshold=0.9),
    SVC(),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda estimator: type(estimator).__name__)
def test_a_loaded_classifier_answers_as_the_trained_one(estimator: Any, tmp_path: Path) -> None:
    """Also where `predict` is not the most probable class: a tuned threshold must not get lost."""
    features, rows = cancer()
    estimator.fit(features, rows["label"])
    loaded = stored(estimator, rows, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message="X does not have"
        )  # what `load` ignores; pytest resets filters
        answer = loaded.predict(columns_of(rows), len(rows))
    assert (answer["prediction"] == estimator.predict(features)).all()
    assert loaded.classes == (False, True)
    assert loaded.positive is True
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(
            answer["probability"], estimator.predict_proba(features)[:, 1], rtol=1e-9, atol=1e-12
        )
    else:
        assert set(answer) == {"prediction"}


def test_many_classes_and_regressions(tmp_path: Path) -> None:
    """Probabilities are [rows, classes] beyond two; a regression has numbers."""
    features, labels = load_iris(return_X_y=True, as_frame=True)
    names = pd.Series(np.array(["setosa", "versicolor", "virginica"], dtype=object)[labels], name="label")
    rows = features.assign(label=names)
    estimator = LogisticRegression(max_iter=1000).fit(features, rows["label"])
    answer = stored(estimator, rows, tmp_path / "a").predict(columns_of(rows), len(rows))
    np.testing.assert_allclose(answer["probability"], estimator.predict_proba(features), rtol=1e-9)
    assert (answer["prediction"] == estimator.predict(features)).all()

    features, labels = load_diabetes(return_X_y=True, as_frame=True)
    rows = features.assign(label=labels)
    ridge = Ridge().fit(features, labels)
    loaded = stored(ridge, rows, tmp_path / "b")
    np.testing.assert_allclose(
        loaded.predict(columns_of(rows), len(rows))["prediction"], ridge.predict(features)
    )
    assert (loaded.task, loaded.classes, loaded.positive) == ("regression", None, None)


TEXT = pd.DataFrame(
    {
        "carrier": ["AA", "UA", None, "AA", "UA", "B6"] * 20,
        "miles": np.arange(120.0),
        "label": [True, False, True, True, False, False] * 20,
    }
)


class ByCategory:
    """Takes pandas categories only, as gradient boosting with `categorical_features="from_dtype"` does."""

    def fit(self, frame: pd.DataFrame) -> ByCategory:
        features = frame[["carrier", "miles"]].assign(carrier=frame["carrier"].astype("category"))
        self.inner = HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype").fit(
            features, frame["label"]
        )
        self.feature_names_in_, self.classes_ = self.inner.feature_names_in_, self.inner.classes_
        return self

    def predict(self, frame: Any) -> Any:
        assert frame["carrier"].dtype == "category"
        return self.inner.predict(frame)


@pytest.mark.parametrize("text", [str, bytes], ids=["str", "bytes"])
def test_text_inputs_reach_pipelines_as_data_frames(text: type, tmp_path: Path) -> None:
    """V2 requests bring bytes, datasets bring str, and both may be missing."""
    encoder = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]), remainder="passthrough"
    )
    estimator = make_pipeline(encoder, LogisticRegression(max_iter=500)).fit(
        TEXT[["carrier", "miles"]], TEXT["label"]
    )
    loaded = stored(estimator, TEXT, tmp_path)
    assert [field.datatype for field in loaded.inputs] == ["BYTES", "FP64"]
    sent = [
        None if value is None or value != value else text(value, "utf8") if text is bytes else value
        for value in TEXT["carrier"]
    ]
    columns = {"carrier": np.array(sent, dtype=object), "miles": TEXT["miles"].to_numpy()}
    expected = estimator.predict_proba(TEXT[["carrier", "miles"]])[:, 1]
    np.testing.assert_allclose(loaded.predict(columns, 120)["probability"], expected)


def test_a_model_of_categories_gets_categories(tmp_path: Path) -> None:
    """Found out by asking the model, not by a setting."""
    loaded = stored(ByCategory().fit(TEXT), TEXT, tmp_path)
    assert json.loads((tmp_path / "model" / "mlspec.json").read_text())["layout"] == "categories"
    assert len(loaded.predict(columns_of(TEXT), 120)["prediction"]) == 120


def test_a_plain_object_is_a_model_and_mlflow_reads_it(tmp_path: Path) -> None:
    """Any object with `predict`; leaving mlspec, `mlflow models serve` still serves it."""
    loaded = stored(ByCategory().fit(TEXT), TEXT, tmp_path)
    assert loaded.path == tmp_path / "model"
    frame = TEXT[["carrier", "miles"]].dropna().assign(carrier=lambda f: f["carrier"].astype("category"))
    own = mlflow.pyfunc.load_model(str(tmp_path / "model")).unwrap_python_model().model
    columns = {"carrier": frame["carrier"].astype(object).to_numpy(), "miles": frame["miles"].to_numpy()}
    assert (own.predict(frame) == loaded.predict(columns, len(frame))["prediction"]).all()


def test_a_missing_column_and_a_bad_value_are_input_errors(tmp_path: Path) -> None:
    """Serving answers 400 with this sentence, never 500."""
    features, rows = cancer()
    loaded = stored(LogisticRegression(max_iter=500).fit(features, rows["label"]), rows, tmp_path)
    columns = columns_of(rows.head(1))
    with pytest.raises(model.InputError, match="the model needs the input mean radius"):
        loaded.predict({name: values for name, values in columns.items() if name != "mean radius"}, 1)
    with pytest.raises(model.InputError, match="NaN"):
        loaded.predict({**columns, "mean radius": np.array([np.nan])}, 1)
    with pytest.raises(model.InputError):
        loaded.predict({**columns, "mean radius": np.array([1.0, 2.0])}, 1)


@pytest.mark.parametrize("content", [{}, {"MLmodel": "flavors: {onnx: {}}\n"}])
def test_what_is_no_model_is_refused(tmp_path: Path, content: dict[str, str]) -> None:
    """A path that was mistyped in a Model, or a flavour that we cannot serve."""
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TaskError):
        model.load(tmp_path)


def test_a_model_that_somebody_else_logged(tmp_path: Path) -> None:
    """`Model: {path: ...}` takes a directory from any MLflow with a signature."""
    features, rows = cancer()
    estimator = LogisticRegression(max_iter=500).fit(features, rows["label"])
    signature = mlflow.models.infer_signature(features.head(2))
    mlflow.sklearn.save_model(
        estimator,
        str(tmp_path / "m"),
        serialization_format="cloudpickle",
        signature=signature,
        pip_requirements=["scikit-learn"],
    )
    answer = model.load(tmp_path / "m").predict(columns_of(rows), len(rows))
    np.testing.assert_allclose(
        answer["probability"], estimator.predict_proba(features)[:, 1], rtol=1e-9, atol=1e-12
    )
