"""What pods and Kueue's Workloads say: results of steps, why they failed, and why they do not run.

Every Kubernetes engine reads the parts of its objects through this file, so that the same trouble is the same sentence.
Sentences name no pod, count or time that changes while nothing happens.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlspec.engines import words
from mlspec.engines.pod import FINAL
from mlspec.health import State
from mlspec.manifest import Body
from mlspec.workload import JSON

QUEUE = "kueue.x-k8s.io/queue-name"
GATE = "kueue.x-k8s.io/admission"
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_NAMED = re.compile(r'^pods "[^"]+" is forbidden: ')
_PULLS = {"ImagePullBackOff", "ErrImagePull", "RegistryUnavailable", "ImageInspectError"}
_PULL_CAUSES = (
    (
        re.compile(r"(?i)unauthorized|denied|forbidden|authorization"),
        "the registry refuses access, or does not have it",
    ),
    (re.compile(r"not found|does not exist|NotFound"), "the registry does not have it"),
    (
        re.compile(r"(?i)no such host|i/o timeout|connection refused|dial tcp"),
        "the registry cannot be reached",
    ),
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something does not run, and how bad that is: WAITING until somebody acts, PROGRESSING when it is tried again,
    FAILED when trying again cannot help."""

    state: State
    sentence: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A container that ended."""

    step: str
    code: int
    text: str
    """Its termination message: a result when `code` is 0, an error otherwise."""
    reason: str = ""

    @property
    def sentence(self) -> str:
        """How it ended, with the last line that it said."""
        how = "ran out of memory" if self.reason == "OOMKilled" else f"exit code {self.code}"
        said = last_line(self.text)
        return f"{how}: {said}" if said else how


def last_line(text: str) -> str:
    """The runtime says one line; a log that Kubernetes kept instead ends in the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def nameless(message: str) -> str:
    """A refusal of the API server without the pod's name, which is another one each time."""
    return _NAMED.sub("", message)


def pods(parts: Iterable[Body]) -> list[Body]:
    """The pods, oldest first."""
    found = [one for one in parts if one.get("kind") == "Pod"]
    return sorted(
        found, key=lambda one: (one["metadata"].get("creationTimestamp") or "", one["metadata"]["name"])
    )


def result(text: str) -> JSON | None:
    """The result in a termination message or an output parameter; None when there is none."""
    try:
        if text.startswith("z:"):
            text = zlib.decompress(base64.b64decode(text[2:], validate=True)).decode()
        found = json.loads(text)
    except (ValueError, zlib.error):
        return None
    return found if isinstance(found, dict) else None


def ended(pod: Body) -> Iterator[Ended]:
    """The containers of a pod that ended, in the order in which they run."""
    for status in _containers(pod):
        if done := (status.get("state") or {}).get("terminated"):
            yield _ended(status["name"], done)


def results(parts: Iterable[Body]) -> dict[str, JSON]:
    """Results by container of all pods; that of the newest pod counts."""
    return {
        one.step: found
        for pod in pods(parts)
        for one in ended(pod)
        if one.code == 0 and (found := result(one.text)) is not None
    }


def newest_result(parts: Iterable[Body]) -> JSON:
    """Result of the newest pod that succeeded, of one container; empty when there is none."""
    for pod in reversed(pods(parts)):
        if (pod.get("status") or {}).get("phase") == "Succeeded":
            return next(iter(results((pod,)).values()), {})
    return {}


def failure(parts: Iterable[Body]) -> str:
    """Why the newest failed pod failed, and in which attempt; empty when none did."""
    failed = [pod for pod in pods(parts) if (pod.get("status") or {}).get("phase") == "Failed"]
    if not failed:
        return ""
    attempt = f" in attempt {len(failed)}" if len(failed) > 1 else ""
    pod, status = failed[-1], failed[-1]["status"]
    for one in ended(pod):
        if one.code != 0:
            how = "ran out of memory" if one.reason == "OOMKilled" else f"failed with exit code {one.code}"
            said = last_line(one.text)
            return f"{one.step} {how}{attempt}" + (f": {said}" if said else "")
    return str(status.get("message") or status.get("reason") or "the pod failed") + attempt


def trouble(parts: Iterable[Body]) -> Trouble | None:
    """Why a pod does not run: the first trouble in the order of the pods' names; None when all run or have ended."""
    for pod in sorted(pods(parts), key=lambda one: str(one["metadata"]["name"])):
        if "deletionTimestamp" in pod["metadata"] or (pod.get("status") or {}).get("phase") in (
            "Succeeded",
            "Failed",
        ):
            continue
        if found := _unscheduled(pod) or _not_started(pod):
            return found
    return None


