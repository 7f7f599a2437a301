"""`mlspec retry` without an Argo Server: one failed run is made anew, as the next apply would make it, and nothing else is
touched. Pods are simulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.bed import kwok, simulation
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import wait_for
from cluster.shop import Shop

DATASETS = ("rows", "lines")
FAIL = {"outcome": "fail", "exit-code": "2"}


@pytest.fixture
def shop(gpu_pool: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A repository of two datasets whose runs have failed."""
    monkeypatch.setenv("KUBECONFIG", str(gpu_pool.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    simulation.install(gpu_pool.api)
    namespace = gpu_pool.namespace("retry")
    kwok.claim(gpu_pool.api, namespace, "data")
    target = {"image": "registry.example/runtime:1"}
    made = Shop(tmp_path / "shop", gpu_pool, namespace, graphs=(), datasets=DATASETS, target=target)
    made.write()
    wishes = {f"{one}.{word}": value for one in DATASETS for word, value in FAIL.items()}
    simulation.wish(gpu_pool.api, namespace, wishes)
    made.apply()
    wait_for(lambda: phases(made) == dict.fromkeys(DATASETS, "Failed"), "the runs to fail", timeout=60)
    simulation.wish(gpu_pool.api, namespace, {"rows.outcome": "succeed"})
    yield made
    assert "Removed" in made.run("destroy", "--yes").out


def runs(shop: Shop) -> dict[str, str]:
    """Dataset -> the name of its run."""
    found = [name for kind, name in shop.objects() if kind == "Workflow"]
    return {one: next(name for name in found if one in name) for one in DATASETS}


def phases(shop: Shop) -> dict[str, str]:
    """Dataset -> what Argo says of its run; without those that are not there."""
    found = {name: one for (kind, name), one in shop.objects().items() if kind == "Workflow"}
    return {
        one["metadata"]["labels"]["mlspec.dev/name"]: one.get("status", {}).get("phase", "")
        for one in found.values()
    }


def test_only_the_run_that_was_named_is_made_anew(shop: Shop) -> None:
    """The other may have failed for a reason that is not mended yet, and costs as much again."""
    before, name = shop.uids(), runs(shop)
    done = shop.run("retry", name["rows"], "--yes")
    assert (done.code, done.err) == (0, ""), done.text
    wait_for(lambda: phases(shop).get("rows") == "Succeeded", "the run to succeed", timeout=60)
    after = shop.uids()
    assert {key for key in before if after.get(key) != before[key]} == {("Workflow", name["rows"])}
    again = shop.run("retry", name["rows"], "--yes")
    assert again.code == 1
    assert f"these have: {name['lines']}" in again.err


def test_what_a_run_needs_is_made_again_before(shop: Shop) -> None:
    """A run without its code would only wait for a volume that never comes."""
    name = runs(shop)["rows"]
    [code] = [each for kind, each in shop.objects() if kind == "ConfigMap" and each.startswith(name)]
    shop.plane.api.delete("v1", "ConfigMap", code, shop.namespace)
    done = shop.run("retry", name, "--yes")
    assert done.code == 0, done.text
    assert ("ConfigMap", code) in shop.uids()
    wait_for(lambda: phases(shop).get("rows") == "Succeeded", "the run to succeed", timeout=60)


def test_nothing_starts_while_the_project_is_suspended(shop: Shop) -> None:
    """Somebody has said that nothing is written."""
    name = runs(shop)["rows"]
    shop.options = {"suspend": True}
    shop.write()
    assert "error[suspended]" in shop.apply().err
    before = shop.uids()
    done = shop.run("retry", name, "--yes")
    assert (done.code, "error[suspended]" in done.err) == (1, True), done.text
    assert shop.uids() == before
    shop.options = {}
    shop.write()
