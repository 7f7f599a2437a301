"""What an apply would do, from managedFields alone. The same is asked of a real API server in `test_kube_owned_live`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.histories import SPELLINGS, edited
from mlspec_reconciler.clusters.kube import owned
from mlspec_reconciler.clusters.kube.owned import ABSENT, Proof, differences, managers, owned_digest, proof

Body = dict[str, Any]
GOLDEN = Path(__file__).parents[1] / "golden" / "compile"
KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "protocol"),
}
ATOMIC = {
    "rules",
    "selector",
    "metrics",
    "tolerations",
    "nodeSelector",
    "nodeLabels",
    "resourceGroups",
    "templates",
}


def fields(value: Any, name: str = "") -> Body:
    """The FieldsV1 tree of an applied value, for the kinds that we emit."""
    if type(value) is dict and value and name not in ATOMIC:
        return {f"f:{key}": fields(below, key) for key, below in value.items()}
    if type(value) is list and name in KEYS and value:
        names = KEYS[name] if "port" not in value[0] else ("port", "protocol")
        return {
            "k:" + json.dumps({one: item.get(one, "TCP") for one in names}, separators=(",", ":")): {
                ".": {},
                **fields(item),
            }
            for item in value
        }
    return {}


def entry(body: Body, manager: str = "mlspec", operation: str = "Apply", **more: Any) -> Body:
    """One entry of managedFields: `manager` owns all fields of `body`."""
    metadata = {
        name: value for name, value in body.get("metadata", {}).items() if name not in ("name", "namespace")
    }
    rest = {name: value for name, value in body.items() if name not in ("apiVersion", "kind", "metadata")}
    tree = fields({**rest, **({"metadata": metadata} if metadata else {})})
    return {
        "manager": manager,
        "operation": operation,
        "apiVersion": body["apiVersion"],
        "fieldsType": "FieldsV1",
        "fieldsV1": tree,
        **more,
    }


def applied(wanted: Body, *others: Body) -> Body:
    """What is live right after an apply of `wanted`, with entries of other managers."""
    live = copy.deepcopy(wanted)
    live["metadata"] |= {"uid": "1", "resourceVersion": "7", "managedFields": [entry(wanted), *others]}
    return live


def golden(*kinds: str) -> Iterable[Body]:
    for path in sorted(GOLDEN.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if not document["apiVersion"].startswith("local.") and document["kind"] in (
                kinds or (document["kind"],)
            ):
                yield json.loads(json.dumps(document))


MANIFESTS = list(golden())


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: churn
  labels: {app: churn, mlspec.dev/name: churn}
  annotations: {mlspec.dev/origin: "specs.yaml:7"}
spec:
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}}
    spec:
      containers:
      - name: main
        image: runtime:1
        args: [serve]
        env: [{name: ROOT, value: /mlspec}, {name: HOME, value: /tmp}]
        resources: {requests: {cpu: "1", memory: 2Gi}}
        ports: [{name: http, containerPort: 8080, protocol: TCP}]
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}, {name: storage, persistentVolumeClaim: {claimName: claim}}]
"""


def deployment() -> Body:
    body: Body = yaml.safe_load(DEPLOYMENT)
    return body


