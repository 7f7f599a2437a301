"""What a plan says beyond the bare change: names of runs, gates that decide, alerts to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mlspec.compile import Compiled, readings
from mlspec.kinds.monitoring_policy import MonitoringPolicySpec
from mlspec.kinds.serving_graph import ServingGraphSpec
from mlspec.kinds.training_job import METRICS, Gate, TrainingJobSpec
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.sensitivity import predicted
from mlspec.workload import Run
from mlspec_reconciler.plan import Action
from mlspec_reconciler.reconcile import Round

ROWS_GUESS, FEATURES_GUESS = 1000, 10
"""Rows per window and features that a prediction assumes while no traffic was seen."""


def titles(compiled: Compiled) -> dict[str, str]:
    """Run name -> what a person calls it."""
    return {manifest.key.name: manifest.title for manifest in compiled.manifests if manifest.title}


def notes(project: Project, seen: Round, choice: str) -> dict[str, str]:
    """Resource id -> a sentence for its line in the plan; `choice` is the sort of the target."""
    found: dict[str, str] = {}
    changed = {change.resource: change.action for change in seen.plan.of(Action.FOLLOW, Action.CREATE)}
    for resource in project.order:
        match changed.get(resource.id), resource.kind:
            case Action.FOLLOW, "FeatureSet":
                found[resource.id] = "materialised again if its rows change"
            case Action.FOLLOW, "TrainingJob":
                found[resource.id] = "trained again if its data changes"
            case Action.FOLLOW, "ServingGraph":
                gates = _gates(project, resource)
                found[resource.id] = "follows the new model" + (
                    f" if its gates pass: {gates}" if gates else ""
                )
            case Action.CREATE, "ServingGraph":
                gates = _gates(project, resource)
                found[resource.id] = f"gates: {gates}" if gates else ""
            case Action.FOLLOW, "MonitoringPolicy":
                words = ("compares with the new model's data", _alerts(resource, seen, choice))
                found[resource.id] = "; ".join(filter(None, words))
            case Action.CREATE, "MonitoringPolicy":
                found[resource.id] = _alerts(resource, seen, choice)
    found |= _costs(seen)
    return {name: words for name, words in found.items() if words}


def _costs(seen: Round) -> dict[str, str]:
    """What the runs of a plan take: processors where it is more than one, and GPU-hours by how long the run before took."""
    seconds = {change.run: change.last_seconds for change in seen.plan.of(Action.RUN)}
    runs = [work for one in seen.compiled.lowered.values() for work in one.workloads if isinstance(work, Run)]
    return {run.name: _cost(run, seconds[run.name]) for run in runs if run.name in seconds}


def _cost(run: Run, last_seconds: float | None) -> str:
    cpu, gpu = max(step.needs.cpu for step in run.steps), max(step.needs.gpu for step in run.steps)
    words = [f"{cpu:g} CPU"] if cpu > 1 else []
    if gpu:
        longest = max(step.timeout for step in run.steps if step.needs.gpu)
        hours = gpu * (last_seconds if last_seconds is not None else longest) / 3600
        words += [
            f"{gpu:g} GPU",
            f"{'about' if last_seconds is not None else 'at most'} {hours:.3g} GPU-hours",
        ]
    return ", ".join(words)


def _gates(project: Project, graph: Resource) -> str:
    spec = cast(ServingGraphSpec, graph.spec)
    words: list[str] = []
    for step in spec.steps.values():
        job = project.catalog.find("TrainingJob", step.model) if step.model else None
        if job is not None:
            words.extend(_gate(gate) for gate in cast(TrainingJobSpec, job.spec).gates)
    return ", ".join(words)


def _gate(gate: Gate) -> str:
    tests = []
    if gate.min is not None:
        tests.append(f">= {gate.min:g}")
    if gate.max is not None:
        tests.append(f"<= {gate.max:g}")
    if gate.against:
        sign, shift = (">=", "-") if METRICS.get(gate.metric, "higher") == "higher" else ("<=", "+")
        tests.append(f"{sign} serving" + (f" {shift} {gate.tolerance:g}" if gate.tolerance else ""))
    return f"{gate.metric} {' and '.join(tests)}"


def _alerts(policy: Resource, seen: Round, choice: str) -> str:
    spec = cast(MonitoringPolicySpec, policy.spec)
    if not any(alert.drift for alert in spec.alerts.values()):
        return ""
    live: Mapping[str, object] = next(
        (
            read.result(one.live)
            for one in seen.objects
            if one.key.name == f"{policy.name}-monitor"
            and (read := readings(choice).get(one.key.kind)) is not None
            and read.result is not None
        ),
        {},
    )
    if live.get("expected"):  # a policy that runs already has counted its rows and features
        return str(live["expected"])
    return predicted(spec, FEATURES_GUESS, ROWS_GUESS).sentence + f" at {ROWS_GUESS:,} rows a window"
