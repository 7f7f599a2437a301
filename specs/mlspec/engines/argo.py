"""Argo Workflows: runs become Workflows (create-only), schedules become CronWorkflows.

Facts on the API: https://argo-workflows.readthedocs.io/en/release-3.7/fields/; Workflows are never changed after they
were created, because the controller works from the spec that it stored at the start.
"""

from __future__ import annotations

from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import pod
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Run, Schedule, Step, Workload

API_VERSION = "argoproj.io/v1alpha1"
KEEP_FINISHED = 7 * 86400


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """A Workflow for a run, a CronWorkflow for a schedule."""
    match workload:
        case Run(steps=steps) if pod.cannot(steps):
            return pod.cannot(steps)
        case Run():
            spec = _workflow(workload.name, workload.steps, settings)
            body = {
                "apiVersion": API_VERSION,
                "kind": "Workflow",
                "metadata": pod.metadata(workload.name, settings, origin),
                "spec": spec,
            }
            return [Manifest(body, origin, True, workload.title, workload.parts)]
        case Schedule():
            body = {
                "apiVersion": API_VERSION,
                "kind": "CronWorkflow",
                "metadata": pod.metadata(workload.name, settings, origin),
                "spec": {
                    "schedules": [workload.cron or cron(workload.every or 60.0)],
                    "timezone": "Etc/UTC",
                    "concurrencyPolicy": "Forbid",
                    "startingDeadlineSeconds": 600,
                    "successfulJobsHistoryLimit": 1,
                    "failedJobsHistoryLimit": 1,
                    "workflowSpec": _workflow(workload.name, (workload.step,), settings),
                },
            }
            return [Manifest(body, origin)]
        case _:
            return "Argo Workflows run things that end"


def cron(every: float) -> str:
    """The coarsest cron expression that fires at least every `every` seconds; a minute is the finest there is."""
    minutes = max(1, int(every // 60))
    if minutes < 60:
        return f"*/{minutes} * * * *"
    hours = minutes // 60
    return f"0 */{hours} * * *" if hours < 24 else "0 0 * * *"


def _workflow(owner: str, steps: tuple[Step, ...], settings: Settings) -> dict[str, Any]:
    tasks = [
        {"name": step.name, "template": step.name}
        | ({"dependencies": list(step.after)} if step.after else {})
        for step in steps
    ]
    return {
        "entrypoint": "main",
        "serviceAccountName": settings.service_account,
        "securityContext": pod.POD_SECURITY,
        "podGC": {"strategy": "OnPodSuccess"},
        "ttlStrategy": {"secondsAfterCompletion": KEEP_FINISHED},
        "volumes": pod.volumes(settings),
        "templates": [
            {"name": "main", "dag": {"tasks": tasks}},
            *(_template(owner, step, settings) for step in steps),
        ],
    }


def _template(owner: str, step: Step, settings: Settings) -> dict[str, Any]:
    labels = pod.queue(step.needs)  # Argo knows nothing of Kueue: its pods are admitted one by one
    return {
        "name": step.name,
        **({"metadata": {"labels": labels}} if labels else {}),
        "activeDeadlineSeconds": int(step.timeout),
        "retryStrategy": {
            "limit": str(step.retries),
            "retryPolicy": "Always",
            "backoff": {"duration": "10", "factor": "2", "maxDuration": "600"},
        },
        "container": pod.container(owner, step, settings),
        "outputs": {
            "parameters": [
                {"name": "result", "valueFrom": {"path": f"{pod.ROOT}/runs/{owner}/{step.name}/result.json"}}
            ]
        },
        **pod.placement(step.needs),
    }


def workflow_health(live: Live) -> Health:
    """Health of a Workflow from its phase; Pending says why when Argo does."""
    message = str(live.status.get("message") or "")
    match live.status.get("phase"):
        case "Succeeded":
            return Health(State.READY, "succeeded")
        case "Failed" | "Error":
            return Health(State.FAILED, message or "failed")
        case "Running":
            return Health(State.PROGRESSING, str(live.status.get("progress") or "running"))
        case _:
            return Health(State.WAITING, message or "waits for the Argo controller")


def cron_health(live: Live) -> Health:
    """Health of a CronWorkflow: its conditions name a broken spec."""
    for condition in live.status.get("conditions") or []:
        if condition.get("type") == "SpecError" and condition.get("status") == "True":
            return Health(State.FAILED, str(condition.get("message")))
    last = live.status.get("lastScheduledTime")
    return Health(State.READY, f"last started {last}" if last else "not started yet")


ENGINE = Engine(lower, {"Workflow": Reading(workflow_health), "CronWorkflow": Reading(cron_health)})
