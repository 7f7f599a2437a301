"""What `validate` says of cron expressions is what croniter, which keeps the time, does with them."""

from __future__ import annotations

import time

import pytest
from croniter import CroniterBadDateError, croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from mlspec import rules

YEAR = 366 * 86_400.0
NOW = 1_795_000_000.0
COMES = (
    "0 0 29 2 *",
    "0 0 31 2 1",
    "0 0 31 1,2 *",
    "*/15 8-18 * * mon-fri",
    "0 0 28-31/3 feb *",
    "5/20 * 1,31 4 *",
)
NEVER = ("0 0 31 2 *", "* * 30-31 feb *", "0 6 31 4,6,9,11 *", "0 0 30,31 2 *", "1 1 31/1 jun *")


def codes(expression: str) -> list[str]:
    return [one.code for one in rules.cron(expression, ("spec",))]


@pytest.mark.parametrize("expression", COMES)
def test_what_comes_now_and_then_is_valid(expression: str) -> None:
    """A leap day comes every fourth year, and a weekday beside a day that does not exist is enough."""
    assert codes(expression) == []
    assert croniter(expression, NOW).get_next(float) < NOW + 8 * YEAR


@pytest.mark.parametrize("expression", NEVER)
def test_what_never_comes_is_found_out_at_once(expression: str) -> None:
    """A search through the calendar is bounded; the rule needs none."""
    begun = time.perf_counter()
    assert codes(expression) == ["never-due"]
    assert time.perf_counter() - begun < 0.1
    with pytest.raises(CroniterBadDateError):
        croniter(expression, NOW).get_next(float)


def field(index: int) -> st.SearchStrategy[str]:
    """Words of one field, mostly well-formed."""
    _, low, high, names = rules._CRON[index]
    value = st.integers(low - 1, high + 1).map(str) | st.sampled_from([*names, str(low)])
    step = st.sampled_from(["", "", "", "/2", "/7", "/0", "/90"])
    part = st.one_of(
        st.just("*"), value, st.builds(lambda first, last: f"{first}-{last}", value, value)
    ).flatmap(lambda word: step.map(lambda more: word + more))
    return st.just("*") | st.lists(part, min_size=1, max_size=3).map(",".join)


@settings(max_examples=400, deadline=None)
@given(st.tuples(*(field(index) for index in range(5))).map(" ".join), st.floats(NOW, NOW + 10 * YEAR))
def test_the_rule_and_the_clock_agree(expression: str, now: float) -> None:
    """What is accepted has a next and a last moment; what is said never to come has none."""
    match codes(expression):
        case []:
            following = croniter(expression, now).get_next(float)
            assert croniter(expression, following + 1).get_prev(float) == following
            assert now < following < now + 8 * YEAR
        case ["never-due"]:
            with pytest.raises(CroniterBadDateError):
                croniter(expression, now).get_next(float)
