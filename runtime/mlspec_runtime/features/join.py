"""The point-in-time join: one row of features for each asking row, seeing only what was known at its moment.

The step `frames` calls `join` for training data and batch scoring; `parity` calls `answer` for logged requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.expressions import Expression, identifier
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.features import definition, exact, values
from mlspec_runtime.features.definition import (
    EVENT,
    KNOWN,
    WHOLE,
    Aggregate,
    RowUse,
    SetUse,
    ViewPlan,
    Window,
)
from mlspec_runtime.features.timeline import Ranges, Timeline
from mlspec_runtime.task import TaskError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

AT, LABEL, KEY = "__at", "label", "__key_"


def join(
    ask: Path | pa.Table,
    ask_spec: DatasetSpec,
    view: FeatureViewSpec,
    sets: Mapping[str, tuple[FeatureSetSpec, Path]],
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    where: str | None = None,
    as_of: datetime | None = None,
    share: tuple[float, float] | None = None,
) -> pa.Table:
    """Answer the view's question for each row of `ask` (a table or Parquet file), in its order.

    `sets`: name -> (spec, folder or events.parquet of its materialised version). `start` (inclusive) and `end`
    (exclusive) bound the moment of the question; `where` is a row expression of the asking dataset; `as_of` drops rows that were
    not known by then (their labels would be from the future); `share` keeps the rows whose hashed dataset key falls into
    the interval of [0, 1).

    Returns the features in the view's order, in the types in which a request gives them to a model (see `values.model_form`),
    `label` if the view has one, `__at` (timestamp, microseconds, UTC), and
    the asking dataset's key as `__key_<column>`. Raises TaskError for what the user can mend.
    """
    plan = definition.view_plan(view, ask_spec, {name: spec for name, (spec, _) in sets.items()})
    wanted: dict[str, Expression | str] = {f"key {column}": identifier(column) for column in ask_spec.key}
    if plan.label is not None:
        wanted["label"] = plan.label
    rows = _rows(ask, plan, ask_spec, where, as_of)
    keep = _selected(rows, ask_spec, where, as_of, share)
    if keep is not None:
        rows = rows.filter(pa.array(keep))
    found = values.evaluate(rows, questions(plan) | wanted)
    moment, asked = values.microseconds(found["at"], "the moment of the question")
    chosen = np.ones(len(moment), np.bool_)
    if start is not None:
        chosen &= asked & (moment >= _micro(start))
    if end is not None:
        chosen &= asked & (moment < _micro(end))
    if not chosen.all():
        found = {name: column.filter(pa.array(chosen)) for name, column in found.items()}
    features, at = answer(plan, found, {name: path for name, (_, path) in sets.items()})
    always = counted(plan)
    features = {name: one if name in always else values.model_form(one) for name, one in features.items()}
    if plan.label is not None:
        if LABEL in features:
            raise TaskError("a feature is called label, and so is the view's label", "rename the feature")
        features[LABEL] = found["label"]
    features[AT] = at
    columns = features | {KEY + column: found[f"key {column}"] for column in ask_spec.key}
    schema = pa.schema(pa.field(name, one.type, nullable=name not in always) for name, one in columns.items())
    return pa.table(columns, schema=schema)


def counted(plan: ViewPlan) -> frozenset[str]:
    """Features that are never NULL: counts, where nothing expires."""
    return frozenset(
        name
        for use in plan.uses
        if isinstance(use, SetUse) and use.max_age is None
        for name, one in use.features
        if one.op in WHOLE
    )


def questions(plan: ViewPlan) -> dict[str, Expression | str]:
    """What is evaluated on each asking row: `at`, `key <use> <column>` and `row <name>`."""
    wanted: dict[str, Expression | str] = {
        "at": plan.at if plan.at is not None else identifier(plan.event or "")
    }
    for number, use in enumerate(plan.uses):
        if isinstance(use, RowUse):
            wanted[f"row {use.name}"] = use.expression
        else:
            wanted |= {f"use {number} {place}": one for place, one in enumerate(use.key)}
    return wanted


def answer(
    plan: ViewPlan, found: Mapping[str, pa.Array], sources: Mapping[str, Path | pa.Table]
) -> tuple[dict[str, pa.Array], pa.Array]:
    """Features for evaluated questions (see `questions`), and the moments of the questions.

    `sources`: the events of each set, sorted, or the folder that holds them.
    """
    moment, asked = values.microseconds(found["at"], "the moment of the question")
    features: dict[str, pa.Array] = {}
    for number, use in enumerate(plan.uses):
        if isinstance(use, RowUse):
            features[use.name] = found[f"row {use.name}"]
            continue
        keys = [found[f"use {number} {place}"] for place in range(len(use.key))]
        source = sources[use.set]
        table = source if isinstance(source, pa.Table) else read(source, use)
        features |= answer_set(use, table, keys, moment, asked)
    return features, pa.array(moment, mask=~asked).cast(values.UTC_TIME)


def read(path: Path, use: SetUse) -> pa.Table:
    """The columns of a set's events that a use of it needs."""
    file = path / "events.parquet" if path.is_dir() else path
    if not file.exists():
        raise TaskError(f"the events of {use.set} are not there: {file.name} in {file.parent.name}")
    inputs = dict.fromkeys(one.column for _, one in use.features if one.column)
    return pq.read_table(file, columns=[*use.plan.key, EVENT, KNOWN, *inputs])


