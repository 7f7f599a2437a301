"""What the compiler makes, asked of a real API server: schemas, CEL rules, defaults, Pod Security, and nothing unknown.

Golden files say what we make; only the server says whether it is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cluster.bed import crds
from cluster.bed.api import ApiError
from cluster.bed.controlplane import ControlPlane
from mlspec_reconciler.commands.render import command

TESTS = Path(__file__).parents[1]
GOLDEN = sorted(path.stem for path in (TESTS / "golden/compile").glob("*.yaml") if "local" not in path.stem)
EXAMPLES = TESTS.parent / "examples"
Body = dict[str, Any]


@pytest.fixture(scope="session")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with every kind that the compiler makes."""
    crds.install(control_plane.api, "argo", "kueue", "gateway")
    return control_plane


def examples() -> Iterator[tuple[str, str]]:
    """Example and its Kubernetes target."""
    for file in sorted(EXAMPLES.glob("*/*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if isinstance(document, Mapping) and document.get("kind") == "Project":
                found = document["spec"].get("targets", {})
                yield from ((file.parent.name, name) for name, one in found.items() if "kubernetes" in one)


def moved(value: Any, namespace: str) -> Any:
    """The same objects in another namespace; those of a Gateway stay."""
    match value:
        case {"kind": "HTTPRoute"}:
            return value | {"metadata": value["metadata"] | {"namespace": namespace}}
        case dict():
            return {
                key: namespace
                if key in ("namespace", "kubernetes.io/metadata.name")
                else moved(one, namespace)
                for key, one in value.items()
            }
        case list():
            return [moved(one, namespace) for one in value]
        case _:
            return value


def templates(body: Body) -> Iterator[Body]:
    """The pods that an object starts, as it (or Argo, from its parts) would make them."""
    spec = body.get("spec") or {}
    match body["kind"]:
        case "Deployment" | "Job":
            yield spec["template"]
        case "Workflow" | "CronWorkflow":
            workflow = spec.get("workflowSpec", spec)
            for template in workflow["templates"]:
                if container := template.get("container"):
                    mounted = {one["name"] for one in container["volumeMounts"]}
                    yield {
                        "metadata": {
                            "labels": workflow["podMetadata"]["labels"]
                            | template.get("metadata", {}).get("labels", {})
                        },
                        "spec": {
                            "restartPolicy": "Never",
                            "serviceAccountName": workflow["serviceAccountName"],
                            "securityContext": workflow["securityContext"],
                            "volumes": [one for one in workflow["volumes"] if one["name"] in mounted],
                            "containers": [container],
                            **{
                                key: template[key]
                                for key in ("tolerations", "nodeSelector")
                                if key in template
                            },
                        },
                    }


def admit(plane: ControlPlane, bodies: list[Body]) -> None:
    """Every object passes validation, and every pod of it the strictest Pod Security Standard."""
    namespace = plane.namespace("compile", security="restricted")
    plane.service_account(namespace, "runner")
    strict = {"fieldValidation": "Strict", "dryRun": "All"}
    for body in moved(bodies, namespace):
        plane.api.request(
            "PATCH",
            plane.api.path(body),
            body,
            content_type="application/apply-patch+yaml",
            fieldManager="mlspec",
            **strict,
        )
        if body["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
            plane.apply([body])  # its pods need it
        for template in templates(body):
            pod = template | {"apiVersion": "v1", "kind": "Pod"}
            pod["metadata"] = template["metadata"] | {"name": "probe"}
            plane.api.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod, **strict)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_workload_is_admitted(plane: ControlPlane, name: str) -> None:
    """Every kind of workload on every engine with every option."""
    admit(plane, list(yaml.safe_load_all((TESTS / f"golden/compile/{name}.yaml").read_text())))


@pytest.mark.parametrize(("example", "target"), examples())
def test_an_example_is_admitted(plane: ControlPlane, example: str, target: str) -> None:
    """Whole projects with their accounts, and their code in ConfigMaps."""
    arguments = [str(EXAMPLES / example), "--target", target, "--output", "json"]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert done.return_value == 0, done.output
    bodies = json.loads(done.stdout)
    assert {"Role", "Workflow", "Deployment"} <= {one["kind"] for one in bodies}
    admit(plane, bodies)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("replicaz",), 2, "field not declared in schema"),
        (("template", "spec", "containers", 0, "securityContext"), {}, "violates PodSecurity"),
        (("strategy", "rollingUpdate", "maxSurge"), 0, "may not be 0 when"),
    ],
)
def test_the_server_would_refuse(
    plane: ControlPlane, path: tuple[str | int, ...], value: object, words: str
) -> None:
    """The tests above can fail: for a misspelt field, for a pod with rights, and for what no schema forbids."""
    (body,) = [
        one
        for one in yaml.safe_load_all((TESTS / "golden/compile/service_of_one_replica.yaml").read_text())
        if one["kind"] == "Deployment"
    ]
    place = body["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ApiError, match=words):
        admit(plane, [body])
