"""The kernel of point-in-time joins: each event is the interval of questions that see it.

An event that happened at `e` and was known at `k` is seen by a question at `t` iff `max(e, k) < t` and the window starts at
or before `e`, that is, iff `t` lies in the interval `(seen, last]`. With the questions sorted by key and moment, an event
covers a contiguous range of them. So one window over all keys is a handful of sorts, searches and running totals,
O((events + questions) log questions), however dense the keys are and however late the events:

* sums and counts: +value where the range begins, -value where it ends, running total (exact integers, see `exact`)
* extremes: ranges painted with the best rank, by powers of two as in a sparse table
* distinct values: the ranges of each value united first
* newest row: running maximum, because what has been seen stays seen
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlspec_runtime.features.definition import Window

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ranges:
    """Rows of events (`rows`) and the sorted questions `[begin, end)` that see them; only ranges that hold a question."""

    rows: Ints
    begin: Ints
    end: Ints

    def only(self, keep: Bools) -> Ranges:
        """The ranges of the events that `keep` (one per event) selects."""
        chosen = keep[self.rows]
        return Ranges(self.rows[chosen], self.begin[chosen], self.end[chosen])


class Timeline:
    """Events and questions of one join. Times are int64 microseconds; keys are codes >= 0, a question's -1 matches nothing.

    Events are sorted by key code, event time, known time, content; all results are in the order of the questions given.
    """

    def __init__(
        self, event_code: Ints, event: Ints, known: Ints, code: Ints, moment: Ints, asked: Bools
    ) -> None:
        self.count = len(code)
        """Number of questions."""
        self.event_code = event_code
        self.event = event
        seen = np.maximum(event, known)
        usable = np.flatnonzero(asked & (code >= 0))
        order = usable[np.lexsort((moment[usable], code[usable]))]
        self._order = order
        self._code, self.moment = code[order], moment[order]
        self._first = int(self.moment.min(initial=0)) if len(order) else 0
        self._last = int(self.moment.max()) if len(order) else 0
        top = int(max(event_code.max(initial=0), self._code.max(initial=0))) + 1
        self._ranks: Ints | None = None
        self._span = self._last - self._first + 2
        if self._span * top >= 2**62:  # many keys over a long time: moments become ranks
            self._ranks = np.unique(self.moment)
            self._span = len(self._ranks) + 1
        self._base = event_code * self._span
        self._line = self._code * self._span + self._place(self.moment)
        self._begin = np.searchsorted(self._line, self._base + self._place(seen), "right")

    def _place(self, times: Ints) -> Ints:
        """Times on the axis on which a question's place is above another's iff its moment is later."""
        if self._ranks is not None:
            return np.searchsorted(self._ranks, times, "right")
        return np.clip(times, self._first - 1, self._last) - (self._first - 1)

    def ranges(self, window: Window) -> Ranges:
        """Which questions see each event in the window."""
        if window.hop:
            last = (self.event // window.hop + 1) * window.hop + window.length - 1
        else:
            last = self.event + window.length
        end = np.searchsorted(self._line, self._base + self._place(last), "right")
        rows = np.flatnonzero(end > self._begin)
        return Ranges(rows, self._begin[rows], end[rows])

    def starts(self, window: Window) -> Ints:
        """Start of the window of each sorted question."""
        start = self.moment - window.length
        return start // window.hop * window.hop if window.hop else start

    def newest(self) -> Ints:
        """For each sorted question the event with the greatest (event, known, content) among all seen, or -1."""
        winner = np.full(len(self._line) + 1, -1, np.int64)
        rows = np.arange(len(self.event))
        inside = self._begin < len(self._line)
        np.maximum.at(winner, self._begin[inside], rows[inside])
        winner = np.maximum.accumulate(winner[:-1])
        there = winner >= 0
        there[there] = self.event_code[winner[there]] == self._code[there]
        return np.where(there, winner, -1)

    def totals(self, values: Ints, ranges: Ranges) -> Ints:
        """Sum of `values` (one per event) over the events that each sorted question sees; exact modulo 2**64."""
        change = np.zeros(len(self._line) + 1, np.int64)
        chosen = values[ranges.rows]
        np.add.at(change, ranges.begin, chosen)
        np.subtract.at(change, ranges.end, chosen)
        return np.cumsum(change[:-1])

    def greatest(self, rank: Ints, ranges: Ranges) -> Ints:
        """Greatest `rank` >= 0 (one per event) among the events that each sorted question sees, or -1."""
        size = len(self._line)
        best = np.full(size, -1, np.int64)
        length = ranges.end - ranges.begin
        level = np.frexp(length.astype(np.float64))[1] - 1
        chosen = rank[ranges.rows]
        by_level = np.argsort(level, kind="stable")
        bounds = np.searchsorted(level[by_level], np.arange(level.max(initial=0) + 2))
        for power in range(int(level.max(initial=0)), -1, -1):
            # each entry stands for 2 ** power questions from its place on; hand it down to its two halves
            if power < int(level.max(initial=0)):
                half = 1 << power
                handed = best.copy()
                np.maximum(handed[half:], best[: size - half], out=handed[half:])
                best = handed
            here = by_level[bounds[power] : bounds[power + 1]]
            np.maximum.at(best, ranges.begin[here], chosen[here])
            np.maximum.at(best, ranges.end[here] - (1 << power), chosen[here])
        return best

    def distinct(self, value: Ints, ranges: Ranges) -> Ints:
        """Number of distinct `value` (a code per event) among the events that each sorted question sees."""
        group = self.event_code[ranges.rows] * (int(value.max(initial=0)) + 1) + value[ranges.rows]
        order = np.lexsort((ranges.begin, group))
        group, begin, end = group[order], ranges.begin[order], ranges.end[order]
        first = np.ones(len(order), np.bool_)
        # a running maximum within each group: lift every group above the one before
        lift = (
            np.cumsum(np.concatenate(([0], (group[1:] != group[:-1]).astype(np.int64))))
            if len(group)
            else group
        )
        lifted = lift * (len(self._line) + 1)
        reach = np.maximum.accumulate(end + lifted)
        first[1:] = (begin + lifted)[1:] > reach[:-1]
        starts = np.flatnonzero(first)
        stops = np.concatenate((starts[1:], [len(order)])) - 1 if len(order) else starts
        change = np.zeros(len(self._line) + 1, np.int64)
        np.add.at(change, begin[starts], 1)
        np.subtract.at(change, reach[stops] - lifted[stops], 1)
        return np.cumsum(change[:-1])

    def spread(self, values: npt.NDArray[Any], missing: object) -> npt.NDArray[Any]:
        """Values of the sorted questions in the order given; `missing` for the questions without key or moment."""
        result = np.full(self.count, missing, values.dtype)
        result[self._order] = values
        return result
