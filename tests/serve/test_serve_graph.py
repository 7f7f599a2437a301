"""The steps of a graph and what flows between them: plans compiled from real task documents, run in this process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlspec_runtime.serve import compile, steps, v2
from mlspec_runtime.serve.fault import Fault
from mlspec_runtime.serve.plan import Plan, Run
from mlspec_runtime.task import TaskError
from serve import serving as s

SCALE = "def step(columns):\n    return {name: values * 10 for name, values in columns.items()}\n"
FAIL = "def step(columns):\n    raise RuntimeError('broken')\n"
NAN = "import numpy as np\ndef step(columns):\n    return {name: values * np.nan for name, values in columns.items()}\n"
SLEEP = "import time\ndef step(columns):\n    time.sleep(0.5)\n    return columns\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Regressions that answer 10, 20 and 90, and classifiers for and against a > 0."""
    for value in (10, 20, 90):
        s.constant(tmp_path / f"m{value}", value)
    s.classifier(tmp_path / "yes", 1.0)
    s.classifier(tmp_path / "no", -1.0)
    s.classifier(tmp_path / "words", 1.0, ("late", "on time"))
    return tmp_path


def plan(root: Path, graph: dict[str, Any], **more: Any) -> Plan:
    folders = ("m10", "m20", "m90", "yes", "no", "words")
    models = {name: {"run": f"{name}-1", "path": name} for name in folders}
    code = {name: s.python(root, name, text) for name, text in more.pop("code", {}).items()}
    return compile.build(s.task(graph, models=models, code=code, **more), root)


def request(columns: dict[str, list[Any]], **more: Any) -> v2.Request:
    arrays = {
        name: np.array(values, object if isinstance(values[0], str) else float)
        for name, values in columns.items()
    }
    return v2.Request(more.pop("id", "id"), arrays, len(next(iter(arrays.values()))), 0.0, **more)


def ask(made: Plan, columns: dict[str, list[Any]] | None = None, **more: Any) -> dict[str, list[Any]]:
    run = Run(request(columns or {"a": [1.0], "b": [0.0]}, **more), len(made.names))
    answer = asyncio.run(made.answer_async(run, False)) if made.awaits else made.answer(run)
    return {name: values.tolist() for name, values in answer.items()}


def prediction(made: Plan, columns: dict[str, list[Any]] | None = None, **more: Any) -> list[Any]:
    return [
        round(one, 6) if isinstance(one, float) else one for one in ask(made, columns, **more)["prediction"]
    ]


def test_steps_run_in_the_order_of_their_edges_not_of_the_file(root: Path) -> None:
    """YAML order means nothing; the edges do."""
    graph = {"last": {"python": "x", "after": ["first"]}, "first": {"python": "x"}}
    made = plan(root, graph, code={"last": SCALE, "first": SCALE})
    assert ask(made, {"a": [1.0]}) == {"a": [100.0]}


def test_several_sources_are_merged_and_clashes_are_named(root: Path) -> None:
    """A silent overwrite of a column would be a wrong prediction."""
    add = "def step(columns):\n    return {**columns, 'c': columns['a'] + 1}\n"
    show = "def step(columns):\n    return columns\n"
    graph = {
        "scale": {"python": "x"}, "add": {"python": "x"}, "both": {"python": "x", "after": ["scale", "add"]}
    }  # fmt: skip
    made = plan(root, graph, code={"scale": SCALE, "add": add, "both": show})
    assert ask(made, {"a": [1.0]}) == {"scale.a": [10.0], "add.a": [1.0], "c": [2.0]}


ROUTES = {"route": {"router": {"by": "inputs.kind", "cases": {"x": "ten", "y": "twenty"}}},
          "ten": {"model": "m10", "after": ["route"]}, "twenty": {"model": "m20", "after": ["route"]}}  # fmt: skip
KINDS = [
    {"name": "kind", "datatype": "BYTES"},
    {"name": "a", "datatype": "FP64"},
    {"name": "b", "datatype": "FP64"},
]


def rows(*kinds: str) -> dict[str, list[Any]]:
    return {"kind": list(kinds), "a": [1.0] * len(kinds), "b": [0.0] * len(kinds)}


def test_a_router_chooses_by_content(root: Path) -> None:
    """Only the chosen step runs; the answer is that of the branch that ran."""
    made = plan(root, ROUTES, inputs=KINDS)
    assert prediction(made, rows("x")) == [10]
    assert prediction(made, rows("y", "y")) == [20, 20]
    with pytest.raises(Fault, match='step route has no case for "z"; cases are x, y') as found:
        ask(made, rows("z"))
    assert found.value.status == 400


