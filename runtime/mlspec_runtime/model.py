"""A trained model as serving, evaluation and monitoring use it: columns in, prediction (and probability) out.

`train` writes a model directory (MLflow's format, so that every MLflow tool reads it too) with `mlspec.json` beside
`MLmodel`: what the model reads and returns. `load` needs only that file and the pickle; it never imports MLflow (2.7 s).

A request costs what the estimator costs: inputs are copied once into one matrix. Estimators that were fitted on a
DataFrame accept such a matrix but warn about names; the order is ours (`inputs`), so the warning is filtered out once per
process, when a model is loaded (per call, `warnings.catch_warnings` is neither free nor safe in threads).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from scipy.special import expit

from mlspec_runtime.task import TaskError, write_json

Datatype = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64", "BYTES"
]
"""Tensor types of the Open Inference Protocol V2."""

Layout = Literal["matrix", "frame", "categories"]
"""What the estimator is given: one numeric array, a DataFrame, or a DataFrame whose strings are pandas categories."""

Array = np.ndarray[Any, np.dtype[Any]]
Columns = Mapping[str, Array]

MANIFEST = "mlspec.json"

DTYPES: dict[Datatype, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_), "INT8": np.dtype(np.int8), "INT16": np.dtype(np.int16), "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64), "UINT8": np.dtype(np.uint8), "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32), "UINT64": np.dtype(np.uint64), "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64), "BYTES": np.dtype(object),
}  # fmt: skip

ARGMAX = frozenset({
    "LogisticRegression", "DecisionTreeClassifier", "RandomForestClassifier", "ExtraTreesClassifier",
    "HistGradientBoostingClassifier", "GaussianNB", "KNeighborsClassifier",
})  # fmt: skip
"""scikit-learn classifiers whose `predict` is the class of the largest `predict_proba`, so that one call gives both."""


class InputError(ValueError):
    """The request does not fit the model: a missing column, a wrong length, a value that cannot be used."""


@dataclass(frozen=True, slots=True)
class Field:
    """One input column of a model."""

    name: str
    datatype: Datatype


@dataclass(frozen=True, slots=True)
class Manifest:
    """`mlspec.json`: what a model reads and returns. `file` is the pickle, relative to the model directory."""

    file: str
    inputs: tuple[Field, ...]
    layout: Layout
    task: Literal["classification", "regression"]
    classes: tuple[Any, ...] | None = None
    """Labels of a classifier in the order of its probabilities: booleans, numbers or strings."""

    @property
    def positive(self) -> Any:
        """The class that `probability` of a binary classifier is about: its second one; None otherwise."""
        return self.classes[1] if self.classes is not None and len(self.classes) == 2 else None

    def write(self, folder: Path) -> None:
        """Write `mlspec.json` into the model directory."""
        document = asdict(self) | {"positive": self.positive}
        write_json(folder / MANIFEST, document)


def datatype(dtype: Any) -> Datatype | None:
    """The V2 datatype of a numpy or pandas dtype; None when a request cannot carry it (times, structures)."""
    text = str(dtype)
    if text in ("str", "object", "string", "category") or text.startswith("<U"):
        return "BYTES"
    return next((name for name, known in DTYPES.items() if text == str(known)), None)


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model. Thread-safe as far as its estimator is (scikit-learn's are)."""

    path: Path
    inputs: tuple[Field, ...]
    task: Literal["classification", "regression"]
    classes: tuple[Any, ...] | None
    positive: Any
    estimator: Any
    gather: Callable[[Columns, int], Any]
    infer: Callable[[Any], dict[str, Array]]

    def predict(self, columns: Columns, rows: int) -> dict[str, Array]:
        """Predict `rows` rows from one array of length `rows` per input; other columns are ignored.

        Returns `prediction` [rows] (class labels, or numbers) and for classifiers with probabilities `probability`:
        of the positive class [rows] when there are two classes, [rows, classes] otherwise.
        Strings may be `str` or UTF-8 `bytes`; a missing value is None or NaN. Raises InputError.
        """
        try:
            data = self.gather(columns, rows)
        except KeyError:
            missing = [field.name for field in self.inputs if field.name not in columns]
            raise InputError(f"the model needs the input {', '.join(missing)}") from None
        except (ValueError, TypeError) as error:
            raise InputError(str(error).split("\n", 1)[0]) from error
        try:
            return self.infer(data)
        except ValueError as error:  # scikit-learn's word for values that it cannot use, such as NaN
            raise InputError(str(error).split("\n", 1)[0]) from error


