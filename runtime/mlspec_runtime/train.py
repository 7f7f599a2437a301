"""The step `train` of a training run: the user's function, its model and metrics, MLflow, the reference for monitoring.

    frames --call--> Returned --save--> model directory --load--> Model --evaluate--> metrics --record--> MLflow

What is evaluated is the model as serving will load it, on the same rows as the baseline, the model that serves now.

The step is safe to kill anywhere. `outcome.json` is written when everything but the closing of the MLflow run is done; a
restart that finds it only closes that run. So one identity has at most one FINISHED MLflow run, and trains once.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.kinds.training_job import TrainingJobSpec
from mlspec_runtime import code, environment, metrics, model, save, tracking
from mlspec_runtime.frames import LABEL
from mlspec_runtime.model import Array, Model
from mlspec_runtime.monitor import reference
from mlspec_runtime.task import Document, Here, Storage, TaskError, write_json

OUTCOME = "outcome.json"


@dataclass(frozen=True, slots=True)
class Returned:
    """What the user's function returned."""

    model: Any
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, Any] = field(default_factory=dict)


def run(task: Document, root: Path, storage: Storage | None = None) -> Document:
    """Train, evaluate and record one run.

    `task`: `job`, `spec` (TrainingJobSpec document), `code` {path, entry}, `parameters`, `seed`, `gates`, `baseline`
    ({run, path} or null), `tracking` (MLflow URI or null), `experiment`, `tags`. Raises TaskError when the function does
    not fit the spec, fails, or returns no usable model, and when a gate names a metric that does not exist.
    """
    storage = storage or Here(root)
    folder = root / "runs" / task["name"] / "train"
    if (folder / OUTCOME).exists():
        outcome: Document = json.loads((folder / OUTCOME).read_text())
        return _close(outcome, task, root)
    write_json(folder / "task.json", task)
    spec = TrainingJobSpec.model_validate(task["spec"])
    bundle = root / task["code"]["path"]
    function = code.load(task["code"]["entry"], bundle)
    frames = read(root / "runs" / task["name"] / "frames", list(spec.data))
    arguments = arrange(function, frames, task.get("parameters") or {}, int(task.get("seed") or 0), spec)

    tracker = _tracker(task, root)
    if tracker is None:
        outcome = _attempt(task, spec, function, bundle, arguments, frames, root)
        return storage.keep(task, OUTCOME, outcome)
    recorded = {**(task.get("parameters") or {}), "seed": task.get("seed") or 0}
    mlflow_run = tracker.begin(
        task["name"], {str(k): str(v) for k, v in (task.get("tags") or {}).items()}, recorded
    )
    try:
        outcome = _attempt(task, spec, function, bundle, arguments, frames, root) | {"mlflow_run": mlflow_run}
        rows = {f"rows.{name}": str(count) for name, count in outcome["rows"].items()}
        kept = {
            item.name: item
            for item in (folder / "model", folder / "reference.json", folder / "artifacts")
            if item.exists()
        }
        tracker.log(
            mlflow_run, outcome["metrics"], {n if p.is_dir() else "": p for n, p in kept.items()}, rows
        )
    except BaseException:
        tracker.fail(mlflow_run)
        raise
    outcome = storage.keep(task, OUTCOME, outcome)
    tracker.finish(task["name"], outcome["mlflow_run"])  # another attempt's, if that was faster
    return outcome


def _tracker(task: Document, root: Path) -> tracking.Tracker | None:
    if not task.get("tracking"):
        return None
    return tracking.connect(task["tracking"], task.get("experiment") or task["job"], root)


def _close(outcome: Document, task: Document, root: Path) -> Document:
    """Everything was done before a crash: only the MLflow run may still be open."""
    print(f"{task['name']} was trained before a restart; its outcome is kept", flush=True)
    if outcome.get("mlflow_run") and (tracker := _tracker(task, root)) is not None:
        tracker.finish(task["name"], outcome["mlflow_run"])
    return outcome


