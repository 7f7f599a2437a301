"""What others do to our objects on a real API server: people with kubectl, other appliers, autoscalers, controllers.

A table of edits. Each says which objects it is possible on, what has to come of it, and how to see that it is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cluster.bed.api import Api, Document

MERGE, STRATEGIC, JSON_PATCH = (
    f"application/{sort}+json" for sort in ("merge-patch", "strategic-merge-patch", "json-patch")
)
APPLY = "application/apply-patch+yaml"
PART = "mlspec.dev/part"


class Fate(Enum):
    """What mlspec has to make of an edit."""

    SURVIVES = "nothing is shown, nothing is written, and it stays"
    RESTORED = "shown as changed outside, and undone: nobody else owns the field"
    REFUSED = "shown as changed outside, refused with manager and field"
    RECREATED = "shown as missing, and made again"
    TAKEN = "the name belongs to somebody else now: refused, until it is adopted"


@dataclass(frozen=True)
class Edit:
    """One deed. `do` gets the live object; `there` says whether its traces are in an object."""

    name: str
    fate: Fate
    on: Callable[[Document], bool]
    do: Callable[[Api, Document], object]
    there: Callable[[Document], bool] = lambda live: True
    manager: str = ""
    field: Callable[[Document], str] = lambda live: ""
    """The field that is refused, as the API server writes it."""


def patch(
    api: Api, live: Document, change: object, manager: str, sort: str = MERGE, below: str = "", **query: str
) -> Document:
    """Patch an object, or a subresource of it."""
    path = api.path(live) + below
    return api.request("PATCH", path, change, content_type=sort, fieldManager=manager, **query)


def of(*kinds: str) -> Callable[[Document], bool]:
    """Objects of these kinds."""
    return lambda live: live["kind"] in kinds


def anything(live: Document) -> bool:
    """Objects of every kind."""
    return True


def scales(live: Document) -> bool:
    """A Deployment whose size nobody has said in specs. The API server notes no owner of a size that nobody owned before, so
    who fixes it later meets no conflict."""
    owned = [one for one in live["metadata"]["managedFields"] if one["manager"].startswith("mlspec")]
    return live["kind"] == "Deployment" and not any(
        "f:replicas" in one["fieldsV1"].get("f:spec", {}) for one in owned
    )


def record(live: Document) -> bool:
    """A ConfigMap that may be changed."""
    return live["kind"] == "ConfigMap" and not live.get("immutable")


def apply(api: Api, live: Document, fields: Mapping[str, Any], manager: str, **query: str) -> Document:
    """Server-side apply of a few fields."""
    identity = {name: live["metadata"][name] for name in ("name", "namespace")}
    body = {"apiVersion": live["apiVersion"], "kind": live["kind"], **fields}
    body["metadata"] = {**fields.get("metadata", {}), **identity}
    return patch(api, live, body, manager, APPLY, **query)


def pod(live: Document) -> Document:
    """The pod template's spec."""
    spec: Document = live["spec"]["template"]["spec"]
    return spec


def main(live: Document) -> int:
    """Place of our container."""
    return [one["name"] for one in pod(live)["containers"]].index("main")


def variables(live: Document) -> list[Document]:
    """Environment of our container."""
    found: list[Document] = pod(live)["containers"][main(live)]["env"]
    return found


def containers(**one: Any) -> Document:
    """A Deployment's fields with one container."""
    return {"spec": {"template": {"spec": {"containers": [one]}}}}


def remake(api: Api, live: Document) -> object:
    """Delete it, and make one of the same name without any mark of ours."""
    api.delete(live["apiVersion"], live["kind"], live["metadata"]["name"], live["metadata"]["namespace"])
    metadata = {name: live["metadata"][name] for name in ("name", "namespace")}
    body = {name: value for name, value in live.items() if name not in ("metadata", "status")}
    if live["kind"] == "Service":
        body["spec"] = {name: live["spec"][name] for name in ("selector", "ports")}
    path = api.path(live).rpartition("/")[0]
    return api.request("POST", path, {**body, "metadata": metadata}, fieldManager="kubectl-create")


