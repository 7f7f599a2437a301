"""Frozen bins of the training data: what every later window of the request log is counted on.

The training step calls `build` and stores the document as `runs/<run>/train/reference.json`; the monitor reads it with
`load`. Bins never change afterwards, so counts of any two batches add up, whoever counted them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlspec.resource import NAME_PATTERN
from mlspec_runtime.task import Document

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BINS = 20
"""Quantile bins of a numeric column, and the most distinct numbers that are counted one by one."""
CATEGORIES = 50
"""Most frequent categories that have a bin of their own."""
REMEMBERED = 10_000
"""Most further categories that are remembered, so that one never seen in training is known as such."""
_BLOCK = 32_768
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of one column and their counts in the reference data.

    Order of the counts: `numeric`: `len(edges) + 1` intervals (open at both ends, edges belong to the right), null.
    `discrete`: one per value, unseen, null. `categorical`: one per value, other, unseen, null.
    """

    kind: Literal["numeric", "discrete", "categorical"]
    edges: Floats
    """Interval edges (`numeric`) or the values (`discrete`), ascending."""
    values: tuple[str, ...]
    """Categories with a bin of their own, most frequent first."""
    rest: frozenset[str] | None
    """Categories that are counted as `other`; None: too many to remember, all unknown ones are `other`."""
    counts: Counts

    @property
    def ordered(self) -> int:
        """Number of leading bins that have an order."""
        match self.kind:
            case "numeric":
                return len(self.edges) + 1
            case "discrete":
                return len(self.edges)
            case "categorical":
                return 0

    @property
    def unseen(self) -> int | None:
        """Index of the bin of values that the reference data does not have."""
        return None if self.kind == "numeric" else len(self.counts) - 2


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference of one model: bins of its inputs (training data) and outputs (evaluation data)."""

    features: Mapping[str, Bins]
    predictions: Mapping[str, Bins]


def build(
    features: pa.Table,
    predictions: Mapping[str, npt.NDArray[Any]],
    labels: npt.NDArray[Any] | None,
    metrics: Mapping[str, float],
) -> Document:
    """The reference as a JSON document.

    `features`: the model's inputs, training rows. `predictions`: `prediction` [rows] and, for two classes,
    `probability` [rows] on the evaluation data (arrays of another rank are left out). `labels`: outcomes of the
    evaluation rows. NaN is null everywhere. Columns of nested types are left out.
    """
    columns = {name: _profile(features.column(name)) for name in features.column_names}
    outputs = {
        name: _profile(_arrow(np.asarray(values)))
        for name, values in predictions.items()
        if np.asarray(values).ndim == 1
    }
    return {
        "version": 1,
        "rows": features.num_rows,
        "features": {name: profile for name, profile in columns.items() if profile},
        "predictions": {name: profile for name, profile in outputs.items() if profile},
        "label": _profile(_arrow(np.asarray(labels))) if labels is not None else None,
        "metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
    }


class Library(dict[str, Reference | None]):
    """References by run name, read when they are first asked for; None for a model that has none.

    `pull` brings a path below the root. A model may have served a moment before the task of the monitor knows it, so
    the place of a training run's reference is tried for any name. Requests that several models answered together (`a+b`) have the features of all.
    """

    def __init__(self, root: Path, paths: Mapping[str, str], pull: Callable[[str], None]) -> None:
        super().__init__()
        self._root, self._paths, self._pull = root, paths, pull

    def __missing__(self, name: str) -> Reference | None:
        parts = [self[part] for part in name.split("+")] if "+" in name else []
        if parts:
            known = [part.features for part in parts if part]
            self[name] = (
                Reference({k: v for one in reversed(known) for k, v in one.items()}, {}) if known else None
            )
            return self[name]
        usual = f"runs/{name}/train/reference.json" if re.fullmatch(NAME_PATTERN, name) else ""
        path = self._paths.get(name, usual)
        if path:
            self._pull(path)
        try:
            found = load(self._root / path) if path else None
        except (OSError, ValueError, KeyError):
            found = None
        self[name] = found
        return found


def load(path: Path) -> Reference:
    """Read a reference; OSError when there is none, ValueError or KeyError when it is something else."""
    document = json.loads(path.read_text())
    return Reference(
        {name: bins(one) for name, one in document["features"].items()},
        {name: bins(one) for name, one in document["predictions"].items()},
    )


def bins(document: Document) -> Bins:
    """The bins of one column of the document."""
    rest = document.get("rest")
    return Bins(
        kind=document["kind"],
        edges=np.asarray(document.get("edges", ()), dtype=np.float64),
        values=tuple(document.get("values", ())),
        rest=None if rest is None else frozenset(rest),
        counts=np.asarray(document["counts"], dtype=np.int64),
    )


def count(frozen: Bins, column: pa.ChunkedArray | pa.Array) -> Counts:
    """Rows of `column` per bin of `frozen`. Counts of two batches add up to the counts of both together."""
    size = len(frozen.counts)
    if frozen.kind == "categorical":
        return _count_categories(frozen, column, size)
    numbers = to_float(column)
    if frozen.kind == "numeric":
        return _count_intervals(frozen.edges, numbers)
    known = numbers[~np.isnan(numbers)]
    result = np.bincount(_places(frozen.edges, known), minlength=size).astype(np.int64)
    result[size - 1] = len(numbers) - len(known)
    return result


def _count_intervals(edges: Floats, numbers: Floats) -> Counts:
    """Numbers per interval, NaN last. Sorting blocks that fit the cache and looking the few edges up in them is six
    times as fast as looking each number up among the edges: numpy sorts with vector instructions."""
    below = np.zeros(len(edges) + 2, dtype=np.int64)
    below[-1] = len(numbers)
    for begin in range(0, len(numbers), _BLOCK):
        block = np.sort(numbers[begin : begin + _BLOCK])
        known = len(block) - int(np.isnan(block).sum())
        below[:-2] += np.searchsorted(block[:known], edges, side="left")
        below[-2] += known
    return np.diff(below, prepend=0)


def to_float(column: pa.ChunkedArray | pa.Array) -> Floats:
    """Numbers with NaN for null. Booleans are 0 and 1, times microseconds, texts that are no numbers NaN."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    elif pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif _is_text(kind):
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
        column = pc.if_else(pc.match_substring_regex(text, _NUMBER), text, pa.scalar(None, pa.string()))
    elif _is_nested(kind):
        return np.full(len(column), np.nan)
    values: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values if values.dtype == np.float64 else values.astype(np.float64)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    ) or str(kind) in ("string_view", "large_binary")


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def _places(values: Floats, known: Floats) -> npt.NDArray[np.intp]:
    """Index of each number among the discrete values; their number for one that is not among them.

    Requests may carry 32-bit floats, so equal means equal to six digits.
    """
    if not len(values):
        return np.zeros(len(known), dtype=np.intp)
    middle = (values[1:] + values[:-1]) / 2
    nearest = np.searchsorted(middle, known)
    near = np.abs(known - values[nearest]) <= 1e-6 * np.maximum(1.0, np.abs(values[nearest]))
    return np.where(near, nearest, len(values))


