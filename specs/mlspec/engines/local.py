"""This machine: runs, services and schedules as processes of the local supervisor, records in its store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlspec.engine import Engine, Settings, task
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Pool, Record, Run, Schedule, Service, Step, Workload

API_VERSION = "local.mlspec.dev/v1"
DISTRIBUTED = ("torch", "mpi", "dask", "spark", "ray")


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """One object for each workload; distributed engines and pools need a cluster."""
    match workload:
        case Run(engine=engine) if engine in DISTRIBUTED:
            return f"engine {engine} needs a Kubernetes target"
        case Run():
            steps = [_step(workload.name, step, settings) for step in workload.steps]
            spec = {"title": workload.title, "steps": steps, "parts": dict(workload.parts)}
            return [replace(_manifest("Run", workload.name, spec, origin), create_only=True)]
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


def run_health(body: Mapping[str, Any], status: Mapping[str, Any]) -> Health:
    """Health of a Run from its phase."""
    match status.get("phase"):
        case "succeeded":
            return Health(State.READY, "succeeded")
        case "failed":
            return Health(State.FAILED, status.get("message") or "failed")
        case "running":
            return Health(State.PROGRESSING, status.get("message") or "running")
        case _:
            return Health(State.WAITING, status.get("message") or "waits for a free processor")


def service_health(body: Mapping[str, Any], status: Mapping[str, Any]) -> Health:
    """Health of a Service from its phase; the sentence holds its address."""
    message = status.get("message") or ""
    match status.get("phase"):
        case "ready":
            return Health(State.READY, status.get("url", ""))
        case "degraded":
            return Health(State.DEGRADED, message or "does not answer its health check")
        case "failed":
            return Health(State.FAILED, message or "failed")
        case "stopped":
            return Health(State.WAITING, message or "stopped with its supervisor; mlspec apply starts it")
        case _:
            return Health(State.PROGRESSING, message or "starting")


def schedule_health(body: Mapping[str, Any], status: Mapping[str, Any]) -> Health:
    """Health of a Schedule: an evaluation that fails hides behind the result of an earlier one."""
    if status.get("phase") == "failed" or status.get("failures"):
        return Health(State.FAILED, status.get("message") or "the evaluation fails; see its log")
    if status.get("lastResult") is None:
        return Health(State.PROGRESSING, "first evaluation is under way")
    return Health(State.READY, str(status["lastResult"].get("summary", "")))


def record_health(body: Mapping[str, Any], status: Mapping[str, Any]) -> Health:
    """A stored record is ready."""
    return Health(State.READY, "")


ENGINE = Engine(
    lower,
    {"Run": run_health, "Service": service_health, "Schedule": schedule_health, "Record": record_health},
)