def load(path: Path) -> Model:
    """Load a model directory. Raises TaskError when it is not one, or when a library that the model needs is missing."""
    manifest = _manifest(path)
    try:
        with (path / manifest.file).open("rb") as file:
            estimator = pickle.load(file)
    except Exception as error:  # a pickle may raise anything
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        hint = "serve it with the `requirements` of the function that trained it"
        raise TaskError(
            f"the model in {path} cannot be loaded here: {reason}", hint + _differences(path)
        ) from error
    return bind(estimator, manifest, path)


def bind(estimator: Any, manifest: Manifest, path: Path) -> Model:
    """A Model of an estimator that is in memory already."""
    warnings.filterwarnings(
        "ignore", message=r"X (does not have|has) (valid )?feature names", category=UserWarning
    )
    return Model(
        path=path,
        inputs=manifest.inputs,
        task=manifest.task,
        classes=manifest.classes,
        positive=manifest.positive,
        estimator=estimator,
        gather=_gather(manifest),
        infer=_infer(estimator, manifest),
    )


def _differences(path: Path) -> str:
    """Which of the versions that the model was trained with are others here: what breaks pickles."""
    file = path / "requirements.txt"
    differences = []
    for line in file.read_text().splitlines() if file.exists() else ():
        name, _, version = line.partition("==")
        try:
            here = importlib.metadata.version(name) if version else version
        except importlib.metadata.PackageNotFoundError:
            here = "none"
        if here != version:
            differences.append(f"{name} {version} (here {here})")
    return f": {', '.join(differences)}" if differences else ""


def _manifest(path: Path) -> Manifest:
    if (path / MANIFEST).exists():
        document = json.loads((path / MANIFEST).read_text())
        return Manifest(
            file=document["file"],
            inputs=tuple(Field(**field) for field in document["inputs"]),
            layout=document["layout"],
            task=document["task"],
            classes=None if document["classes"] is None else tuple(document["classes"]),
        )
    if (path / "MLmodel").exists():
        return _from_mlflow(path, yaml.safe_load((path / "MLmodel").read_text()))
    raise TaskError(f"{path} is not a model directory", "it has neither mlspec.json nor MLmodel")


_MLFLOW_TYPES: dict[str, Datatype] = {
    "boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64", "string": "BYTES",
}  # fmt: skip


def _from_mlflow(path: Path, document: Mapping[str, Any]) -> Manifest:
    """A scikit-learn model that somebody else logged: its signature names the inputs."""
    flavor = document.get("flavors", {}).get("sklearn")
    if flavor is None or flavor.get("serialization_format") not in ("cloudpickle", "pickle"):
        raise TaskError(
            f"{path} holds no pickled scikit-learn model",
            'log it with `mlflow.sklearn.log_model(..., serialization_format="cloudpickle")`',
        )
    signature = json.loads((document.get("signature") or {}).get("inputs") or "[]")
    fields = [(column.get("name"), _MLFLOW_TYPES.get(column.get("type", ""))) for column in signature]
    if not fields or any(name is None or kind is None for name, kind in fields):
        raise TaskError(
            f"the model in {path} does not say its input columns", "log it with a signature of named columns"
        )
    with (path / flavor["pickled_model"]).open("rb") as file:
        estimator = pickle.load(file)
    classes = getattr(estimator, "classes_", None)
    return Manifest(
        file=flavor["pickled_model"],
        inputs=tuple(Field(str(name), kind) for name, kind in fields if kind),
        layout="frame",
        task="regression" if classes is None else "classification",
        classes=None if classes is None else tuple(classes.tolist()),
    )