def _attempt(
    task: Document,
    spec: TrainingJobSpec,
    function: code.Function,
    bundle: Path,
    arguments: Mapping[str, Any],
    frames: Mapping[str, pd.DataFrame],
    root: Path,
) -> Document:
    """Call the function, save and evaluate its model; the result document without the MLflow run."""
    folder = root / "runs" / task["name"] / "train"
    started = time.perf_counter()
    _seed(int(task.get("seed") or 0))
    entry = task["code"]["entry"]
    returned = parse(code.call(function, bundle, arguments, within=bundle), entry)
    trained = time.perf_counter() - started
    print(f"{entry} returned a {type(returned.model).__name__} after {trained:.1f} s", flush=True)

    frozen = save.frozen(returned.model, bundle)
    rows = frames.get(spec.evaluate, next(iter(frames.values())))
    manifest = save.describe(returned.model, rows, bundle)
    save.write(returned.model, manifest, folder / "model", frozen, bundle)
    save.artifacts(returned.artifacts, folder / "artifacts", bundle)

    values = dict(returned.metrics)
    baseline: Document | None = None
    if spec.evaluate in frames and LABEL in rows:
        loaded = model.load(folder / "model")
        predicted = loaded.predict(columns_of(rows), len(rows))
        computed, absent = _measure(loaded, rows, predicted, spec)
        values |= computed
        for name, why in absent.items():
            print(f"no {name}: {why}", flush=True)
        _check_gates(task.get("gates") or [], values, absent)
        if task.get("baseline"):
            baseline = _baseline(task["baseline"], rows, spec, root)
        training = next((frame for name, frame in frames.items() if name != spec.evaluate), rows)
        _reference(loaded, training, rows, predicted, values, folder / "reference.json")
    else:
        _check_gates(task.get("gates") or [], values, {})
    write_json(folder / environment.RECORD, environment.record())
    for name, value in values.items():
        other = (baseline or {}).get("metrics") or {}
        print(f"{name} {value:.6g}" + (f" (baseline {other[name]:.6g})" if name in other else ""), flush=True)
    return {
        "model": {"path": f"runs/{task['name']}/train/model"},
        "metrics": values,
        "baseline": baseline,
        "rows": {name: len(frame) for name, frame in frames.items()},
        "inputs": [{"name": item.name, "datatype": item.datatype} for item in manifest.inputs],
        "mlflow_run": None,
        "seconds": round(time.perf_counter() - started, 3),
        "function_seconds": round(trained, 3),
        "requirements_frozen": frozen,
    }


def read(folder: Path, names: list[str]) -> dict[str, pd.DataFrame]:
    """The frames as DataFrames of features and `label`, a column having one type in all of them.

    Integers and booleans become float64 when NULL occurs in any frame, as pandas' own types cannot hold it.
    """
    tables: dict[str, pa.Table] = {}
    for name in names:
        path = folder / f"{name}.parquet"
        if not path.exists():
            raise TaskError(
                f"data {name} has not been built: {path.name} is missing", "run the step `frames` first"
            )
        table = pq.read_table(path)
        tables[name] = table.select([column for column in table.column_names if not column.startswith("__")])
    holes = {
        column
        for table in tables.values()
        for column in table.column_names
        if table[column].null_count
        and (pa.types.is_integer(table[column].type) or pa.types.is_boolean(table[column].type))
    }
    result = {}
    for name, table in tables.items():
        for column in holes & set(table.column_names):
            index = table.column_names.index(column)
            values = table[column]
            numbers = pc.cast(values, pa.int8()) if pa.types.is_boolean(values.type) else values
            table = table.set_column(index, column, numbers.cast(pa.float64(), safe=False))
        result[name] = table.to_pandas(date_as_object=False)
    return result


def arrange(
    function: code.Function,
    frames: Mapping[str, pd.DataFrame],
    parameters: Mapping[str, Any],
    seed: int,
    spec: TrainingJobSpec,
) -> dict[str, Any]:
    """The arguments of the function: frames, parameters, `seed` if it takes one.

    Only the evaluation frame may be withheld by a function that does not take it. Names are checked when it is called.
    """
    clash = sorted(set(frames) & set(parameters))
    if clash:
        raise TaskError(f"{', '.join(clash)} is both data and a parameter", "rename one of them")
    given = {
        name: frame for name, frame in frames.items() if name != spec.evaluate or code.accepts(function, name)
    }
    if "seed" not in parameters and "seed" not in frames and code.accepts(function, "seed"):
        parameters = {**parameters, "seed": seed}
    arguments = {**given, **parameters}
    code.check_arguments(function, arguments)
    return arguments


