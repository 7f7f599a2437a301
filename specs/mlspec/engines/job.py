"""A plain Kubernetes Job for runs of one step or of steps in a row (init containers run the earlier ones).

The results of its steps are the termination messages of its containers: nothing else of a pod outlives it.
"""

from __future__ import annotations

from mlspec.engine import Engine, Live, Reading, Settings
from mlspec.engines import observed, pod
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin
from mlspec.workload import Run, RunFact, Workload

KEEP_FINISHED = 7 * 86400


def lower(workload: Workload, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """One Job; the last step is its container, the others are init containers, which run one after the other."""
    if not isinstance(workload, Run):
        return "Jobs run things that end"
    prepared = pod.prepare(workload.name, workload.steps, settings, origin, once=True, together=True)
    if isinstance(prepared, str):
        return prepared
    containers = [container | {"name": name} for name, container in prepared.containers.items()]
    last = workload.steps[-1]
    spec = pod.spec(prepared, containers[-1:], settings, last.needs) | {"restartPolicy": "Never"}
    if containers[:-1]:
        spec["initContainers"] = containers[:-1]
    run = {pod.RUN: workload.name}
    queue = pod.queue(last.needs)
    job = {
        # Kueue starts it. Were it to suspend it only by its webhook, pods could start before.
        **({"suspend": True} if queue else {}),
        "backoffLimit": last.retries,
        "activeDeadlineSeconds": int(sum(step.timeout for step in workload.steps)),
        "ttlSecondsAfterFinished": KEEP_FINISHED,
        "podReplacementPolicy": "Failed",
        # A preempted pod is not the job's fault, and a mistake of the user is there again in the next pod:
        # https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [pod.FINAL]}},
            ]
        },
        "template": {"metadata": {"labels": pod.labels(settings, origin) | run}, "spec": spec},
    }
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": pod.metadata(workload.name, settings, origin, run | queue, workload.title),
        "spec": job,
    }
    return [*prepared.manifests, Manifest(body, origin, True, workload.title, workload.parts)]


def health(live: Live) -> Health:
    """Health of a Job: only the conditions Complete and Failed end it."""
    match _end(live):
        case "Complete", _:
            match run(live):
                case RunFact("succeeded"):
                    return Health(State.READY, "succeeded")
                case RunFact("failed", message=message):
                    return Health(State.FAILED, message)
                case RunFact(message=message):
                    return Health(State.WAITING, message)
        case _, message:
            return Health(State.FAILED, message)
    found = observed.admission(live.parts)
    if found is None and (live.body.get("spec") or {}).get("suspend"):
        queue = ((live.body.get("metadata") or {}).get("labels") or {}).get(observed.QUEUE)
        by = f"until pool {queue} admits it; Kueue has not seen it yet" if queue else "by hand"
        return Health(State.WAITING, f"suspended {by}")
    found = found or observed.trouble(live.parts)
    if found is not None:
        return Health(State.WAITING, found.sentence)
    if live.status.get("active"):
        return Health(State.PROGRESSING, "running")
    return Health(State.WAITING, "has no pod yet")


def run(live: Live) -> RunFact:
    """Phase and results of a Job; the last steps' results count, and without them a success is not known yet."""
    results = observed.results(live.parts)
    end = _end(live)
    if end is None:
        phases = {(one.get("status") or {}).get("phase") for one in observed.pods(live.parts)}
        return RunFact("running" if phases - {"Pending", None} else "pending", results)
    if end[0] == "Failed":
        return RunFact("failed", results, end[1])
    missing = sorted(_steps(live) - set(results))
    if not missing:
        return RunFact("succeeded", results)
    if any((one.get("status") or {}).get("phase") == "Succeeded" for one in observed.pods(live.parts)):
        reason = (
            f"the result of {missing[0]} does not fit into a termination message; use the workflow engine"
        )
        return RunFact("failed", results, reason)
    return RunFact(
        "running", results, "succeeded, but its pod is gone and its result with it; delete the Job"
    )


def _steps(live: Live) -> set[str]:
    spec = live.body["spec"]["template"]["spec"]
    return {str(one["name"]) for one in [*(spec.get("initContainers") or []), *spec["containers"]]}


def _end(live: Live) -> tuple[str, str] | None:
    """`Complete` or `Failed`, and why it failed: what its pod said, then what the controller says."""
    for condition in live.status.get("conditions") or []:
        if condition.get("status") != "True" or condition.get("type") not in ("Complete", "Failed"):
            continue
        said = "" if condition.get("reason") == "DeadlineExceeded" else observed.failure(live.parts)
        return str(condition["type"]), said or str(
            condition.get("message") or condition.get("reason") or "failed"
        )
    return None


ENGINE = Engine(lower, {"Job": Reading(health, run=run)})
