"""Argo Workflows: runs become Workflows (create-only), schedules become CronWorkflows.

Facts on the API: https://argo-workflows.readthedocs.io/en/release-3.7/fields/; Workflows are never changed after they
were created, because the controller works from the spec that it stored at the start.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import observed, pod
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import JSON, Run, RunFact, Schedule, Step, Workload

API_VERSION = "argoproj.io/v1alpha1"
KEEP_FINISHED = 7 * 86400
LOST = 3
"""Attempts more for pods that are lost when a node goes: not the step's fault."""
PREEMPTED = 20
"""The same in a pool, where a run on borrowed GPUs may be stopped every time that their owner comes."""
SIGNALS = ("Error (exit code 143)", "Error (exit code 137)")
"""What Argo says when a pod was deleted, as Kueue preempts it: its executor ends with 137 when the step was ended by a
signal. Without memory it says OOMKilled."""
ENDS = {"Succeeded": "succeeded", "Failed": "failed", "Error": "failed"}
# Argo's own containers have no security context unless its installation gives them one, so a namespace that enforces
# "restricted" would refuse every pod; and no field of a Workflow says the second.
PATCH = json.dumps(
    {
        "initContainers": [{"name": "init", "securityContext": pod.EXECUTOR_SECURITY}],
        "containers": [{"name": "wait", "securityContext": pod.EXECUTOR_SECURITY}],
        "enableServiceLinks": False,
    }
)
# What the controller says of a failed pod: `main: Error (exit code 2): MESSAGE`
_POD = re.compile(r"(?:main: )?(?P<reason>\w*) ?\(exit code (?P<code>\d+)\)(?:: (?P<text>.*))?", re.DOTALL)


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """A Workflow for a run, a CronWorkflow for a schedule."""
    match workload:
        case Run():
            prepared = pod.prepare(workload.name, workload.steps, settings, origin, once=True)
            if isinstance(prepared, str):
                return prepared
            run = {pod.RUN: workload.name}
            spec = _workflow(workload.name, workload.steps, prepared, settings)
            body = {
                "apiVersion": API_VERSION,
                "kind": "Workflow",
                "metadata": pod.metadata(workload.name, settings, origin, run, workload.title),
                "spec": {
                    **spec,
                    "podMetadata": {"labels": pod.labels(settings, origin) | run},
                    "ttlStrategy": {"secondsAfterCompletion": KEEP_FINISHED},
                },
            }
            return [*prepared.manifests, Manifest(body, origin, True, workload.title, workload.parts)]
        case Schedule(step=step):
            prepared = pod.prepare(workload.name, (step,), settings, origin)
            if isinstance(prepared, str):
                return prepared
            spec = _workflow(workload.name, (step,), prepared, settings)
            body = {
                "apiVersion": API_VERSION,
                "kind": "CronWorkflow",
                "metadata": pod.metadata(workload.name, settings, origin),
                "spec": {
                    "schedules": [workload.cron or cron(workload.every or 60.0)],
                    "timezone": "Etc/UTC",
                    "concurrencyPolicy": "Forbid",
                    "startingDeadlineSeconds": 600,
                    # The newest success holds the newest result, so it is kept by number and never by age.
                    "successfulJobsHistoryLimit": 1,
                    "failedJobsHistoryLimit": 1,
                    "workflowMetadata": {"labels": pod.labels(settings, origin)},
                    "workflowSpec": {
                        **spec,
                        "podMetadata": {"labels": pod.labels(settings, origin)},
                        # One that never starts would forbid all that come after it.
                        "activeDeadlineSeconds": int(step.timeout) * (step.retries + 1),
                    },
                },
            }
            return [*prepared.manifests, Manifest(body, origin)]
        case _:
            return "Argo Workflows run things that end"


