"""Canaries: values that nobody may see are put everywhere, and every sink of every command is searched for them.

The compiler emits no Secret today; here it does, so that the machinery is proven before it has to be.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import wait_for
from cluster.shop import Done, Shop, emit, with_runs
from mlspec_reconciler.clusters.kube import secrets as hidden

ADMISSION = "admissionregistration.k8s.io/v1"


class Cage:
    """Makes canaries, and gathers what every command has said."""

    def __init__(self) -> None:
        self.canaries: dict[str, str] = {}
        self.said: list[str] = []

    def canary(self, name: str) -> str:
        """A value that stands nowhere else."""
        self.canaries[name] = f"canary-{name}-{secrets.token_hex(6)}"
        return self.canaries[name]

    def hear(self, done: Done) -> Done:
        self.said.append(done.text)
        return done

    def escaped(self, text: str) -> set[str]:
        """Which canaries are in a text, as they are or in base64."""
        return {
            name
            for name, value in self.canaries.items()
            if value in text or encoded(value) in text or encoded(value).rstrip("=") in text
        }


def encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


@pytest.fixture
def cage() -> Cage:
    return Cage()


@pytest.fixture
def shop(
    control_plane: ControlPlane,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Shop]:
    """With every place that a command writes to below `tmp_path`, and all loggers loud."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "crash").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "crash"))
    for name in ("urllib3", "kubernetes", "mlspec", "mlspec_reconciler"):
        caplog.set_level(logging.DEBUG, logger=name)
    shop = Shop(
        tmp_path / "repository", with_runs(control_plane), control_plane.namespace("canary"), datasets=()
    )
    shop.write()
    yield shop
    for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"):
        control_plane.api.delete(ADMISSION, kind, shop.namespace)


def secret(shop: Shop, name: str, data: dict[str, Any], part: str = "data") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": shop.namespace},
        part: data,
    }


def workload(shop: Shop, value: str, **more: Any) -> dict[str, Any]:
    """A Deployment whose environment holds a password."""
    env = [{"name": "PASSWORD", "value": value, **more}]
    container = {"name": "main", "image": "a", "env": env}
    template = {
        "metadata": {"labels": {"app": "w"}},
        "spec": {"containers": [container], "initContainers": [{**container, "name": "first"}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": "w"}}, "template": template}
    metadata = {"name": "w", "namespace": shop.namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def echo(shop: Shop) -> None:
    """An admission policy that refuses what is marked, and repeats it in its message."""
    message = (
        "'refused: ' + (has(object.data) ? object.data.password : object.spec.template.spec.containers[0].env[0].value)"
        " + ' instead of ' + (oldObject == null ? 'nothing' :"
        " (has(oldObject.data) ? oldObject.data.password : oldObject.spec.template.spec.containers[0].env[0].value))"
    )
    rules = [
        {
            "apiGroups": ["", "apps"],
            "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"],
            "resources": ["secrets", "deployments"],
        }
    ]
    inside = {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}}
    marked = "!has(object.metadata.labels) || !('refuse' in object.metadata.labels)"
    policy = {
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": shop.namespace},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": rules, "namespaceSelector": inside},
            "validations": [{"expression": marked, "messageExpression": message}],
        },
    }
    binding = {
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": shop.namespace},
        "spec": {"policyName": shop.namespace, "validationActions": ["Deny"]},
    }
    shop.plane.apply([policy, binding])
    probe = {"labels": {"refuse": "yes"}, "name": "probe", "namespace": shop.namespace}

    def refuses() -> bool:
        try:
            path = f"/api/v1/namespaces/{shop.namespace}/secrets"
            body = {"metadata": probe, "data": {"password": "eA=="}}
            shop.plane.api.request("POST", path, body, dryRun="All")
        except Exception as error:
            return "eA== instead of nothing" in str(error)
        return False

    wait_for(refuses, "the admission policy to refuse")


def refused(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "metadata": {**body["metadata"], "labels": {"refuse": "yes"}}}


