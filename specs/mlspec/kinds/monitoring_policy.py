"""MonitoringPolicy: what is watched on a serving graph, who is notified, and what happens by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem, did_you_mean, listed
from mlspec.gates import METRICS
from mlspec.kind import Catalog, Context, Lowered, RowSql
from mlspec.kinds.dataset import DatasetSpec, check_column
from mlspec.kinds.feature_view import FeatureViewSpec, feature_names
from mlspec.kinds.model import ModelSpec
from mlspec.kinds.serving_graph import ServingGraphSpec
from mlspec.resource import (
    Base,
    Duration,
    Identifier,
    Interval,
    Moment,
    Name,
    OneOf,
    Path,
    Ref,
    Resource,
    Share,
    Sql,
    seconds,
)
from mlspec.workload import Needs, Schedule, Step

AlertName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=63)]


NEEDS = Needs(cpu=0.25, memory=2**30)
"""An evaluation counts what is new in the log: a fraction of a second of one core."""


class Truth(Base):
    """Where the ground truth comes from, joined to the request log when it is known."""

    dataset: Name
    """Dataset with the outcomes; its `time.known` says when each was known."""
    key: list[Identifier] = Field(min_length=1)
    """Columns that identify the row, in the dataset and in the requests."""
    label: Sql
    """The outcome as an expression of the dataset's row."""
    max_delay: Duration = "7d"
    """A window is final when its end is this long past, or when `completeness` is reached."""
    completeness: Share = 0.95
    """Share of the window's predictions whose outcome must be known before its metrics are judged."""


class FalseAlarms(Base):
    """The budget of alerts on quiet data. Holm's method keeps it over all features and windows."""

    budget: Annotated[float, Field(gt=0)] = 1.0
    """Number of false drift alerts accepted ..."""
    per: Interval = "90d"
    """... in this time."""


class Drift(Base):
    """Change of the distribution of features against the training data."""

    features: Literal["all"] | list[Identifier] = "all"
    """Which inputs of the model."""
    min_effect: Share = 0.05
    """Smallest total variation distance that matters, however significant a smaller one may be."""


class Quality(Base):
    """Contract of the inputs: shares of NULL and of values never seen in training."""

    null_rate: Share = 0.05
    """Largest increase of the share of NULL over the training data."""
    unseen: Share = 0.05
    """Largest share of categories that the training data does not have."""


class Prediction(Base):
    """Change of the distribution of the predictions against the evaluation data."""

    min_effect: Share = 0.05
    """Smallest total variation distance that matters."""


class Alert(OneOf):
    """One condition that is watched."""

    CHOICES: ClassVar[tuple[str, ...]] = ("metric", "drift", "prediction", "quality")

    metric: Identifier | None = None
    """Performance metric from ground truth, such as `auc`."""
    drift: Drift | None = None
    """Drift of the features."""
    prediction: Prediction | None = None
    """Drift of the predictions."""
    quality: Quality | None = None
    """Broken input contract."""
    below: float | None = None
    """With `metric`: alert below this value."""
    above: float | None = None
    """With `metric`: alert above this value."""
    for_: int = Field(1, alias="for", ge=1)
    """Number of consecutive windows before the alert fires."""
    severity: Literal["warning", "critical"] = "critical"
    """How urgent it is."""


class Retrain(Base):
    """Train the job again on newer data."""

    job: Name
    """The TrainingJob."""
    window: Interval | None = None
    """Move the job's data so that it ends now and is this long in all; by default it keeps its length."""


class Switch(Base):
    """Change what the graph serves."""

    to: Literal["previous"] = "previous"
    """The model that served before."""


class Limit(Base):
    """Rate cap of an action."""

    count: int = Field(1, ge=1)
    """At most so many ..."""
    per: Interval = "7d"
    """... in this time (of the data, not of the wall clock)."""


class Action(OneOf):
    """What happens when an alert fires."""

    CHOICES: ClassVar[tuple[str, ...]] = ("retrain", "switch", "notify")

    when: AlertName | Literal["any"]
    """Name of the alert, or `any`."""
    retrain: Retrain | None = None
    """Train again."""
    switch: Switch | None = None
    """Switch the model."""
    notify: Name | None = None
    """Receiver that is notified when the alert fires and when it is resolved."""
    limit: Limit = Limit()
    """Rate cap; notifications are never capped."""
    expires: Duration = "7d"
    """A request that nobody could act on lapses after this time (wall clock)."""
    mode: Literal["auto", "propose"] = "auto"
    """`auto` acts; `propose` only records what it would do, for `mlspec propose` to turn into a change in git."""


