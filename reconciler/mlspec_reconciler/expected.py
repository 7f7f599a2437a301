"""What a project becomes when every run succeeds: for `mlspec render`, which shows objects that do not exist yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlspec.compile import Compiled
from mlspec.kind import Lowered
from mlspec.manifest import digest
from mlspec.workload import Facts, Run, RunFact, Step

ROUNDS = 50


def foreseen(compile: Callable[[Facts], Compiled], facts: Facts) -> Compiled:
    """Compile again and again, each time as if the runs found so far had succeeded, until no new run appears.

    Content that only a run can know (the snapshot of a dataset) is replaced by a hash of the run's name.
    """
    runs: dict[str, RunFact] = dict(facts.runs)
    for _ in range(ROUNDS):
        compiled = compile(replace(facts, runs=runs))
        new = {run.name: _result(run) for run in _runs(compiled.lowered) if run.name not in runs}
        if not new:
            return compiled
        runs |= new
    raise AssertionError("a project of this depth does not settle")


def _runs(lowered: Mapping[str, Lowered]) -> list[Run]:
    return [work for one in lowered.values() for work in one.workloads if isinstance(work, Run)]


def _result(run: Run) -> RunFact:
    return RunFact("succeeded", {step.name: _outcome(run.name, step) for step in run.steps})


def _outcome(run: str, step: Step) -> dict[str, Any]:
    document = step.document
    match step.subject:
        case "dataset":
            snapshot = digest(run)[:16]
            return {"snapshot": snapshot, "path": f"datasets/{document['dataset']}/{snapshot}", "rows": 0}
        case "features":
            return {"path": f"features/{document['set']}/{document['version']}", "rows": 0, "keys": 0}
        case "train":
            return {"metrics": _passing(document["gates"]), "inputs": []}
        case _:
            return {}


def _passing(gates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics that meet every gate."""
    metrics: dict[str, float] = {}
    for gate in gates:
        for bound in ("min", "max"):
            if bound in gate:
                metrics[gate["metric"]] = gate[bound]
        metrics.setdefault(gate["metric"], 0.0)
    return metrics