def main(body: Body) -> Body:
    container: Body = body["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("wanted", MANIFESTS, ids=lambda body: f"{body['kind']}-{body['metadata']['name']}")
def test_what_was_just_applied_holds(wanted: Body) -> None:
    """Otherwise every plan would ask the server about every object."""
    live = applied(wanted)
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    assert differences(wanted, live, "mlspec") == []


@given(st.sampled_from(MANIFESTS), st.randoms(use_true_random=False))
def test_no_edit_of_what_we_want_goes_unseen(wanted: Body, random: Any) -> None:
    """A change that a plan does not show is never made."""
    new = edited(random, wanted, 1)
    if proof(new, applied(wanted), "mlspec") is Proof.HOLDS:
        assert _same(_plain(new), _plain(wanted))


def _plain(body: Body) -> Body:
    """Without annotations of ours."""
    body = copy.deepcopy(body)
    notes = {
        k: v for k, v in body["metadata"].get("annotations", {}).items() if not k.startswith("mlspec.dev/")
    }
    body["metadata"].pop("annotations", None)
    return body if not notes else {**body, "notes": notes}


def _same(new: Any, old: Any) -> bool:
    """Whether two values are equal but for the writing of quantities."""
    if type(new) is dict and type(old) is dict:
        return new.keys() == old.keys() and all(_same(new[key], old[key]) for key in new)
    if type(new) is list and type(old) is list:
        return len(new) == len(old) and all(map(_same, new, old))
    return bool(new == old) or (str(old) in SPELLINGS and new in SPELLINGS[str(old)])


def test_defaults_and_fields_of_others_are_no_drift() -> None:
    """The defect that users of other reconcilers hate most: permanent differences that nobody made."""
    wanted = deployment()
    live = applied(
        wanted, entry({"apiVersion": "apps/v1", "metadata": {"labels": {"team": "a"}}}, "kubectl", "Update")
    )
    digest = owned_digest(live, "mlspec")
    live["metadata"]["labels"]["team"] = "a"
    live["spec"]["revisionHistoryLimit"] = 10
    main(live)["terminationMessagePath"] = "/dev/termination-log"
    main(live)["env"].insert(0, {"name": "INJECTED", "value": "1"})
    live["spec"]["template"]["spec"]["containers"].insert(0, {"name": "sidecar", "image": "proxy:1"})
    live["status"] = {"replicas": 1}
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    assert differences(wanted, live, "mlspec") == []
    assert owned_digest(live, "mlspec") == digest


def test_a_moved_line_in_git_is_no_change() -> None:
    """The annotation that says where an object came from changes with every edit above it."""
    wanted = deployment()
    live = applied(wanted)
    wanted["metadata"]["annotations"] = {"mlspec.dev/origin": "specs.yaml:99", "mlspec.dev/digest": "new"}
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    wanted["metadata"]["annotations"]["team"] = "a"
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [(("metadata", "annotations", "team"), ABSENT, "a")]


def test_a_changed_value_shows_in_the_place_where_it_is_live() -> None:
    """A plan points at the item of the live list, also when others put theirs before it."""
    wanted = deployment()
    live = applied(wanted)
    live["spec"]["template"]["spec"]["containers"].insert(0, {"name": "sidecar", "image": "proxy:1"})
    main(wanted)["image"] = "runtime:2"
    path = ("spec", "template", "spec", "containers", 1, "image")
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [(path, "runtime:1", "runtime:2")]
    assert managers(live, path) == ["mlspec"]


def test_a_value_that_somebody_took_over_differs_and_names_him() -> None:
    """kubectl edit ends our ownership; the plan says whose value it would overwrite."""
    wanted = deployment()
    live = applied(wanted)
    path = ("spec", "template", "spec", "containers", 0, "image")
    digest = owned_digest(live, "mlspec")
    key = 'k:{"name":"main"}'
    containers = live["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"][
        "f:containers"
    ]
    del containers[key]["f:image"]
    main(live)["image"] = "mine:1"
    theirs = {"f:spec": {"f:template": {"f:spec": {"f:containers": {key: {"f:image": {}}}}}}}
    live["metadata"]["managedFields"].append(
        {"manager": "kubectl-edit", "operation": "Update", "apiVersion": "apps/v1", "fieldsV1": theirs}
    )
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [(path, "mine:1", "runtime:1")]
    assert managers(live, path) == ["kubectl-edit"]
    assert owned_digest(live, "mlspec") != digest


def test_the_order_of_items_is_a_part_of_what_is_applied() -> None:
    """The order of env decides what $(NAME) sees; a comparison of sets would miss it."""
    wanted = deployment()
    live = applied(wanted)
    main(wanted)["env"].reverse()
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [
        (
            ("spec", "template", "spec", "containers", 0, "env"),
            ["ROOT", "HOME"],
            ["HOME", "ROOT"],
        )
    ]


def test_what_we_give_up_goes_unless_somebody_else_owns_it() -> None:
    """Server-side apply removes a field with its last owner."""
    wanted = deployment()
    live = applied(wanted)
    volume = wanted["spec"]["template"]["spec"]["volumes"].pop()
    path = ("spec", "template", "spec", "volumes", 1)
    assert differences(wanted, live, "mlspec") == [(path, volume, ABSENT)]
    body = {"apiVersion": "apps/v1", "spec": {"template": {"spec": {"volumes": [volume]}}}}
    live["metadata"]["managedFields"].append(entry(body, "other"))
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == []


def test_a_map_that_is_wanted_empty_loses_what_we_own_in_it() -> None:
    """`labels: {}` after labels were applied removes ours, and only ours."""
    wanted = deployment()
    live = applied(wanted, entry({"apiVersion": "apps/v1", "metadata": {"labels": {"team": "a"}}}, "other"))
    live["metadata"]["labels"]["team"] = "a"
    wanted["metadata"]["labels"] = {}
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [
        (("metadata", "labels", "app"), "churn", ABSENT),
        (("metadata", "labels", "mlspec.dev/name"), "churn", ABSENT),
    ]


def test_the_defaults_inside_a_value_that_is_applied_whole_are_not_shown() -> None:
    """A change of a weight is a change of a weight, although the list of rules is atomic."""
    rule = {"backendRefs": [{"name": "a", "port": 80, "weight": 90}, {"name": "b", "port": 80, "weight": 10}]}
    wanted: Body = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "a"},
        "spec": {"rules": [rule]},
    }
    live = applied(wanted)
    live["spec"]["rules"][0]["matches"] = [{"path": {"type": "PathPrefix", "value": "/"}}]
    for one in live["spec"]["rules"][0]["backendRefs"]:
        one |= {"group": "", "kind": "Service"}
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    rule["backendRefs"][1]["weight"] = 20
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [(("spec", "rules", 0, "backendRefs", 1, "weight"), 10, 20)]