class Silence(Base):
    """No notification of some alerts for a time."""

    alert: AlertName | Literal["any"]
    """Which alert."""
    until: Moment
    """Until when."""


class MonitoringPolicySpec(Base):
    """Windows of additive counts over the request log, judged against the training data and the ground truth."""

    graph: Name
    """The ServingGraph that is watched."""
    window: Interval = "1d"
    """Length of one window, aligned to UTC."""
    every: Interval = "1m"
    """How often new rows are read and complete windows are judged."""
    lateness: Duration = "0s"
    """How long after its end a window still waits for request rows."""
    min_rows: int = Field(200, ge=2)
    """Windows with fewer rows are `insufficient`, neither good nor bad."""
    truth: Truth | None = None
    """Ground truth; needed by performance alerts."""
    false_alarms: FalseAlarms = FalseAlarms()
    """Budget of false drift alerts."""
    alerts: dict[AlertName, Alert] = Field(min_length=1)
    """Alerts by name."""
    actions: list[Action] = []
    """What follows."""
    silences: list[Silence] = []
    """Times of silence."""


def references(spec: MonitoringPolicySpec) -> Iterator[Ref]:
    """The graph, the ground truth, and what the actions use."""
    yield Ref(("ServingGraph",), spec.graph, ("graph",))
    if spec.truth is not None:
        yield Ref(("Dataset",), spec.truth.dataset, ("truth", "dataset"))
    for index, action in enumerate(spec.actions):
        if action.retrain is not None:
            yield Ref(("TrainingJob",), action.retrain.job, ("actions", index, "retrain", "job"))
        if action.notify is not None:
            yield Ref(("Receiver",), action.notify, ("actions", index, "notify"))


def expressions(spec: MonitoringPolicySpec, catalog: Catalog) -> Iterator[RowSql]:
    """The outcome, over the rows of the truth."""
    if spec.truth is not None:
        yield RowSql(spec.truth.label, ("spec", "truth", "label"), spec.truth.dataset)


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """Alerts can be judged, and actions follow from alerts that exist."""
    spec = cast(MonitoringPolicySpec, resource.spec)
    for name, alert in spec.alerts.items():
        yield from _check_alert(alert, spec, ("spec", "alerts", name), catalog)
    if spec.truth is not None:
        yield from _check_truth(spec.truth, catalog)
    names = [*spec.alerts, "any"]
    for index, action in enumerate(spec.actions):
        path = ("spec", "actions", index)
        yield from rules.member(action.when, names, "no alert is called", "unknown-alert", (*path, "when"))
        job = catalog.find("TrainingJob", action.retrain.job) if action.retrain else None
        if (
            job is not None
            and catalog.find("ServingGraph", spec.graph)
            and job.name not in _jobs(spec.graph, catalog)
        ):
            message = f"the graph {spec.graph} does not serve the job {job.name}"
            yield Problem(
                "unserved-job", message, (*path, "retrain", "job"), listed(_jobs(spec.graph, catalog))
            )
        yield from _check_expires(action, (*path, "expires"))
    for index, silence in enumerate(spec.silences):
        place = ("spec", "silences", index, "alert")
        yield from rules.member(silence.alert, names, "no alert is called", "unknown-alert", place)
    yield from rules.interval(spec.every, ("spec", "every"))


def _check_expires(action: Action, path: Path) -> Iterator[Problem]:
    if action.notify is not None and "expires" in action.model_fields_set:
        hint = "remove it; giveUpAfter of the Receiver says how long a message is tried"
        yield Problem(
            "unused-field", "expires belongs to retrain and switch, not to notify", path, hint, on_key=True
        )
    elif seconds(action.expires) == 0:
        message = "a request that lapses at once is never acted on"
        yield Problem("empty-range", message, path, "such as 7d")


