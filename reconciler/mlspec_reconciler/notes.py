"""What a plan says beyond the bare change: names of runs, gates that decide, alerts to expect."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import cast

from mlspec.compile import Compiled, readings
from mlspec.gates import METRICS, Gate
from mlspec.kinds.model import ModelSpec
from mlspec.kinds.monitoring_policy import MonitoringPolicySpec
from mlspec.kinds.serving_graph import ServingGraphSpec
from mlspec.kinds.training_job import TrainingJobSpec
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.sensitivity import predicted
from mlspec.workload import Run
from mlspec_reconciler.plan import Action, Reason
from mlspec_reconciler.step import Observation

NOT_TRAINED = ("gates", "resources", "retrain", "retries", "timeout")
"""Fields of a job that are no part of what it trains (rule 1 of docs/lifecycle.md)."""
ROWS_GUESS, FEATURES_GUESS = 1000, 10
"""Rows per window and features that a prediction assumes while no traffic was seen."""


def titles(compiled: Compiled) -> dict[str, str]:
    """Run name -> what a person calls it."""
    return {manifest.key.name: manifest.title for manifest in compiled.manifests if manifest.title}


def notes(project: Project, seen: Observation, choice: str) -> dict[str, str]:
    """Resource id -> a sentence for its line in the plan; `choice` is the sort of the target."""
    found: dict[str, str] = {}
    changed = {change.resource: change.action for change in seen.plan.of(Action.FOLLOW, Action.CREATE)}
    changed |= {one.resource: one.action for one in seen.plan.of(Action.UPDATE) if not one.fields}
    training = {
        change.resource for change in seen.plan.of(Action.FOLLOW, Action.RUN, Action.CONTINUE, Action.CREATE)
    }
    for resource in project.order:
        match changed.get(resource.id), resource.kind:
            case Action.FOLLOW, "FeatureSet":
                found[resource.id] = "materialised again if its rows change"
            case Action.FOLLOW, "TrainingJob":
                found[resource.id] = "trained again if its data changes"
            case Action.FOLLOW, "ServingGraph" if _trained(project, resource, training):
                gates = _gates(project, resource)
                found[resource.id] = "follows the new model" + "".join(
                    f"{' if' if index == 0 else ', and if'} {job} passes: {words}"
                    for index, (job, words) in enumerate(gates.items())
                )
            case Action.FOLLOW, "ServingGraph":
                found[resource.id] = "serves the newest rows; no model is trained"
            case Action.CREATE, "ServingGraph":
                gates = _gates(project, resource)
                found[resource.id] = "; ".join(f"gates of {job}: {words}" for job, words in gates.items())
            case Action.FOLLOW, "MonitoringPolicy":
                words = ("compares with the new model's data", _alerts(resource, seen, choice))
                found[resource.id] = "; ".join(filter(None, words))
            case Action.UPDATE, "MonitoringPolicy":
                lapse = _lapse(project, resource, seen)
                news = (
                    "asks for what git says now; earlier requests lapse"
                    if lapse
                    else "watches what serves now"
                )
                words = (news, _alerts(resource, seen, choice))
                found[resource.id] = "; ".join(filter(None, words))
            case Action.CREATE, "MonitoringPolicy":
                found[resource.id] = _alerts(resource, seen, choice)
    found |= _costs(seen)
    return {name: words for name, words in found.items() if words}


def _lapse(project: Project, policy: Resource, seen: Observation) -> bool:
    """Whether a plan changes what git says about a job that a policy may have retrained: requests were made for that."""
    spec = cast(MonitoringPolicySpec, policy.spec)
    jobs = {one.retrain.job for one in spec.actions if one.retrain}
    graph = project.catalog.find("ServingGraph", spec.graph)
    jobs |= {*_jobs(project, graph)} if graph is not None else set()
    return any(
        change.reason is Reason.INPUT or any(one.path[0] not in NOT_TRAINED for one in change.fields)
        for change in seen.plan.changes
        if change.resource in {f"TrainingJob/{job}" for job in jobs}
    )


def _costs(seen: Observation) -> dict[str, str]:
    """What there is to know of the runs of a plan: ranges of data, processors where it is more than one, and GPU-hours by how long the run before took."""
    seconds = {change.run: change.last_seconds for change in seen.plan.of(Action.RUN)}
    warnings = {name: one.warning for name, one in seen.compiled.lowered.items()}
    runs = [work for one in seen.compiled.lowered.values() for work in one.workloads if isinstance(work, Run)]
    return {run.name: _about(run, seconds[run.name], warnings) for run in runs if run.name in seconds}


def _about(run: Run, last_seconds: float | None, warnings: Mapping[str, str]) -> str:
    """What a run costs, which range of data it reads, and what somebody should know."""
    words = (_cost(run, last_seconds), run.made.data, warnings.get(run.made.resource, ""))
    return "; ".join(filter(None, words))


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


def _trained(project: Project, graph: Resource, training: Container[str]) -> bool:
    """Whether a plan trains a model that the graph serves."""
    return any(f"TrainingJob/{job}" in training for job in _jobs(project, graph))


def _jobs(project: Project, graph: Resource) -> list[str]:
    """The jobs whose newest models a graph serves; a pinned model follows none."""
    found: list[str] = []
    for step in cast(ServingGraphSpec, graph.spec).steps.values():
        model = project.catalog.find("Model", step.model) if step.model else None
        if model is None and step.model:
            found.append(step.model)
        elif model is not None and cast(ModelSpec, model.spec).promotion == "gates":
            found.append(cast(ModelSpec, model.spec).job or "")
    return list(dict.fromkeys(one for one in found if one))


def _gates(project: Project, graph: Resource) -> dict[str, str]:
    """Job -> its gates, of every job whose model the graph serves."""
    found: dict[str, str] = {}
    for name in _jobs(project, graph):
        job = project.catalog.find("TrainingJob", name)
        if job is not None and (gates := cast(TrainingJobSpec, job.spec).gates):
            found[name] = ", ".join(map(_gate, gates))
    return found


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


def _alerts(policy: Resource, seen: Observation, choice: str) -> str:
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
