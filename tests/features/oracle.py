"""What a feature is, by brute force: plain loops over all rows, `Fraction` instead of floats. Everything else is compared with this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of the dataset: key, event and arrival time in microseconds, one value."""

    key: str | None
    event: int
    known: int | None
    value: Any


def order(row: Row) -> tuple[Any, ...]:
    """(event, known, value): NULL is the smallest value."""
    assert row.known is not None
    return (row.event, row.known, row.value is not None, row.value if row.value is not None else 0)


def feature(
    rows: list[Row],
    key: str | None,
    moment: int | None,
    op: str,
    window: int | None,
    hop: int = 0,
    max_age: int | None = None,
) -> Any:
    """The feature of `key` at `moment`; None is NULL."""
    seen = [
        row
        for row in rows
        if moment is not None
        and key is not None
        and row.key == key
        and row.known is not None
        and row.event < moment
        and row.known < moment
    ]
    seen.sort(key=order)
    if max_age is not None and (not seen or moment is None or seen[-1].event < moment - max_age):
        return None
    if window is not None and moment is not None:
        start = moment - window
        if hop:
            start = math.floor(Fraction(start, hop)) * hop
        seen = [row for row in seen if row.event >= start]
    values = [row.value for row in seen if row.value is not None]
    found = _aggregate(op, seen, values)
    return float(found) if isinstance(found, int) and op in ("last", "first", "min", "max") else found


def _aggregate(op: str, seen: list[Row], values: list[Any]) -> Any:
    match op:
        case "rows":
            return len(seen)
        case "count":
            return len(values)
        case "distinct":
            return len(set(values))
        case "last":
            return seen[-1].value if seen else None
        case "first":
            return seen[0].value if seen else None
        case "min":
            return min(values, default=None)
        case "max":
            return max(values, default=None)
        case "sum":
            return float(sum(map(Fraction, values))) if values else None
        case "mean":
            return float(sum(map(Fraction, values)) / len(values)) if values else None
        case _:
            if len(values) < 2:
                return None
            exact = [Fraction(value) for value in values]
            mean = sum(exact) / len(exact)
            variance = sum(((value - mean) ** 2 for value in exact), Fraction(0)) / (len(exact) - 1)
            # scaled by a power of four, because a variance can be beyond the range of doubles
            half = (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2
            return math.ldexp(math.sqrt(variance / Fraction(4) ** half), half)
