"""The kernels by themselves, on many small worlds: intervals of questions, events of one key, sums without rounding."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.oracle import Row, feature
from mlspec_runtime.features import exact
from mlspec_runtime.features.definition import EVENT, ID, KNOWN, Window
from mlspec_runtime.features.point import Key
from mlspec_runtime.features.timeline import Timeline


@pytest.mark.parametrize("seed", range(60))
def test_intervals_of_questions(seed: int) -> None:
    """Counts, sums, extremes, distinct values and the newest row, with late arrivals, ties and hops, against plain loops."""
    dice = random.Random(seed)
    size, span = dice.choice([1, 10, 80]), dice.choice([10, 40])
    window = Window(dice.choice([1, 3, 10, 1000]), dice.choice([0, 0, 1, 3, 5]))
    rows = sorted(
        (dice.randrange(3), event, event + dice.choice([-5, 0, 0, 1, 8, 30]), dice.randrange(3))
        for event in (dice.randrange(-span, span) for _ in range(size))
    )
    event_code, event, known, value = (np.array(one) for one in zip(*rows, strict=True))
    code = np.array([dice.randrange(-1, 4) for _ in range(60)])
    moment = np.array([dice.randrange(-span, span + 10) for _ in range(60)])
    asked = np.array([dice.random() < 0.9 for _ in range(60)])
    line = Timeline(event_code, event, known, code, moment, asked)
    ranges = line.ranges(window)
    found = {
        "rows": line.totals(np.ones(size, np.int64), ranges),
        "sum": line.totals(value, ranges),
        "max": line.greatest(value, ranges),
        "distinct": line.distinct(value, ranges),
        "last": np.append(value, -1)[line.newest()],
    }
    spread = {op: line.spread(values, -1 if op in ("max", "last") else 0) for op, values in found.items()}
    events = [Row(str(key), at, arrived, one) for key, at, arrived, one in rows]
    for place in range(60):
        key = str(code[place]) if code[place] >= 0 else None
        at = int(moment[place]) if asked[place] else None
        for op in found:
            expected = feature(events, key, at, op, None if op == "last" else window.length, window.hop)
            missing = -1 if op in ("max", "last") else 0
            assert spread[op][place] == (missing if expected is None else expected), (op, place)


def test_a_value_known_late_inside_another_counts_once() -> None:
    """Events at 0 (known at 8), 5 and 11 with one value and a window of 10: at 12 to 15 it is seen twice, and is one value."""
    event, known, zeros = np.array([0, 5, 11]), np.array([8, 5, 11]), np.zeros(3, np.int64)
    moment = np.arange(25)
    line = Timeline(zeros, event, known, np.zeros(25, np.int64), moment, np.ones(25, np.bool_))
    counts = line.spread(line.distinct(zeros, line.ranges(Window(10))), 0)
    assert counts.tolist() == [1 if 5 < at <= 21 else 0 for at in range(25)]


@pytest.mark.parametrize("seed", range(60))
def test_events_of_one_key(seed: int) -> None:
    """The newest seen row and the rows of a window, also where hundreds of newer events are not known yet."""
    dice = random.Random(seed)
    size = dice.choice([1, 17, 300])
    late = dice.choice([[0], [0, 1, 5], [0, 100, 400], [400, 500]])
    events = sorted(
        (event, event + dice.choice(late)) for event in (dice.randrange(400) for _ in range(size))
    )
    table = pa.table(
        {
            EVENT: pa.array([event for event, _ in events], pa.int64()),
            KNOWN: pa.array([known for _, known in events], pa.int64()),
            ID: pa.array(range(size), pa.int64()),
        }
    )
    key = Key(table, ())
    for moment in [dice.randrange(-5, 1000) for _ in range(40)]:
        start = moment - dice.choice([1, 20, 1000])
        seen = [row for row, (event, known) in enumerate(events) if max(event, known) < moment]
        assert key.newest(moment) == max(seen, default=-1)
        rows = np.arange(size)[key.rows(start, moment)].tolist()
        assert rows == [row for row in seen if events[row][0] >= start]


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.1, 1e17, -1e17, 5e-324, 1.0, 2.0**53, -0.0]
)
WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**55), 2**55)


@settings(max_examples=150, deadline=None)
@example([2**53, 1, 0])  # total and mean rounded one after the other give another double
@given(st.lists(FLOATS, min_size=1, max_size=12) | st.lists(WHOLE, min_size=1, max_size=12))
def test_sums_are_rounded_once(values: list[float] | list[int]) -> None:
    """Sum, mean and deviation are the doubles nearest to the true ones, whatever the order; so batch equals online."""
    kind = np.int64 if isinstance(values[0], int) else np.float64
    number = exact.encode(np.array(values, kind))
    squared = exact.square(number)
    count = np.array([len(values)])
    totals = [np.array([limb.sum()]) for limb in number.limbs]
    squares = [np.array([limb.sum()]) for limb in squared.limbs]
    true = [Fraction(value) for value in values]
    total = sum(true, Fraction(0))
    assert exact.mean(totals, number, count)[0] == _double(total / len(values))
    assert exact.mean(totals, number, np.array([1]))[0] == _double(total)
    if len(values) > 1:
        mean = total / len(values)
        variance = sum(((one - mean) ** 2 for one in true), Fraction(0)) / (len(values) - 1)
        half = (variance.numerator.bit_length() - variance.denominator.bit_length()) // 2
        expected = math.ldexp(math.sqrt(variance / Fraction(4) ** half), half)
        assert exact.stddev(totals, number, squares, squared, count)[0] == expected


def _double(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@pytest.mark.parametrize(
    ("signs", "expected"), [("+", math.inf), ("-", -math.inf), ("+-", math.nan), ("", 3.0)]
)
def test_infinities(signs: str, expected: float) -> None:
    """An infinity in the window wins; two of different sign have no sum."""
    values = np.array([3.0] + [math.inf if sign == "+" else -math.inf for sign in signs])
    number = exact.encode(values)
    finite = exact.mean([np.array([limb.sum()]) for limb in number.limbs], number, np.array([1]))
    up, down = (np.array([(values == one).sum()]) for one in (np.inf, -np.inf))
    np.testing.assert_equal(exact.infinite(finite, up, down, "sum")[0], expected)
