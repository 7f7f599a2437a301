"""Write cases for `test_health_verdicts.py` from live objects, with all that a reading may look at and little else.

`MLSPEC_RECORD=1 pytest tests/cluster/test_kube_pool.py` records its moments again. For an object of a project on any cluster:
`python tests/health/record.py FOLDER Job/churn-1234abcd waiting_quota_is_used`, with KUBECONFIG set and FOLDER the
project's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlspec.compile import readings
from mlspec_reconciler import workspace
from mlspec_reconciler.cluster import Object

ROOT = Path(__file__).parent
HEAD = "# Recorded from the test bed: Kubernetes 1.36.3, KWOK 0.8.0, Argo 3.7.3, Kueue 0.19.2.\n"

KEPT: Mapping[str, Any] = {
    "apiVersion": {},
    "kind": {},
    "metadata": {
        "name": {},
        "namespace": {},
        "uid": {},
        "generation": {},
        "creationTimestamp": {},
        "deletionTimestamp": {},
        "labels": {"kueue.x-k8s.io/queue-name": {}},
        "ownerReferences": {"kind": {}, "name": {}, "uid": {}},
    },
    "spec": {
        "suspend": {},
        "shutdown": {},
        "schedulingGates": {},
        "nodeSelector": {},
        "active": {},
        "queueName": {},
        "priority": {},
        "resourceGroups": {},
        "cohortName": {},
        "containers": {"name": {}, "image": {}, "resources": {}},
        "initContainers": {"name": {}, "image": {}, "resources": {}},
        "templates": {"name": {}, "dag": {"none": {}}, "container": {"name": {}, "image": {}}},
        "template": {
            "spec": {"containers": {"name": {}, "image": {}}, "initContainers": {"name": {}, "image": {}}}
        },
    },
    "status": {},
}
"""Fields that stay, each with those below it; nothing below means all. Lists are kept element by element."""
DROPPED = ("hostIP", "podIP", "podIPs", "qosClass", "imageID", "containerID", "storedTemplates", "inputs",
           "resourcesDuration", "taskResultsCompletionStatus", "artifactRepositoryRef", "templateScope",
           "artifactGCStatus", "uncountedTerminatedPods", "boundaryID", "lastProbeTime")  # fmt: skip
"""Fields that no reading looks at, wherever they stand."""


def write(live: Object, verdict: str) -> Path:
    """Write the case `GROUP/KIND/VERDICT.yaml` of a live object; `verdict` is `STATE_WHY`.

    Raises: ValueError when its health is another state.
    """
    read = readings("kubernetes")[live.key.kind]
    health = read.health(live.live)
    if not verdict.startswith(f"{health.state}_"):
        raise ValueError(f"{live.key} is {health.state}, not {verdict}: {health.sentence}")
    case: dict[str, Any] = {"object": _trimmed(live.body)}
    if live.parts:
        case["parts"] = [_trimmed(part) for part in live.parts]
    case["sentence"] = health.sentence
    if read.run is not None:
        fact = read.run(live.live)
        told = {"results": dict(fact.results), "message": fact.message}
        case["run"] = {"phase": fact.phase} | {name: value for name, value in told.items() if value}
    group, _, version = live.key.api_version.rpartition("/")
    path = ROOT / (group or version) / live.key.kind / f"{verdict}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + yaml.safe_dump(case, sort_keys=False, width=120))
    return path


def _trimmed(body: Mapping[str, Any]) -> Any:
    return _without(_kept(body, KEPT))


def _kept(value: Any, rule: Mapping[str, Any]) -> Any:
    match value:
        case Mapping() if rule:
            return {name: _kept(value[name], rule[name]) for name in rule if name in value}
        case list():
            return [_kept(one, rule) for one in value]
    return value


def _without(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _without(one) for name, one in value.items() if name not in DROPPED}
        case list():
            return [_without(one) for one in value]
    return value


def main(folder: str, name: str, verdict: str) -> int:
    found = workspace.connect(Path(folder), None)
    if found is None:
        print("nothing is applied from there")
        return 1
    for live in found.cluster.list():
        if f"{live.key.kind}/{live.key.name}" == name:
            print(write(live, verdict))
            return 0
    print(f"there is no {name}")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
