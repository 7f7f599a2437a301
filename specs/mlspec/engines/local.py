"""This machine: runs, services and schedules as processes of the local supervisor, records in its store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings, task
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import JSON, Pool, Record, Run, RunFact, Schedule, Service, Step, Workload

API_VERSION = "local.mlspec.dev/v1"


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """One object for each workload; pools need a cluster."""
    match workload:
        case Run():
            steps = [_step(workload.name, step, settings) for step in workload.steps]
            spec = {"title": workload.title, "steps": steps, "parts": dict(workload.parts)}
            made = _manifest("Run", workload.name, spec, origin)
            return [replace(made, create_only=True, title=workload.title, parts=workload.parts)]
        case Service():
            step = _step(workload.name, workload.step, settings)
            return [
                _manifest(
                    "Service",
                    workload.name,
                    {"port": workload.port, "readyPath": workload.ready_path, "step": step},
                    origin,
                )
            ]
        case Schedule():
            step = _step(workload.name, workload.step, settings)
            return [
                _manifest(
                    "Schedule",
                    workload.name,
                    {"every": workload.every, "cron": workload.cron, "step": step},
                    origin,
                )
            ]
        case Record():
            return [_manifest("Record", workload.name, {"data": dict(workload.data)}, origin)]
        case Pool():
            return "quotas need a queue; this machine runs one thing after the other"


def _manifest(kind: str, name: str, spec: Mapping[str, Any], origin: Origin) -> Manifest:
    return Manifest(
        {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}, origin
    )


def _step(owner: str, step: Step, settings: Settings) -> dict[str, Any]:
    document = task(owner, step)
    if step.subject == "train":
        document["tracking"] = settings.tracking or None
    return {
        "name": step.name,
        "subject": step.subject,
        "document": document,
        "requirements": list(step.requirements),
        "timeout": step.timeout,
        "retries": step.retries,
        "after": list(step.after),
    }


def run_health(live: Live) -> Health:
    """Health of a Run from its phase."""
    match live.status.get("phase"):
        case "succeeded":
            return Health(State.READY, "succeeded")
        case "failed":
            return Health(State.FAILED, live.status.get("message") or "failed")
        case "running":
            return Health(State.PROGRESSING, live.status.get("message") or "running")
        case _:
            return Health(State.WAITING, live.status.get("message") or "waits for a free processor")


def service_health(live: Live) -> Health:
    """Health of a Service from its phase; the sentence holds its address."""
    message = live.status.get("message") or ""
    match live.status.get("phase"):
        case "ready":
            return Health(State.READY, live.status.get("url", ""))
        case "degraded":
            return Health(State.DEGRADED, message or "does not answer its health check")
        case "failed":
            return Health(State.FAILED, message or "failed")
        case "stopped":
            return Health(State.WAITING, message or "stopped with its supervisor; mlspec apply starts it")
        case _:
            return Health(State.PROGRESSING, message or "starting")


def schedule_health(live: Live) -> Health:
    """Health of a Schedule: an evaluation that fails hides behind the result of an earlier one."""
    if live.status.get("phase") == "failed" or live.status.get("failures"):
        return Health(State.FAILED, live.status.get("message") or "the evaluation fails; see its log")
    if live.status.get("lastResult") is None:
        return Health(State.PROGRESSING, "first evaluation is under way")
    return Health(State.READY, str(live.status["lastResult"].get("summary", "")))


def record_health(live: Live) -> Health:
    """A stored record is ready."""
    return Health(State.READY, "")


def run_fact(live: Live) -> RunFact:
    """What the supervisor says about a run."""
    status = live.status
    return RunFact(
        status.get("phase", "pending"), status.get("results", {}), str(status.get("message") or "")
    )


def service_url(live: Live) -> str:
    """Address on the loopback interface."""
    return str(live.status.get("url") or "")


def schedule_result(live: Live) -> JSON:
    """What the newest evaluation has committed."""
    result: JSON = live.status.get("lastResult") or {}
    return result


def record_data(live: Live) -> JSON:
    """The declared fact."""
    data: JSON = live.body["spec"]["data"]
    return data


ENGINE = Engine(
    lower,
    {
        "Run": Reading(run_health, run=run_fact),
        "Service": Reading(service_health, url=service_url),
        "Schedule": Reading(schedule_health, result=schedule_result),
        "Record": Reading(record_health, record=record_data),
    },
)
