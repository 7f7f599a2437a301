"""Generated graphs: `validate` accepts exactly those that the runtime compiles, and those answer whatever is chosen."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mlspec_runtime.serve import steps as step_calls
from mlspec_runtime.serve import v2
from mlspec_runtime.serve.plan import Plan, Run
from mlspec_runtime.task import TaskError
from serve import graphs

NAMES = "abcdef"
Steps = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agreement")


@st.composite
def specs(draw: st.DrawFn) -> tuple[Steps, str | None]:
    """Steps of a spec: functions, routers by a column of their own, splits with and without a shadow, fallbacks."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    made: Steps = {}
    for index, name in enumerate(names):
        before, behind = list(names[:index]), list(names[index + 1 :])
        kind = draw(st.sampled_from(["python", "python", "router", "split"])) if behind else "python"
        step: dict[str, Any] = {"python": "f.py:f"}
        if kind == "router":
            targets = draw(st.lists(st.sampled_from(behind), min_size=1, max_size=3, unique=True))
            step = {"router": {"by": f"inputs.{name}", "cases": {one: one for one in targets}}}
        if kind == "split":
            targets = draw(st.lists(st.sampled_from(behind), min_size=1, max_size=2, unique=True))
            arms = [{"step": one, "weight": 100 / len(targets)} for one in targets]
            shadow = draw(st.lists(st.sampled_from(behind), max_size=2, unique=True))
            step = {"split": {"key": f"inputs.{name}", "arms": arms, "shadow": shadow}}
        if before and draw(st.booleans()):
            step["after"] = draw(st.lists(st.sampled_from(before), min_size=1, max_size=2, unique=True))
        if kind == "python" and behind and draw(st.integers(0, 4)) == 0:
            step["onError"] = {"goto": draw(st.sampled_from(behind))}
        made[name] = step
    return made, draw(st.none() | st.none() | st.sampled_from(names))


def choices(steps: Steps) -> list[dict[str, list[str]]]:
    """The columns of a request for every combination of what routers and splits choose."""
    options: dict[str, list[str]] = {}
    for name, step in steps.items():
        if "router" in step:
            options[name] = list(step["router"]["cases"])
        elif "split" in step:
            share = step_calls.BUCKETS / len(step["split"]["arms"])
            wanted = range(len(step["split"]["arms"]))
            keys = (str(number) for number in range(10_000))
            found: dict[int, str] = {}
            while len(found) < len(wanted):
                key = next(keys)
                found.setdefault(int(step_calls.bucket(f"g/{name}", key) // share), key)
            options[name] = [found[arm] for arm in wanted]
    every = itertools.product(*options.values())
    return [{"x": ["1"], **{name: [key] for name, key in zip(options, keys, strict=True)}} for keys in every]


def answer(made: Plan, columns: dict[str, list[str]]) -> tuple[list[str], set[str]]:
    """Who answered, and whose outputs the shadow has logged."""
    arrays = {name: np.array(values, object) for name, values in columns.items()}
    run = Run(v2.Request("id", arrays, 1, 0.0), len(made.names))
    who = made.answer(run)["who"].tolist()
    return who, {str(one.output["who"][0]) for one in made.run_shadow(run)}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs())
def test_validate_accepts_what_the_runtime_serves(root: Path, made: tuple[Steps, str | None]) -> None:
    """Two meanings of one graph were: refused by one, served by the other; valid, and then an error 500."""
    steps, respond = made
    found = graphs.problems(steps, respond)
    event("refused" if found else "accepted")
    code = {
        name: f"def step(columns):\n    import numpy\n    return {{'who': numpy.array(['{name}'], object)}}\n"
        for name in steps
    }
    more = {"respond": respond} if respond else {}
    if found:
        with pytest.raises(TaskError) as refusal:
            graphs.plan(root, steps, code, **more)
        assert sorted(refusal.value.message.split("; ")) == sorted(one.message for one in found)
        return
    plan = graphs.plan(root, steps, code, **more)
    shadow = {one.name for one in plan.shadow}
    for columns in choices(steps):
        if respond and "python" not in steps[respond]:  # it answers with what it passes on
            continue
        (who,), logged = answer(plan, columns)
        assert who in {plan.names[slot] for slot in plan.respond}
        assert who not in shadow
        assert logged <= shadow
