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
from mlspec_runtime.features import definition, exact, join, materialise, rowwise, store, values
from mlspec_runtime.features.definition import EVENT, ID, KNOWN, WHOLE, Aggregate, RowUse, SetUse, ViewPlan
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


@dataclass(slots=True)
class _Column:
    """One input of one key: its events' values, and what aggregates need of them, made when first asked."""

    array: pa.Array
    valid: npt.NDArray[np.bool_]
    full: bool
    _number: exact.Exact | None = None
    _square: exact.Exact | None = None
    _codes: tuple[Ints, list[Any]] | None = None
    _plain: list[Any] | None = None

    def plain(self, row: int) -> Any:
        """Value of a row."""
        if self._plain is None:
            self._plain = _python(self.array)
        return self._plain[row]

    def number(self) -> exact.Exact:
        if self._number is None:
            self._number = exact.encode(join.numbers(self.array))
        return self._number

    def square(self) -> exact.Exact:
        if self._square is None:
            self._square = exact.square(self.number())
        return self._square

    def codes(self) -> tuple[Ints, list[Any]]:
        """Each value as its rank among the distinct values; -1 for NULL."""
        if self._codes is None:
            known = self.array.drop_null().unique()
            known = known.take(pa.compute.array_sort_indices(known))
            ranks = pa.compute.index_in(self.array, known, skip_nulls=True).fill_null(-1)
            self._codes = np.asarray(ranks).astype(np.int64), _python(known)
        return self._codes


def _python(array: pa.Array) -> list[Any]:
    """Values as in requests: timestamps int microseconds, dates int days."""
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_date(array.type):
        array = array.cast(pa.int32())
    found: list[Any] = array.to_pylist()
    return found


class _Key:
    """The events of one key in memory, sorted."""

    __slots__ = ("columns", "event", "reach", "seen", "settled")

    def __init__(self, events: pa.Table, inputs: Sequence[str]) -> None:
        by = [(name, "ascending", "at_start") for name in (EVENT, KNOWN, *inputs, ID)]
        event = np.asarray(events[EVENT])
        if len(event) > 1:
            events = events.take(pa.compute.sort_indices(events, sort_keys=by))
        events = events.combine_chunks()
        self.event: Ints = np.asarray(events[EVENT])
        self.seen: Ints = np.maximum(self.event, np.asarray(events[KNOWN]))
        self.reach: Ints = np.maximum.accumulate(self.seen)
        """Greatest `seen` up to each row: below the moment, all rows up to there are seen."""
        self.columns = {name: self._column(events[name]) for name in inputs}

    @staticmethod
    def _column(chunked: pa.ChunkedArray) -> _Column:
        array = pa.concat_arrays(chunked.chunks)
        return _Column(array, np.asarray(array.is_valid()), array.null_count == 0)

    def newest(self, moment: int) -> int:
        """The row with the greatest (event, known, content) that is seen at `moment`, or -1."""
        stop = int(self.event.searchsorted(moment))
        size = 16
        while stop > 0:
            start = max(0, stop - size)
            seen = np.flatnonzero(self.seen[start:stop] < moment)
            if len(seen):
                return start + int(seen[-1])
            if self.reach[start - 1] < moment and start > 0:
                return start - 1
            stop, size = start, size * 4
        return -1

    def rows(self, start: int, moment: int) -> slice | Ints:
        """The rows from event time `start` on that are seen at `moment`."""
        low, high = int(self.event.searchsorted(start)), int(self.event.searchsorted(moment))
        if high <= low:
            return slice(low, low)
        if self.reach[high - 1] < moment:
            return slice(low, high)
        return low + np.flatnonzero(self.seen[low:high] < moment)


class _Set:
    """One set: its store, and the keys in memory."""

    def __init__(self, use: SetUse, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        file = folder / materialise.ONLINE
        if not file.exists():
            raise TaskError(f"the online store of {use.set} is not there: {file.name} in {folder.name}")
        self._store = store.Store(file)
        self._plan = use.plan
        self._keys: OrderedDict[str, _Key | None] = OrderedDict()
        self.schema = self._store.schema

    def refresh(self) -> None:
        """Forget the keys that have new events."""
        for key in self._store.changed():
            self._keys.pop(key, None)

    def key(self, text: str) -> _Key | None:
        """The events of a key, from memory or from the store."""
        if text in self._keys:
            self._keys.move_to_end(text)
            return self._keys[text]
        events = self._store.events(text)
        found = None if events is None else _Key(events, tuple(self._plan.inputs))
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
            _features(use, events, 0 if moment is None else moment * day, gathered)
        for (name, one), column in zip(use.features, gathered, strict=True):
            result[name] = _feature_array(column, one, use, schema)


def _date(days: int) -> Any:
    return np.datetime64(days, "D").astype(object)


def _features(use: SetUse, events: _Key | None, moment: int, gathered: list[list[Any]]) -> None:
    """Append each feature of one question."""
    if events is None:
        for (_, one), column in zip(use.features, gathered, strict=True):
            column.append(0 if one.op in WHOLE and use.max_age is None else None)
        return
    newest = -2
    if use.max_age is not None:
        newest = events.newest(moment)
        if newest < 0 or moment - int(events.event[newest]) > use.max_age:
            for column in gathered:
                column.append(None)
            return
    ranges: dict[Any, slice | Ints] = {}
    for (_, one), column in zip(use.features, gathered, strict=True):
        if one.op == "last":
            if newest == -2:
                newest = events.newest(moment)
            inside = newest >= 0 and (one.window is None or events.event[newest] >= one.window.start(moment))
            column.append(events.columns[one.column].plain(newest) if inside else None)
            continue
        window = one.window
        assert window is not None
        if window not in ranges:
            ranges[window] = events.rows(window.start(moment), moment)
        column.append(_aggregate(one, events, ranges[window]))


def _aggregate(one: Aggregate, events: _Key, rows: slice | Ints) -> Any:
    """One aggregate over the rows of a window."""
    size = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    if not one.column:
        return size
    column = events.columns[one.column]
    match one.op:
        case "first":
            if not size:
                return None
            return column.plain(rows.start if isinstance(rows, slice) else int(rows[0]))
        case "count":
            return size if column.full else int(np.count_nonzero(column.valid[rows]))
        case "distinct" | "min" | "max":
            codes, known = column.codes()
            there = codes[rows]
            if not column.full:
                there = there[there >= 0]
            if one.op == "distinct":
                return len(np.unique(there))
            if not len(there):
                return None
            return known[int(there.min() if one.op == "min" else there.max())]
        case _:
            count = size if column.full else int(np.count_nonzero(column.valid[rows]))
            return _moment(one, column, rows, count)


def _moment(one: Aggregate, column: _Column, rows: slice | Ints, count: int) -> float | None:
    """mean, sum or stddev of a window: the same exact totals, rounded once, as in the join."""
    if count < (2 if one.op == "stddev" else 1):
        return None
    number = column.number()
    if number.odd is not None:
        up, down = (int(side[rows].sum()) for side in number.odd)
        if up or down:
            return None if (up and down) or one.op == "stddev" else math.inf if up else -math.inf
    total = _total(number, rows)
    if one.op == "stddev":
        squared = column.square()
        top = count * _total(squared, rows) - total * total
        return exact.root(top, count * (count - 1), squared.scale)
    return exact.ratio(total, count if one.op == "mean" else 1, number.scale)


def _total(number: exact.Exact, rows: slice | Ints) -> int:
    total = 0
    for place, limb in enumerate(number.limbs):
        total += int(limb[rows].sum()) << (place * number.width)
    return total


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
