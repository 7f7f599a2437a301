"""What simulated pods of the runtime return, and how their runs go: chosen by the tests, unknown to the compiler.

An admission policy of the API server plays the runtime: it reads from a container's arguments which subject it would
perform, and annotates the pod with a result of that subject and with the wishes of the namespace's ConfigMap
`simulation`, for KWOK's stages (`kwok`, `stages/*.yaml`). So the pods are those that the compiler made, to the byte.
"""

from __future__ import annotations

from cluster.bed.api import Api, Document, document
from cluster.bed.processes import wait_for

WISHES = "simulation"
FIELDS = ("outcome", "duration", "exit-code", "message")
PREFIX = "sim.mlspec.dev/"
RUNTIME = "mlspec_runtime"

_VARIABLES = {
    "containers": (
        "(object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : []))"
        f".filter(c, has(c.command) && '{RUNTIME}' in c.command && has(c.args) && size(c.args) > 0)"
    ),
    # The last step of a Job is its one container; a pod of a Workflow has `main` beside Argo's own `wait`.
    "last": "object.spec.containers.filter(c, c.name != 'wait')[0].name",
    "name": "object.metadata.labels['mlspec.dev/name']",
    "run": "'mlspec.dev/run' in object.metadata.labels ? object.metadata.labels['mlspec.dev/run'] : 'none'",
    "results": (
        "{'dataset': '{\"snapshot\": \"' + variables.run + '\", \"path\": \"datasets/' + variables.name + '/'"
        ' + variables.run + \'", "rows": 3}\','
        ' \'train\': \'{"metrics": {"auc": 0.9}, "inputs": []}\'}'
    ),
    "prefixes": (
        "[variables.name] + variables.containers.filter(c, c.name == variables.last)"
        ".map(c, variables.name + '.' + c.args[0])"
    ),
}


def install(api: Api) -> None:
    """The policy, for the pods of every namespace that has wishes (`wish`)."""
    annotations = "/metadata/annotations"
    key = f"jsonpatch.escapeKey('{PREFIX}' + (c.name == 'main' ? 'result' : 'result.' + c.name))"
    results = (
        f"variables.containers.map(c, JSONPatch{{op: 'add', path: '{annotations}/' + {key},"
        " value: c.args[0] in variables.results ? variables.results[c.args[0]] : '{}'})"
    )
    wishes = " + ".join(
        f"variables.prefixes.filter(p, (p + '.{field}') in params.data)"
        f".map(p, JSONPatch{{op: 'add', path: '{annotations}/' + jsonpatch.escapeKey('{PREFIX}{field}'),"
        f" value: params.data[p + '.{field}']}})"
        for field in FIELDS
    )
    empty = (
        "has(object.metadata.annotations) ? [] : "
        f"[JSONPatch{{op: 'add', path: '{annotations}', value: Object.metadata.annotations{{}}}}]"
    )
    spec: Document = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
            ],
            "objectSelector": {"matchExpressions": [{"key": "mlspec.dev/name", "operator": "Exists"}]},
        },
        "variables": [{"name": name, "expression": text} for name, text in _VARIABLES.items()],
        "mutations": [
            {"patchType": "JSONPatch", "jsonPatch": {"expression": f"({empty}) + {results} + {wishes}"}}
        ],
    }
    group = "admissionregistration.k8s.io/v1"
    binding = {
        "policyName": "simulated-runtime",
        "paramRef": {"name": WISHES, "parameterNotFoundAction": "Allow"},
    }
    api.apply(
        [
            document(group, "MutatingAdmissionPolicy", "simulated-runtime", spec=spec),
            document(group, "MutatingAdmissionPolicyBinding", "simulated-runtime", spec=binding),
        ]
    )


def wish(api: Api, namespace: str, wishes: dict[str, str]) -> None:
    """How pods go that are made from now on: `{"RESOURCE.SUBJECT.outcome": "hang"}` for the steps of one subject,
    `{"RESOURCE.outcome": "fail"}` for all of a resource; fields as in `FIELDS`. Replaces the wishes before, and returns when
    the policy follows them."""
    api.apply([document("v1", "ConfigMap", WISHES, namespace, data=wishes)])
    key, value = next(iter(wishes.items()))
    of, field = key.rsplit(".", 1)
    name, _, subject = of.partition(".")
    container = {"name": "main", "image": "runtime", "command": [RUNTIME], "args": [subject or "any"]}
    pod = document(
        "v1",
        "Pod",
        "asks",
        namespace,
        metadata={"labels": {"mlspec.dev/name": name}},
        spec={"containers": [container]},
    )

    def followed() -> bool:
        made = api.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")
        return bool((made["metadata"].get("annotations") or {}).get(f"{PREFIX}{field}") == value)

    wait_for(followed, "the simulated runtime", every=0.1)


def release(api: Api, namespace: str, resource: str) -> None:
    """Let the pods of a resource that hang succeed."""
    for pod in api.list("v1", "Pod", namespace, labelSelector=f"mlspec.dev/name={resource}"):
        annotations = pod["metadata"].get("annotations") or {}
        if annotations.get(f"{PREFIX}outcome") == "hang":
            path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
            patch = {"metadata": {"annotations": {f"{PREFIX}outcome": "succeed"}}}
            api.request("PATCH", path, patch, content_type="application/merge-patch+json")
