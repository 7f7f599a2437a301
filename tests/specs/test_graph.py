"""The shape of serving graphs: who answers, whatever is chosen, against an oracle that tries every way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlspec import graph
from mlspec.graph import Node

Nodes = Mapping[str, Node]


def node(*after: str, to: str = "", shadow: str = "", goto: str | None = None) -> Node:
    """A step; `to` and `shadow` are names with blanks between."""
    return Node(
        after, tuple((name, ("router", "cases", name)) for name in to.split()), tuple(shadow.split()), goto
    )


def codes(nodes: Nodes, respond: str | None = None) -> list[str]:
    found = graph.shape(nodes, respond)
    return [] if isinstance(found, graph.Shape) else [one.code for one in found]


ACCEPTED: dict[str, tuple[Nodes, str | None, tuple[str, ...]]] = {
    "one_step": ({"a": node()}, None, ("a",)),
    "branches": ({"r": node(to="a b"), "a": node(), "b": node()}, None, ("a", "b")),
    "branches_that_meet": ({"r": node(to="a b"), "a": node(), "b": node(), "c": node("a", "b")}, None, ("c",)),
    "a_default_that_two_routers_share": ({"r": node(to="q d"), "q": node(to="a d"), "a": node(), "d": node()}, None, ("a", "d")),
    "routers_in_two_branches_share_a_step": (
        {"r": node(to="p q"), "p": node(to="a c"), "q": node(to="b c"), "a": node(), "b": node(), "c": node()},
        None,
        ("a", "b", "c"),
    ),
    "a_fallback_that_is_also_an_arm": ({"r": node(to="a b"), "a": node(goto="b"), "b": node()}, None, ("a", "b")),
    "two_steps_share_a_fallback": (
        {"a": node(goto="f"), "b": node("a", goto="f"), "f": node()},
        None,
        ("b",),
    ),
    "a_fallback_with_a_source": ({"x": node(), "a": node(goto="f"), "f": node("x")}, None, ("a",)),
    "a_step_for_the_shadow_alone": (
        {"x": node(), "s": node(to="a", shadow="c"), "a": node(), "c": node("x")},
        None,
        ("a",),
    ),
    "a_candidate_looks_at_the_answer": ({"s": node(to="a", shadow="c"), "a": node(), "c": node("a")}, "a", ("a",)),
    "twenty_experiments_after_one_another": (
        {
            name: step
            for i in range(20)
            for name, step in {
                f"s{i}": node(*([f"j{i - 1}"] if i else []), to=f"a{i} b{i}"),
                f"a{i}": node(),
                f"b{i}": node(),
                f"j{i}": node(f"a{i}", f"b{i}"),
            }.items()
        },
        None,
        ("j19",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_graphs_with_one_meaning(name: str) -> None:
    """Each of these is something that people build."""
    nodes, respond, answering = ACCEPTED[name]
    found = graph.shape(nodes, respond)
    assert isinstance(found, graph.Shape), found
    assert found.respond == answering
    assert sorted(found.order) == sorted(nodes)


REFUSED: dict[str, tuple[Nodes, str | None, str]] = {
    "nobody": ({"s": node(to="a", shadow="c"), "a": node(), "c": node("a")}, None, "no step answers"),
    "two": ({"a": node(), "b": node()}, None, "2 steps could answer: a, b"),
    "two_of_experiments_side_by_side": (
        {"r": node(to="a b"), "q": node(to="c d"), **{name: node() for name in "abcd"}},
        None,
        "a and c could both answer when r chooses a and q chooses c",
    ),
    "a_branch_that_answers_nothing": (
        {"r": node(to="a b"), "a": node(), "b": node()},
        "a",
        "a does not run when r chooses b",
    ),
    "a_branch_without_its_source": (
        {"r": node(to="q b"), "q": node(to="x y"), "x": node(), "y": node(), "b": node("x")},
        None,
        "no step answers when r chooses q and q chooses x",
    ),
    "respond_is_a_fallback": ({"a": node(goto="f"), "f": node()}, "f", "f runs only instead of a, when that fails"),
    "a_step_takes_a_fallback": (
        {"a": node(goto="f"), "f": node(), "b": node("a", "f")},
        None,
        "f runs only instead of a, when that fails",
    ),
    "a_fallback_that_chooses": (
        {"a": node(goto="r"), "r": node(to="x y"), "x": node(), "y": node(), "z": node("a", "x", "y")},
        None,
        "r chooses a step, which is no output in the place of a",
    ),
    "fallbacks_in_a_circle": ({"a": node(goto="b"), "b": node(goto="a")}, None, "steps wait for each other"),
    "itself": ({"a": node(goto="a")}, None, "the step goes to itself when it fails"),
    "choosers_that_pass_on_different_columns": (
        {"r": node(to="p m"), "p": node(), "q": node("p", to="m n"), "m": node(), "n": node()},
        None,
        "r and q name m, but do not pass on the same",
    ),
    "nowhere": ({"a": node(), "b": node("a"), "c": node("a")}, "b", "the output of c goes nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_graphs_without_one_meaning(name: str) -> None:
    """The sentence names the steps."""
    nodes, respond, message = REFUSED[name]
    found = graph.shape(nodes, respond)
    assert not isinstance(found, graph.Shape)
    assert found[0].message.startswith(message)
    assert len(found) == 1


def test_many_experiments_side_by_side_are_refused_in_time() -> None:
    """A check that takes minutes is no check; nobody understands a million ways either."""
    nodes = {
        name: step
        for i in range(30)
        for name, step in {f"s{i}": node(to=f"a{i} b{i}"), f"a{i}": node(), f"b{i}": node()}.items()
    }
    nodes["all"] = node(*(f"{letter}{i}" for letter in "ab" for i in range(30)))
    begun = time.perf_counter()
    assert codes(nodes) == ["too-many-branches"]
    assert time.perf_counter() - begun < 10


NAMES = "abcdef"


@st.composite
def shapes(draw: st.DrawFn) -> tuple[dict[str, Node], str | None]:
    """Graphs of a few steps, mostly without cycles."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    nodes = {}
    for index, name in enumerate(names):
        before, behind = list(names[:index]), list(names[index + 1 :])
        some = st.lists(st.sampled_from(before), max_size=2, unique=True) if before else st.just([])
        later = st.lists(st.sampled_from(behind), max_size=3, unique=True) if behind else st.just([])
        to = draw(later) if draw(st.booleans()) else []
        shadow = [one for one in draw(later) if one not in to] if to and draw(st.booleans()) else []
        goto = draw(st.sampled_from(behind)) if behind and draw(st.integers(0, 5)) == 0 else None
        nodes[name] = node(*draw(some), to=" ".join(to), shadow=" ".join(shadow), goto=goto)
    return nodes, draw(st.none() | st.sampled_from(names))


