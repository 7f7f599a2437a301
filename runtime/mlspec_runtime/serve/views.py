"""Views in a graph: the reader of a FeatureView, the features that it returns, and the inputs that it asks for.

Imported by `compile` only for graphs that have a view: the SQL and database libraries behind it take a while to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.features.online import ViewReader
from mlspec_runtime.serve import v2
from mlspec_runtime.task import Document

DATATYPES = {
    "string": "BYTES", "boolean": "BOOL", "int32": "INT32", "int64": "INT64", "float": "FP32", "double": "FP64",
    "date": "BYTES", "timestamp": "BYTES",
}  # fmt: skip
"""Column type of the spec language -> datatype of the request. Times travel as ISO 8601 text."""


@dataclass(frozen=True, slots=True)
class View:
    """A FeatureView, ready to be read."""

    reader: ViewReader
    inputs: tuple[v2.Input, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(self.reader.names)

    def close(self) -> None:
        """Close the stores."""
        self.reader.close()


def load(entry: Document, root: Path) -> View:
    """The view of a task document: `{"spec", "dataset": <DatasetSpec>, "sets": {name: {"spec", "path"}}}`.

    `types` (column -> type) may be added: the schema of the asking dataset's snapshot. Raises TaskError.
    """
    view = FeatureViewSpec.model_validate(entry["spec"])
    dataset = DatasetSpec.model_validate(entry["dataset"])
    types = entry.get("types") or {}
    sets = {
        name: (FeatureSetSpec.model_validate(one["spec"]), root / one["path"])
        for name, one in entry["sets"].items()
    }
    reader = ViewReader(view, dataset, sets, types)
    return View(reader, tuple(_inputs(view, dataset, reader.inputs, types)))


def _inputs(
    view: FeatureViewSpec, dataset: DatasetSpec, read: Mapping[str, str | None], types: Mapping[str, str]
) -> Iterator[v2.Input]:
    """The columns that the view reads, and as optional ones the others that the dataset is known to have.

    The optional ones only reach the log: monitoring joins the truth by the dataset's key, which no feature needs.
    The event time is optional too where it is the moment of the question: without it, the question is asked now.
    """
    event = dataset.time.event if dataset.time is not None else None
    now = {event} if view.ask.at is None else set()
    for name, kind in read.items():
        yield v2.Input(name, _datatype(name, kind, dataset), name not in now)
    times = [name for name in (event, dataset.time and dataset.time.known) if name]
    for name in dict.fromkeys([*dataset.key, *dataset.columns, *times, *types]):
        if name not in read:
            declared = dataset.columns.get(name)
            kind = (
                declared.type if declared is not None else "timestamp" if name in times else types.get(name)
            )
            yield v2.Input(name, _datatype(name, kind, dataset), False)


def _datatype(name: str, kind: str | None, dataset: DatasetSpec) -> str | None:
    """Whole numbers and truth values cannot say null: where they may be, floats do, or any type if nobody declares it."""
    found = None if kind is None else DATATYPES.get(kind)
    if found not in ("INT32", "INT64", "BOOL"):
        return found
    column = dataset.columns.get(name)
    if column is None:
        return None
    return "FP64" if column.nullable else found
