"""The pages about Kubernetes are tried: the target is valid, and with the rights on them an account that has nothing else
plans, applies and destroys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from cluster.bed import crds
from cluster.bed.controlplane import ControlPlane
from cluster.rights import BLOCK, PAGES, rules
from cluster.shop import Shop
from mlspec import project

ROOT = Path(__file__).parents[2]
GATEWAY = "HTTPRoute"
"""Its right stands in a sentence, for those who have a Gateway."""


def emitted() -> set[tuple[str, str]]:
    """Every (apiVersion, kind) that the compiler makes for Kubernetes, by its golden files."""
    golden = ROOT / "tests" / "golden"
    files = [*(golden / "compile").glob("*.yaml"), *(golden / "render").glob("*.yaml")]
    bodies = [body for file in files for body in yaml.safe_load_all(file.read_text())]
    found = {(body["apiVersion"], body["kind"]) for body in bodies}
    return {(version, kind) for version, kind in found if "mlspec.dev" not in version}


@pytest.fixture
def shop(control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A repository, and an account with the rights of both pages."""
    crds.install(control_plane.api, "argo", "kueue")
    namespace = control_plane.namespace("pages")
    both = ("kubernetes.md", "gpu-pools.md")
    token = control_plane.service_account(
        namespace, "deployer", rules("Role", *both), cluster_rules=rules("ClusterRole", *both)
    )
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig_for(token, namespace)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Shop(tmp_path / "repository", control_plane, namespace)
    made.write()
    return made


def test_with_these_rights_a_project_is_applied_and_destroyed(shop: Shop) -> None:
    """The account of the pods is the hard part: nobody may give rights that they do not have, nor bind a role that is not
    there yet."""
    planned = shop.plan()
    assert planned.code == 0, planned.text
    shop.applied()
    assert ("RoleBinding", "shop-runtime") in shop.uids()
    removed = shop.run("destroy", "--yes")
    assert "Removed" in removed.out, removed.text
    assert shop.uids() == {}


def test_with_these_rights_every_object_may_be_written(shop: Shop, tmp_path: Path) -> None:
    """A kind that the compiler learns to make must come into the Role as well."""
    wanted = {(version, kind) for version, kind in emitted() if kind != GATEWAY}
    assert {"CronWorkflow", "PodDisruptionBudget", "ClusterQueue"} <= {kind for _, kind in wanted}
    account = Path(os.environ["KUBECONFIG"])
    cluster = shop.cluster(account, tmp_path / "discovery")
    try:
        assert list(cluster.forbidden(wanted)) == []
    finally:
        cluster.close()


def test_the_target_is_valid() -> None:
    """It is copied before anything else."""
    blocks = BLOCK.findall((PAGES / "kubernetes.md").read_text())
    [target] = [block for block in blocks if "kind: Project" in block]
    assert project.build({"target.yaml": target}, "page").diagnostics == ()
