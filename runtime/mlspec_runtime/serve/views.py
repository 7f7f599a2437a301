"""Views in a graph: the reader of a FeatureView, the features that it returns, and the inputs that it asks for.

Imported by `compile` only for graphs that have a view: the SQL and database libraries behind it take a while to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlglot
from sqlglot import expressions

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.features.online import ViewReader
from mlspec_runtime.serve import v2
from mlspec_runtime.serve.steps import Reader
from mlspec_runtime.task import Document

COLUMN_DATATYPES = {
    "string": "BYTES", "boolean": "BOOL", "int32": "INT32", "int64": "INT64", "float": "FP32", "double": "FP64",
    "date": "BYTES", "timestamp": "BYTES",
}  # fmt: skip
"""Column type of a Dataset -> datatype of the request. Times travel as ISO 8601 text."""


@dataclass(frozen=True, slots=True)
class View:
    """A FeatureView, ready to be read."""

    reader: Reader
    features: tuple[str, ...]
    inputs: tuple[v2.Input, ...]

    def close(self) -> None:
        """Release the reader's files."""
        close = getattr(self.reader, "close", None)
        if close is not None:
            close()


def load(entry: Document, root: Path) -> View:
    """The view of a task document. Raises TaskError."""
    view = FeatureViewSpec.model_validate(entry["spec"])
    dataset = DatasetSpec.model_validate(entry["dataset"])
    sets = {
        name: (FeatureSetSpec.model_validate(one["spec"]), root / one["path"])
        for name, one in entry["sets"].items()
    }
    reader = ViewReader(view, dataset, sets)
    return View(reader, tuple(_feature_names(view, sets)), tuple(_view_inputs(view, dataset, sets)))


def _feature_names(view: FeatureViewSpec, sets: Mapping[str, tuple[FeatureSetSpec, Path]]) -> Iterator[str]:
    for group in view.features:
        if group.row is not None:
            yield from (group.prefix + name for name in group.row)
        else:
            names = group.names or list(sets[str(group.set)][0].features)
            yield from (group.prefix + name for name in names)


def _view_inputs(
    view: FeatureViewSpec, dataset: DatasetSpec, sets: Mapping[str, tuple[FeatureSetSpec, Path]]
) -> Iterator[v2.Input]:
    """The columns that the view reads, and as optional ones the others that the dataset declares.

    The optional ones only reach the log: monitoring joins the truth by the dataset's key, which no feature needs.
    """
    sql: list[str] = []
    needed: dict[str, None] = {}
    if view.ask.at is not None:
        sql.append(view.ask.at)
    elif dataset.time is not None:
        needed[dataset.time.event] = None
    for group in view.features:
        if group.row is not None:
            sql.extend(group.row.values())
        elif group.set is not None:
            for key in sets[group.set][0].key:
                sql.append(group.on.get(key, key))
    for text in sql:
        for read in sqlglot.parse_one(text, read="duckdb").find_all(expressions.Column):
            needed[read.name] = None
    others = [*dataset.key, *dataset.columns, *([dataset.time.event] if dataset.time else [])]
    for name in [*needed, *dict.fromkeys(name for name in others if name not in needed)]:
        column = dataset.columns.get(name)
        kind = None if column is None else COLUMN_DATATYPES[column.type]
        if column is not None and column.nullable and kind in ("INT32", "INT64", "BOOL"):
            kind = "FP64"  # the only number that can say null
        yield v2.Input(name, kind, name in needed)