def test_rows_of_one_request_may_take_different_branches(root: Path) -> None:
    """A batch must give what its rows give alone, in their order."""
    made = plan(root, ROUTES, inputs=KINDS)
    run = Run(request(rows("x", "y", "x")), len(made.names))
    assert np.round(made.answer(run)["prediction"]).tolist() == [10, 20, 10]
    assert [(part.models, part.request.rows) for part in run.parts] == [(("m10-1",), 2), (("m20-1",), 1)]


def test_a_router_sees_headers_and_parameters_and_has_a_default(root: Path) -> None:
    """Routing by tenant needs the headers."""
    graph = {
        **ROUTES,
        "route": {
            "router": {
                "by": 'headers."x-kind" || parameters.kind',
                "cases": {"1": "ten"},
                "default": "twenty",
            }
        },
    }
    made = plan(root, graph)
    assert prediction(made, headers=[(b"x-kind", b"1")]) == [10]
    assert prediction(made, parameters={"kind": 1}) == [10]
    assert prediction(made) == [20]


def test_a_step_after_alternatives_takes_the_one_that_ran(root: Path) -> None:
    """Branches come together again without knowing of each other."""
    plus = "def step(columns):\n    return {'prediction': columns['prediction'] + 1}\n"
    made = plan(
        root,
        {**ROUTES, "plus": {"python": "x", "after": ["ten", "twenty"]}},
        inputs=KINDS,
        code={"plus": plus},
    )
    assert prediction(made, rows("x", "y")) == [11, 21]


def trio(combine: str, **more: Any) -> dict[str, Any]:
    members = {f"s{value}": {"model": f"m{value}"} for value in (10, 20, 90)}
    return {**members, "all": {"ensemble": {"combine": combine, **more}, "after": list(members)}}


@pytest.mark.parametrize(
    ("combine", "weights", "expected"),
    [
        ("mean", None, 40),
        ("mean", {"s10": 1, "s20": 1, "s90": 0}, 15),
        ("mean", {"s10": 3, "s20": 1}, 12.5),
        ("mean", {"s10": 0.3, "s20": 0.3, "s90": 0.3}, 40),
        ("median", None, 20),
        ("min", None, 10),
        ("max", None, 90),
    ],
)
def test_numbers_are_combined_with_normalised_weights(
    root: Path, combine: str, weights: Any, expected: float
) -> None:
    """MLRun's ensemble answers 30 for the mean of 10 and 20 with weights 1 and 1."""
    more = {} if weights is None else {"weights": weights}
    assert prediction(plan(root, trio(combine, **more))) == [expected]


def test_probabilities_are_combined_and_give_the_label(root: Path) -> None:
    """The label must fit the combined probability, in the labels of the members."""
    graph = {
        "one": {"model": "yes"},
        "two": {"model": "no"},
        "all": {"ensemble": {"weights": {"one": 2, "two": 1}}, "after": ["one", "two"]},
    }
    one, two, both = (
        ask(plan(root, {k: graph[k] for k in keys})) for keys in (["one"], ["two"], list(graph))
    )
    expected = (2 * one["probability"][0] + two["probability"][0]) / 3
    assert both == {"prediction": [True], "probability": [pytest.approx(expected)]}


def test_labels_are_voted_by_weight(root: Path) -> None:
    """A vote needs no numbers; the heavier side wins, the first in the list on a tie."""
    other = "def step(columns):\n    return {'prediction': ['late'] * len(columns['a'])}\n"
    graph: dict[str, Any] = {
        "a": {"model": "words"},
        "b": {"python": "x"},
        "all": {"ensemble": {"combine": "vote"}, "after": ["a", "b"]},
    }
    assert prediction(plan(root, graph, code={"b": other})) == ["on time"]
    graph["all"]["ensemble"]["weights"] = {"a": 1, "b": 1.1}
    assert prediction(plan(root, graph, code={"b": other})) == ["late"]


def test_a_member_that_was_skipped_does_not_count(root: Path) -> None:
    """An ensemble outlives the failure of a member that may fail."""
    graph: dict[str, Any] = trio("mean", weights={"s10": 1, "s20": 1, "s90": 2})
    graph["s90"] = {"python": "x", "onError": {"skip": True}}
    assert prediction(plan(root, graph, code={"s90": FAIL})) == [15]