def test_taking_a_field_over_at_its_value_changes_its_owners_alone() -> None:
    """It is no no-op (the field would be ours from now on), and it shows no change of a value."""
    wanted = deployment()
    live = applied(wanted)
    live["spec"]["revisionHistoryLimit"] = wanted["spec"]["revisionHistoryLimit"] = 10
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == []


def test_an_object_of_somebody_else_shows_only_the_values_that_change() -> None:
    """Adoption: we own nothing yet, and most values may be as we want them."""
    wanted = deployment()
    live = applied(wanted)
    live["metadata"]["managedFields"] = [entry(wanted, "kubectl", "Update")]
    main(live)["image"] = "theirs:1"
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [
        (
            ("spec", "template", "spec", "containers", 0, "image"),
            "theirs:1",
            "runtime:1",
        )
    ]


@pytest.mark.parametrize("cpu", ["0.5", "500m", "0.50"])
def test_a_quantity_in_another_writing_is_the_same(cpu: str) -> None:
    """People write 0.5, the server keeps 500m. After a later applier it would move our entry of managedFields."""
    wanted = deployment()
    main(wanted)["resources"]["requests"]["cpu"] = "500m"
    live = applied(wanted)
    main(wanted)["resources"]["requests"]["cpu"] = cpu
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    assert differences(wanted, live, "mlspec") == []
    live["metadata"]["managedFields"].append(entry({"apiVersion": "apps/v1"}, "other"))
    assert proof(wanted, live, "mlspec") is (Proof.HOLDS if cpu == "500m" else Proof.UNKNOWN)
    live["metadata"]["managedFields"][0]["time"] = "2026-01-01T00:00:01Z"
    live["metadata"]["managedFields"][1]["time"] = "2026-01-01T00:00:00Z"
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    main(wanted)["resources"]["requests"]["cpu"] = "501m"
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS


def test_a_quantity_in_another_family_of_suffixes_is_another_text() -> None:
    """The server keeps the family: 2147483648 bytes are written as such, in the place of 2Gi."""
    wanted = deployment()
    live = applied(wanted)
    for text, expected in (("2048Mi", "holds"), ("2147483648", "differs"), ("2147483648e0", "differs")):
        main(wanted)["resources"]["requests"]["memory"] = text
        assert proof(wanted, live, "mlspec") == expected


def test_text_that_looks_like_a_quantity_is_asked() -> None:
    """A label is no quantity, and without the schema nobody knows what a field of a custom resource is."""
    wanted = deployment()
    wanted["metadata"]["labels"]["weight"] = "500m"
    live = applied(wanted)
    wanted["metadata"]["labels"]["weight"] = "0.5"
    assert proof(wanted, live, "mlspec") is Proof.UNKNOWN


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda entry: entry.update(apiVersion="apps/v1beta1"), id="our set is of another version"
        ),
        pytest.param(lambda entry: entry["fieldsV1"]["f:spec"].update({"i:0": {}}), id="an index"),
        pytest.param(
            lambda entry: entry["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:volumes"].update(
                {'k:{"name":"ghost"}': {".": {}}}
            ),
            id="an owned item that is nowhere",
        ),
    ],
)
def test_what_does_not_fit_never_holds(change: Any) -> None:
    """Doubt costs one dry run, a wrong HOLDS costs the change."""
    wanted = deployment()
    live = applied(wanted)
    change(live["metadata"]["managedFields"][0])
    assert proof(wanted, live, "mlspec") is not Proof.HOLDS