def overwrite(
    kind: str,
    field: str,
    change: Mapping[str, Any],
    on: Callable[[Document], bool] | None = None,
    sort: str = MERGE,
    below: str = "",
) -> Edit:
    """A person sets a field of ours by an Update, which takes it from us."""
    return Edit(
        f"{kind} {field} edited",
        Fate.REFUSED,
        on or of(kind),
        lambda api, live: patch(api, live, change, "kubectl-edit", sort, below),
        manager="kubectl-edit",
        field=lambda live: field,
    )


def remove(kind: str, path: str, on: Callable[[Document], bool]) -> Edit:
    """A person removes a field of ours; nobody owns it then."""
    steps = [{"op": "remove", "path": path}]
    return Edit(
        f"{kind} {path} removed",
        Fate.RESTORED,
        on,
        lambda api, live: patch(api, live, steps, "kubectl-edit", JSON_PATCH),
    )


def _home(live: Document) -> int:
    return [one["name"] for one in variables(live)].index("HOME")


LABEL = "example.org/team"
EDITS = (
    # What is not ours -----------------------------------------------------------------------------------------------
    Edit(
        "label and annotation applied",
        Fate.SURVIVES,
        anything,
        lambda api, live: apply(
            api, live, {"metadata": {"labels": {LABEL: "a"}, "annotations": {LABEL: "b"}}}, "team"
        ),
        lambda live: (
            live["metadata"]["labels"].get(LABEL) == "a" and live["metadata"]["annotations"].get(LABEL) == "b"
        ),
    ),
    Edit(
        "annotated",
        Fate.SURVIVES,
        anything,
        lambda api, live: patch(
            api, live, {"metadata": {"annotations": {"note": "by hand"}}}, "kubectl-annotate"
        ),
        lambda live: live["metadata"]["annotations"].get("note") == "by hand",
    ),
    Edit(
        "owned label applied with our value",
        Fate.SURVIVES,
        anything,
        lambda api, live: apply(
            api, live, {"metadata": {"labels": {"app.kubernetes.io/part-of": "random"}}}, "copycat"
        ),
        lambda live: any(one["manager"] == "copycat" for one in live["metadata"]["managedFields"]),
    ),
    Edit(
        "environment variable injected",
        Fate.SURVIVES,
        of("Deployment"),
        lambda api, live: apply(
            api, live, containers(name="main", env=[{"name": "INJECTED", "value": "1"}]), "injector"
        ),
        lambda live: {"name": "INJECTED", "value": "1"} in variables(live),
    ),
    Edit(
        "sidecar applied",
        Fate.SURVIVES,
        of("Deployment"),
        lambda api, live: apply(api, live, containers(name="mesh", image="mesh:1"), "mesh"),
        lambda live: any(one["name"] == "mesh" for one in pod(live)["containers"]),
    ),
    Edit(
        "sidecar patched in",
        Fate.SURVIVES,
        of("Deployment"),
        lambda api, live: patch(api, live, containers(name="log", image="log:1"), "webhook", STRATEGIC),
        lambda live: any(one["name"] == "log" for one in pod(live)["containers"]),
    ),
    Edit(
        "default changed",
        Fate.SURVIVES,
        of("Deployment"),
        lambda api, live: patch(
            api, live, {"spec": {"template": {"spec": {"dnsPolicy": "Default"}}}}, "kubectl-edit"
        ),
        lambda live: pod(live)["dnsPolicy"] == "Default",
    ),
    Edit(
        "default written out",
        Fate.SURVIVES,
        of("Deployment"),
        lambda api, live: apply(
            api, live, {"spec": {"template": {"spec": {"restartPolicy": "Always"}}}}, "team"
        ),
    ),
    Edit(
        "scaled by an autoscaler",
        Fate.SURVIVES,
        scales,
        lambda api, live: patch(api, live, {"spec": {"replicas": 2}}, "hpa", below="/scale"),
        lambda live: live["spec"]["replicas"] == 2 or not scales(live),
    ),
    Edit(
        "status reported",
        Fate.SURVIVES,
        of("Deployment", "HorizontalPodAutoscaler"),
        lambda api, live: patch(
            api,
            live,
            {"status": {"conditions": [{"type": "Seen", "status": "True", "reason": "R", "message": "m"}]}},
            "robot",
            below="/status",
        ),
    ),
    Edit(
        "sessions kept",
        Fate.SURVIVES,
        of("Service"),
        lambda api, live: patch(api, live, {"spec": {"sessionAffinity": "ClientIP"}}, "kubectl-edit"),
        lambda live: live["spec"]["sessionAffinity"] == "ClientIP",
    ),
    Edit(
        "port added",
        Fate.SURVIVES,
        of("Service"),
        lambda api, live: apply(
            api,
            live,
            {"spec": {"ports": [{"name": "metrics", "port": 9090, "protocol": "TCP"}]}},
            "monitoring",
        ),
        lambda live: any(one["port"] == 9090 for one in live["spec"]["ports"]),
    ),
    Edit(
        "data added",
        Fate.SURVIVES,
        record,
        lambda api, live: apply(api, live, {"data": {"theirs": "1"}}, "team"),
        lambda live: live["data"].get("theirs") == "1",
    ),
    Edit(
        "suspended",
        Fate.SURVIVES,
        of("CronWorkflow"),
        lambda api, live: patch(api, live, {"spec": {"suspend": True}}, "argo"),
        lambda live: live["spec"]["suspend"] is True,
    ),
    # What is ours, and somebody takes it ----------------------------------------------------------------------------
    overwrite("Deployment", "spec.minReadySeconds", {"spec": {"minReadySeconds": 7}}),
    overwrite(
        "Deployment",
        'spec.template.spec.containers[name="main"].image',
        containers(name="main", image="other:1"),
        sort=STRATEGIC,
    ),
    overwrite(
        "Deployment",
        "spec.replicas",
        {"spec": {"replicas": 3}},
        lambda live: live["kind"] == "Deployment" and not scales(live),
        below="/scale",
    ),
    overwrite(
        "Service",
        'spec.ports[port=80,protocol="TCP"].targetPort',
        {"spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 81}]}},
        sort=STRATEGIC,
    ),
    overwrite("HorizontalPodAutoscaler", "spec.maxReplicas", {"spec": {"maxReplicas": 77}}),
    overwrite("ConfigMap", "data.record", {"data": {"record": "{}"}}, record),
    overwrite("CronWorkflow", "spec.concurrencyPolicy", {"spec": {"concurrencyPolicy": "Replace"}}),
    overwrite("Role", "rules", {"rules": []}),
    overwrite(
        "any",
        "metadata.labels.app.kubernetes.io/managed-by",
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "helm"}}},
        lambda live: live["kind"] in ("Service", "ServiceAccount", "RoleBinding"),
    ),
    Edit(
        "spec.minReadySeconds applied by force",
        Fate.REFUSED,
        of("Deployment"),
        lambda api, live: apply(api, live, {"spec": {"minReadySeconds": 9}}, "other-tool", force="true"),
        manager="other-tool",
        field=lambda live: "spec.minReadySeconds",
    ),
    # What is ours, and is gone --------------------------------------------------------------------------------------
    remove("Deployment", "/spec/minReadySeconds", of("Deployment")),
    remove(
        "any",
        "/metadata/labels/mlspec.dev~1name",
        lambda live: live["kind"] != "Workflow" and not live.get("immutable"),
    ),
    remove(
        "any",
        "/metadata/labels/mlspec.dev~1project",
        lambda live: live["kind"] != "Workflow" and not live.get("immutable"),
    ),
    remove("CronWorkflow", "/spec/timezone", of("CronWorkflow")),
    Edit(
        "environment variable removed",
        Fate.RESTORED,
        of("Deployment"),
        lambda api, live: patch(
            api,
            live,
            [{"op": "remove", "path": f"/spec/template/spec/containers/{main(live)}/env/{_home(live)}"}],
            "kubectl-edit",
            JSON_PATCH,
        ),
    ),
    Edit(
        "deleted",
        Fate.RECREATED,
        lambda live: live["kind"] != "Workflow",
        lambda api, live: api.delete(
            live["apiVersion"], live["kind"], live["metadata"]["name"], live["metadata"]["namespace"]
        ),
    ),
    Edit(
        "deleted and made again by somebody else",
        Fate.TAKEN,
        lambda live: (
            live["kind"] in ("Service", "CronWorkflow", "Role", "HorizontalPodAutoscaler") or record(live)
        ),
        remake,
        manager="kubectl-create",
    ),
)
