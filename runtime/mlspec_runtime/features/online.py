"""Features for requests: the same question as `join`, one row at a time, over the online store.

`serve` holds one `ViewReader` per view. `ingest` adds rows as they arrive; a reader sees them with its next read. A read at a past
moment gives what a read then would have given, because it asks for what was known before that moment.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlspec import expressions
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.dataset import columns as dataset_columns
from mlspec_runtime.features import definition, join, materialise, point, rowwise, store, values
from mlspec_runtime.features.definition import ID, WHOLE, Aggregate, RowUse, SetUse, ViewPlan
from mlspec_runtime.task import TaskError

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

CACHED_KEYS = 50_000
"""Keys of one set whose events are held in memory; the least recently asked one goes first."""


def ingest(folder: Path, rows: pa.Table | Sequence[Mapping[str, Any]]) -> int:
    """Add rows of a set's dataset to its online store; returns how many events were new.

    `folder` is `features/<set>/<version>`; `rows` need the columns that the set reads (`inputs` in its meta.json). Rows may come in any
    order and more than once. Raises TaskError for rows that do not fit the dataset.
    """
    meta = json.loads((folder / "meta.json").read_text())
    plan = definition.set_plan(FeatureSetSpec.model_validate(meta["spec"]))
    dataset = DatasetSpec.model_validate(
        {
            "source": {"parquet": materialise.EVENTS},
            "key": meta["dataset"]["key"],
            "time": meta["dataset"]["time"],
        }
    )
    table = _typed(rows, meta["inputs"], dataset)
    found = materialise.events(plan, dataset, table, f"of {meta['set']}")
    opened = store.Store(folder / materialise.ONLINE)
    try:
        found = found.cast(opened.schema)
        packed = store.pack_rows(found.select(opened.packed.names))
        keys = zip(*(store.plain_values(found[column]) for column in plan.key), strict=True)
        events: dict[str, list[tuple[int, bytes]]] = {}
        for key, identity, data in zip(keys, found[ID].to_pylist(), packed, strict=True):
            events.setdefault(store.key_text(key), []).append((identity, data))
        return opened.add(_fresh(opened, events))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TaskError(f"the rows do not fit the set {meta['set']}: {error}") from None
    finally:
        opened.close()


def _fresh(
    opened: store.Store, events: Mapping[str, list[tuple[int, bytes]]]
) -> dict[str, list[tuple[int, bytes]]]:
    """The events that the store does not have among its materialised ones."""
    fresh = {}
    for key, rows in events.items():
        there = opened.events(key)
        known = set(there[ID].to_pylist()) if there is not None else set()
        fresh[key] = [row for row in rows if row[0] not in known]
    return fresh


def _typed(
    rows: pa.Table | Sequence[Mapping[str, Any]], inputs: Mapping[str, str], dataset: DatasetSpec
) -> pa.Table:
    """The rows as a table of the dataset's types."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist([dict(row) for row in rows])
    clock = dataset_columns.Clock(dataset.time.timezone if dataset.time else None, [])
    wanted = {str(dtype): name for name, dtype in dataset_columns.ARROW.items()}
    typed = {}
    for name, dtype in inputs.items():
        if name not in table.column_names:
            if rows:
                raise TaskError(f"the rows have no column {name}", f"the set reads {', '.join(inputs)}")
            table = table.append_column(name, pa.nulls(table.num_rows))
        try:
            typed[name] = dataset_columns.convert(table[name], wanted.get(dtype), name, clock)
        except dataset_columns.Fault as fault:
            raise TaskError(f"{name} {fault}") from None
    return pa.table(typed)