def answer_set(
    use: SetUse, events: pa.Table, keys: list[pa.Array], moment: Ints, asked: Bools
) -> dict[str, pa.Array]:
    """The features of one set for questions with these keys and moments."""
    event_code, code = _codes(use, events, keys)
    event, known = np.asarray(events[EVENT]), np.asarray(events[KNOWN])
    work = _Work(Timeline(event_code, event, known, code, moment, asked), events, {}, {})
    fresh: Bools | None = None
    if use.max_age is not None:
        newest = work.newest()
        age = work.line.moment - event[newest] if len(event) else np.zeros(len(newest), np.int64)
        fresh = (newest >= 0) & (age <= use.max_age)
    return {name: work.feature(aggregate, fresh) for name, aggregate in use.features}


@dataclass(slots=True)
class _Work:
    """One set's join, with what several features share."""

    line: Timeline
    events: pa.Table
    _ranges: dict[Window, Ranges]
    _columns: dict[str, tuple[pa.Array, Bools]]
    _newest: Ints | None = None

    def newest(self) -> Ints:
        if self._newest is None:
            self._newest = self.line.newest()
        return self._newest

    def ranges(self, window: Window) -> Ranges:
        if window not in self._ranges:
            self._ranges[window] = self.line.ranges(window)
        return self._ranges[window]

    def column(self, name: str) -> tuple[pa.Array, Bools]:
        if name not in self._columns:
            chunked = self.events[name]
            array = pa.concat_arrays(chunked.chunks) if chunked.num_chunks else pa.array([], chunked.type)
            self._columns[name] = array, np.asarray(array.is_valid())
        return self._columns[name]

    def feature(self, one: Aggregate, fresh: Bools | None) -> pa.Array:
        """One feature in the order of the questions."""
        match one.op, one.window:
            case "last", window:
                winner = self.newest()
                if window is not None and len(self.events):
                    event = np.asarray(self.events[EVENT])
                    winner = np.where((winner >= 0) & (event[winner] >= self.line.starts(window)), winner, -1)
                return self._take(one.column, winner, fresh)
            case "first", Window() as window:
                size = len(self.events)
                best = self.line.greatest(size - 1 - np.arange(size), self.ranges(window))
                return self._take(one.column, np.where(best >= 0, size - 1 - best, -1), fresh)
            case "min" | "max", Window() as window:
                return self._take(one.column, self._extreme(one, window), fresh)
            case "count" | "distinct", Window() as window:
                ranges = self.ranges(window)
                if one.op == "distinct":
                    array, valid = self.column(one.column)
                    coded = array.dictionary_encode().indices.fill_null(0)
                    counts = self.line.distinct(np.asarray(coded).astype(np.int64), ranges.only(valid))
                else:
                    weight = (
                        self.column(one.column)[1].astype(np.int64)
                        if one.column
                        else np.ones(len(self.events), np.int64)
                    )
                    counts = self.line.totals(weight, ranges)
                return self._numbers(counts, fresh, 0)
            case _, Window() as window:
                return self._numbers(self._moment(one, window), fresh, np.nan)
            case _:
                raise TaskError(f"feature {one.name}: {one.op} needs a window")

    def _extreme(self, one: Aggregate, window: Window) -> Ints:
        array, valid = self.column(one.column)
        order = np.asarray(
            pc.array_sort_indices(
                array, order="ascending" if one.op == "max" else "descending", null_placement="at_start"
            )
        ).astype(np.int64)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        best = self.line.greatest(rank, self.ranges(window).only(valid))
        return np.where(best >= 0, order[best], -1) if len(order) else best

    def _moment(self, one: Aggregate, window: Window) -> npt.NDArray[np.float64]:
        """mean, sum or stddev, rounded once from exact totals."""
        array, valid = self.column(one.column)
        ranges = self.ranges(window).only(valid)
        number = exact.encode(values.numbers(array))
        counts = self.line.totals(valid.astype(np.int64), ranges)
        totals = [self.line.totals(limb, ranges) for limb in number.limbs]
        if one.op == "stddev":
            squared = exact.square(number)
            squares = [self.line.totals(limb, ranges) for limb in squared.limbs]
            result = exact.stddev(totals, number, squares, squared, counts)
        else:
            result = exact.mean(totals, number, counts if one.op == "mean" else np.minimum(counts, 1))
        if number.odd is not None:
            up, down = (self.line.totals(side, ranges) for side in number.odd)
            result = exact.infinite(result, up, down, one.op)
        return result

    def _take(self, column: str, winner: Ints, fresh: Bools | None) -> pa.Array:
        """The column's value of each winning row; NULL for -1."""
        if fresh is not None:
            winner = np.where(fresh, winner, -1)
        rows = self.line.spread(winner, -1)
        return self.column(column)[0].take(pa.array(rows, mask=rows < 0))

    def _numbers(self, result: npt.NDArray[Any], fresh: Bools | None, missing: float) -> pa.Array:
        """Numbers of the questions; without a key or moment nothing counts, and what is not fresh is NULL."""
        spread = self.line.spread(result, missing)
        mask = np.isnan(spread) if spread.dtype.kind == "f" else np.zeros(len(spread), np.bool_)
        if fresh is not None:
            mask |= ~self.line.spread(fresh, False).astype(np.bool_)
        return pa.array(spread, mask=mask)