def parse(value: Any, entry: str) -> Returned:
    """A model, (model, metrics), or {model, metrics, artifacts}. Raises TaskError for anything else."""
    numbers: Any = {}
    artifacts: Any = {}
    if isinstance(value, dict) and "model" in value:
        unknown = sorted(str(key) for key in set(value) - {"model", "metrics", "artifacts"})
        if unknown:
            raise TaskError(
                f"{entry} returned a dict with {', '.join(unknown)}", "its keys are model, metrics, artifacts"
            )
        found, numbers, artifacts = value["model"], value.get("metrics") or {}, value.get("artifacts") or {}
    elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        found, numbers = value
    else:
        found = value
    if not callable(getattr(found, "predict", None)):
        raise TaskError(
            f"{entry} returned {type(found).__name__}, which has no method predict",
            "return a model, (model, metrics), or a dict with model, metrics and artifacts",
        )
    try:
        return Returned(found, metrics.plain(numbers), artifacts)
    except TypeError as error:
        raise TaskError(
            f"a metric that {entry} returned is no number: {error}", "return plain numbers"
        ) from None


def columns_of(frame: pd.DataFrame) -> dict[str, Array]:
    """The columns of a DataFrame as arrays, as a request would bring them."""
    return {str(name): frame[name].to_numpy() for name in frame.columns if name != LABEL}


def _seed(seed: int) -> None:
    """Seed the generators that a training function may use without being told so."""
    random.seed(seed)
    np.random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


def _measure(
    loaded: Model, rows: pd.DataFrame, predicted: Mapping[str, Array], spec: TrainingJobSpec
) -> tuple[dict[str, float], dict[str, str]]:
    labels = _labels(rows[LABEL], loaded)
    outcome = metrics.Outcome(labels, predicted["prediction"], predicted.get("probability"), loaded.classes)
    return metrics.compute(outcome, spec.metrics)


def _labels(values: Any, loaded: Model) -> Array:
    """The labels in the type of the model's classes. Raises TaskError when the model speaks of other classes."""
    labels: Array = values.to_numpy()
    if loaded.classes is None:
        if labels.dtype.kind not in "biuf":
            raise TaskError(
                "the model is a regression, but the label is not a number",
                "train a classifier, or give a number as label",
            )
        return labels.astype(np.float64)
    classes = np.asarray(loaded.classes)
    if labels.dtype.kind in "biuf" and classes.dtype.kind in "biuf":
        return (
            labels.astype(classes.dtype)
            if set(np.unique(labels)) <= {0, 1} or labels.dtype.kind != "f"
            else labels
        )
    if labels.dtype.kind in "OUT" and classes.dtype.kind in "OUT":
        return labels.astype(object)
    raise TaskError(
        f"the model predicts {', '.join(map(str, loaded.classes[:5]))}, but the label is like {labels[0]!r}",
        "fit the model on the column label as it comes; scikit-learn's classifiers take text",
    )


def _check_gates(gates: list[Document], values: Mapping[str, float], absent: Mapping[str, str]) -> None:
    unknown = [str(gate["metric"]) for gate in gates if gate["metric"] not in values]
    if unknown:
        why = "; ".join(f"{name}: {absent[name]}" for name in unknown if name in absent)
        raise TaskError(
            f"a gate asks for the metric {', '.join(unknown)}, which this run does not have"
            + (f" ({why})" if why else ""),
            f"it has {', '.join(sorted(values)) or 'none'}; the function may return more",
        )


def _baseline(baseline: Document, rows: pd.DataFrame, spec: TrainingJobSpec, root: Path) -> Document:
    """The serving model's metrics on the same rows; `metrics` is null, with a `reason`, when it cannot be asked."""
    try:
        serving = model.load(root / baseline["path"])
        computed, _ = _measure(serving, rows, serving.predict(columns_of(rows), len(rows)), spec)
    except (TaskError, model.InputError) as error:
        print(f"the baseline {baseline['run']} cannot be compared: {error}", flush=True)
        return {"run": baseline["run"], "metrics": None, "reason": str(error)}
    return {"run": baseline["run"], "metrics": computed}


def _reference(
    loaded: Model,
    training: pd.DataFrame,
    rows: pd.DataFrame,
    predicted: Mapping[str, Array],
    values: Mapping[str, float],
    path: Path,
) -> None:
    """Freeze what monitoring will compare with: inputs on the training rows, outputs on the evaluation rows."""
    features = pa.Table.from_pandas(training[[item.name for item in loaded.inputs]], preserve_index=False)
    labels = _labels(rows[LABEL], loaded)
    write_json(path, reference.build(features, predicted, labels, values))
