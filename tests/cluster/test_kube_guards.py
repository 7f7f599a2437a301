"""What an apply must not do, on a real API server and by the commands: each refusal has its reason, and nothing is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import faults
from cluster.bed.api import ApiError
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import wait_for
from cluster.shop import Done, Shop, emit, with_runs
from mlspec.manifest import Key


@pytest.fixture(autouse=True)
def user(control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The admin, with a cache of their own."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """Another cluster, which has no definition of ours."""
    with ControlPlane.start(tmp_path_factory.mktemp("other")) as plane:
        yield plane


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    """With the definitions of our runs."""
    return with_runs(control_plane)


@pytest.fixture
def shop(plane: ControlPlane, tmp_path: Path) -> Shop:
    """A repository that is not applied yet."""
    made = Shop(tmp_path / "repository", plane, plane.namespace("guard"))
    made.write()
    return made


def refused(done: Done, code: str, *words: str) -> bool:
    """Whether a command stopped for this reason."""
    assert done.code == 1, done.text
    assert f"error[{code}]" in done.err, done.text
    for word in words:
        assert word in done.text, done.text
    assert "Traceback" not in done.text
    return True


def both_refuse(shop: Shop, code: str, *words: str) -> None:
    """`plan` shows it, `apply` stops, and every object stays."""
    before = shop.uids()
    refused(shop.plan(), code, *words)
    refused(shop.apply(), code, *words)
    assert shop.uids() == before


# What looks like a wish to delete ---------------------------------------------------------------------------------------


def test_an_empty_repository_deletes_nothing(shop: Shop) -> None:
    """A broken checkout in a pipeline looks like this, on a Friday evening."""
    shop.applied()
    for file in shop.root.glob("*.yaml"):
        file.unlink()
    both_refuse(shop, "no-specs")
    shop.graphs = shop.datasets = ()
    shop.write()
    both_refuse(shop, "no-specs", "mlspec destroy removes what was applied")


def test_a_sparse_checkout_deletes_nothing(shop: Shop) -> None:
    """What the commit has and the working tree has not was not removed by anybody."""
    shop.applied()
    shop.commit()
    shop.git("sparse-checkout", "set", "--no-cone", "/*", "!back.yaml")
    assert not (shop.root / "back.yaml").exists()
    both_refuse(shop, "partial-checkout", "back.yaml is in the commit", "mlspec apply --allow-deletes")
    shop.git("sparse-checkout", "disable")
    (shop.root / "front.yaml").unlink()
    both_refuse(shop, "partial-checkout", "front.yaml")
    shop.apply("--allow-deletes")
    assert ("Deployment", "front") not in shop.uids()
    assert ("Deployment", "back") in shop.uids()


def test_more_deletions_than_the_threshold_need_consent(shop: Shop) -> None:
    """The circuit breaker, and its option."""
    shop.options = {"prune": {"maxShare": 0.4}}
    shop.applied()
    shop.graphs, shop.datasets = ("front",), ()
    shop.write()
    both_refuse(shop, "many-deletes", "2 of 4 resources", "40%")
    shop.apply("--allow-deletes")
    left = shop.uids()
    assert ("Deployment", "front") in left
    assert not [name for _, name in left if name.startswith(("back", "data-rows"))]


def test_another_namespace_or_cluster_needs_consent(
    shop: Shop, other: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubeconfig that points elsewhere since yesterday must not become a second production, or lose the first one."""
    shop.applied()
    before = shop.uids()
    other.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": shop.namespace}})
    monkeypatch.setenv("KUBECONFIG", str(other.kubeconfig))
    refused(shop.plan(), "other-cluster", "is the kubeconfig context the right one?", "--allow-other-cluster")
    refused(shop.apply(), "other-cluster")
    refused(shop.run("destroy", "--yes"), "other-cluster")
    elsewhere = Shop(shop.root, other, shop.namespace)
    assert other.api.list("apps/v1", "Deployment", shop.namespace) == []
    monkeypatch.setenv("KUBECONFIG", str(shop.plane.kubeconfig))
    shop.namespace, home = shop.plane.namespace("guard"), shop.namespace
    shop.write()
    refused(shop.apply(), "other-cluster", home, shop.namespace)
    assert shop.uids() == {}
    assert "shop-runtime created" in shop.apply("--allow-other-cluster").out
    assert "error" not in shop.plan().err, "the new one is the target now"
    shop.namespace = home
    assert shop.uids() == before
    assert elsewhere.plane.api.list("apps/v1", "Deployment", home) == []