def _codes(use: SetUse, events: pa.Table, keys: list[pa.Array]) -> tuple[Ints, Ints]:
    """Key codes: ascending in the (sorted) events, and of the questions; -1 where a question's key is unknown or NULL."""
    count = events.num_rows
    event_code = np.zeros(count, np.int64)
    code = np.zeros(len(keys[0]) if keys else 0, np.int64)
    for column, asking in zip(use.plan.key, keys, strict=True):
        have = (
            pa.concat_arrays(events[column].chunks)
            if events[column].num_chunks
            else pa.array([], events[column].type)
        )
        asking = values.fit_key(asking, have.type, f"key {column} of {use.set}")
        known = pc.unique(have)
        size = max(len(known), 1)
        here = np.asarray(pc.index_in(have, known)).astype(np.int64)
        there = np.asarray(pc.index_in(asking, known, skip_nulls=True).fill_null(-1)).astype(np.int64)
        lost = (code < 0) | (there < 0)
        event_code, code = event_code * size + here, np.where(lost, -1, code * size + there)
        event_code, code = _dense(event_code, code)
    return event_code, code


def _dense(event_code: Ints, code: Ints) -> tuple[Ints, Ints]:
    """Codes renumbered in the order of the events, where equal ones are neighbours after the last column."""
    known, first = np.unique(event_code, return_index=True)
    number = np.empty(len(known), np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(known))
    if not len(known):
        return event_code, np.full(len(code), -1, np.int64)
    place = np.minimum(np.searchsorted(known, code), len(known) - 1)
    return number[np.searchsorted(known, event_code)], np.where(known[place] == code, number[place], -1)


def _rows(
    ask: Path | pa.Table, plan: ViewPlan, spec: DatasetSpec, where: str | None, as_of: datetime | None
) -> pa.Table:
    """The columns of the asking table that are needed."""
    needed = set(plan.columns) | set(spec.key) | (set(plan.label.columns) if plan.label else set())
    if where:
        needed |= definition.expression(where, "where").columns
    if as_of is not None and spec.time is not None:
        needed |= {spec.time.event, spec.time.known or spec.time.event}
    names = ask.column_names if isinstance(ask, pa.Table) else pq.read_schema(ask).names
    folded = {one.lower(): one for one in names}
    columns = sorted({folded[one.lower()] for one in needed if one.lower() in folded}, key=names.index)
    if not columns:  # expressions of constants still need one value per row
        columns = names[:1]
    return ask.select(columns) if isinstance(ask, pa.Table) else pq.read_table(ask, columns=columns)


def _selected(
    rows: pa.Table,
    spec: DatasetSpec,
    where: str | None,
    as_of: datetime | None,
    share: tuple[float, float] | None,
) -> Bools | None:
    """Which asking rows `where`, `as_of` and `share` keep; None for all."""
    wanted: dict[str, Expression | str] = {}
    if where:
        wanted["where"] = definition.expression(where, "where")
    if as_of is not None:
        if spec.time is None:
            raise TaskError("the asking dataset does not say when its rows were known", "give it a `time`")
        wanted["known"] = identifier(spec.time.known or spec.time.event)
    if share is not None:
        if not spec.key:
            raise TaskError(
                "share needs a key: rows are chosen by the hash of it", "give the asking dataset a `key`"
            )
        parts = ", ".join(f"coalesce(CAST({identifier(one)} AS VARCHAR), chr(30))" for one in spec.key)
        wanted["share"] = f"CAST(md5_number_lower(concat_ws(chr(31), {parts})) >> 11 AS DOUBLE)"
    if not wanted:
        return None
    found = values.evaluate(rows, wanted)
    keep = np.ones(rows.num_rows, np.bool_)
    if where:
        if not pa.types.is_boolean(found["where"].type):
            raise TaskError(f"where: {where} is not true or false", "write a comparison")
        keep &= np.asarray(found["where"].fill_null(False))
    if as_of is not None:
        assert spec.time is not None
        known, there = values.microseconds(found["known"], "the arrival time")
        delay = definition.microseconds(spec.time.delay) if spec.time.delay and not spec.time.known else 0
        keep &= there & (known + delay <= _micro(as_of))
    if share is not None:
        place = np.asarray(found["share"]) / 2.0**53
        keep &= (place >= share[0]) & (place < share[1])
    return keep


def _micro(moment: datetime) -> int:
    """Microseconds since the epoch; a naive datetime is UTC."""
    return int(
        np.datetime64(moment.replace(tzinfo=None) - (moment.utcoffset() or moment - moment), "us").astype(
            np.int64
        )
    )