def _check_alert(alert: Alert, spec: MonitoringPolicySpec, path: Path, catalog: Catalog) -> Iterator[Problem]:
    if alert.metric is None:
        for field, value in (("below", alert.below), ("above", alert.above)):
            if value is not None:
                yield Problem(
                    "unused-field", f"{field} needs a metric", (*path, field), "remove it", on_key=True
                )
    else:
        if alert.below is None and alert.above is None:
            message = "the alert has no threshold"
            yield Problem("empty-alert", message, (*path, "metric"), "add below or above", on_key=True)
        if spec.truth is None:
            message = f"{alert.metric} is computed from the ground truth, and the policy has none"
            yield Problem("missing-truth", message, (*path, "metric"), "add truth: {dataset, on, label}")
        if alert.metric not in METRICS:
            message = f'metric "{alert.metric}" is unknown{did_you_mean(alert.metric, METRICS)}'
            yield Problem("unknown-metric", message, (*path, "metric"), listed(METRICS))
        for field, value, good in (("above", alert.above, "higher"), ("below", alert.below, "lower")):
            if (
                value is not None
                and METRICS.get(alert.metric) == good
                and (alert.above is None or alert.below is None)
            ):
                other = "below" if field == "above" else "above"
                message = f"{good} {alert.metric} is better, but the alert fires {field} {value:g}"
                yield Problem(
                    "gate-direction", message, (*path, field), f"write {other}", "warning", on_key=True
                )
    if alert.drift is not None and alert.drift.features != "all" and (inputs := _inputs(spec.graph, catalog)):
        for index, name in enumerate(alert.drift.features):
            place = (*path, "drift", "features", index)
            yield from rules.member(name, inputs, f"{spec.graph} has no feature", "unknown-feature", place)


def _check_truth(truth: Truth, catalog: Catalog) -> Iterator[Problem]:
    found = catalog.find("Dataset", truth.dataset)
    if found is None:
        return
    dataset = cast(DatasetSpec, found.spec)
    for index, column in enumerate(truth.key):
        yield from check_column(column, dataset, truth.dataset, ("spec", "truth", "key", index))
    if dataset.time is None or (dataset.time.known is None and dataset.time.delay is None):
        message = f"{truth.dataset} does not say when its rows are known"
        hint = "add time: {event: COLUMN, known: COLUMN} to the dataset, or delay: 0s"
        yield Problem("missing-time", message, ("spec", "truth", "dataset"), hint)


def _jobs(graph: str, catalog: Catalog) -> set[str]:
    """The TrainingJobs whose models a graph serves."""
    found = catalog.find("ServingGraph", graph)
    names = {step.model for step in cast(ServingGraphSpec, found.spec).steps.values()} if found else set()
    return {_job(name, catalog) for name in names if name} - {""}


def _job(model: str, catalog: Catalog) -> str:
    """The TrainingJob behind a model of a graph; empty for a model from elsewhere."""
    found = catalog.find("Model", model)
    return cast(ModelSpec, found.spec).job or "" if found else model


def _inputs(graph: str, catalog: Catalog) -> set[str]:
    """The features that the views of a graph give to its models; empty when they are not known here."""
    found = catalog.find("ServingGraph", graph)
    names: set[str] = set()
    for step in cast(ServingGraphSpec, found.spec).steps.values() if found else ():
        view = catalog.find("FeatureView", step.view) if step.view else None
        if view is not None:
            names |= feature_names(cast(FeatureViewSpec, view.spec), catalog)
    return names


def lower(resource: Resource, context: Context) -> Lowered:
    """One schedule that counts new rows of the request log, judges complete windows and acts."""
    spec = cast(MonitoringPolicySpec, resource.spec)
    graph = context.of("ServingGraph", spec.graph)
    waits = [f"ServingGraph/{spec.graph}"] if graph.output is None else []
    truth = context.of("Dataset", spec.truth.dataset) if spec.truth else None
    if truth is not None and truth.output is None and spec.truth:
        waits.append(f"Dataset/{spec.truth.dataset}")
    receivers = {one.notify: context.of("Receiver", one.notify) for one in spec.actions if one.notify}
    if broken := [
        f"Receiver/{name}: {one.unsupported}" for name, one in receivers.items() if one.unsupported
    ]:
        return Lowered(unsupported="; ".join(broken))
    if waits or graph.output is None:
        return Lowered(waits=tuple(waits))
    runs = {
        run: _job(name, context.catalog)
        for name, model in graph.output["models"].items()
        for run in model["history"]
    }
    jobs = {one.retrain.job for one in spec.actions if one.retrain} | _jobs(spec.graph, context.catalog)
    step = Step(
        "monitor",
        "monitor",
        {
            "policy": resource.name,
            "spec": spec.document(),
            "graph": spec.graph,
            "log": f"logs/{spec.graph}",
            "references": {run: f"runs/{run}/train/reference.json" for run in sorted(runs)},
            "runs": dict(sorted(runs.items())),
            "made_for": {job: context.of("TrainingJob", job).recipe for job in sorted(jobs)},
            "truth": {"path": truth.output["path"], "spec": truth.output["spec"]}
            if truth and truth.output
            else None,
            "receivers": {name: one.output for name, one in receivers.items()},
        },
        NEEDS,
    )
    schedule = Schedule(f"{resource.name}-monitor", step, every=seconds(spec.every))
    return Lowered(version="", output={"log": f"logs/{spec.graph}"}, workloads=(schedule,))