def test_an_inventory_of_another_cluster_is_not_believed(
    shop: Shop, other: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that is restored elsewhere names objects there that mlspec has never made."""
    shop.applied()
    label = {"labelSelector": "mlspec.dev/ledger=shop"}
    held = shop.plane.api.list("v1", "ConfigMap", shop.namespace, **label)
    assert held
    if other.api.find("v1", "Namespace", shop.namespace) is None:
        other.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": shop.namespace}})
    for one in held:
        kept = {part: one["metadata"][part] for part in ("name", "namespace", "labels")}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "binaryData": one["binaryData"], "metadata": kept}
        other.apply([body])
    service = {"name": "back", "namespace": shop.namespace, "annotations": {"mlspec.dev/digest": "x"}}
    other.apply(
        [{"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": {"ports": [{"port": 80}]}}]
    )
    monkeypatch.setenv("KUBECONFIG", str(other.kubeconfig))
    shop.graphs = ("front",)
    shop.write()
    for command in (shop.plan, shop.apply):
        refused(command("--target", "prod"), "unavailable", "the inventory here was written for the cluster")
    refused(shop.apply("--allow-other-cluster", "--allow-deletes"), "unavailable", "copied or restored")
    assert other.api.get("v1", "Service", "back", shop.namespace)


def test_an_api_that_is_down_is_not_an_absent_one(shop: Shop) -> None:
    """`kubectl apply --prune` has deleted for less: what cannot be seen is not known to be gone."""
    shop.applied()
    shop.enter("ResourcePool/far", Key("down.example.org/v1", "Thing", shop.namespace, "far"))
    service = {"namespace": shop.namespace, "name": "nobody"}
    shop.plane.apply(
        [
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": "v1.down.example.org"},
                "spec": {
                    "group": "down.example.org", "version": "v1", "service": service,
                    "groupPriorityMinimum": 1000, "versionPriority": 1, "insecureSkipTLSVerify": True,
                },
            }
        ]
    )  # fmt: skip
    try:
        wait_for(lambda: _stale(shop, "down.example.org"), "the aggregator to notice the API")
        before = shop.uids()
        for command in (shop.plan, shop.apply):
            refused(command(), "unavailable", "the API down.example.org/v1 does not answer now")
        assert shop.uids() == before
        assert "ResourcePool/far" in shop.held().entries
    finally:
        shop.plane.api.delete("apiregistration.k8s.io/v1", "APIService", "v1.down.example.org")
    wait_for(lambda: not _stale(shop, "down.example.org"), "the aggregator to forget the API")
    assert "ResourcePool/far" in shop.apply().out
    assert "ResourcePool/far" not in shop.held().entries, "now it is certain that there is no such object"


def _stale(shop: Shop, group: str) -> bool:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    answer = shop.plane.api._http.get("/apis", headers={"Accept": accept}).json()
    return any(
        item["metadata"]["name"] == group and any(one["freshness"] == "Stale" for one in item["versions"])
        for item in answer["items"]
    )


@pytest.mark.parametrize("path", ["/apis$", "/api$", "/apis/argoproj.io/.*/workflows", "/deployments"])
def test_a_list_that_fails_ends_the_command(shop: Shop, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery or one kind is not answered: the plan is not made from the rest."""
    shop.applied()
    before = shop.uids()
    shop.graphs = ("front",)
    shop.write()
    with faults.Proxy(shop.plane.url) as proxy:
        kubeconfig = proxy.kubeconfig(shop.root.parent, shop.plane.admin_token)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        proxy.add(faults.Answer(503, retry_after=90), path=path)
        refused(shop.apply(), "unavailable", "answered 503")
        assert not [one for one in proxy.done if one[0] in ("DELETE", "PATCH", "POST")]
    assert shop.uids() == before


def test_a_definition_that_is_gone_is_known_to_be_gone(shop: Shop) -> None:
    """What discovery has kept for an hour must not block an apply after an uninstall."""
    group = f"{shop.namespace}.example.org"
    names = {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    definition = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"things.{group}")
    shop.plane.apply(
        [
            {
                "apiVersion": definition[0],
                "kind": definition[1],
                "metadata": {"name": definition[2]},
                "spec": spec,
            }
        ]
    )
    thing = {
        "apiVersion": f"{group}/v1",
        "kind": "Thing",
        "metadata": {"name": "one", "namespace": shop.namespace},
    }

    def served() -> bool:
        try:
            return bool(shop.plane.apply([thing]))
        except ApiError:
            return False

    wait_for(served, "the definition to be served")
    shop.applied()
    shop.enter("ResourcePool/far", Key(f"{group}/v1", "Thing", shop.namespace, "one"))
    assert "ResourcePool/far" in shop.plan().out
    shop.plane.api.delete(*definition)
    wait_for(lambda: not served(), "the definition to go")
    done = shop.apply()
    assert "error" not in done.err.replace("Not done", ""), done.text
    assert "ResourcePool/far" not in shop.held().entries


# What is not ours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [False, True])
def test_what_somebody_made_again_is_never_deleted(shop: Shop, marks: bool) -> None:
    """The name is in the inventory, the object is another: also when it was restored with our annotations."""
    shop.applied()
    made = shop.remake("Service", "back", marks=marks)
    shop.graphs = ("front",)
    shop.write()
    assert "Service back" not in shop.plan().out
    shop.apply()
    assert shop.live("Service", "back")["metadata"]["uid"] == made["metadata"]["uid"]
    assert ("Deployment", "back") not in shop.uids()
    assert shop.plan("--detailed-exitcode").code == 0
    assert "ServingGraph/back" not in shop.held().entries
    shop.run("destroy", "--yes")
    assert shop.live("Service", "back")["metadata"]["uid"] == made["metadata"]["uid"]


def test_a_finalizer_keeps_the_entry(shop: Shop) -> None:
    """What is not gone yet is not forgotten: it would stay for ever."""
    shop.applied()
    shop.edit("Service", "back", {"metadata": {"finalizers": ["example.org/wait"]}})
    shop.graphs = ("front",)
    shop.write()
    done = shop.apply()
    assert "Service back deleted" in done.out, done.text
    held = shop.held().entries["ServingGraph/back"]
    assert [key.kind for key in held.objects] == ["Service"]
    assert shop.live("Service", "back")["metadata"]["deletionTimestamp"]
    done = shop.apply()
    assert done.code == 1
    assert "back" in done.err, done.text
    assert "ServingGraph/back" in shop.held().entries
    shop.edit("Service", "back", {"metadata": {"finalizers": None}})
    shop.apply()
    assert "ServingGraph/back" not in shop.held().entries


def test_destroy_takes_what_it_made_and_nothing_else(shop: Shop) -> None:
    """No object of ours is left, and all of the others'. What ran and was accepted is remembered, so that a later apply trains
    nothing again, until `--purge`: then the namespace is as it was."""
    mine = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "mine", "namespace": shop.namespace},
        "data": {"a": "b"},
    }
    labelled = {
        **mine,
        "metadata": {**mine["metadata"], "name": "labelled", "labels": {"mlspec.dev/project": "shop"}},
    }
    shop.plane.apply([mine, labelled])
    before = _everything(shop)
    shop.applied()
    assert _everything(shop) > before
    done = shop.run("destroy", "--yes")
    assert (done.code, done.err) == (0, ""), done.text
    assert "Removed 15 objects" in done.out

    def remembered() -> set[tuple[str, str]]:
        found = shop.plane.api.list("v1", "ConfigMap", shop.namespace)
        return {
            ("ConfigMap", one["metadata"]["name"])
            for one in found
            if (one["metadata"].get("labels") or {}).get("mlspec.dev/ledger") == "shop"
        }

    wait_for(lambda: _everything(shop) - remembered() == before, "the garbage collector")
    assert remembered()
    assert shop.held().entries == {}
    done = shop.run("destroy", "--yes", "--purge", "--target", "prod")
    assert (done.code, done.err) == (0, ""), done.text
    wait_for(lambda: _everything(shop) == before, "the purge")


