"""What Kueue and the scheduler say, in words for people: what is short, by how much, and what to do about it.

Their messages are not a contract, so whatever is not recognised stays as it is. Sources: Kueue 0.19
(pkg/scheduler/flavorassigner, pkg/scheduler/preemption) and the plugins of kube-scheduler 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

JSON = Mapping[str, Any]

_QUOTA = (
    (re.compile(r"couldn't assign flavors to pod set \S+: "), ""),
    (
        re.compile(r"insufficient unused quota for (\S+) in flavor ([^,\s]+), (\S+) more needed"),
        r"\3 more \1 of \2 must become free",
    ),
    (
        re.compile(
            r"insufficient quota for (\S+) in flavor ([^,\s]+), previously considered podsets requests \(0\) \+ "
            r"current podset request \((\S+)\) > maximum capacity \((\S+)\)"
        ),
        r"it asks for \3 \1 of \2, and \4 is the most; ask for less, or raise the quota",
    ),
    (re.compile(r"\. Pending the preemption of \d+ workload\(s\)"), "; others are being stopped for it"),
    (re.compile(r" \(UID: [^)]*\)|; preempt(or|ee) path: [^;]*"), ""),
)
_PREEMPTOR = re.compile(r"preemptor path: \S*/([^\s;/]+)")
_PREEMPTED = {
    "InClusterQueue": "for a run of higher priority",
    "InCohortReclamation": "because pool {pool} took back what it had lent",
    "InCohortFairSharing": "so that pool {pool} gets its fair share",
    "InCohortReclaimWhileBorrowing": "for a run of higher priority in pool {pool}",
}
_EVICTED = {
    "PodsReadyTimeout": "because its pods were not ready in time",
    "AdmissionCheck": "by an admission check",
    "ClusterQueueStopped": "with its pool",
    "LocalQueueStopped": "with its pool",
    "NodeFailures": "because a node failed",
    "MaximumExecutionTimeExceeded": "because its time was up",
}
"""Reasons of Kueue's conditions Preempted and Evicted -> why a run was stopped."""

_NODES = re.compile(r"0/(\d+) nodes are available: (.*)", re.DOTALL)
_PREEMPTION = re.compile(r"\.\s*(no new claims to deallocate, )?preemption: .*", re.DOTALL)
_CAUSE = re.compile(r"(\d+) (.+?)(?=, \d+ |$)", re.DOTALL)
_CAUSES = (
    (
        re.compile(r"Insufficient (\S+)"),
        ("has too little {what} free{asked}", "have too little {what} free{asked}"),
        "wait, ask for less, or add nodes",
    ),
    (re.compile(r"Too many pods"), ("is full of pods", "are full of pods"), "wait, or add nodes"),
    (re.compile(r"node\(s\) were unschedulable"), ("is cordoned", "are cordoned"), "uncordon nodes"),
    (
        re.compile(r"node\(s\) had untolerated taint.*", re.DOTALL),
        ("has a taint that it does not tolerate", "have taints that it does not tolerate"),
        # The scheduler looks at taints before labels, so such a node may not be meant at all.
        "if such nodes are meant, tolerate it in the pool's flavor, otherwise correct gpuType or nodeLabels",
    ),
    (
        re.compile(r"node\(s\) didn't match Pod's node affinity/selector"),
        ("does not match {selector}", "do not match {selector}"),
        "correct gpuType or nodeLabels, or label the nodes",
    ),
)
"""What the scheduler says of nodes, the same of one and of several nodes, and what to do about it; the nearest to taking the
pod first."""


def quota(message: str) -> str:
    """Kueue's reason why it does not admit: which resource of which flavor is short, and by how much."""
    for pattern, words in _QUOTA:
        message = pattern.sub(words, message)
    return message.strip()


def stopped(evicted: JSON, preempted: JSON, namespace: str) -> str:
    """Why Kueue stopped a run, from its conditions of these names: `because pool a took back what it had lent`. The queue of a
    pool is called by its namespace and the pool; of the run's own namespace that is left out."""
    reason = str(evicted.get("reason") or "")
    if reason == "Preempted" and preempted.get("reason") in _PREEMPTED:
        found = _PREEMPTOR.search(str(preempted.get("message")))
        return _PREEMPTED[str(preempted["reason"])].format(
            pool=found[1].removeprefix(f"{namespace}-") if found else "another"
        )
    return _EVICTED.get(reason, f"by Kueue ({reason})")


def unscheduled(message: str, spec: JSON) -> str:
    """Why no node takes a pod of this spec: first what keeps it from the nodes that are nearest to taking it, and what to do
    about that. Nodes that it does not select come last, for they are meant for others."""
    message = _PREEMPTION.sub("", message).rstrip(". ")
    if (found := _NODES.fullmatch(message)) is None:
        return f"cannot be scheduled: {message}"
    causes = sorted(_cause(int(count), text, spec) for count, text in _CAUSE.findall(found[2]))
    if not causes:
        return f"cannot be scheduled: {message}"
    _, count, said, hint = causes[0]
    words = [f"{count} of {found[1]} {said}", *(f"{count} {said}" for _, count, said, _ in causes[1:])]
    return f"no node takes it: {', '.join(words)}" + (f"; {hint}" if hint else "")


def _cause(count: int, text: str, spec: JSON) -> tuple[int, int, str, str]:
    """How near these nodes are to taking it (0 is nearest), their number, what is said of them, and what to do."""
    for rank, (pattern, forms, hint) in enumerate(_CAUSES):
        if (found := pattern.fullmatch(text)) is None:
            continue
        what = found[1] if pattern.groups else ""
        asked = _asked(what, spec)
        selector = ", ".join(f"{key}={value}" for key, value in (spec.get("nodeSelector") or {}).items())
        words = forms[count > 1].format(
            what=what,
            asked=f" ({asked} asked for)" if asked else "",
            selector=selector or "its node affinity",
        )
        return rank + 1, count, words, hint
    return 0, count, text.replace("node(s) ", ""), ""


def _asked(resource: str, spec: JSON) -> str:
    """What a pod asks for in all, as far as one container alone asks for it."""
    found = [
        str(requests[resource])
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
        if resource in (requests := (container.get("resources") or {}).get("requests") or {})
    ]
    return found[0] if len(found) == 1 else ""
