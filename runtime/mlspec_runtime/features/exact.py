"""Sums without rounding: floats as integers.

A column of doubles is written as integers times one power of two, split into limbs that cannot overflow when all of them are
added. Integer addition is associative and has an inverse, so a window's sum may be taken in any order, in parts, or as the
difference of two running totals, and is rounded once, at the end, to the nearest double. That is why batch and online agree to
the last bit, and why 1e17 that has left the window leaves nothing behind. (Floats allow none of this: adding and
subtracting 1e17 loses the 1.0 beside it.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exact:
    """Integers `sum(limbs[j] << (j * width))`, times `2 ** scale`; one per row. `odd`: +1/-1 for infinities, None without any."""

    limbs: tuple[Ints, ...]
    width: int
    scale: int
    odd: tuple[Ints, Ints] | None = None


def encode(values: npt.NDArray[Any]) -> Exact:
    """Numbers (int64, bool, or float64 without NaN) as exact integers."""
    room = 62 - max(len(values), 1).bit_length()
    if values.dtype.kind in "bi":
        whole = values.astype(np.int64)
        top = int(np.abs(whole.astype(np.float64)).max(initial=0.0))
        if top.bit_length() < room:
            return Exact((whole,), 0, 0)
        return Exact((whole & 0xFFFFFFFF, whole >> 32), 32, 0)
    infinite = np.isinf(values)
    odd = None
    if infinite.any():
        odd = ((values == np.inf).astype(np.int64), (values == -np.inf).astype(np.int64))
        values = np.where(infinite, 0.0, values)
    filled = values != 0
    if not filled.any():
        return Exact((np.zeros(len(values), np.int64),), 0, 0, odd)
    fraction, exponent = np.frexp(values)
    mantissa = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
    zeros = np.frexp((mantissa & -mantissa).astype(np.float64))[1] - 1
    lowest = exponent.astype(np.int64) - 53 + zeros
    scale = int(lowest[filled].min())
    bits = int(exponent[filled].max()) - scale
    if bits < room:
        return Exact((np.ldexp(values, -scale).astype(np.int64),), 0, scale, odd)
    odd_part = np.where(filled, mantissa >> np.where(filled, zeros, 0), 0).astype(np.uint64)
    offset = np.where(filled, lowest - scale, 0)
    mask = np.uint64((1 << room) - 1)
    limbs = []
    for low in range(0, bits, room):
        left = np.clip(offset - low, 0, 63).astype(np.uint64)
        right = np.clip(low - offset, 0, 63).astype(np.uint64)
        part = np.where(offset - low >= room, np.uint64(0), ((odd_part << left) >> right) & mask)
        limbs.append(np.where(values < 0, -part.astype(np.int64), part.astype(np.int64)))
    return Exact(tuple(limbs), room, scale, odd)


def square(number: Exact) -> Exact:
    """The squares, exact too; infinities count as 0 here."""
    if len(number.limbs) == 1:
        only = number.limbs[0]
        top = int(np.abs(only).max(initial=0))
        if (top * top).bit_length() < 62 - max(len(only), 1).bit_length():
            return Exact((only * only,), 0, 2 * number.scale)
    squares = [whole * whole for whole in integers(number.limbs, number.width)]
    room = 62 - max(len(squares), 1).bit_length()
    bits = max((one.bit_length() for one in squares), default=1)
    limbs = tuple(
        np.array([(one >> low) & ((1 << room) - 1) for one in squares], np.int64)
        for low in range(0, max(bits, 1), room)
    )
    return Exact(limbs, room, 2 * number.scale)


def integers(totals: Sequence[Ints], width: int) -> list[int]:
    """Totals of limbs as Python's integers."""
    whole: list[int] = totals[0].tolist()
    for place, limb in enumerate(totals[1:], 1):
        whole = [low + (high << (place * width)) for low, high in zip(whole, limb.tolist(), strict=True)]
    return whole


def ratio(top: int, bottom: int, scale: int) -> float:
    """`top / bottom * 2 ** scale`, rounded once to the nearest double."""
    if scale >= 0:
        top <<= scale
    else:
        bottom <<= -scale
    try:
        return top / bottom
    except OverflowError:
        return math.inf if top > 0 else -math.inf


def root(top: int, bottom: int, scale: int) -> float:
    """Square root of `top / bottom * 2 ** scale`, also where that is beyond the range of doubles."""
    if top == 0:
        return 0.0
    half = (top.bit_length() - bottom.bit_length() + scale) // 2
    return math.ldexp(math.sqrt(ratio(top, bottom, scale - 2 * half)), half)


def mean(totals: Sequence[Ints], number: Exact, counts: Ints) -> Floats:
    """`total / count`, rounded once; with counts of 1 the sum. NaN where the count is 0."""
    result = np.full(len(counts), np.nan)
    there = counts > 0
    slow = there.copy()
    if len(totals) == 1:
        total = totals[0]
        fast = there & (total >= -(2**53)) & (total <= 2**53)
        result[fast] = total[fast] / counts[fast]
        result[fast] = np.ldexp(result[fast], number.scale)
        slow &= ~fast
        slow |= fast & (result != 0) & (np.abs(result) < 1e-290)  # ldexp would round a second time
    rows = np.flatnonzero(slow)
    wholes = integers([limb[rows] for limb in totals], number.width)
    for row, whole, count in zip(rows.tolist(), wholes, counts[rows].tolist(), strict=True):
        result[row] = ratio(whole, count, number.scale)
    return result


def stddev(
    totals: Sequence[Ints], number: Exact, squares: Sequence[Ints], squared: Exact, counts: Ints
) -> Floats:
    """Sample standard deviation from exact totals: `sqrt((n * sum(x*x) - sum(x)**2) / (n * (n - 1)))`. NaN below two values."""
    result = np.full(len(counts), np.nan)
    rows = np.flatnonzero(counts > 1)
    firsts = integers([limb[rows] for limb in totals], number.width)
    seconds = integers([limb[rows] for limb in squares], squared.width)
    for row, first, second, count in zip(rows.tolist(), firsts, seconds, counts[rows].tolist(), strict=True):
        result[row] = root(count * second - first * first, count * (count - 1), squared.scale)
    return result


def infinite(result: Floats, up: Ints, down: Ints, op: str) -> Floats:
    """Results of windows with infinities: infinite if all have one sign, else (and for stddev) NaN."""
    result = np.where((up > 0) & (down == 0), np.inf, result)
    result = np.where((down > 0) & (up == 0), -np.inf, result)
    nothing = (up > 0) & (down > 0) | ((op == "stddev") & ((up > 0) | (down > 0)))
    return np.where(nothing, np.nan, result)
