"""Write a trained model: an MLflow model directory that any MLflow tool reads, plus `mlspec.json` for serving.

Classes that the user defined in the bundle are pickled by value, so a model directory stands alone. scikit-learn's
estimators get MLflow's sklearn flavour; any other object with `predict` gets a pyfunc around its own pickle.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import numpy as np
import pandas as pd

from mlspec_runtime import code, environment, flavour
from mlspec_runtime.frames import LABEL
from mlspec_runtime.model import Field, InputError, Layout, Manifest, bind, datatype
from mlspec_runtime.task import TaskError

SAMPLE = 256
"""Rows on which the ways to call an estimator are compared."""


def describe(estimator: Any, rows: pd.DataFrame, bundle: Path) -> Manifest:
    """What the model reads and returns, found by asking it about a few rows. Raises TaskError when it cannot be served."""
    inputs = _inputs(estimator, rows)
    classes = _classes(estimator, rows)
    sample = rows.head(SAMPLE)
    columns = {item.name: sample[item.name].to_numpy() for item in inputs}
    text = any(item.datatype == "BYTES" for item in inputs)
    layouts: tuple[Layout, ...] = ("frame", "categories") if text else ("frame", "matrix")
    file = "model.pkl" if is_sklearn(estimator) else "artifacts/model.pkl"
    task: Literal["classification", "regression"] = "regression" if classes is None else "classification"

    answers: dict[Layout, dict[str, Any]] = {}
    first: Exception | None = None
    for layout in layouts:
        manifest = Manifest(file, inputs, layout, task, classes)
        try:
            answers[layout] = bind(estimator, manifest, Path()).predict(columns, len(sample))
        except Exception as error:  # the estimator is the user's: any fault means "not this way"
            first = first or (
                error.__cause__
                if isinstance(error, InputError) and isinstance(error.__cause__, Exception)
                else error
            )
        if text and answers:
            break
    if not answers:
        assert first is not None
        with code.faults(bundle):
            raise first
    layout = (
        "matrix"
        if "matrix" in answers and ("frame" not in answers or _equal(*answers.values()))
        else next(iter(answers))
    )
    return Manifest(file, inputs, layout, task, classes)


def _inputs(estimator: Any, rows: pd.DataFrame) -> tuple[Field, ...]:
    """The columns that the model was fitted on, in its order; without names, all features."""
    features = [str(column) for column in rows.columns if column != LABEL]
    names = getattr(estimator, "feature_names_in_", None)
    count = getattr(estimator, "n_features_in_", None)
    if names is not None:
        chosen = [str(name) for name in names]
        unknown = [name for name in chosen if name not in features]
        if unknown:
            raise TaskError(
                f"the model was fitted on {', '.join(unknown[:5])}, which the data does not have",
                "compute it in the FeatureView, or make the step a part of the model (sklearn.pipeline.Pipeline)"
                if LABEL not in unknown
                else "drop the label before fitting: `train.drop(columns='label')`",
            )
    elif count is not None and count != len(features):
        raise TaskError(
            f"the model was fitted on {count} unnamed columns, the data has {len(features)} features",
            "fit on a DataFrame, so that the model knows the names of its columns",
        )
    else:
        chosen = features
    fields = [(name, datatype(rows[name].dtype)) for name in chosen]
    carried = [name for name, kind in fields if kind is None]
    if carried:
        raise TaskError(
            f"the model reads {', '.join(carried)} of type {rows[carried[0]].dtype}, which a request cannot carry",
            "drop it before fitting, or turn it into numbers in the FeatureView",
        )
    return tuple(Field(name, kind) for name, kind in fields if kind is not None)


def _classes(estimator: Any, rows: pd.DataFrame) -> tuple[Any, ...] | None:
    """Classes of a classifier; None for a regression."""
    found = getattr(estimator, "classes_", None)
    if found is not None:
        if isinstance(found, list):
            raise TaskError("the model has several outputs", "return a model of one label")
        return tuple(np.asarray(found).tolist())
    if LABEL not in rows or (
        not hasattr(estimator, "predict_proba") and rows[LABEL].dtype.kind not in "bOUT"
    ):
        return None
    return tuple(np.unique(rows[LABEL].to_numpy()).tolist())


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two answers are the same up to rounding in the last places (BLAS sums in the order of memory)."""
    return all(
        np.allclose(one[key], other[key], rtol=1e-9, atol=1e-12)
        if np.asarray(one[key]).dtype.kind == "f"
        else np.array_equal(one[key], other[key])
        for key in one
    )


