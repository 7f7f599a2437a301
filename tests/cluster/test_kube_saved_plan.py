"""A saved plan on a real API server: it is performed as it was reviewed, or refused with the name of what moved."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cluster.bed.controlplane import ControlPlane
from cluster.shop import Done, Shop, emit, with_runs


@pytest.fixture(autouse=True)
def user(control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shop(control_plane: ControlPlane, tmp_path: Path) -> Shop:
    """A repository whose next revision updates a graph and removes the other one."""
    made = Shop(tmp_path / "repository", with_runs(control_plane), control_plane.namespace("saved"))
    made.applied()
    made.sizes = {"front": 4}
    made.graphs = ("front",)
    made.write()
    return made


def save(shop: Shop) -> dict[str, object]:
    """Save the plan; the live objects that it changes, as `Kind name`."""
    done = shop.plan("--out", "plan.json")
    assert "Saved. Apply exactly this with: mlspec apply plan.json" in done.err, done.text
    document = json.loads((shop.root / "plan.json").read_text())
    return {key: one for change in document["changes"].values() for key, one in change.items()}


def apply(shop: Shop) -> Done:
    return shop.apply("plan.json")


def stale(shop: Shop) -> list[str]:
    """The sentences with which the saved plan is refused; nothing was changed."""
    before = shop.uids()
    done = apply(shop)
    assert done.code == 1
    assert "error[stale-plan]: the plan does not hold any more; nothing was changed" in done.err, done.text
    assert shop.uids() == before
    return [line.strip() for line in done.err.splitlines()[1:] if line.strip()]


def test_each_planned_object_that_moved_is_named_and_no_other(shop: Shop) -> None:
    """A reviewer said yes to these objects in this state; what a controller reports of them is no state of theirs."""
    planned = [name for name, one in save(shop).items() if one["uid"]]
    assert len(planned) == 7, planned
    place = {name: (name.split(" ")[1], name.rpartition("/")[2]) for name in planned}
    for name in planned:
        shop.edit(*place[name], {"metadata": {"labels": {"seen": "by-somebody"}}})
        [sentence] = stale(shop)
        assert sentence.endswith(f"{name.split(' ', 1)[1]} was edited meanwhile")
        save(shop)
    for name in planned:
        if place[name][0] in ("Deployment", "Service", "HorizontalPodAutoscaler"):
            shop.remake(*place[name], marks=True)
            [sentence] = stale(shop)
            assert sentence.endswith(f"{name.split(' ', 1)[1]} was deleted and made again meanwhile")
            save(shop)
    remain = [name for name, one in save(shop).items() if one["uid"]]
    assert len(remain) < len(planned), "what somebody made again is not ours to delete"
    for name in remain:
        kind, called = place[name]
        shop.plane.api.delete(shop.version(kind), kind, called, shop.namespace)
        [sentence] = stale(shop)
        words = "was deleted meanwhile" if called == "front" else "is gone already"
        assert sentence.endswith(f"{name.split(' ', 1)[1]} {words}"), sentence
        save(shop)


def test_what_the_objects_do_meanwhile_is_no_matter(shop: Shop) -> None:
    """A review takes hours; pods come and go, and a rollout counts its revisions."""
    save(shop)
    before = shop.live("Deployment", "front")["metadata"]["resourceVersion"]
    for kind in ("Deployment", "HorizontalPodAutoscaler"):
        path = shop.plane.api.path(
            shop.live(kind, "front") | {"apiVersion": shop.version(kind), "kind": kind}
        )
        change = {
            "metadata": {"annotations": {"example.org/rollout": "7"}},
            "status": {"conditions": [{"type": "Tested", "status": "True", "reason": "T", "message": "t"}]},
        }
        shop.plane.api.request(
            "PATCH",
            f"{path}/status",
            change,
            content_type="application/merge-patch+json",
            fieldManager="robot",
        )
    assert shop.live("Deployment", "front")["metadata"]["resourceVersion"] != before
    done = apply(shop)
    assert "HorizontalPodAutoscaler front changed" in done.out, done.text
    assert ("Deployment", "back") not in shop.uids()
    assert shop.plan("--detailed-exitcode").code == 0


def test_specs_and_code_that_were_edited_are_named(shop: Shop) -> None:
    """Also when no object shows it yet: a resource that waits has none."""
    save(shop)
    spec = (shop.root / "front.yaml").read_text()
    (shop.root / "front.yaml").write_text(spec.replace("maxRows: 4000", "maxRows: 4001"))
    found = stale(shop)
    assert "ServingGraph/front: was edited after the plan was made" in found
    assert not [one for one in found if "back" in one or "rows" in one.split(":")[0]]
    (shop.root / "front.yaml").write_text(spec)
    code = (shop.root / "steps.py").read_text()
    (shop.root / "steps.py").write_text(code.replace("* 2", "* 3"))
    found = stale(shop)
    assert [one for one in found if one.startswith("code ") and "was edited" in one]
    assert not [one for one in found if "back" in one]
    (shop.root / "steps.py").write_text(code)
    shop.graphs = ("front", "back")
    shop.write()
    assert "ServingGraph/back: was edited after the plan was made" in stale(shop)


def test_what_is_not_in_the_plan_is_not_done(shop: Shop) -> None:
    """An object that somebody changed meanwhile would be changed back: nobody has reviewed that."""
    save(shop)
    shop.edit("Role", "shop-runtime", {"rules": []})
    [sentence] = stale(shop)
    assert "Role" in sentence
    assert "would be written now, but not in the plan" in sentence


def test_a_plan_is_for_its_cluster(shop: Shop) -> None:
    """The same file against another namespace is another plan."""
    save(shop)
    shop.namespace, home = shop.plane.namespace("saved"), shop.namespace
    shop.write()
    [sentence] = stale(shop)
    assert f"/{home}, this is" in sentence
    assert sentence.startswith("the plan was made for the cluster kubernetes/")


def test_a_secret_in_a_plan_cannot_be_guessed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the file of a pipeline could try every four-digit number against a plain digest."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "pin", "namespace": shop.namespace},
        "data": {"pin": "MTIzNA=="},
    }
    emit(monkeypatch, secret)
    save(shop)
    key = shop.root / ".mlspec" / "plan.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    other = {**secret, "data": {"pin": "NDMyMQ=="}}
    emit(monkeypatch, other)
    [sentence] = stale(shop)
    assert sentence.endswith(f"Secret {shop.namespace}/pin would be another one now")
    emit(monkeypatch, secret)
    kept = key.read_bytes()
    key.unlink()
    [sentence] = stale(shop)
    assert sentence.endswith("can be compared only in the clone where the plan was made")
    key.write_bytes(kept)
    assert "Secret pin created" in apply(shop).out
    notes = [
        shop.plane.api.get("v1", "Secret", "pin", shop.namespace)["metadata"]["annotations"][
            "mlspec.dev/digest"
        ]
    ]
    emit(monkeypatch, other)
    assert "Secret pin changed" in shop.apply().out
    live = shop.plane.api.get("v1", "Secret", "pin", shop.namespace)
    assert live["data"] == other["data"]
    assert notes == [live["metadata"]["annotations"]["mlspec.dev/digest"]], "the same for every value"
    assert shop.plan("--detailed-exitcode").code == 0