def _gather(manifest: Manifest) -> Callable[[Columns, int], Any]:
    """The function that lays the columns out as the estimator wants them, chosen once."""
    names = [field.name for field in manifest.inputs]
    if manifest.layout == "matrix":
        dtype = np.result_type(*(DTYPES[field.datatype] for field in manifest.inputs))

        def matrix(columns: Columns, rows: int) -> Array:
            data = np.empty((rows, len(names)), dtype=dtype)
            for index, name in enumerate(names):
                data[:, index] = columns[name]
            return data

        return matrix

    pandas = importlib.import_module("pandas")
    string = "str" if int(pandas.__version__.split(".", 1)[0]) >= 3 else object
    string = "category" if manifest.layout == "categories" else string

    def frame(columns: Columns, rows: int) -> Any:
        data = {}
        for field in manifest.inputs:
            if field.datatype == "BYTES":
                data[field.name] = pandas.Series(_text(columns[field.name]), dtype=object).astype(string)
            else:
                data[field.name] = np.asarray(columns[field.name]).astype(DTYPES[field.datatype], copy=False)
        return pandas.DataFrame(data, copy=False)

    return frame


def _text(values: Array) -> Array:
    """Strings as an object array: bytes decoded, NaN (pandas' missing string) as None."""
    texts = [
        value.decode()
        if isinstance(value, bytes)
        else value
        if isinstance(value, str)
        else None
        if value != value
        else value
        for value in values.tolist()
    ]
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    return result


def _infer(estimator: Any, manifest: Manifest) -> Callable[[Any], dict[str, Array]]:
    """The function that calls the estimator, chosen once."""
    if manifest.task == "regression" or not hasattr(estimator, "predict_proba"):
        return lambda data: {"prediction": _flat(estimator.predict(data))}

    classes = np.asarray(manifest.classes)
    binary = len(classes) == 2
    if binary and manifest.layout == "matrix" and _is_sklearn(estimator, {"LogisticRegression"}):
        return _logistic(estimator, classes)

    final = estimator.steps[-1][1] if _is_sklearn(estimator, {"Pipeline"}) else estimator
    if _is_sklearn(final, ARGMAX):

        def once(data: Any) -> dict[str, Array]:
            probability = estimator.predict_proba(data)
            prediction = classes.take(np.argmax(probability, axis=1))
            return {"prediction": prediction, "probability": probability[:, 1] if binary else probability}

        return once

    def twice(data: Any) -> dict[str, Array]:
        probability = np.asarray(estimator.predict_proba(data))
        return {
            "prediction": _flat(estimator.predict(data)),
            "probability": probability[:, 1] if binary else probability,
        }

    return twice


def _logistic(estimator: Any, classes: Array) -> Callable[[Any], dict[str, Array]]:
    """scikit-learn's own formula without its 60 us of validation per call; a test holds the two equal."""
    weights, intercept = estimator.coef_.T, estimator.intercept_

    def infer(data: Array) -> dict[str, Array]:
        scores = (data @ weights + intercept)[:, 0]
        if not np.isfinite(scores).all():
            raise InputError("Input X contains NaN or infinity.")
        return {
            "prediction": classes.take((scores > 0).astype(np.intp)),
            "probability": expit(scores),
        }

    return infer


def _is_sklearn(estimator: Any, names: frozenset[str] | set[str]) -> bool:
    kind = type(estimator)
    return kind.__name__ in names and kind.__module__.startswith("sklearn.")


def _flat(prediction: Any) -> Array:
    values = np.asarray(prediction)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
