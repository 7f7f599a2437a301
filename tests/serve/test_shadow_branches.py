"""Shadow branches of any shape: valid, run after the answer, logged, and never the answer. The rest is refused, by both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlspec_runtime.task import TaskError
from serve import graphs
from serve.graphs import PLUS, Graph


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.models(tmp_path_factory.mktemp("shadow"))


def split(*shadow: str, live: str = "live") -> dict[str, Any]:
    return {"split": {"arms": [{"step": live, "weight": 100}], "shadow": list(shadow)}}


P = {"python": "f.py:f"}
CHAIN: Graph = {
    "pre": P,
    "s": {**split("cand"), "after": ["pre"]},
    "live": {"model": "m10"},
    "cand": {"model": "m90"},
    "post": {**P, "after": ["cand"]},
    "post2": {**P, "after": ["post"]},
}
VALID: dict[str, tuple[Graph, list[tuple[tuple[str, ...], list[float]]]]] = {
    "a_step": ({"s": split("cand"), "live": {"model": "m10"}, "cand": {"model": "m90"}}, [(("m90-1",), [90])]),
    "a_chain": (CHAIN, [(("m90-1",), [92])]),
    "a_join": (
        {
            "s": split("one", "other"),
            "live": {"model": "m10"},
            "one": {"model": "m20"},
            "other": {"model": "m90"},
            "both": {"ensemble": {"combine": "mean"}, "after": ["one", "other"]},
            "post": {**P, "after": ["both"]},
        },
        [(("m20-1", "m90-1"), [56])],
    ),
    "a_fork_inside": (
        {
            "s": split("pre"),
            "live": {"model": "m10"},
            "pre": P,
            "one": {"model": "m20", "after": ["pre"]},
            "other": {"model": "m90", "after": ["pre"]},
            "sum": {"ensemble": {"combine": "max"}, "after": ["one", "other"]},
        },
        [(("m20-1", "m90-1"), [90])],
    ),
    "two_branches": (
        {
            "s": split("one", "other"),
            "live": {"model": "m10"},
            "one": {"model": "m20"},
            "other": {"model": "m90"},
            "post": {**P, "after": ["other"]},
        },
        [(("m20-1",), [20]), (("m90-1",), [91])],
    ),
    "a_router_inside": (
        {
            "s": split("choose"),
            "live": {"model": "m10"},
            "choose": {"router": {"by": "inputs.a[0] > `0`", "cases": {"true": "one"}, "default": "other"}},
            "one": {"model": "m20"},
            "other": {"model": "m90"},
            "post": {**P, "after": ["one", "other"]},
        },
        [(("m20-1",), [21])],
    ),
    "a_split_inside_a_shadow": (
        {
            "s": split("again"),
            "live": {"model": "m10"},
            "again": split("deep", live="arm"),
            "arm": {"model": "m20"},
            "deep": {"model": "m90"},
        },
        [(("m20-1",), [20]), (("m90-1",), [90])],
    ),
    "a_fallback_inside": (
        {
            "s": split("bad"),
            "live": {"model": "m10"},
            "bad": {**P, "onError": {"goto": "instead"}},
            "instead": {"model": "m90"},
            "post": {**P, "after": ["bad"]},
        },
        [(("m90-1",), [91])],
    ),
    "only_python": ({"s": split("cand"), "live": {"model": "m10"}, "cand": P, "post": {**P, "after": ["cand"]}}, [(("post",), [1])]),
    "a_step_that_takes_what_ran_before_the_answer": (
        {
            "pre": P,
            "s": {**split("cand"), "after": ["pre"]},
            "live": {"model": "m10"},
            "cand": {"model": "m90", "after": ["pre"]},
            "post": {**P, "after": ["cand"]},
        },
        [(("m90-1",), [91])],
    ),
}  # fmt: skip
CODE = {
    **dict.fromkeys(("post", "post2"), PLUS),
    "bad": "def step(columns):\n    raise RuntimeError('broken')\n",
}


@pytest.mark.parametrize("name", VALID)
def test_it_is_valid_runs_after_the_answer_and_does_not_answer(root: Path, name: str) -> None:
    """A candidate may need as many steps as what it shall replace."""
    steps, expected = VALID[name]
    assert graphs.problems(steps) == []
    code = {key: text for key, text in CODE.items() if key in steps}
    if name == "only_python":
        del code["post"]
    made = graphs.plan(root, steps, code)
    answer, run = graphs.ask(made)
    assert answer == [10]
    assert run.models == ("m10-1",)
    assert not {one.name for one in made.shadow} & {one.name for one in made.steps}
    assert graphs.shadowed(made, run) == expected


def test_naming_the_answer_changes_nothing(root: Path) -> None:
    """The hint of one refusal must not lead to another one."""
    assert graphs.problems(CHAIN, respond="live") == []
    answer, run = graphs.ask(made := graphs.plan(root, CHAIN, {"post": PLUS, "post2": PLUS}, respond="live"))
    assert answer == [10]
    assert graphs.shadowed(made, run) == [(("m90-1",), [92])]


def test_a_shadow_runs_only_where_its_split_has_run(root: Path) -> None:
    """A candidate of one branch must not see the requests of the other, whatever it takes."""
    steps = {
        "pre": P,
        "choose": {"router": {"by": "inputs.a[0] > `0`", "cases": {"true": "s"}, "default": "other"}, "after": ["pre"]},
        "s": split("cand"),
        "live": {"model": "m10"},
        "cand": {"model": "m90", "after": ["pre"]},
        "other": {"model": "m20"},
    }  # fmt: skip
    assert graphs.problems(steps) == []
    made = graphs.plan(root, steps)
    for a, expected in ((1.0, [(("m90-1",), [90])]), (-1.0, [])):
        _, run = graphs.ask(made, a=[a], b=[0.0])
        assert graphs.shadowed(made, run) == expected


def test_rows_that_part_ways_in_the_shadow_are_all_logged(root: Path) -> None:
    """A router in the shadow sees several rows of one request: each goes its way, none is lost."""
    steps = {
        "s": split("choose"),
        "live": {"model": "m10"},
        "choose": {"router": {"by": "inputs.kind", "cases": {"x": "one"}, "default": "other"}},
        "one": {"model": "m20"},
        "other": {"model": "m90"},
    }
    assert graphs.problems(steps) == []
    inputs = [{"name": "kind", "datatype": "BYTES"}, *({"name": n, "datatype": "FP64"} for n in "ab")]
    made = graphs.plan(root, steps, inputs=inputs)
    answer, run = graphs.ask(made, kind=["x", "y", "x"], a=[1.0] * 3, b=[0.0] * 3)
    assert answer == [10, 10, 10]
    assert graphs.shadowed(made, run) == [(("m20-1",), [20, 20]), (("m90-1",), [90])]


def test_a_broken_shadow_harms_nobody(root: Path) -> None:
    """It is counted, and neither logged nor answered."""
    made = graphs.plan(root, CHAIN, {"post": "def step(columns):\n    raise RuntimeError('broken')\n"})
    answer, run = graphs.ask(made)
    assert answer == [10]
    assert graphs.shadowed(made, run) == []
    assert {one.name: one.timing.errors for one in made.shadow} == {"cand": 0, "post": 1, "post2": 0}


REFUSED: dict[str, tuple[Graph, str | None, str]] = {
    "takes_from_both_sides": (
        {**CHAIN, "mixed": {**P, "after": ["post", "live"]}},
        None,
        "mixed takes from post, which runs in the shadow after the answer, and from live, which runs before it",
    ),
    "joins_both_sides": (
        {**CHAIN, "all": {"ensemble": {"combine": "mean"}, "after": ["live", "cand"]}},
        None,
        "all takes from cand, which runs in the shadow after the answer, and from live, which runs before it",
    ),
    "the_answer_is_in_the_shadow": (CHAIN, "post2", "post2 runs in the shadow, after the answer"),
    "arm_and_shadow": (
        {"s": split("live"), "live": {"model": "m10"}},
        None,
        "s runs live in the shadow, but s lets it answer",
    ),
    "a_live_fallback_from_the_shadow": (
        {**CHAIN, "live": {"model": "m10", "onError": {"goto": "other"}}, "other": {**P, "after": ["cand"]}},
        None,
        "other takes from cand, which runs in the shadow after the answer, and stands in for live",
    ),
    "goes_to_the_shadow": (
        {**CHAIN, "live": {"model": "m10", "onError": {"goto": "cand"}}},
        None,
        "cand runs in the shadow and stands in for no step",
    ),
    "everything_is_in_the_shadow": (
        {"s": split("cand", live="cand2"), "cand": {"model": "m10"}, "cand2": {"model": "m90", "after": ["cand"]}},
        None,
        "cand2 takes from cand, which runs in the shadow after the answer, and from s, which runs before it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_one_meaning_is_refused_by_both(root: Path, name: str) -> None:
    """With one sentence that names the steps, before anything is applied; a server that gets it all the same keeps its old plan."""
    steps, respond, message = REFUSED[name]
    found = graphs.problems(steps, respond)
    assert [one.message for one in found] == [message]
    assert found[0].hint
    with pytest.raises(TaskError) as refusal:
        graphs.plan(root, steps, **({"respond": respond} if respond else {}))
    assert refusal.value.message == message