def everything(shop: Shop, cage: Cage) -> Iterator[tuple[str, str]]:
    """Every sink: what was said, the files, the ledger, annotations of objects, events."""
    yield from (("output", text) for text in cage.said)
    for file in shop.root.parent.rglob("*"):
        if file.is_file() and ".git" not in file.parts and not file.name.endswith(".kubeconfig"):
            yield str(file), file.read_bytes().decode(errors="replace")
    for one in shop.plane.api.list("v1", "ConfigMap", shop.namespace):
        yield one["metadata"]["name"], json.dumps(one)
        if "mlspec.dev/ledger" in (one["metadata"].get("labels") or {}):
            content = zlib.decompress(base64.b64decode(one["binaryData"]["document"]))
            yield one["metadata"]["name"], content.decode()
    for version, kind in (("v1", "Secret"), ("apps/v1", "Deployment"), ("v1", "Service")):
        for one in shop.plane.api.list(version, kind, shop.namespace):
            yield f"metadata of {kind}", json.dumps(one["metadata"])
    for one in shop.plane.api.list("v1", "Event", shop.namespace):
        yield "event", json.dumps(one)


def look(shop: Shop, cage: Cage) -> list[Done]:
    """Every command that shows or saves what is planned."""
    commands = [
        ("plan",),
        ("plan", "--output", "json"),
        ("plan", "--output", "markdown"),
        ("plan", "--out", "plan.json"),
    ]
    return [cage.hear(shop.run(*one)) for one in commands]


