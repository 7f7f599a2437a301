"""Permissions are known before the first write, against real RBAC."""

import pytest

from cluster import faults
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.kube.access import Right, missing
from mlspec_reconciler.clusters.kube.transport import Transport

REVIEWS = "selfsubject(access|rules)reviews"


def test_what_is_missing_is_told_and_nothing_else(control_plane, tmp_path):
    """Half of an apply is worse than none."""
    namespace = control_plane.namespace("access")
    rules = [
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "patch"]},
        {"apiGroups": [""], "resources": ["*"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["patch"], "resourceNames": ["ours"]},
    ]
    cluster_rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]
    token = control_plane.service_account(namespace, "robot", rules, cluster_rules=cluster_rules)
    transport = Transport.open(None, kubeconfig=control_plane.kubeconfig_for(token, namespace))
    have = [
        Right("get", "apps", "deployments", namespace),
        Right("patch", "apps", "deployments", namespace, "any"),
        Right("get", "", "pods", namespace),
        Right("get", "", "pods/log", namespace),
        Right("patch", "", "secrets", namespace, "ours"),
        Right("get", "", "namespaces", ""),
        Right("get", "", "namespaces", namespace),
    ]
    lack = [
        Right("delete", "apps", "deployments", namespace),
        Right("get", "apps", "deployments", "default"),
        Right("get", "batch", "jobs", namespace),
        Right("patch", "", "secrets", namespace),
        Right("patch", "", "secrets", namespace, "theirs"),
        Right("list", "", "namespaces", ""),
    ]
    wanted = [right for pair in zip(have, [*lack, lack[0]], strict=True) for right in pair]
    assert missing(transport, wanted) == lack


def test_one_review_answers_for_a_whole_namespace(control_plane, tmp_path):
    """A project has a hundred rights to ask for."""
    namespace = control_plane.namespace("access")
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    token = control_plane.service_account(namespace, "owner", rules)
    with faults.Proxy(control_plane.url) as proxy:
        transport = Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path, token))
        wanted = [
            Right(verb, "apps", f"things{number}", namespace)
            for verb in ("get", "patch")
            for number in range(50)
        ]
        assert missing(transport, wanted) == []
        assert proxy.count("POST", REVIEWS) == 1


@pytest.mark.parametrize("fault", [faults.Answer(500), faults.Answer(403), faults.Cut()])
def test_a_server_that_does_not_tell_is_no_refusal(control_plane, tmp_path, fault):
    """Nobody is told to ask for roles because a server is down."""
    with faults.Proxy(control_plane.url) as proxy:
        proxy.add(fault, path=REVIEWS)
        kubeconfig = proxy.kubeconfig(tmp_path, control_plane.admin_token)
        transport = Transport.open(None, kubeconfig=kubeconfig, budget=0.5)
        for namespace in ("default", ""):
            with pytest.raises(Unavailable):
                missing(transport, [Right("get", "", "pods", namespace)])
