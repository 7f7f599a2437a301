"""What controllers made for our objects: pods, runs of a CronWorkflow, Kueue's Workloads. Found by owner, never by name.

An engine reads them to say why something is pending and what a run has returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

JSON = Mapping[str, Any]
POD, WORKFLOW, WORKLOAD = (
    ("v1", "Pod"),
    ("argoproj.io/v1alpha1", "Workflow"),
    ("kueue.x-k8s.io/v1beta2", "Workload"),
)
QUEUE = "kueue.x-k8s.io/queue-name"
MAKERS: Mapping[str, Sequence[tuple[str, str]]] = {
    "Deployment": (POD,),
    "Job": (POD,),
    "Workflow": (POD,),
    "CronWorkflow": (WORKFLOW, POD),
}
"""Kind of ours -> kinds that are made for it."""


def kinds(bodies: Iterable[JSON]) -> set[tuple[str, str]]:
    """Which kinds have to be listed to know the parts of these objects."""
    wanted: set[tuple[str, str]] = set()
    for body in bodies:
        wanted.update(MAKERS.get(body["kind"], ()))
        if body["kind"] in MAKERS and QUEUE in str(body.get("metadata", {}).get("labels")) + str(
            body.get("spec")
        ):
            wanted.add(WORKLOAD)
    return wanted


class Parts:
    """Parts by owner, of all objects that were listed."""

    def __init__(self, found: Iterable[JSON]) -> None:
        self._by_owner: dict[str, list[JSON]] = {}
        self._pods: list[JSON] = []
        for one in found:
            if one["kind"] == "Pod":
                self._pods.append(one)
            for owner in one["metadata"].get("ownerReferences") or ():
                self._by_owner.setdefault(owner["uid"], []).append(one)

    def of(self, body: JSON) -> tuple[JSON, ...]:
        """Everything that was made for this object, also by way of something else that was made for it."""
        if body["kind"] not in MAKERS:
            return ()
        if body["kind"] == "Deployment":  # its pods belong to ReplicaSets
            labels = body["spec"]["selector"].get("matchLabels") or {}
            pods = [
                pod for pod in self._pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()
            ]
            return tuple(pods) + tuple(part for pod in pods for part in self._below(pod["metadata"]["uid"]))
        return tuple(self._below(body["metadata"]["uid"]))

    def _below(self, uid: str) -> Iterator[JSON]:
        for one in self._by_owner.get(uid, ()):
            yield one
            yield from self._below(one["metadata"]["uid"])