def test_another_manager_in_another_version_is_asked() -> None:
    """The server converts the object to that version and back."""
    wanted = next(iter(golden("HorizontalPodAutoscaler")))
    live = applied(wanted, {**entry(wanted, "old", "Update"), "apiVersion": "autoscaling/v1"})
    assert proof(wanted, live, "mlspec") is Proof.UNKNOWN


def test_an_entry_of_ours_for_a_subresource_or_an_update_is_not_what_we_applied() -> None:
    """Only the Apply entry of the object itself says what an apply would give up."""
    wanted = deployment()
    for other in (entry(wanted, subresource="status"), entry(wanted, operation="Update")):
        live = applied(wanted)
        live["metadata"]["managedFields"] = [other]
        assert proof(wanted, live, "mlspec") is Proof.DIFFERS


def test_string_data_of_a_secret_is_asked() -> None:
    """The server turns stringData into data, so it is never live."""
    wanted = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"a": "b"}}
    assert proof(wanted, applied(wanted), "mlspec") is Proof.UNKNOWN


def test_a_port_without_its_protocol_is_found_by_the_default_key() -> None:
    """`protocol` is a part of the key of a port and has a default."""
    wanted = deployment()
    del main(wanted)["ports"][0]["protocol"]
    live = applied(wanted)
    main(live)["ports"][0]["protocol"] = "TCP"
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    main(wanted)["ports"].append({"containerPort": 9090})
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    assert differences(wanted, live, "mlspec") == [
        (("spec", "template", "spec", "containers", 0, "ports", 1), ABSENT, {"containerPort": 9090})
    ]


def test_a_map_that_was_applied_empty_and_filled_by_others_is_not_atomic() -> None:
    """Equal values are not enough: we would become an owner of the label."""
    wanted = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "labels": {}},
        "data": {"a": "b"},
    }
    other = entry({"apiVersion": "v1", "metadata": {"labels": {"team": "a"}}}, "other")
    live = applied(wanted, other)
    live["metadata"]["labels"] = {"team": "a"}
    assert proof(wanted, live, "mlspec") is Proof.HOLDS
    digest = owned_digest(live, "mlspec")
    live["metadata"]["labels"] = {"team": "b"}
    assert owned_digest(live, "mlspec") == digest
    wanted["metadata"]["labels"] = {"team": "b"}
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS


@pytest.mark.parametrize("metadata", [{"finalizers": []}, {"ownerReferences": [], "finalizers": []}])
def test_empty_lists_of_items_are_asked(metadata: Body) -> None:
    """They own nothing; whether a list is one of items only the schema says."""
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}}
    live = applied(wanted)
    assert proof({**wanted, "metadata": {"name": "a", **metadata}}, live, "mlspec") is Proof.UNKNOWN


def test_true_is_not_one() -> None:
    """In Python they are equal, in JSON they are not."""
    wanted = {
        "apiVersion": "a.example/v1",
        "kind": "A",
        "metadata": {"name": "a"},
        "spec": {"on": True, "of": [1]},
    }
    live = applied(wanted)
    wanted["spec"] = {"on": 1, "of": [1]}
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS
    wanted["spec"] = {"on": True, "of": [True]}
    assert proof(wanted, live, "mlspec") is Proof.DIFFERS


def test_a_digest_of_an_object_without_our_entry_is_stable() -> None:
    """A saved plan of an adoption compares it too."""
    live = applied(deployment())
    live["metadata"]["managedFields"] = []
    digest = owned_digest(live, "mlspec")
    live["spec"] = {}
    assert owned_digest(live, "mlspec") == digest


def test_our_annotations_do_not_count_in_a_digest() -> None:
    """A saved plan is not stale because a line moved."""
    live = applied(deployment())
    digest = owned_digest(live, "mlspec")
    live["metadata"]["annotations"]["mlspec.dev/origin"] = "other.yaml:1"
    assert owned_digest(live, "mlspec") == digest
    live["metadata"]["labels"]["mlspec.dev/name"] = "other"
    assert owned_digest(live, "mlspec") != digest


def test_managers_of_a_whole_value_of_a_part_and_of_nothing() -> None:
    """Atomic values have one owner for all that is in them."""
    live = applied(
        deployment(), entry({"apiVersion": "apps/v1", "spec": {"paused": True}}, "other", "Update")
    )
    assert managers(live, ("spec",)) == ["mlspec", "other"]
    assert managers(live, ("spec", "paused")) == ["other"]
    assert managers(live, ("spec", "selector", "matchLabels", "app.kubernetes.io/name")) == ["mlspec"]
    assert managers(live, ("spec", "nothing")) == []
    assert repr(owned.ABSENT) == "absent"