def test_a_split_keeps_its_shares_and_its_keys(root: Path) -> None:
    """A customer must not change sides; a growing arm must not lose anybody."""

    def arms(weight: float) -> Plan:
        split = {
            "key": "inputs.kind",
            "arms": [{"step": "new", "weight": weight}, {"step": "old", "weight": 100 - weight}],
        }
        return plan(
            root, {"ab": {"split": split}, "new": {"model": "m20"}, "old": {"model": "m10"}}, inputs=KINDS
        )

    keys = [f"customer-{number}" for number in range(4000)]
    small, again, large = (prediction(arms(weight), rows(*keys)) for weight in (5, 5, 20))
    assert small == again
    assert 0.04 < small.count(20) / 4000 < 0.06
    assert 0.18 < large.count(20) / 4000 < 0.22
    assert all(after == 20 for before, after in zip(small, large, strict=True) if before == 20)
    assert prediction(arms(5), rows(keys[0])) == small[:1]


def test_splits_of_different_steps_are_independent() -> None:
    """Who is in one experiment must not be in the other for the same reason."""
    both = Counter(
        (steps.bucket("g/one", str(n)) < 1000, steps.bucket("g/two", str(n)) < 1000) for n in range(20_000)
    )
    assert 0.007 < both[True, True] / 20_000 < 0.013


def test_a_split_by_header_falls_back_to_the_id(root: Path) -> None:
    """A caller without the header is still spread over the arms."""
    split = {"key": "header:X-User", "arms": [{"step": "new", "weight": 50}, {"step": "old", "weight": 50}]}
    made = plan(root, {"ab": {"split": split}, "new": {"model": "m20"}, "old": {"model": "m10"}})
    same = {prediction(made, id=str(n), headers=[(b"x-user", b"me")])[0] for n in range(20)}
    assert len(same) == 1
    assert {prediction(made, id=str(n))[0] for n in range(20)} == {10, 20}


def test_shadow_steps_do_not_answer(root: Path) -> None:
    """A candidate sees real traffic without anybody seeing it."""
    split = {"arms": [{"step": "old", "weight": 100}], "shadow": ["new"]}
    made = plan(root, {"ab": {"split": split}, "old": {"model": "m10"}, "new": {"model": "m90"}})
    run = Run(request({"a": [1.0], "b": [0.0]}), len(made.names))
    assert np.round(made.answer(run)["prediction"]).tolist() == [10]
    assert run.models == ("m10-1",)
    [seen] = made.run_shadow(run)
    assert (seen.models, np.round(seen.output["prediction"]).tolist()) == (("m90-1",), [90])
    assert set(seen.features) == {"a", "b"}


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        ({"default": 7}, [7, 7]),
        ({"default": "none"}, ["none", "none"]),
        ({"goto": "other"}, [20, 20]),
        ({"default": [1, 2]}, [[1, 2]] * 2),
    ],
)
def test_a_failing_step_is_replaced(root: Path, recovery: dict[str, Any], expected: list[Any]) -> None:
    """An answer that is good enough beats none."""
    graph: dict[str, Any] = {
        "main": {"python": "x", "onError": recovery},
        "end": {"python": "x", "after": ["main"]},
    }
    if "goto" in recovery:
        graph["other"] = {"model": "m20"}
    same = "def step(columns):\n    return columns\n"
    inputs = [{"name": name, "datatype": "FP64"} for name in s.INPUTS]
    made = plan(root, graph, code={"main": FAIL, "end": same}, inputs=inputs)
    assert prediction(made, {"a": [1.0, 1.0], "b": [0.0, 0.0]}) == expected
    assert {step.name: (step.timing.calls, step.timing.errors) for step in made.steps}["main"] == (1, 1)


def test_a_fallback_runs_only_instead(root: Path) -> None:
    """It costs nothing while all is well."""
    graph = {"main": {"model": "m10", "onError": {"goto": "other"}}, "other": {"model": "m20"}}
    made = plan(root, graph)
    run = Run(request({"a": [1.0], "b": [0.0]}), len(made.names))
    assert np.round(made.answer(run)["prediction"]).tolist() == [10]
    assert run.models == ("m10-1",)


def test_a_fallback_takes_what_the_failed_step_had(root: Path) -> None:
    """Unless it says `after`: instead means with the same input."""
    show = "def step(columns):\n    return columns\n"
    graph: dict[str, Any] = {
        "scale": {"python": "x"}, "main": {"python": "x", "after": ["scale"], "onError": {"goto": "other"}},
        "other": {"python": "x"},
    }  # fmt: skip
    code = {"scale": SCALE, "main": FAIL, "other": show}
    assert ask(plan(root, graph, code=code), {"a": [1.0]}) == {"a": [10.0]}
    graph["add"] = {"python": "x"}
    graph["other"]["after"] = ["add"]
    add = "def step(columns):\n    return {'a': columns['a'] + 1}\n"
    assert ask(plan(root, graph, code={**code, "add": add}), {"a": [1.0]}) == {"a": [2.0]}


