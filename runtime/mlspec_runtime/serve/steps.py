"""The steps: for each kind of step of the spec, the function that a plan calls. `compile` chooses among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jmespath
import numpy as np
import orjson
from jmespath.exceptions import JMESPathError, JMESPathTypeError

from mlspec.kinds.serving_graph import Ensemble, Router, Split
from mlspec_runtime.model import Model
from mlspec_runtime.serve.fault import Fault
from mlspec_runtime.serve.plan import Mixed, Run
from mlspec_runtime.serve.v2 import Array, Columns, Request
from mlspec_runtime.task import TaskError

Call = Callable[[Run, Columns], Columns]

BUCKETS = 10_000
"""Resolution of a split: a hundredth of a percent."""


class Reader(Protocol):
    """What a view step needs of `mlspec_runtime.features.online.ViewReader`."""

    def read(self, columns: Columns, rows: int) -> tuple[Columns, Array]:
        """The features of each row, and the moment of each question (datetime64[us], UTC)."""


def python(function: Callable[[Columns], Any]) -> Call:
    """A user's function of the columns. Lists and scalars among its values become arrays of one value per row.

    The function may change the dict, which is a copy, but not the arrays, which are read-only: other steps and the log
    have them too.
    """

    def call(run: Run, value: Columns) -> Columns:
        for values in value.values():
            values.setflags(write=False)
        result = function(value.copy())
        if not isinstance(result, dict):
            raise TypeError(f"it must return a dict of arrays by column, not {type(result).__name__}")
        rows = run.request.rows
        for name, values in result.items():
            if (
                type(values) is not np.ndarray
                or not values.ndim
                or len(values) != rows
                or type(name) is not str
            ):
                return {name: _column(name, values, rows) for name, values in result.items()}
        return result

    return call


def _column(name: Any, values: Any, rows: int) -> Array:
    """A value that a user's function has returned, as a column."""
    if not isinstance(name, str):
        raise TypeError(f"column names must be strings, not {name!r}")
    array = np.asarray(values)
    if array.ndim == 0:
        array = np.full(rows, array[()])
    if len(array) != rows:
        raise ValueError(f"column {name} has {len(array)} values for {rows} rows")
    return array


def view(reader: Reader) -> Call:
    """Look up and compute the features of each row. What it cannot read in the request is the caller's fault."""

    def call(run: Run, value: Columns) -> Columns:
        try:
            features, at = reader.read(value, run.request.rows)
        except (TaskError, ValueError) as error:
            raise Fault(400, f"the features cannot be read for these inputs: {error}") from error
        run.at = at
        return features

    return call


def select(model: Model, run_name: str, step: str) -> Callable[[Run, Columns], Columns]:
    """The model's inputs among a step's input, noted for the log."""
    names = tuple(field.name for field in model.inputs)

    def call(run: Run, value: Columns) -> Columns:
        try:
            inputs = {name: value[name] for name in names}
        except KeyError:
            missing = [name for name in names if name not in value]
            status = 400 if value is run.request.columns else 500
            raise Fault(status, f"step {step}: the model needs {', '.join(missing)}") from None
        run.models = (*run.models, run_name)
        run.features = {**run.features, **inputs} if run.features else inputs
        return inputs

    return call


def model(model: Model, choose: Callable[[Run, Columns], Columns]) -> Call:
    """Predict inline. What the model refuses (`InputError`) is judged by `plan.fault_of`."""
    return lambda run, value: model.predict(choose(run, value), run.request.rows)


def router(spec: Router, step: str, slots: Mapping[str, int]) -> Call:
    """Choose the step of the case; rows of different cases are run apart."""
    evaluate = expression(spec.by)
    cases = {value: slots[target] for value, target in spec.cases.items()}
    default = None if spec.default is None else slots[spec.default]

    def call(run: Run, value: Columns) -> Columns:
        case = evaluate(run.request)
        target = cases.get("null" if case is None else case, default)
        if target is None:
            raise Fault(400, f'step {step} has no case for "{case}"; cases are {", ".join(cases)}')
        run.chosen |= {target}
        return value

    return call


def split(spec: Split, step: str, graph: str, slots: Mapping[str, int]) -> Call:
    """Choose an arm by a hash of the key, so that a key stays in its arm; without a key the request's id decides. Shadow steps
    are chosen as well: they run where the split has run."""
    evaluate = _key(spec.key)
    salt = spec.salt or f"{graph}/{step}"
    bounds: list[tuple[float, int]] = []
    reached = 0.0
    for arm in spec.arms:
        reached += arm.weight
        bounds.append((reached * BUCKETS / 100, slots[arm.step]))
    shadow = {slots[name] for name in spec.shadow}

    def call(run: Run, value: Columns) -> Columns:
        position = bucket(salt, evaluate(run.request) or run.request.id)
        run.chosen |= {next((slot for bound, slot in bounds if position < bound), bounds[-1][1]), *shadow}
        return value

    return call