def is_sklearn(estimator: Any) -> bool:
    """Whether it follows scikit-learn's estimator interface (its own, or the like of LightGBM's and XGBoost's)."""
    return any(
        kind.__module__.startswith("sklearn.") and kind.__name__ == "BaseEstimator"
        for kind in type(estimator).__mro__
    )


def write(estimator: Any, manifest: Manifest, folder: Path, requirements: list[str], bundle: Path) -> None:
    """Write the model directory `folder`; it appears whole. Raises TaskError when the model cannot be pickled."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with _by_value(bundle):
            if is_sklearn(estimator):
                flavour.sklearn(estimator, manifest, temporary, requirements)
            else:
                flavour.pyfunc(estimator, manifest, temporary, requirements)
    except (TypeError, AttributeError) as error:
        raise TaskError(
            f"the model cannot be pickled: {error}", "keep no open file, lock, connection or lambda in it"
        ) from error
    manifest.write(temporary)
    temporary.rename(folder)


@contextmanager
def _by_value(bundle: Path) -> Iterator[None]:
    modules = code.local_modules(bundle)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def frozen(estimator: Any, bundle: Path) -> list[str]:
    """`name==version` of the installed distributions that the bundle imports or the model comes from, sorted."""
    modules = {kind.__module__.partition(".")[0] for kind in type(estimator).__mro__} | {
        "numpy",
        "pandas",
        "cloudpickle",
    }
    local = code.local_modules(bundle)
    for module in local:
        tree = ast.parse(Path(str(module.__file__)).read_bytes())  # in the encoding that the file names
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    known = environment.distributions()
    modules -= {*sys.stdlib_module_names, *(module.__name__.partition(".")[0] for module in local)}
    names = {name for module in modules for name in known.get(module, [])[:1]}
    return sorted(f"{name}=={importlib.metadata.version(name)}" for name in names)


def artifacts(given: Mapping[str, Any], folder: Path, bundle: Path) -> None:
    """Keep the artifacts that the function returned: files and folders by path, other values in a fitting format."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, value in given.items():
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / Path(str(name)).name
        source = bundle / value if isinstance(value, str | Path) and len(str(value)) < 4096 else None
        match value:
            case _ if source is not None and "\n" not in str(value) and source.exists():
                target = target if target.suffix else target.with_suffix(source.suffix)
                if source.is_dir():
                    shutil.copytree(source, target)
                else:
                    shutil.copyfile(source, target)
            case Path():
                raise TaskError(
                    f"the artifact {name} does not exist: {value}",
                    "return the path of a file that was written",
                )
            case str():
                _suffixed(target, ".txt").write_text(value)
            case bytes():
                target.write_bytes(value)
            case pd.DataFrame() | pd.Series():
                table = value.to_frame() if isinstance(value, pd.Series) else value
                table.to_parquet(_suffixed(target, ".parquet"))
            case _ if hasattr(value, "savefig"):
                value.savefig(_suffixed(target, ".png"))
            case _:
                try:
                    _suffixed(target, ".json").write_text(json.dumps(value, indent=1))
                except (TypeError, ValueError):
                    _suffixed(target, ".json").unlink(missing_ok=True)
                    _suffixed(target, ".pkl").write_bytes(cloudpickle.dumps(value))


def _suffixed(path: Path, suffix: str) -> Path:
    return path if path.suffix else path.with_suffix(suffix)