def test_a_python_step_cannot_change_what_others_see(root: Path) -> None:
    """The log and other branches have the same columns; a changed one would be a wrong row somewhere else."""
    new = "def step(columns):\n    columns['c'] = columns.pop('a') + 1\n    return columns\n"
    made = plan(root, {"p": {"python": "x"}}, code={"p": new})
    run = Run(request({"a": [1.0]}), len(made.names))
    assert made.answer(run)["c"].tolist() == [2.0]
    assert list(run.request.columns) == ["a"]
    inplace = "def step(columns):\n    columns['a'] += 1\n    return columns\n"
    with pytest.raises(Fault, match="read-only"):
        ask(plan(root, {"p": {"python": "x"}}, code={"p": inplace}))


def test_fallbacks_chain(root: Path) -> None:
    """The last one decides."""
    graph = {
        "main": {"python": "x", "onError": {"goto": "second"}}, "second": {"python": "x", "onError": {"goto": "third"}},
        "third": {"model": "m90"},
    }  # fmt: skip
    assert prediction(plan(root, graph, code={"main": FAIL, "second": FAIL})) == [90]


def test_a_failure_names_its_step(root: Path) -> None:
    """Whoever is on call starts at the step."""
    with pytest.raises(Fault, match="step main failed: RuntimeError: broken") as found:
        ask(plan(root, {"main": {"python": "x"}}, code={"main": FAIL}))
    assert found.value.status == 500


def test_null_in_the_request_is_the_callers_fault_null_from_a_step_is_ours(root: Path) -> None:
    """The same refusal of the model, but other people must act."""
    made = plan(root, {"m": {"model": "yes"}})
    with pytest.raises(Fault, match="Null or out of range: b") as found:
        ask(made, {"a": [1.0], "b": [float("nan")]})
    assert found.value.status == 400
    with pytest.raises(Fault, match="step m refuses its input") as found:
        ask(plan(root, {"p": {"python": "x"}, "m": {"model": "yes", "after": ["p"]}}, code={"p": NAN}))
    assert found.value.status == 500


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def step(columns):\n    return [1]\n", "it must return a dict"),
        ("def step(columns):\n    return {'a': [1, 2, 3]}\n", "column a has 3 values for 1 rows"),
        ("def step(columns):\n    return {1: [1]}\n", "column names must be strings"),
    ],
)
def test_a_python_step_must_return_columns(root: Path, source: str, words: str) -> None:
    """A wrong shape is found where it arises, not in the model behind it."""
    with pytest.raises(Fault, match=words):
        ask(plan(root, {"main": {"python": "x"}}, code={"main": source}))


def test_a_slow_step_ends_at_its_timeout(root: Path) -> None:
    """The caller has gone by then; with `onError` there is still an answer."""
    graph: dict[str, Any] = {"slow": {"python": "x", "timeout": "50ms"}}
    made = plan(root, graph, code={"slow": SLEEP})
    started = time.monotonic()
    with pytest.raises(Fault, match=r"step slow did not answer within 0.05 s") as found:
        asyncio.run(_timed(made, started))
    assert found.value.status == 504
    graph["slow"]["onError"] = {"default": 3}
    assert prediction(plan(root, graph, code={"slow": SLEEP})) == [3]


async def _timed(made: Plan, started: float) -> None:
    try:
        await made.answer_async(Run(request({"a": [1.0]}), len(made.names)), False)
    finally:
        assert time.monotonic() - started < 0.4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown step": ({"m": {"model": "m10", "after": ["zz"]}}, 'no step is called "zz"'),
    "cycle": (
        {"a": {"python": "x", "after": ["b"]}, "b": {"python": "x", "after": ["a"]}},
        "wait for each other",
    ),
    "several answers": ({"a": {"model": "m10"}, "b": {"model": "m20"}}, "2 steps could answer: a, b"),
    "unknown model": ({"m": {"model": "zz"}}, "no run of the model zz"),
    "unknown code": ({"m": {"python": "zz.py:f"}}, "the code of zz.py:f"),
    "expression": (
        {"r": {"router": {"by": "a b", "cases": {"x": "m"}}}, "m": {"model": "m10"}},
        "not a JMESPath expression",
    ),
    "weights": (
        {"m": {"model": "m10"}, "e": {"ensemble": {"weights": {"zz": 1}}, "after": ["m"]}},
        "weighs zz",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_that_cannot_work_is_not_built(root: Path, case: str) -> None:
    """Validation finds these before; a process must still not start, or swap, with them."""
    graph, words = REFUSED[case]
    with pytest.raises(TaskError, match=words):
        plan(root, graph)


def test_expressions_are_data_not_code(root: Path) -> None:
    """Other systems pass them to eval."""
    with pytest.raises(TaskError, match="not a JMESPath expression"):
        steps.expression("__import__('os').system('true')")