def cron(every: float) -> str:
    """The coarsest cron expression that fires at least every `every` seconds; a minute is the finest there is."""
    minutes = max(1, int(every // 60))
    if minutes < 60:
        return f"*/{minutes} * * * *"
    hours = minutes // 60
    return f"0 */{hours} * * *" if hours < 24 else "0 0 * * *"


def _workflow(
    owner: str, steps: tuple[Step, ...], prepared: pod.Prepared, settings: Settings
) -> dict[str, Any]:
    tasks = [
        {"name": step.name, "template": step.name}
        | ({"dependencies": list(step.after)} if step.after else {})
        for step in steps
    ]
    return {
        "entrypoint": "main",
        # Its token is mounted, other than elsewhere: Argo's container beside the step reports the result with it.
        "serviceAccountName": settings.service_account,
        "securityContext": pod.POD_SECURITY,
        "podSpecPatch": PATCH,
        "podGC": {"strategy": "OnPodSuccess"},
        "volumes": prepared.volumes,
        "templates": [
            {"name": "main", "dag": {"tasks": tasks}},
            *(_template(owner, step, prepared) for step in steps),
        ],
    }


def _template(owner: str, step: Step, prepared: pod.Prepared) -> dict[str, Any]:
    labels = pod.queue(step.needs)  # Argo knows nothing of Kueue: its pods are admitted one by one
    return {
        "name": step.name,
        **({"metadata": {"labels": labels}} if labels else {}),
        "activeDeadlineSeconds": int(step.timeout),
        "retryStrategy": {
            "limit": str(step.retries + (PREEMPTED if step.needs.pool else LOST)),
            "retryPolicy": "Always",
            "expression": _again(step.retries),
            # No maxDuration: it counts from the first start and would forbid to repeat what takes longer.
            "backoff": {"duration": "5", "factor": "2", "cap": "600"},
        },
        "container": prepared.containers[step.name],
        "outputs": {
            "parameters": [
                {"name": "result", "valueFrom": {"path": f"{pod.ROOT}/runs/{owner}/{step.name}/result.json"}}
            ]
        },
        **pod.placement(step.needs),
    }


def _again(retries: int) -> str:
    """When a step runs again. A pod that was lost comes again: it is an Error, or has Failed without an exit code or by a
    signal. A step that failed does `retries` times, and not when the runtime says that it will fail again, nor when its
    time was up."""
    late = "lastRetry.message contains 'longer than the specified deadline'"
    lost = " || ".join(
        [
            "lastRetry.status == 'Error'",
            "not (lastRetry.message contains 'exit code')",
            *(f"lastRetry.message contains '{signal}'" for signal in SIGNALS),
        ]
    )
    own = f"asInt(lastRetry.exitCode) != {pod.FINAL} && asInt(retries) < {retries}"
    return f"not ({late}) && ({lost} || {own})"


def workflow_health(live: Live) -> Health:
    """Health of a Workflow from its phase; one that does not run says why."""
    match live.status.get("phase"):
        case "Succeeded" | "Failed" | "Error":
            fact = workflow_run(live)
            succeeded = fact.phase == "succeeded"
            return Health(State.READY, "succeeded") if succeeded else Health(State.FAILED, fact.message)
        case None | "" if not live.status.get("message"):
            return Health(State.WAITING, "waits for the Argo controller")
    progress = str(live.status.get("progress") or "running")
    found = observed.admission(live.parts) or observed.trouble(live.parts)
    running = any((one.get("status") or {}).get("phase") == "Running" for one in observed.pods(live.parts))
    failed = "" if running else _failed(live, over=False)
    if found is not None:
        before = progress if running else failed
        sentence = f"{before}; {found.sentence}" if before else found.sentence
        return Health(State.PROGRESSING if running else State.WAITING, sentence)
    if live.status.get("phase") == "Running":
        return Health(State.PROGRESSING, f"{progress}; {failed}; tries again" if failed else progress)
    return Health(State.WAITING, str(live.status.get("message") or "waits for a pod"))


def workflow_run(live: Live) -> RunFact:
    """Phase of a Workflow, and the results of its steps from their output parameter."""
    results = _results(live.status)
    match ENDS.get(str(live.status.get("phase"))):
        case "failed":
            return RunFact("failed", results, _failure(live))
        case "succeeded":
            steps = {str(one["name"]) for one in live.body["spec"]["templates"] if "container" in one}
            if missing := sorted(steps - set(results)):
                return RunFact("failed", results, _why_missing(missing[0], live.status))
            return RunFact("succeeded", results)
        case _:
            started = any(
                node.get("type") == "Pod" and node.get("phase") != "Pending" for node in _nodes(live.status)
            )
            return RunFact("running" if started else "pending", results)


def archived_logs(live: Live) -> dict[str, str]:
    """The ends of steps whose pod is gone and whose log Argo has archived: a title -> the id of the node."""
    there = {
        (pod["metadata"].get("annotations") or {}).get("workflows.argoproj.io/node-id")
        for pod in observed.pods(live.parts)
    }
    attempts: Counter[str] = Counter()
    found = {}
    nodes = [node for node in _nodes(live.status) if node.get("type") == "Pod"]
    for node in sorted(nodes, key=lambda node: (str(node.get("startedAt")), str(node.get("id")))):
        step = str(node.get("templateName"))
        attempts[step] += 1
        kept = {one.get("name") for one in (node.get("outputs") or {}).get("artifacts") or ()}
        if "main-logs" in kept and node.get("id") not in there:
            again = f", attempt {attempts[step]}" if attempts[step] > 1 else ""
            found[f"{step} (archived{again})"] = str(node["id"])
    return found


def cron_health(live: Live) -> Health:
    """Health of a CronWorkflow: its conditions name a broken spec, its newest Workflow a failed evaluation."""
    for condition in live.status.get("conditions") or []:
        if condition.get("type") in ("SpecError", "SubmissionError") and condition.get("status") == "True":
            return Health(State.FAILED, str(condition.get("message")))
    if (live.body.get("spec") or {}).get("suspend"):
        return Health(State.WAITING, "suspended by hand")
    done = _finished(live)
    if done and ENDS[done[-1].status["phase"]] == "failed":
        return Health(State.FAILED, _failure(done[-1]))
    if summary := cron_result(live).get("summary"):
        return Health(State.READY, str(summary))
    last = live.status.get("lastScheduledTime")
    return Health(State.READY, f"last started {last}" if last else "not started yet")


def cron_result(live: Live) -> JSON:
    """Result of the newest Workflow that succeeded."""
    for one in reversed(_finished(live)):
        if one.status["phase"] == "Succeeded":
            return next(iter(_results(one.status).values()), {})
    return {}


def _finished(live: Live) -> list[Live]:
    """The Workflows of a CronWorkflow that have ended, in the order of their ends."""
    workflows = [Live(one, one.get("status") or {}) for one in live.parts if one.get("kind") == "Workflow"]
    ended = [one for one in workflows if one.status.get("phase") in ENDS]
    return sorted(ended, key=lambda one: (str(one.status.get("finishedAt")), one.body["metadata"]["name"]))


def _nodes(status: JSON) -> list[Mapping[str, Any]]:
    """The nodes, which the controller packs when they are many; none when it keeps them in its database."""
    nodes: Mapping[str, Mapping[str, Any]] = status.get("nodes") or {}
    if packed := status.get("compressedNodes"):
        try:
            nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
        except (ValueError, OSError, EOFError, zlib.error):
            nodes = {}
    return list(nodes.values())


def _results(status: JSON) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for node in _nodes(status):
        for parameter in (node.get("outputs") or {}).get("parameters") or []:
            value = observed.result(str(parameter.get("value") or ""))
            if node.get("phase") == "Succeeded" and parameter.get("name") == "result" and value is not None:
                found[str(node.get("templateName"))] = value
    return found


def _why_missing(step: str, status: JSON) -> str:
    if status.get("offloadNodeStatusVersion"):
        return f"the result of {step} is in Argo's database, which is not read; set nodeStatusOffLoad: false there"
    return f"{step} succeeded without a result; see its log"


def _failure(live: Live) -> str:
    """Why a Workflow failed: its step, or what the controller says when no step did."""
    if shutdown := (live.body.get("spec") or {}).get("shutdown"):
        return f"stopped by hand (shutdown: {shutdown})"
    return _failed(live) or str(live.status.get("message") or "failed")


def _failed(live: Live, *, over: bool = True) -> str:
    """The step that failed last, its exit code and what its container said; empty when none did. Unless it is all over,
    only what has not succeeded since counts."""
    pods = [node for node in _nodes(live.status) if node.get("type") == "Pod"]
    done = {node.get("templateName") for node in pods if node.get("phase") == "Succeeded" and not over}
    failed = [
        node
        for node in pods
        if node.get("phase") in ("Failed", "Error") and node.get("templateName") not in done
    ]
    if not failed:
        return ""
    last = max(failed, key=lambda node: (str(node.get("finishedAt")), str(node.get("id"))))
    step, message = str(last.get("templateName")), str(last.get("message") or "")
    attempts = sum(node.get("templateName") == step for node in failed)
    attempt = f" in attempt {attempts}" if attempts > 1 else ""
    if message == "pod deleted" or any(signal in message for signal in SIGNALS):
        return f"{step} was stopped{attempt}"
    if (found := _POD.fullmatch(message)) is None:
        return f"{step} failed{attempt}: {observed.nameless(message) or 'see its log'}"
    how = "ran out of memory" if found["reason"] == "OOMKilled" else f"failed with exit code {found['code']}"
    said = observed.last_line(found["text"] or "")
    return f"{step} {how}{attempt}" + (f": {said}" if said else "")


ENGINE = Engine(
    lower,
    {
        "Workflow": Reading(workflow_health, run=workflow_run),
        "CronWorkflow": Reading(cron_health, result=cron_result),
    },
)