def admission(parts: Iterable[Body]) -> Trouble | None:
    """Why Kueue has not admitted a workload; None when it has, or when nothing is queued."""
    parts = list(parts)
    found = [
        one
        for one in parts
        if one.get("kind") == "Workload" and "kueue.x-k8s.io" in str(one.get("apiVersion"))
    ]
    for one in sorted(found, key=lambda one: str(one["metadata"]["name"])):
        spec, status = one.get("spec") or {}, one.get("status") or {}
        conditions = {each["type"]: each for each in status.get("conditions") or []}
        if _true(conditions, "Finished") or _true(conditions, "Admitted"):
            continue
        queue = str(spec.get("queueName") or "")
        evicted = conditions.get("Evicted", {})
        if spec.get("active") is False:
            message = evicted.get("message") or "by hand"
            return Trouble(State.FAILED, f"Kueue has given it up: {message}")
        if _true(conditions, "QuotaReserved"):
            checks = [
                f"{check['name']} is {check['state']}"
                + (f" ({check['message']})" if check.get("message") else "")
                for check in status.get("admissionChecks") or []
                if check.get("state") != "Ready"
            ]
            return Trouble(
                State.WAITING, f"has quota in pool {queue}; waits for {', '.join(checks) or 'admission'}"
            )
        if forgotten := _forgotten(one, conditions, parts):
            return Trouble(State.WAITING, forgotten)
        message = str(conditions.get("QuotaReserved", {}).get("message") or "")
        before = ""
        if _true(conditions, "Evicted"):
            why = words.stopped(
                evicted, conditions.get("Preempted", {}), str(one["metadata"].get("namespace"))
            )
            before = f"stopped {why}; "
            message = "" if message == evicted.get("message") else message
        more = f": {words.quota(message)}" if message else ""
        return Trouble(State.WAITING, f"{before}waits for quota in pool {queue}{more}")
    return None


def _forgotten(workload: Body, conditions: Mapping[str, Mapping[str, Any]], parts: Iterable[Body]) -> str:
    """Kueue 0.19 waits for an evicted pod to go before its replacement is queued. But it does not delete one that still has
    its gate, because it was evicted just as it was admitted: https://github.com/kubernetes-sigs/kueue/pull/12980"""
    if not _true(conditions, "Evicted") or conditions.get("Requeued", {}).get("status") != "False":
        return ""
    owners = {one["uid"] for one in workload["metadata"].get("ownerReferences") or ()}
    for pod in pods(parts):
        metadata, gates = pod["metadata"], pod["spec"].get("schedulingGates") or ()
        if metadata.get("uid") in owners and GATE in [gate["name"] for gate in gates]:
            where = f"-n {metadata['namespace']} {metadata['name']}"
            return f"stopped just as it was admitted, and Kueue does not queue it again; kubectl delete pod {where}"
    return ""


def _true(conditions: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return bool(conditions.get(name, {}).get("status") == "True")


def _containers(pod: Body) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _ended(name: str, done: Mapping[str, Any]) -> Ended:
    return Ended(
        name, int(done.get("exitCode", 0)), str(done.get("message") or ""), str(done.get("reason") or "")
    )


def _unscheduled(pod: Body) -> Trouble | None:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") != "PodScheduled" or condition.get("status") != "False":
            continue
        message = str(condition.get("message") or "")
        if condition.get("reason") == "SchedulingGated":
            gates = ", ".join(str(gate["name"]) for gate in pod["spec"].get("schedulingGates") or [])
            return Trouble(State.WAITING, f"waits for the scheduling gates {gates}" if gates else message)
        if claim := _CLAIM.search(message):
            sentence = (
                f"the PersistentVolumeClaim {claim[1]} does not exist; create it or name another as storage"
            )
            return Trouble(State.WAITING, sentence)
        return Trouble(State.WAITING, words.unscheduled(message, pod["spec"]))
    return None


def _not_started(pod: Body) -> Trouble | None:
    images = {
        str(one["name"]): str(one.get("image"))
        for one in [*(pod["spec"].get("initContainers") or []), *pod["spec"].get("containers", [])]
    }
    for status in _containers(pod):
        name, state = str(status["name"]), status.get("state") or {}
        waiting = state.get("waiting") or {}
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if reason in _PULLS:
            causes = (cause for pattern, cause in _PULL_CAUSES if pattern.search(message))
            cause = next(causes, "")
            sentence = f"the image {images.get(name)} cannot be pulled" + (f": {cause}" if cause else "")
            return Trouble(State.WAITING, sentence)
        if reason == "ErrImageNeverPull":
            return Trouble(
                State.WAITING,
                f"the image {images.get(name)} is not on the node, and imagePullPolicy is Never",
            )
        if reason == "InvalidImageName":
            return Trouble(State.FAILED, f"{images.get(name)} is not the name of an image")
        if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            return Trouble(State.WAITING, f"{name} cannot be started: {message or reason}")
        crashed = (status.get("lastState") or {}).get("terminated") or state.get("terminated")
        if crashed and crashed.get("exitCode") and not status.get("ready"):
            one = _ended(name, crashed)
            return Trouble(
                State.FAILED if one.code == FINAL else State.PROGRESSING, f"{name} crashes: {one.sentence}"
            )
    return None