def test_destroy_orphan_leaves_every_object(shop: Shop) -> None:
    """A project moves to another tool without an outage; a later apply does not take over what it forgot."""
    shop.applied()
    before = shop.uids()
    done = shop.run("destroy", "--yes", "--orphan")
    assert "The objects go on without mlspec" in done.out, done.text
    assert shop.uids() == before
    assert shop.held().entries == {}
    shop.run("destroy", "--yes")
    assert shop.uids() == before


def _everything(shop: Shop) -> set[tuple[str, str]]:
    kinds = [
        ("v1", "ConfigMap"),
        ("v1", "Service"),
        ("v1", "ServiceAccount"),
        ("apps/v1", "Deployment"),
        ("v1", "Pod"),
    ]
    kinds += [
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("argoproj.io/v1alpha1", "Workflow"),
        ("apps/v1", "ReplicaSet"),
    ]
    return {
        (kind, one["metadata"]["name"])
        for version, kind in kinds
        for one in shop.plane.api.list(version, kind, shop.namespace)
    }


# Consent ------------------------------------------------------------------------------------------------------------------


def _service(shop: Shop, name: str, port: int = 80, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]
    metadata = {"name": name, "namespace": shop.namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports, **spec}}


def test_what_others_made_is_taken_over_only_by_name(shop: Shop) -> None:
    """Moving from another tool: the plan says who made it, `--adopt` takes exactly it, and keeps its identity."""
    [made] = shop.plane.api.apply(
        [_service(shop, "back", selector={"mlspec.dev/service": "back"})], manager="helm"
    )
    done = shop.plan()
    assert done.code == 1
    assert "Service back exists already, made by helm" in done.out, done.text
    assert "--adopt Service/back" in done.out
    done = shop.apply()
    assert done.code == 1
    assert "  x ServingGraph/back (back.yaml:1): Service back exists already" in done.out, done.text
    assert shop.live("Service", "back")["metadata"].get("annotations") is None, "not even our marks"
    assert "is taken over" in (done := shop.apply("--adopt", "Service/back")).out, done.text
    live = shop.live("Service", "back")
    assert live["metadata"]["uid"] == made["metadata"]["uid"]
    assert live["metadata"]["annotations"]["mlspec.dev/resource"] == "ServingGraph/back"
    assert shop.plan("--detailed-exitcode").code == 0
    shop.graphs = ("front",)
    shop.write()
    shop.apply()
    assert ("Service", "back") not in shop.uids(), "it is ours now"