def test_no_canary_leaves_through_any_sink(
    shop: Shop, cage: Cage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """One password in one log of one pipeline is a rotation of every password."""
    canary = cage.canary
    # Created, changed here, changed by somebody else.
    first = [
        secret(shop, "s", {"password": encoded(canary("created"))}),
        workload(shop, canary("env-created")),
    ]
    text = secret(shop, "t", {"password": canary("text")}, "stringData")
    emit(monkeypatch, *first, text)
    look(shop, cage)
    cage.hear(shop.apply())
    assert "Secret s created" in cage.said[-1]
    assert "Secret t created" in cage.said[-1]
    second = [
        secret(shop, "s", {"password": encoded(canary("changed"))}),
        workload(shop, canary("env-changed")),
    ]
    emit(monkeypatch, *second, text)
    assert "would be" not in look(shop, cage)[0].out
    cage.hear(shop.apply())
    assert "Secret s changed" in cage.said[-1]
    drifted = {"data": {"password": encoded(canary("drifted")), "more": encoded(canary("added"))}}
    _edit(shop, "v1", "Secret", "s", drifted)
    container = {"name": "main", "env": [{"name": "PASSWORD", "value": canary("env-drifted")}]}
    _edit(shop, "apps/v1", "Deployment", "w", {"spec": {"template": {"spec": {"containers": [container]}}}})
    assert "data.password belongs to kubectl-edit" in look(shop, cage)[0].out
    variable = 'spec.template.spec.containers[name="main"].env[name="PASSWORD"].value'
    fields = [("Secret", "data.password"), ("Deployment", variable)]
    shop.target = {"fields": [{"kind": kind, "field": field, "owner": "mlspec"} for kind, field in fields]}
    shop.write()
    shown = look(shop, cage)
    [project] = [one for one in json.loads(shown[1].out)["changes"] if one["resource"] == "Project/shop"]
    told = {one["object"].split(" ")[1]: one["differences"] for one in project["writes"]}
    assert [(one["old"], one["new"]) for one in told["Secret"]] == [("(secret)", "(secret)")]
    assert [(one["path"][-1], one["old"], one["new"]) for one in told["Deployment"]] == [
        ("value", "(secret)", "(secret)")
    ]
    # Refused by a policy that repeats the new and the live object.
    echo(shop)
    third = [
        refused(secret(shop, "s", {"password": encoded(canary("denied"))})),
        refused(workload(shop, canary("env-denied"))),
    ]
    new = refused(secret(shop, "n", {"password": encoded(canary("denied-new"))}))
    emit(monkeypatch, *third, new, text)
    shown = look(shop, cage)
    assert shown[0].out.count("refused: (secret) instead of") >= 3, shown[0].out
    cage.hear(shop.apply())
    assert "refused: (secret) instead of (secret)" in cage.said[-1]
    # Invalid: what the server repeats of a body that it cannot read.
    broken = [
        secret(shop, "s", {"password": canary("not-base64")}),
        secret(shop, "n", {"password": {"nested": canary("structure")}}),
        secret(shop, "a b", {"password": encoded(canary("bad-name"))}),
        {
            **secret(shop, "u", {"password": encoded(canary("unknown-field"))}),
            "datas": {"x": canary("misspelt")},
        },
        secret(shop, "k", {"bad key": encoded(canary("bad-key"))}),
        workload(shop, canary("env-invalid"), valueFrom={"fieldRef": {"fieldPath": "spec.nodeName"}}),
    ]
    for body in broken:
        emit(monkeypatch, body)
        assert look(shop, cage)[0].code == 1, cage.said[-4]
        assert cage.hear(shop.apply()).code == 1
    # Credentials: a token that is refused, and the environment variable of a receiver.
    monkeypatch.setenv("HOOK_URL", f"https://example.org/{canary('receiver')}")
    shop.graphs = ("front",)
    shop.write()
    _receiver(shop)
    emit(monkeypatch, text)
    assert "MonitoringPolicy/p" in look(shop, cage)[0].out, cage.said[-4]
    cage.hear(shop.apply("--allow-deletes"))
    for name in ("status", "runs", "render", "destroy"):
        arguments = ["--yes"] if name == "destroy" else ["Dataset/none"] if name == "runs" else []
        cage.hear(shop.run(name, *arguments))
    config = yaml.safe_load(shop.plane.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = canary("token")
    wrong = tmp_path / "wrong.kubeconfig"
    wrong.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(wrong))
    assert "does not know us (401)" in look(shop, cage)[0].err

    found = {place: names for place, text in everything(shop, cage) if (names := cage.escaped(text))}
    logged = cage.escaped("\n".join(f"{one.getMessage()} {one.exc_text or ''}" for one in caplog.records))
    assert (found, logged) == ({}, set())
    assert not [*(tmp_path / "crash").glob("mlspec-crash-*")], "an exception that nobody has foreseen"
    assert len(cage.canaries) >= 17


def _edit(shop: Shop, version: str, kind: str, name: str, change: dict[str, Any]) -> None:
    path = shop.plane.api.path(
        {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": shop.namespace}}
    )
    shop.plane.api.request(
        "PATCH",
        path,
        change,
        content_type="application/strategic-merge-patch+json",
        fieldManager="kubectl-edit",
    )


def _receiver(shop: Shop) -> None:
    spec = {"webhook": {"url": {"env": "HOOK_URL"}}}
    document = {
        "apiVersion": "mlspec.dev/v1alpha1",
        "kind": "Receiver",
        "metadata": {"name": "oncall"},
        "spec": spec,
    }
    (shop.root / "receiver.yaml").write_text(yaml.safe_dump(document))
    policy = {
        "graph": "front",
        "window": "1d",
        "alerts": {"bad": {"quality": {}}},
        "actions": [{"when": "any", "notify": "oncall"}],
    }
    document = {
        "apiVersion": "mlspec.dev/v1alpha1",
        "kind": "MonitoringPolicy",
        "metadata": {"name": "p"},
        "spec": policy,
    }
    (shop.root / "policy.yaml").write_text(yaml.safe_dump(document))


def test_a_value_is_hidden_wherever_its_list_begins() -> None:
    """Differences show a variable, its list, or the whole container, as it happens."""
    env = [{"name": "A", "value": "password1"}, {"name": "B", "valueFrom": {"x": 1}}]
    safe = [{"name": "A", "value": "(secret)"}, {"name": "B", "valueFrom": {"x": 1}}]
    assert hidden.shown("Deployment", ("spec", "containers", 0, "env", 0, "value"), "password1") == "(secret)"
    assert hidden.shown("Deployment", ("spec", "containers", 0, "env", 0), env[0]) == safe[0]
    assert hidden.shown("Deployment", ("spec", "containers", 0, "env"), env) == safe
    assert hidden.shown("Deployment", ("spec", "containers"), [{"env": env}]) == [{"env": safe}]
    assert hidden.shown("Deployment", ("spec", "replicas"), 3) == 3
    assert hidden.shown("Secret", ("metadata", "annotations", "x"), "password1") == "(secret)"
    assert hidden.values({"kind": "Job", "spec": {"a": [{"env": env}]}}) == {"password1"}
    assert re.fullmatch("[(]secret[)]", hidden.shown("Secret", ("data",), {"a": "b"}))