class _Set:
    """One set: its store, and the keys in memory."""

    def __init__(self, use: SetUse, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        file = folder / materialise.ONLINE
        if not file.exists():
            raise TaskError(f"the online store of {use.set} is not there: {file.name} in {folder.name}")
        self._store = store.Store(file)
        self._plan = use.plan
        self._keys: OrderedDict[str, point.Key | None] = OrderedDict()
        self.schema = self._store.schema

    def refresh(self) -> None:
        """Forget the keys that have new events."""
        for key in self._store.changed():
            self._keys.pop(key, None)

    def key(self, text: str) -> point.Key | None:
        """The events of a key, from memory or from the store."""
        if text in self._keys:
            self._keys.move_to_end(text)
            return self._keys[text]
        events = self._store.events(text)
        found = None if events is None else point.Key(events, tuple(self._plan.inputs))
        self._keys[text] = found
        if len(self._keys) > CACHED_KEYS:
            self._keys.popitem(last=False)
        return found

    def close(self) -> None:
        self._store.close()


@dataclass(slots=True)
class _Compiled:
    """A view for requests whose columns have certain types."""

    rows: rowwise.Rows
    kinds: Mapping[str, str] = field(default_factory=dict)


def declared(plan: ViewPlan, ask: DatasetSpec, types: Mapping[str, str]) -> dict[str, str | None]:
    """Columns of the asking row that a view reads -> their type in the spec language, or None where nobody has said it."""
    known = dict(types) | {name: column.type for name, column in ask.columns.items()}
    if ask.time is not None:
        known |= {name: "timestamp" for name in (ask.time.event, ask.time.known) if name}
    return {name: known.get(name) for name in sorted(plan.columns)}


def kinds_of(plan: ViewPlan, ask: DatasetSpec, types: Mapping[str, str]) -> dict[str, str | None]:
    """The same as names of `values.TYPES`."""
    return {name: _KIND.get(kind or "") for name, kind in declared(plan, ask, types).items()}


class ViewReader:
    """Serves one FeatureView. Safe to call from several threads; construction opens the stores and checks the types."""

    def __init__(
        self,
        view: FeatureViewSpec,
        ask: DatasetSpec,
        sets: Mapping[str, tuple[FeatureSetSpec, Path]],
        types: Mapping[str, str] | None = None,
    ) -> None:
        """`sets`: name -> (spec, folder of its materialised version). `types`: column -> type of the asking dataset's
        snapshot (`schema` in its snapshot.json), for columns that the spec does not declare."""
        self.plan = definition.view_plan(view, ask, {name: spec for name, (spec, _) in sets.items()})
        self.inputs = declared(self.plan, ask, types or {})
        """Columns that a request needs -> type of the spec language; None where nobody has said it."""
        self._kinds = {name: kind for name, kind in kinds_of(self.plan, ask, types or {}).items() if kind}
        self._zone = ZoneInfo(ask.time.timezone) if ask.time and ask.time.timezone else ZoneInfo("UTC")
        self.names = self.plan.names
        """The features, in order."""
        self._sets: dict[str, _Set] = {}
        for use in self.plan.uses:
            if isinstance(use, SetUse) and use.set not in self._sets:
                self._sets[use.set] = _Set(use, sets[use.set][1])
        self._questions = {
            name: one if not isinstance(one, str) else expressions.parse(one)
            for name, one in join.questions(self.plan).items()
        }
        self._compiled: dict[tuple[str, ...], _Compiled] = {}
        self._lock = threading.RLock()
        if all(name in self._kinds for name in self.inputs):
            self._compile(self._kinds)

    def read(self, columns: Mapping[str, Array | Sequence[Any]], rows: int) -> tuple[dict[str, Array], Array]:
        """Features of `rows` questions, and their moments (datetime64[us], UTC; NaT where unknown).

        Numbers and truth values are float64 with NaN for NULL, counts int64, text object, times datetime64[us]. If the view asks at
        the event time and the request does not give it, the question is asked now. Raises ValueError for a
        column that is missing or does not fit, TaskError for an expression that fails.
        """
        given = dict(columns)
        if self.plan.at is None and self.plan.event is not None and self.plan.event not in given:
            given[self.plan.event] = np.full(rows, time.time_ns() // 1000, np.int64)
        missing = [name for name in self.inputs if name not in given]
        if missing:
            raise ValueError(
                f"the request has no column {', '.join(missing)}; the view reads {', '.join(self.inputs)}"
            )
        kinds = {name: self._kinds.get(name) or guess(given[name]) for name in self.inputs}
        row = {name: rowwise.read_column(given[name], kind, self._zone, name) for name, kind in kinds.items()}
        wrong = next((name for name, one in row.items() if len(one) != rows), None)
        if wrong is not None:
            raise ValueError(f"{wrong} has {len(row[wrong])} values for {rows} rows")
        with self._lock:
            compiled = self._compiled.get(tuple(kinds.values())) or self._compile(kinds)
            found = compiled.rows.evaluate(row, rows)
            moments = found["at"]
            result: dict[str, Array] = {}
            for number, use in enumerate(self.plan.uses):
                if isinstance(use, RowUse):
                    name = f"row {use.name}"
                    result[use.name] = to_numpy(found[name], compiled.rows.types[name])
                else:
                    self._answer(number, use, compiled, found, moments, rows, result)
        return result, to_numpy(moments, values.UTC_TIME)

    def close(self) -> None:
        """Close the stores."""
        for one in self._sets.values():
            one.close()

    def _compile(self, kinds: Mapping[str, str]) -> _Compiled:
        """Types that do not fit the sets' keys or `at` are found here, once."""
        rows = rowwise.Rows(self._questions, kinds)
        if not (pa.types.is_timestamp(rows.types["at"]) or pa.types.is_date(rows.types["at"])):
            raise TaskError("the moment of the question is no timestamp", "cast it: CAST(... AS TIMESTAMPTZ)")
        for number, use in enumerate(self.plan.uses):
            for place, column in enumerate(use.plan.key if isinstance(use, SetUse) else ()):
                assert isinstance(use, SetUse)
                given = pa.array([None], rows.types[f"use {number} {place}"]).fill_null(
                    _ANY[values.name_of(rows.types[f"use {number} {place}"])]
                )
                values.fit_key(
                    given, self._sets[use.set].schema.field(column).type, f"key {column} of {use.set}"
                )
        self._compiled[tuple(kinds.values())] = compiled = _Compiled(rows, kinds)
        return compiled

    def _answer(
        self,
        number: int,
        use: SetUse,
        compiled: _Compiled,
        found: Mapping[str, list[Any]],
        moments: list[Any],
        rows: int,
        result: dict[str, Array],
    ) -> None:
        """The features of one use of a set, for all rows."""
        source = self._sets[use.set]
        source.refresh()
        schema = source.schema
        wholes = [pa.types.is_integer(schema.field(column).type) for column in use.plan.key]
        dates = [pa.types.is_date(schema.field(column).type) for column in use.plan.key]
        floats = [pa.types.is_floating(schema.field(column).type) for column in use.plan.key]
        keys = [found[f"use {number} {place}"] for place in range(len(use.key))]
        day = 86_400_000_000 if pa.types.is_date(compiled.rows.types["at"]) else 1
        gathered: list[list[Any]] = [[] for _ in use.features]
        for row in range(rows):
            moment = moments[row]
            key: list[Any] = []
            for column, whole, dated, floating in zip(keys, wholes, dates, floats, strict=True):
                value = column[row]
                if whole and isinstance(value, float):
                    value = int(value) if math.isfinite(value) and value == math.floor(value) else None
                elif dated and value is not None:
                    value = _date(value)
                elif floating and value is not None:
                    value = float(value)
                key.append(value)
            events = None if moment is None or None in key else source.key(store.key_text(key))
            point.answer(use, events, 0 if moment is None else moment * day, gathered)
        for (name, one), column in zip(use.features, gathered, strict=True):
            result[name] = _feature_array(column, one, use, schema)


def _date(days: int) -> Any:
    return np.datetime64(days, "D").astype(object)


_KIND = {
    "string": "string", "boolean": "boolean", "int32": "int64", "int64": "int64", "float": "double", "double": "double",
    "date": "date", "timestamp": "timestamp",
}  # fmt: skip
_ANY: dict[str, Any] = {"int64": 0, "double": 0.5, "string": "", "boolean": False, "date": 0, "timestamp": 0}


def guess(given: Array | Sequence[Any]) -> str:
    """Type of a column that the spec does not declare."""
    array = given if isinstance(given, np.ndarray) else np.asarray(given)
    match array.dtype.kind:
        case "b":
            return "boolean"
        case "i" | "u":
            return "int64"
        case "f":
            return "double"
        case "M":
            return "timestamp"
    known = [one for one in array.tolist() if one is not None]
    if known and all(isinstance(one, bool) for one in known):
        return "boolean"
    if known and all(isinstance(one, int) and not isinstance(one, bool) for one in known):
        return "int64"
    if known and all(isinstance(one, int | float) and not isinstance(one, bool) for one in known):
        return "double"
    return "string"


def _feature_array(column: list[Any], one: Aggregate, use: SetUse, schema: pa.Schema) -> Array:
    if one.op in WHOLE and use.max_age is None:
        return np.array(column, np.int64)
    if one.op in WHOLE or one.op in definition.NUMERIC:
        return to_numpy(column, pa.float64())
    return to_numpy(column, schema.field(one.column).type)


def to_numpy(column: list[Any], dtype: pa.DataType) -> Array:
    """Values in the form of `values.to_numpy`."""
    if pa.types.is_string(dtype):
        array = np.empty(len(column), object)
        array[:] = column
        return array
    if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
        factor = 1 if pa.types.is_timestamp(dtype) else 86_400_000_000
        missing = np.iinfo(np.int64).min
        return np.array([missing if one is None else one * factor for one in column], np.int64).view(
            "datetime64[us]"
        )
    return np.array([math.nan if one is None else one for one in column], np.float64)