def test_a_take_over_overruns_no_field(shop: Shop) -> None:
    """Consent to the object is no consent to each of its fields; an immutable field is no reason to delete it."""
    shop.graphs = ("back",)
    shop.write()
    shop.plane.api.apply([_service(shop, "back", selector={"app": "theirs"})], manager="helm")
    done = shop.apply("--adopt", "Service/back")
    assert done.code == 1
    assert "spec.selector belongs to helm" in done.text, done.text
    assert shop.live("Service", "back")["spec"]["selector"] == {"app": "theirs"}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "serve", "image": "x"}]}}
    theirs = {"selector": {"matchLabels": {"a": "b"}}, "replicas": 0, "template": template}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "front", "namespace": shop.namespace},
        "spec": theirs,
    }
    path = f"/apis/apps/v1/namespaces/{shop.namespace}/deployments"
    uid = shop.plane.api.request("POST", path, body)["metadata"]["uid"]
    shop.graphs = ("back", "front")
    shop.write()
    done = shop.apply("--adopt", "Deployment/front", "--allow-replace")
    assert done.code == 1
    assert "cannot be changed in place" in done.text or "belongs to" in done.text, done.text
    assert shop.live("Deployment", "front")["metadata"]["uid"] == uid


def test_a_conflict_names_manager_and_field_and_ends_by_a_rule(shop: Shop) -> None:
    """Nobody is overrun, and nobody overruns us: the target says whose the field is."""
    shop.applied()
    path = shop.plane.api.path(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "back", "namespace": shop.namespace},
        }
    )
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "back"},
        "spec": {"minReadySeconds": 30},
    }
    shop.plane.api.request(
        "PATCH",
        path,
        theirs,
        content_type="application/apply-patch+yaml",
        fieldManager="oncall",
        force="true",
    )
    done = shop.plan()
    assert done.code == 1
    assert "spec.minReadySeconds belongs to oncall" in done.out, done.text
    done = shop.apply()
    assert done.code == 1
    assert shop.live("Deployment", "back")["spec"]["minReadySeconds"] == 30
    shop.target = {
        "fields": [{"kind": "Deployment", "name": "back", "field": "spec.minReadySeconds", "owner": "other"}]
    }
    shop.write()
    shop.apply()
    assert shop.plan("--detailed-exitcode").code == 0
    assert shop.live("Deployment", "back")["spec"]["minReadySeconds"] == 30
    shop.target["fields"][0]["owner"] = "mlspec"
    shop.write()
    shop.apply()
    assert shop.live("Deployment", "back")["spec"]["minReadySeconds"] == 2
    assert shop.plan("--detailed-exitcode").code == 0


