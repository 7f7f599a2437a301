"""The rounds of an apply on a real API server: what is done after somebody said yes, while the world goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster import faults
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import wait_for
from cluster.shop import Shop, with_runs
from mlspec_reconciler.apply import Outcome
from mlspec_reconciler.drivers.once import reconcile
from mlspec_reconciler.plan import Action
from mlspec_reconciler.step import Consent, Observation


@pytest.fixture
def shop(control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A repository that is not applied yet."""
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Shop(tmp_path / "repository", with_runs(control_plane), control_plane.namespace("rounds"))
    made.write()
    return made


def test_only_deletions_that_were_shown_are_made(shop: Shop) -> None:
    """Between the plan that somebody said yes to and the first round, another revision may have been applied."""
    shop.applied()
    shop.graphs = ("front",)
    shop.write()
    project, wanted = shop.opened()
    cluster = shop.cluster(shop.plane.kubeconfig, shop.root / ".discovery")
    shown: list[Observation] = []
    deadline = time.monotonic()
    for agreed in (frozenset[str](), frozenset(["ServingGraph/back"])):
        before = shop.uids()
        consent = Consent(deletes=agreed)
        reconcile(
            wanted,
            cluster,
            cluster.state,
            project.workspace.lock,
            lambda seen, _: shown.append(seen),
            consent,
            deadline=deadline,
        )
        assert (("Deployment", "back") in shop.uids()) == (not agreed)
        assert ("Deployment", "front") in before
    cluster.close()
    assert [len(seen.plan.of(Action.DELETE)) for seen in shown] == [0, 1]


def test_a_write_that_never_lasts_is_said_and_not_repeated_for_ever(shop: Shop) -> None:
    """A webhook that puts its own value in: each apply succeeds, and none does anything."""
    name = shop.namespace
    rules = [{"apiGroups": ["autoscaling"], "apiVersions": ["v2"], "operations": ["*"], "resources": ["*"]}]
    inside = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    expression = "Object{spec: Object.spec{maxReplicas: 9}}"
    spec = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": rules, "namespaceSelector": inside},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
    }
    group = "admissionregistration.k8s.io/v1"
    policy = {
        "apiVersion": group,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }
    binding = {**policy, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name}}
    shop.plane.apply([policy, binding])
    try:
        shop.apply()
        wait_for(lambda: _pokes(shop) == 9, "the admission policy to mutate")
        with faults.Proxy(shop.plane.url) as proxy:
            project, wanted = shop.opened()
            kubeconfig = proxy.kubeconfig(shop.root.parent, shop.plane.admin_token)
            cluster = shop.cluster(kubeconfig, shop.root / ".discovery")
            last: list[list[Outcome]] = []
            begun = time.monotonic()
            reconcile(
                wanted,
                cluster,
                cluster.state,
                project.workspace.lock,
                lambda _, outcomes: last.append(outcomes),
                deadline=begun + 60,
            )
            cluster.close()
        errors = {one.write.key.name: one.error for one in last[-1] if one.error}
        words = "is written again and again, and is not as it was applied: somebody changes it back"
        assert errors["back"] == f"HorizontalPodAutoscaler back {words}"
        writes = [one for one in proxy.done if one[0] == "PATCH" and "horizontalpodautoscalers" in one[1]]
        assert len(writes) <= 2 * 10
        assert proxy.busiest(1.0) < 60
    finally:
        for one in (policy, binding):
            shop.plane.api.delete(group, str(one["kind"]), name)


def _pokes(shop: Shop) -> int:
    """The value that an edit of ours ends up with."""
    shop.edit(
        "HorizontalPodAutoscaler", "back", {"metadata": {"annotations": {"poked": str(time.monotonic())}}}
    )
    return int(shop.live("HorizontalPodAutoscaler", "back")["spec"]["maxReplicas"])
