"""Small worlds for the tests of features: rows of a dataset, materialised, asked offline and online."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.oracle import Row
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.features import join, materialise
from mlspec_runtime.features.online import ViewReader

TIME = pa.timestamp("us", tz="UTC")
SOURCE: dict[str, Any] = {"parquet": "x.parquet"}
ASK = {
    "source": SOURCE,
    "key": ["id"],
    "time": {"event": "at", "delay": "0s"},
    "columns": {"key": {"type": "string", "nullable": True}, "id": {"type": "int64"}},
}
OPS = ("last", "first", "mean", "sum", "count", "min", "max", "stddev", "distinct")


def rows_table(rows: Iterable[Row], value_type: pa.DataType) -> pa.Table:
    """Rows as the snapshot of their dataset holds them."""
    rows = list(rows)
    return pa.table(
        {
            "id": pa.array(range(len(rows)), pa.int64()),
            "key": pa.array([row.key for row in rows], pa.string()),
            "event": pa.array([row.event for row in rows], TIME),
            "known": pa.array([row.known for row in rows], TIME),
            "value": pa.array([row.value for row in rows], value_type),
        }
    )


def materialise_rows(
    root: Path, table: pa.Table, spec: Mapping[str, Any], key: list[str] | None = None, name: str = "one"
) -> Path:
    """Run the step over a snapshot with these rows; returns the folder of the version."""
    folder = root / "datasets" / name / "s1"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "data.parquet")
    dataset = {
        "source": SOURCE,
        "time": {"event": "event", "known": "known"},
        "key": ["id"] if key is None else key,
    }
    task = {
        "set": name,
        "version": "v1",
        "spec": spec,
        "dataset": {"path": f"datasets/{name}/s1", "spec": dataset},
    }
    return root / str(materialise.run(task, root)["path"])


def features_of(ops: Iterable[str], window: int, numeric: bool = True) -> dict[str, Any]:
    """One feature of each operation over a window of milliseconds, and the two without one."""
    features: dict[str, Any] = {
        op: {op: "value", "window": f"{window}ms"}
        for op in ops
        if numeric or op not in ("mean", "sum", "stddev")
    }
    return features | {"newest": "value", "rows": {"count": "*", "window": f"{window}ms"}}


def ask_table(questions: list[tuple[str | None, int | None]]) -> pa.Table:
    """Questions as rows of the asking dataset."""
    return pa.table(
        {
            "id": pa.array(range(len(questions)), pa.int64()),
            "key": pa.array([key for key, _ in questions], pa.string()),
            "at": pa.array([moment for _, moment in questions], TIME),
        }
    )


def view_of(max_age: str | None = None) -> FeatureViewSpec:
    """All features of the set."""
    group = {"set": "one"} | ({"maxAge": max_age} if max_age else {})
    return FeatureViewSpec.model_validate({"ask": {"dataset": "ask"}, "features": [group]})


def offline(
    folder: Path,
    spec: Mapping[str, Any],
    questions: list[tuple[str | None, int | None]],
    max_age: str | None = None,
) -> list[dict[str, Any]]:
    """The join's features, one dict per question."""
    sets = {"one": (FeatureSetSpec.model_validate(spec), folder)}
    table = join.join(ask_table(questions), DatasetSpec.model_validate(ASK), view_of(max_age), sets)
    assert table["__key_id"].to_pylist() == list(range(len(questions)))
    return table.select(list(spec["features"])).to_pylist()


def online(
    folder: Path,
    spec: Mapping[str, Any],
    questions: list[tuple[str | None, int | None]],
    max_age: str | None = None,
) -> list[dict[str, Any]]:
    """The reader's features, one dict per question, NULL as None."""
    sets = {"one": (FeatureSetSpec.model_validate(spec), folder)}
    reader = ViewReader(view_of(max_age), DatasetSpec.model_validate(ASK), sets)
    try:
        return ask_reader(reader, questions)
    finally:
        reader.close()


def ask_reader(reader: ViewReader, questions: list[tuple[str | None, int | None]]) -> list[dict[str, Any]]:
    """The features that a reader gives, one dict per question, NULL as None."""
    keys = np.array([key for key, _ in questions], object)
    moments = [moment for _, moment in questions]
    found, _ = reader.read({"key": keys, "at": moments}, len(questions))
    return [{name: _none(column[row]) for name, column in found.items()} for row in range(len(questions))]


def _none(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
