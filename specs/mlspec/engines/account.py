"""The account of a project's pods, made with the project when its target names none.

Only Argo's own containers use it: they report outputs of a step as a WorkflowTaskResult.
https://argo-workflows.readthedocs.io/en/release-3.7/workflow-rbac/
"""

from __future__ import annotations

from typing import Any

from mlspec.engine import Live, Reading, Settings
from mlspec.engines import pod
from mlspec.health import Health, State
from mlspec.manifest import Manifest, Origin

RBAC = "rbac.authorization.k8s.io"


def name(project: str) -> str:
    """Name of a project's own account, and of its role."""
    return f"{project}-runtime"


def objects(settings: Settings, origin: Origin) -> list[Manifest]:
    """ServiceAccount, Role and RoleBinding."""
    account = settings.service_account
    metadata = pod.metadata(account, settings, origin)
    rules = [
        {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}
    ]
    subject = {"kind": "ServiceAccount", "name": account, "namespace": settings.namespace}
    role = {"apiGroup": RBAC, "kind": "Role", "name": account}
    bodies: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": role,
            "subjects": [subject],
        },
    ]
    return [Manifest(body, origin) for body in bodies]


def stored(live: Live) -> Health:
    """Objects that only exist."""
    return Health(State.READY, "")


READS = {kind: Reading(stored) for kind in ("ServiceAccount", "Role", "RoleBinding")}