def bucket(salt: str, key: str) -> int:
    """0 to 9999: blake2b of `salt|key`. Growing an arm's weight keeps everybody who is in it there."""
    digest = hashlib.blake2b(f"{salt}|{key}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def _key(key: str) -> Callable[[Request], str | None]:
    if key == "id":
        return lambda request: request.id
    if key.startswith("header:"):
        wanted = key.removeprefix("header:").lower().encode("latin-1", "replace")
        return lambda request: next(
            (value.decode("latin-1") for name, value in request.headers if name == wanted), None
        )
    return expression(key)


def expression(text: str) -> Callable[[Request], str | None]:
    """A JMESPath expression over `{inputs, parameters, headers}`; `inputs` has one list per column.

    The value is given as a string (JSON for what is none), None for null. A list with one value per row means each row:
    the value if all rows agree, else `Mixed` is raised. Raises TaskError for an expression that does not parse.
    """
    try:
        compiled = jmespath.compile(text)
        compiled.search(
            {"inputs": {}, "parameters": {}, "headers": {}}
        )  # an unknown function is found only so
    except JMESPathTypeError:
        pass  # its functions need values that only a request has
    except JMESPathError as error:
        raise TaskError(
            f"{text!r} is not a JMESPath expression: {error}", "see https://jmespath.org"
        ) from None

    def evaluate(request: Request) -> str | None:
        document = {
            "inputs": {name: values.tolist() for name, values in request.columns.items()},
            "parameters": request.parameters,
            "headers": {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers},
        }
        try:
            value = compiled.search(document)
        except JMESPathError as error:
            raise Fault(400, f"{text} cannot be evaluated for this request: {error}") from None
        if isinstance(value, list) and len(value) == request.rows:
            keys = [_string(one) for one in value]
            if any(key != keys[0] for key in keys):
                raise Mixed(["" if key is None else "=" + key for key in keys])
            return keys[0]
        return _string(value)

    return evaluate


def _string(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def ensemble(spec: Ensemble, sources: Sequence[tuple[str, int]], models: Mapping[str, Model]) -> Call:
    """Combine the predictions of the sources; one that gave none (its `onError` skipped it) does not count.

    Means and the like are of probabilities where all have them, else of predictions. `vote` takes the label with the
    greatest weight, the first in the order of `after` on a tie. `models`: the model of each source that is one.
    """
    classes = {tuple(model.classes) for model in models.values() if model.classes is not None}
    labels = np.asarray(next(iter(classes))) if len(classes) == 1 else None
    given = spec.weights or {}

    def call(run: Run, value: Columns) -> Columns:
        members = [
            (output, float(given.get(name, 0.0 if given else 1.0)))
            for name, slot in sources
            if (output := run.values[slot]) is not None and "prediction" in output
        ]
        weights = np.array([weight for _, weight in members])
        if not members or weights.sum() <= 0:
            raise ValueError("no step gave a prediction to combine")
        weights = weights / weights.sum()
        outputs = [output for output, _ in members]
        if spec.combine == "vote":
            return {"prediction": _vote([output["prediction"] for output in outputs], weights)}
        if all("probability" in output for output in outputs):
            probability = _reduce(spec.combine, [output["probability"] for output in outputs], weights)
            return {"prediction": _label(probability, outputs, labels), "probability": probability}
        return {"prediction": _reduce(spec.combine, [output["prediction"] for output in outputs], weights)}

    return call


def _reduce(combine: str, values: list[Array], weights: Array) -> Array:
    try:
        stacked = np.stack([one.astype(np.float64) for one in values])
    except ValueError as error:
        raise ValueError(f"{combine} needs numbers of the same shape: {error}; use vote for labels") from None
    match combine:
        case "mean":
            return np.asarray(np.tensordot(weights, stacked, axes=1))
        case "median":
            return np.asarray(np.median(stacked, axis=0))
        case "min":
            return np.asarray(stacked.min(axis=0))
        case _:
            return np.asarray(stacked.max(axis=0))


def _vote(values: list[Array], weights: Array) -> Array:
    winners = []
    for row in zip(*(one.tolist() for one in values), strict=True):
        score: dict[Any, float] = {}
        for label, weight in zip(row, weights.tolist(), strict=True):
            score[label] = score.get(label, 0.0) + weight
        winners.append(max(score, key=lambda label: score[label]))
    dtype = values[0].dtype if all(one.dtype == values[0].dtype for one in values) else None
    return np.array(winners, dtype)


def _label(probability: Array, outputs: list[Columns], labels: Array | None) -> Array:
    """The labels of combined probabilities.

    Where the members do not share known classes, each row takes the label of the member nearest to the combination.
    """
    if labels is not None and probability.ndim == 2 and probability.shape[1] == len(labels):
        return np.asarray(labels.take(probability.argmax(axis=1)))
    if labels is not None and probability.ndim == 1 and len(labels) == 2:
        return np.asarray(labels.take((probability > 0.5).astype(np.intp)))
    distance = np.stack(
        [
            np.abs(output["probability"] - probability).reshape(len(probability), -1).sum(1)
            for output in outputs
        ]
    )
    nearest = distance.argmin(axis=0)
    choices = np.stack([output["prediction"] for output in outputs])
    return np.asarray(choices[nearest, np.arange(len(probability))])


def default(value: Any, columns: Sequence[str] | None) -> Callable[[int], Columns]:
    """`onError: {default: ...}`: the prediction of every row, or, for a view, the value of each feature in order."""
    if columns is not None:
        values = (
            [np.nan if one is None else one for one in value]
            if isinstance(value, list)
            else [value] * len(columns)
        )
        if len(values) != len(columns):
            raise TaskError(
                f"the default has {len(values)} values for {len(columns)} features",
                "give one value, or one per feature",
            )
        return lambda rows: {name: np.full(rows, one) for name, one in zip(columns, values, strict=True)}
    constant = np.asarray(value)
    return lambda rows: {"prediction": np.broadcast_to(constant, (rows, *constant.shape))}
