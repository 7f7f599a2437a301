"""One graph through both readers of its shape: what `validate` says, and the plan that the runtime makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlspec.diagnostics import Diagnostic
from mlspec.project import build
from mlspec_runtime.serve import compile, v2
from mlspec_runtime.serve.plan import Plan, Run, Shadowed
from serve import serving as s

MODELS = (10, 20, 90)
"""A Model `m10` answers 10, and so on."""
PLUS = "def step(columns):\n    return {'prediction': columns['prediction'] + 1}\n"
"""Code of every python step that takes predictions."""
SAME = "def step(columns):\n    return columns\n"
"""Code of every python step that takes the request."""
Graph = Mapping[str, Any]


def models(root: Path) -> Path:
    """The models of `MODELS` on disk."""
    for value in MODELS:
        s.constant(root / f"m{value}", value)
    return root


def problems(steps: Graph, respond: str | None = None) -> list[Diagnostic]:
    """What `mlspec validate` finds."""
    spec: dict[str, Any] = {"steps": steps} | ({"respond": respond} if respond else {})
    documents: list[dict[str, Any]] = [{"kind": "ServingGraph", "metadata": {"name": "g"}, "spec": spec}]
    documents += [
        {"kind": "Model", "metadata": {"name": f"m{value}"}, "spec": {"path": f"./m{value}"}}
        for value in MODELS
    ]
    text = yaml.safe_dump_all(
        [{"apiVersion": "mlspec.dev/v1alpha1", **one} for one in documents], sort_keys=False
    )
    return [one for one in build({"g.yaml": text}).diagnostics if one.severity == "error"]


def plan(root: Path, steps: Graph, code: Mapping[str, str] | None = None, **more: Any) -> Plan:
    """The plan that a server would run. Python steps return what they get, or have their own `code`."""
    entries = {f"m{value}": {"run": f"m{value}-1", "path": f"m{value}"} for value in MODELS}
    bundles = {
        name: s.python(root, name, (code or {}).get(name, SAME))
        for name, step in steps.items()
        if "python" in step
    }
    return compile.build(s.task(steps, models=entries, code=bundles, **more), root)


def ask(made: Plan, identity: str = "id", **columns: list[Any]) -> tuple[list[Any], Run]:
    """The predictions for some rows, and the run."""
    given = columns or {"a": [1.0], "b": [0.0]}
    arrays = {
        name: np.array(each, object if isinstance(each[0], str) else float) for name, each in given.items()
    }
    run = Run(v2.Request(identity, arrays, len(next(iter(given.values()))), 0.0), len(made.names))
    answer = asyncio.run(made.answer_async(run, False))
    values = answer["prediction"] if "prediction" in answer else answer["a"]
    return np.round(values.astype(float), 6).tolist(), run


def shadowed(made: Plan, run: Run) -> list[tuple[tuple[str, ...], list[float]]]:
    """What the log gets of the shadow: models and predictions of each branch, per group of rows."""
    return [_seen(one) for part in run.parts or [run] for one in made.run_shadow(part)]


def _seen(one: Shadowed) -> tuple[tuple[str, ...], list[float]]:
    values = one.output.get("prediction", one.output.get("a"))
    assert values is not None
    return one.models, np.round(values.astype(float), 6).tolist()


def names(found: list[tuple[tuple[str, ...], list[float]]]) -> Iterator[str]:
    """The models of all branches."""
    for models_, _ in found:
        yield from models_