def _count_categories(frozen: Bins, column: pa.ChunkedArray | pa.Array, size: int) -> Counts:
    result = np.zeros(size, dtype=np.int64)
    index = {value: place for place, value in enumerate(frozen.values)}
    other, unseen, null = size - 3, size - 2, size - 1
    for entry in pc.value_counts(_to_text(column)):
        value, rows = entry["values"].as_py(), entry["counts"].as_py()
        if value is None:
            result[null] += rows
        elif (place := index.get(value)) is not None:
            result[place] += rows
        else:
            result[other if frozen.rest is None or value in frozen.rest else unseen] += rows
    return result


def _to_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_nested(column.type):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_floating(column.type):  # 3.0 and 3 are one category; NaN is null
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.cast(pa.string())


def _arrow(values: npt.NDArray[Any]) -> pa.Array:
    if values.ndim != 1:
        return pa.nulls(len(values))
    if values.dtype == object:
        cleaned = [None if value is None or value != value else value for value in values.tolist()]
        try:
            return pa.array(cleaned)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([None if value is None else str(value) for value in cleaned])
    return pa.array(values.astype(str) if values.dtype.kind == "U" else values)


def _profile(column: pa.ChunkedArray | pa.Array) -> Document | None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_nested(kind):
        return None
    return _categorical(column) if _is_text(kind) else _numeric(to_float(column))


def _categorical(column: pa.ChunkedArray | pa.Array) -> Document:
    found = pc.value_counts(_to_text(column))
    tally = {one["values"].as_py(): one["counts"].as_py() for one in found}
    null = tally.pop(None, 0)
    names = sorted(tally, key=lambda name: (-tally[name], name))
    values, rest = names[:CATEGORIES], names[CATEGORIES:]
    counts = [*(tally[name] for name in values), sum(tally[name] for name in rest), 0, null]
    remembered = sorted(rest) if len(rest) <= REMEMBERED else None
    return {
        "kind": "categorical", "values": values, "rest": remembered, "counts": counts, "n": len(column),
    }  # fmt: skip


def _numeric(numbers: Floats) -> Document:
    known = np.sort(numbers[~np.isnan(numbers)])
    null = len(numbers) - len(known)
    finite = known[np.isfinite(known)]
    mean = float(finite.mean()) if len(finite) else 0.0
    summary = {
        "n": len(numbers),
        "mean": mean if len(finite) else None,
        "m2": float(np.square(finite - mean).sum()) if len(finite) else None,
        "min": float(finite[0]) if len(finite) else None,
        "max": float(finite[-1]) if len(finite) else None,
    }
    first = np.flatnonzero(np.append(True, known[1:] != known[:-1])[: len(known)])  # of each distinct value
    distinct = known[first]
    if len(distinct) <= BINS and np.isfinite(distinct).all():
        counts = np.diff(np.append(first, len(known)))
        return {
            "kind": "discrete", "edges": distinct.tolist(), "counts": [*counts.tolist(), 0, null], **summary,
        }  # fmt: skip
    edges = _edges(finite)
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    return {"kind": "numeric", "edges": edges.tolist(), "counts": [*counts.tolist(), null], **summary}


def _edges(ordered: Floats) -> Floats:
    """Quantiles, each moved to the middle between two neighbouring values: a value that a request carries as a 32-bit
    float still falls into the bin of the training value that it was."""
    size = len(ordered)
    if not size:
        return ordered
    places = np.ceil(np.arange(1, BINS) * size / BINS).astype(np.intp) - 1
    lower = np.unique(ordered[places])
    above = np.searchsorted(ordered, lower, side="right")
    inside = above < size
    edges: Floats = lower[inside] / 2 + ordered[above[inside]] / 2
    return np.unique(edges)
