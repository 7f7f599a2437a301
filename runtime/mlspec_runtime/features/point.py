"""The kernel of online reads: the events of one key in memory, and the features of one question about them.

`online` holds one `Key` per key that was asked. Where `timeline` answers all questions of a join at once, this answers one, in some
microseconds: the rows of a window are a slice of the sorted events, or what of it is seen where events were known late. The
totals are the same exact integers, rounded once, so both give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlspec_runtime.features import exact, values
from mlspec_runtime.features.definition import EVENT, ID, KNOWN, WHOLE, Aggregate, SetUse

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Column:
    """One input of one key: its events' values, and what aggregates need of them, made when first asked."""

    array: pa.Array
    valid: npt.NDArray[np.bool_]
    full: bool
    _number: exact.Exact | None = None
    _square: exact.Exact | None = None
    _codes: tuple[Ints, list[Any]] | None = None
    _plain: list[Any] | None = None

    def value(self, row: int) -> Any:
        """Value of a row."""
        if self._plain is None:
            self._plain = plain(self.array)
        return self._plain[row]

    def number(self) -> exact.Exact:
        if self._number is None:
            self._number = exact.encode(values.numbers(self.array))
        return self._number

    def square(self) -> exact.Exact:
        if self._square is None:
            self._square = exact.square(self.number())
        return self._square

    def codes(self) -> tuple[Ints, list[Any]]:
        """Each value as its rank among the distinct values; -1 for NULL."""
        if self._codes is None:
            known = self.array.drop_null().unique()
            known = known.take(pc.array_sort_indices(known))
            ranks = pc.index_in(self.array, known, skip_nulls=True).fill_null(-1)
            self._codes = np.asarray(ranks).astype(np.int64), plain(known)
        return self._codes


def plain(array: pa.Array) -> list[Any]:
    """Values as in requests: timestamps int microseconds, dates int days."""
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    elif pa.types.is_date(array.type):
        array = array.cast(pa.int32())
    found: list[Any] = array.to_pylist()
    return found


class Key:
    """The events of one key in memory, sorted."""

    __slots__ = ("columns", "event", "reach", "seen", "settled")

    def __init__(self, events: pa.Table, inputs: Sequence[str]) -> None:
        by = [(name, "ascending", "at_start") for name in (EVENT, KNOWN, *inputs, ID)]
        event = np.asarray(events[EVENT])
        if len(event) > 1:
            events = events.take(pc.sort_indices(events, sort_keys=by))
        events = events.combine_chunks()
        self.event: Ints = np.asarray(events[EVENT])
        self.seen: Ints = np.maximum(self.event, np.asarray(events[KNOWN]))
        self.reach: Ints = np.maximum.accumulate(self.seen)
        """Greatest `seen` up to each row: below the moment, all rows up to there are seen."""
        self.columns = {name: self._column(events[name]) for name in inputs}

    @staticmethod
    def _column(chunked: pa.ChunkedArray) -> Column:
        array = pa.concat_arrays(chunked.chunks)
        return Column(array, np.asarray(array.is_valid()), array.null_count == 0)

    def newest(self, moment: int) -> int:
        """The row with the greatest (event, known, content) that is seen at `moment`, or -1."""
        stop = int(self.event.searchsorted(moment))
        size = 16
        while stop > 0:
            start = max(0, stop - size)
            seen = np.flatnonzero(self.seen[start:stop] < moment)
            if len(seen):
                return start + int(seen[-1])
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


def answer(use: SetUse, events: Key | None, moment: int, gathered: list[list[Any]]) -> None:
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
            column.append(events.columns[one.column].value(newest) if inside else None)
            continue
        window = one.window
        assert window is not None
        if window not in ranges:
            ranges[window] = events.rows(window.start(moment), moment)
        column.append(_aggregate(one, events, ranges[window]))


def _aggregate(one: Aggregate, events: Key, rows: slice | Ints) -> Any:
    """One aggregate over the rows of a window."""
    size = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    if not one.column:
        return size
    column = events.columns[one.column]
    match one.op:
        case "first":
            if not size:
                return None
            return column.value(rows.start if isinstance(rows, slice) else int(rows[0]))
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


def _moment(one: Aggregate, column: Column, rows: slice | Ints, count: int) -> float | None:
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
