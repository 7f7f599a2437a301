"""What a plan says beyond the bare change: names of runs, gates that decide, alerts to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mlspec.compile import Compiled
from mlspec.kinds.monitoring_policy import MonitoringPolicySpec
from mlspec.kinds.serving_graph import ServingGraphSpec
from mlspec.kinds.training_job import METRICS, Gate, TrainingJobSpec
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.sensitivity import predicted
from mlspec_reconciler.plan import Action
from mlspec_reconciler.reconcile import Round

ROWS_GUESS = 1000
"""Rows per window that a prediction assumes while no traffic was seen."""


def titles(compiled: Compiled) -> dict[str, str]:
    """Run name -> what a person calls it."""
    return {
        manifest.key.name: str(manifest.body["spec"].get("title", manifest.key.name))
        for manifest in compiled.manifests
        if manifest.create_only
    }


def notes(project: Project, seen: Round) -> dict[str, str]:
    """Resource id -> a sentence for its line in the plan."""
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
                words = ("compares with the new model's data", _alerts(resource, seen))
                found[resource.id] = "; ".join(filter(None, words))
            case Action.CREATE, "MonitoringPolicy":
                found[resource.id] = _alerts(resource, seen)
    return {name: words for name, words in found.items() if words}


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


def _alerts(policy: Resource, seen: Round) -> str:
    spec = cast(MonitoringPolicySpec, policy.spec)
    if not any(alert.drift for alert in spec.alerts.values()):
        return ""
    live: Mapping[str, object] = next(
        (
            one.status.get("lastResult") or {}
            for one in seen.objects
            if one.key.name == f"{policy.name}-monitor"
        ),
        {},
    )
    rows = float(cast(float, live.get("rows_per_window") or ROWS_GUESS))
    features = int(cast(int, live.get("features") or 10))
    return predicted(spec, features, rows).sentence + f" at {rows:,.0f} rows a window"
