"""The laws of features, over generated worlds: batch and online both equal the oracle, bit for bit."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import worlds
from features.oracle import Row, feature
from mlspec_runtime.features.online import ingest

MILLI = 1_000
Questions = list[tuple[str | None, int | None]]


class World(NamedTuple):
    """Rows of a dataset, and questions about them."""

    dtype: pa.DataType
    rows: list[Row]
    questions: Questions


quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

NUMBERS = [0.0, 1.0, -1.0, 1e17, -1e17, 0.1, 1e-9, 3.5, 1e300, 5e-324, 2.0**60, 7.25]
VALUES: dict[str, tuple[pa.DataType, Callable[[random.Random], Any]]] = {
    "double": (pa.float64(), lambda dice: dice.choice([dice.choice(NUMBERS), dice.gauss(0, 10)]) + 0.0),
    "int64": (pa.int64(), lambda dice: dice.choice([dice.randint(-3, 3), dice.randint(-(2**62), 2**62)])),
    "string": (pa.string(), lambda dice: dice.choice(["", "x", "y", "é", "😀"])),
    "boolean": (pa.bool_(), lambda dice: dice.random() < 0.5),
}


def moment_of(dice: random.Random) -> int:
    """On a coarse grid, so that events, questions, window edges and hop edges meet; also before 1970."""
    return dice.randint(-8, 8) * 5 * MILLI + dice.choice([0, 0, 0, 1, -1, dice.randint(-3000, 3000)])


def world_of(seed: int) -> World:
    """Rows of one value type; arrival before, at or after the event, equal rows, NULL keys and values."""
    dice = random.Random(seed)
    dtype, value = VALUES[dice.choice(sorted(VALUES))]
    late = [0, 0, 1, 5 * MILLI, -5 * MILLI, 40 * MILLI]
    rows = []
    for _ in range(dice.choice([0, 1, 5, 20, 60])):
        event = moment_of(dice)
        known = None if dice.random() < 0.05 else event + dice.choice(late)
        key = dice.choice(["a", "a", "a", "b", None])
        rows.append(Row(key, event, known, None if dice.random() < 0.2 else value(dice)))
        if dice.random() < 0.1:
            rows.append(rows[-1])
    questions = [
        (
            dice.choice(["a", "a", "a", "b", None, "unknown"]),
            None if dice.random() < 0.05 else moment_of(dice),
        )
        for _ in range(20)
    ]
    return World(dtype, rows, questions)


seeds = st.integers(0, 2**32)


def test_worlds_are_dense() -> None:
    """A law over worlds in which nothing is seen would hold for any engine."""
    found = [
        feature(world.rows, key, moment, "rows", 100 * MILLI)
        for world in map(world_of, range(40))
        for key, moment in world.questions
    ]
    assert sum(count > 2 for count in found) > 0.2 * len(found)
    assert sum(count == 0 for count in found) > 0.1 * len(found)


def expected(
    rows: list[Row], questions: Questions, spec: dict[str, Any], max_age: int | None
) -> list[dict[str, Any]]:
    hop = int(spec["hop"][:-2]) * MILLI if "hop" in spec else 0
    result = []
    for key, moment in questions:
        one = {}
        for name, definition in spec["features"].items():
            op, window = (
                ("last", None)
                if isinstance(definition, str)
                else (next(iter(definition)), definition["window"])
            )
            op = "rows" if definition == {"count": "*", "window": window} else op
            length = None if window is None else int(window[:-2]) * MILLI
            one[name] = feature(rows, key, moment, op, length, hop, max_age)
        result.append(one)
    return result


@settings(quick, max_examples=120)
@given(
    seed=seeds,
    window=st.sampled_from([1, 5, 20, 100_000]),
    hop=st.sampled_from([0, 0, 1, 5, 7]),
    max_age=st.sampled_from([None, None, 5, 10]),
)
def test_batch_equals_online_equals_the_oracle(
    seed: int,
    window: int,
    hop: int,
    max_age: int | None,
) -> None:
    """A model that is trained on other numbers than it is served is wrong without anybody noticing."""
    dtype, rows, questions = world_of(seed)
    numeric = not pa.types.is_string(dtype)
    spec: dict[str, Any] = {
        "dataset": "one",
        "key": ["key"],
        "features": worlds.features_of(worlds.OPS, window, numeric),
    } | ({"hop": f"{hop}ms"} if hop else {})
    age = f"{max_age}ms" if max_age else None
    with tempfile.TemporaryDirectory() as root:
        folder = worlds.materialise_rows(Path(root), worlds.rows_table(rows, dtype), spec)
        batch = worlds.offline(folder, spec, questions, age)
        live = worlds.online(folder, spec, questions, age)
    oracle = expected(rows, questions, spec, max_age * MILLI if max_age else None)
    assert batch == oracle
    assert live == oracle


@quick
@given(seed=seeds)
def test_delivery_order_and_repetition_change_nothing(
    seed: int,
) -> None:
    """Streams deliver late, out of order and twice; the features of a moment must not depend on it."""
    dtype, rows, questions = world_of(seed)
    numeric = not pa.types.is_string(dtype)
    spec = {"dataset": "one", "key": ["key"], "features": worlds.features_of(worlds.OPS, 20, numeric)}
    table = worlds.rows_table(rows, dtype)
    shuffled = list(range(len(rows)))
    random.Random(seed).shuffle(shuffled)
    cut = len(rows) // 2
    with tempfile.TemporaryDirectory() as root:
        whole = worlds.offline(worlds.materialise_rows(Path(root), table, spec), spec, questions)
        half = worlds.materialise_rows(
            Path(root) / "half", table.take(pa.array(shuffled[:cut], pa.int64())), spec
        )
        for part in (shuffled[cut:], shuffled[: cut + 2], shuffled[cut:]):
            if part:
                ingest(half, table.take(pa.array(part, pa.int64())))
        streamed = worlds.online(half, spec, questions)
        twice = worlds.materialise_rows(
            Path(root) / "twice", pa.concat_tables([table.take(pa.array(shuffled, pa.int64())), table]), spec
        )
        repeated = worlds.offline(twice, spec, questions)
    assert streamed == whole
    assert repeated == whole


@quick
@given(seed=seeds)
def test_what_becomes_known_later_changes_nothing(
    seed: int,
) -> None:
    """Training must not see what serving could not have seen (causality)."""
    dtype, rows, questions = world_of(seed)
    numeric = not pa.types.is_string(dtype)
    spec = {"dataset": "one", "key": ["key"], "features": worlds.features_of(worlds.OPS, 20, numeric)}
    dice = random.Random(seed)
    moment = moment_of(dice)
    later = [Row("a", moment_of(dice), moment + dice.choice([0, 1, 50_000]), row.value) for row in rows[:10]]
    questions = [("a", moment), ("b", moment), ("a", moment - 5 * MILLI)]
    with tempfile.TemporaryDirectory() as root:
        before = worlds.materialise_rows(Path(root), worlds.rows_table(rows, dtype), spec)
        after = worlds.materialise_rows(Path(root) / "after", worlds.rows_table(rows + later, dtype), spec)
        assert worlds.offline(before, spec, questions) == worlds.offline(after, spec, questions)
        assert worlds.online(before, spec, questions) == worlds.online(after, spec, questions)


@pytest.mark.parametrize(
    ("moment", "value"),
    [
        pytest.param(1_000, None, id="event_at_the_question_does_not_count"),
        pytest.param(1_001, 7.0, id="event_before_the_question_counts"),
        pytest.param(11_000, 7.0, id="age_equal_to_maxAge_is_kept"),
        pytest.param(11_001, None, id="age_above_maxAge_is_NULL"),
    ],
)
def test_edges_of_last(tmp_path: Path, moment: int, value: float | None) -> None:
    """The edges decide whether the label's own row leaks into its features."""
    spec = {"dataset": "one", "key": ["key"], "features": {"newest": "value"}}
    folder = worlds.materialise_rows(
        tmp_path, worlds.rows_table([Row("a", 1_000, 1_000, 7.0)], pa.float64()), spec
    )
    for ask in (worlds.offline, worlds.online):
        assert ask(folder, spec, [("a", moment)], "10ms") == [{"newest": value}]


def test_a_number_that_left_the_window_leaves_nothing_behind(tmp_path: Path) -> None:
    """Subtracting running totals of floats gives 0.0 here (Feast did)."""
    spec = {"dataset": "one", "key": ["key"], "features": {"sum": {"sum": "value", "window": "10ms"}}}
    rows = [Row("a", 0, 0, 1e17), Row("a", 10_000, 10_000, 1.0), Row("a", 10_001, 10_001, 0.1)]
    folder = worlds.materialise_rows(tmp_path, worlds.rows_table(rows, pa.float64()), spec)
    for ask in (worlds.offline, worlds.online):
        assert ask(folder, spec, [("a", 10_002)]) == [{"sum": 1.1}]
        assert ask(folder, spec, [("a", 10_000)]) == [{"sum": 1e17}]