def test_a_replacement_names_its_field_and_needs_consent(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """To delete and make again is an outage: shown, refused, and done only when the new one would be accepted."""
    emit(monkeypatch, _replicas(shop, "one"))
    shop.applied()
    uid = _uid(shop)
    emit(monkeypatch, _replicas(shop, "two"))
    done = shop.plan()
    assert (
        "is replaced, because spec.selector cannot be changed in place; needs --allow-replace" in done.out
    ), done.text
    refused(shop.apply(), "replace", "ReplicaSet once would be deleted and made again", "--allow-replace")
    assert _uid(shop) == uid
    emit(monkeypatch, _replicas(shop, "two", image=""))
    done = shop.apply("--allow-replace")
    assert done.code == 1
    assert _uid(shop) == uid, done.text
    assert (
        "the new one would be refused: it is not valid: spec.template.spec.containers[0].image" in done.text
    )
    emit(monkeypatch, _replicas(shop, "two"))
    for _ in range(5):
        shop.apply("--allow-replace")
        if shop.plan("--detailed-exitcode").code == 0:
            break
    assert _uid(shop) != uid


def _replicas(shop: Shop, app: str, image: str = "a") -> dict[str, Any]:
    """A selector cannot be changed."""
    template = {
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": "one", "image": image}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": app}}, "template": template}
    metadata = {"name": "once", "namespace": shop.namespace}
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec}


def _uid(shop: Shop) -> str:
    return str(shop.plane.api.get("apps/v1", "ReplicaSet", "once", shop.namespace)["metadata"]["uid"])


def test_a_suspended_project_is_planned_and_not_written(shop: Shop) -> None:
    """The stop switch of the one on call, in git."""
    shop.applied()
    before = {
        name: one["metadata"]["resourceVersion"]
        for name, one in shop.objects().items()
        if name[0] != "Deployment"
    }
    shop.options = {"suspend": True}
    shop.sizes = {"front": 5}
    shop.write()
    both_refuse(shop, "suspended", "suspend: true")
    assert "front.yaml" in shop.plan().out
    after = {
        name: one["metadata"]["resourceVersion"]
        for name, one in shop.objects().items()
        if name[0] != "Deployment"
    }
    assert after == before


# What the cluster lacks or forbids --------------------------------------------------------------------------------------------


def test_what_the_cluster_lacks_is_said_with_a_way_out(
    other: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the rest of the project does not wait for it."""
    monkeypatch.setenv("KUBECONFIG", str(other.kubeconfig))
    shop = Shop(tmp_path / "repository", other, other.namespace("lacks"))
    shop.write()
    done = shop.plan()
    assert "the cluster lacks Workflow of argoproj.io/v1alpha1: install Argo Workflows" in done.out, done.text
    shop.apply()
    assert other.api.get("apps/v1", "Deployment", "front", shop.namespace)


def test_a_missing_namespace_is_said_with_the_command(shop: Shop) -> None:
    """Nothing makes a namespace by accident: a typo would be one."""
    shop.namespace = "no-such-namespace"
    shop.write()
    for command in (shop.plan, shop.apply):
        refused(
            command(),
            "unavailable",
            "there is no namespace no-such-namespace",
            "kubectl create namespace no-such-namespace",
        )


def test_missing_permissions_are_told_before_the_first_write(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an apply is worse than none; whoever may do less than the admin is in the same cluster all the same."""
    everything = ["get", "list", "watch", "create", "patch", "update", "delete"]
    rules = [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": everything},
        {"apiGroups": [""], "resources": ["services", "serviceaccounts"], "verbs": everything},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "watch"]},
    ]
    token = shop.plane.service_account(shop.namespace, "robot", rules)
    kubeconfig = shop.plane.kubeconfig_for(token, shop.namespace)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    for command in (shop.plan, shop.apply):
        refused(
            command(), "forbidden",
            f"you may not create, patch, delete deployments.apps in {shop.namespace}",
            "horizontalpodautoscalers.autoscaling", "workflows.argoproj.io", "roles.rbac.authorization.k8s.io",
            "you may not get, list, watch pods",
        )  # fmt: skip
    assert shop.uids() == {}
    monkeypatch.setenv("KUBECONFIG", str(shop.plane.kubeconfig))
    shop.applied()
    identity = json.loads(shop.plan("--output", "json").out)["cluster"]
    more = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    token = shop.plane.service_account(shop.namespace, "deployer", more)
    monkeypatch.setenv("KUBECONFIG", str(shop.plane.kubeconfig_for(token, shop.namespace)))
    done = shop.plan("--output", "json", "--detailed-exitcode")
    assert (done.code, json.loads(done.out)["cluster"]) == (0, identity), done.text


def test_a_context_that_is_gone_is_told(shop: Shop) -> None:
    """Names it and the ones that are there; never the current one instead."""
    shop.target = {"context": "prod"}
    shop.write()
    refused(shop.plan(), "unavailable", "no context prod; it has: bed")