def ways(nodes: Nodes) -> Iterator[set[str]]:
    """The steps that run before the answer, for every combination of choices. Written from the rules, the slow way."""
    chosen_by = {
        name: {c for c, one in nodes.items() if name in [t for t, _ in one.chooses]} for name in nodes
    }
    mirrored = {name for one in nodes.values() for name in one.mirrors}
    instead = {one.goto for one in nodes.values() if one.goto and not chosen_by[one.goto]}
    routers = [name for name, one in nodes.items() if one.chooses]
    for choice in itertools.product(*([t for t, _ in nodes[name].chooses] for name in routers)):
        picks = dict(zip(routers, choice, strict=True))
        ran: set[str] = set()
        while True:
            more = {
                name
                for name, one in nodes.items()
                if name not in mirrored | instead | ran
                and (not one.after or any(source in ran for source in one.after))
                and (not chosen_by[name] or any(c in ran and picks[c] == name for c in chosen_by[name]))
            }
            if not more:
                break
            ran |= more
        yield ran


@settings(max_examples=1500, deadline=None)
@given(shapes())
def test_whoever_is_chosen_exactly_one_step_answers(made: tuple[dict[str, Node], str | None]) -> None:
    """What is accepted answers once in each way; what is refused for its answer has a way in which it does not."""
    nodes, respond = made
    found = graph.shape(nodes, respond)
    if isinstance(found, graph.Shape):
        for ran in ways(nodes):
            assert len(ran & set(found.respond)) == 1
        assert not found.shadow & set(found.respond)
        place = {name: index for index, name in enumerate(found.order)}
        assert all(
            place[source] < place[name]
            for name, sources in found.sources.items()
            for source in sources
            if name not in found.fallbacks
        )
        return
    by_answer = [
        one
        for one in found
        if one.code in ("no-answer", "two-responders") and "run" not in one.message.split(" when")[0]
    ]
    if by_answer and len(by_answer) == len(found) and respond is None:
        named = {
            name for one in nodes.values() for name in (*(target for target, _ in one.chooses), *one.mirrors)
        }
        taken = {
            source
            for name, one in nodes.items()
            for source in one.after
            if name in named or nodes[source].goto != name  # what stands in for a step does not use it up
        }
        ends = {name for name, one in nodes.items() if not one.chooses and name not in taken}
        assert any(len(ran & ends) != 1 for ran in ways(nodes))


@settings(max_examples=500, deadline=None)
@given(shapes())
def test_the_hint_does_not_lead_to_another_refusal(made: tuple[dict[str, Node], str | None]) -> None:
    """Who follows it has a valid graph."""
    nodes, respond = made
    found = graph.shape(nodes, respond)
    if (
        isinstance(found, graph.Shape)
        or len(found) > 1
        or "respond: " not in found[0].hint
        or "write" in found[0].hint
    ):
        return
    for name in found[0].hint.partition("respond: ")[2].split(", "):
        assert isinstance(graph.shape(nodes, name), graph.Shape)
