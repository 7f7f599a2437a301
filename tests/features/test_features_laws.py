"""The laws of features, over generated worlds: batch and online both equal the oracle, bit for bit."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import worlds
from features.oracle import Row, feature
from mlspec_runtime.features.online import ingest

MILLI = 1_000
HOUR_MS = 3_600_000
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

# a coarse grid of moments, so that events meet each other, questions, window edges and hop edges; also before 1970
moments = st.integers(-12, 12).map(lambda step: step * 5 * MILLI) | st.integers(-60_000, 60_000)
keys = st.sampled_from(["a", "b", None])
VALUES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "double": (
        pa.float64(),
        st.sampled_from([0.0, 1.0, -1.0, 1e17, -1e17, 0.1, 1e-9, 3.5, 1e300, 5e-324]) | st.floats(-1e6, 1e6),
    ),
    "int64": (pa.int64(), st.integers(-5, 5) | st.integers(-(2**62), 2**62)),
    "string": (pa.string(), st.sampled_from(["", "x", "y", "é", "😀"])),
    "boolean": (pa.bool_(), st.booleans()),
}


@st.composite
def worlds_of(draw: st.DrawFn) -> tuple[pa.DataType, list[Row]]:
    """A value type and rows of it; arrival before, at or after the event."""
    name = draw(st.sampled_from(sorted(VALUES)))
    dtype, values = VALUES[name]
    lateness = st.sampled_from([0, 0, 1, 5 * MILLI, -5 * MILLI, 40 * MILLI])
    rows = []
    for key, event, late, value in draw(
        st.lists(st.tuples(keys, moments, lateness | st.none(), values | st.none()), max_size=25)
    ):
        value = value + 0.0 if isinstance(value, float) else value
        rows.append(Row(key, event, None if late is None else event + late, value))
    return dtype, rows


questions_of = st.lists(st.tuples(keys | st.just("unknown"), moments | st.none()), max_size=12)


def expected(
    rows: list[Row], questions: list[tuple[str | None, int | None]], spec: dict[str, Any], max_age: int | None
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


@quick
@given(
    world=worlds_of(),
    questions=questions_of,
    window=st.sampled_from([1, 5, 20, 100_000]),
    hop=st.sampled_from([0, 0, 1, 5, 7]),
    max_age=st.sampled_from([None, None, 5, 10]),
)
def test_batch_equals_online_equals_the_oracle(
    world: tuple[pa.DataType, list[Row]],
    questions: list[tuple[str | None, int | None]],
    window: int,
    hop: int,
    max_age: int | None,
) -> None:
    """A model that is trained on other numbers than it is served is wrong without anybody noticing."""
    dtype, rows = world
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
@given(world=worlds_of(), questions=questions_of, seed=st.integers(0, 1000))
def test_delivery_order_and_repetition_change_nothing(
    world: tuple[pa.DataType, list[Row]], questions: list[tuple[str | None, int | None]], seed: int
) -> None:
    """Streams deliver late, out of order and twice; the features of a moment must not depend on it."""
    dtype, rows = world
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
@given(
    world=worlds_of(), more=st.lists(st.tuples(moments, st.integers(0, 50_000)), max_size=8), moment=moments
)
def test_what_becomes_known_later_changes_nothing(
    world: tuple[pa.DataType, list[Row]], more: list[tuple[int, int]], moment: int
) -> None:
    """Training must not see what serving could not have seen (causality)."""
    dtype, rows = world
    numeric = not pa.types.is_string(dtype)
    spec = {"dataset": "one", "key": ["key"], "features": worlds.features_of(worlds.OPS, 20, numeric)}
    later = [Row("a", event, moment + after, rows[0].value if rows else None) for event, after in more]
    questions: list[tuple[str | None, int | None]] = [("a", moment), ("b", moment)]
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
