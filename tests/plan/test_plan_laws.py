"""Laws of plan and apply over random repositories: what makes it safe to run them again, and to kill them anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlspec.manifest import Key
from mlspec.workload import code_key
from mlspec_reconciler import inventory, load
from mlspec_reconciler.bundle import Bundle
from mlspec_reconciler.cluster import Conflict, Object
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.state import Put, Session
from mlspec_reconciler.step import DesiredState
from plan.playing import Script, end, settle
from stepping import look, perform

LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WINDOWS = ("1h", "3h", "1d")
Draw = Mapping[str, int]
"""Slot -> 0 when the resource is not in the repository, otherwise which variant of it."""

SLOTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "d0": ("Dataset", ()),
    "d1": ("Dataset", ()),
    "s0": ("FeatureSet", ("d0",)),
    "v0": ("FeatureView", ("d0", "s0")),
    "j0": ("TrainingJob", ("d1",)),
    "j1": ("TrainingJob", ("v0",)),
    "g0": ("ServingGraph", ("j0",)),
    "g1": ("ServingGraph", ("j1", "v0")),
    "r0": ("Receiver", ()),
    "p0": ("MonitoringPolicy", ("g0", "r0")),
}
repositories = st.fixed_dictionaries({slot: st.integers(0, 3) for slot in SLOTS})


def spec(slot: str, variant: int) -> dict[str, Any]:
    """One of three variants of each resource."""
    match slot:
        case "d0" | "d1":
            return {
                "source": {"function": "load.py:rows", "parameters": {"year": 2010 + variant}},
                "key": ["id"],
                "time": {"event": "at", "delay": "0s"},
            }
        case "s0":
            return {
                "dataset": "d0",
                "key": ["id"],
                "features": {"mean": {"mean": "x", "window": WINDOWS[variant - 1]}},
            }
        case "v0":
            return {
                "ask": {"dataset": "d0", "at": "at"},
                "label": f"x > {variant}",
                "features": [{"set": "s0", "prefix": "s_"}],
            }
        case "j0" | "j1":
            use = {"dataset": "d1", "label": "x > 1"} if slot == "j0" else {"view": "v0"}
            return {
                "function": "train.py:train",
                "data": {"train": {**use, "share": [0, 0.5]}, "test": {**use, "share": [0.5, 1]}},
                "parameters": {"depth": variant},
                "gates": [{"metric": "auc", "min": 0.6 if variant < 3 else 0.9}],
            }
        case "g0":
            return {"steps": {"model": {"model": "j0"}}, "scale": {"min": 1, "max": variant}}
        case "g1":
            return {"steps": {"features": {"view": "v0"}, "model": {"model": "j1", "after": ["features"]}}}
        case "r0":
            return {"webhook": {"url": f"http://localhost/{variant}"}}
        case _:
            return {
                "graph": "g0",
                "alerts": {"drift": {"drift": {"minEffect": variant / 20}}},
                "actions": [{"when": "any", "notify": "r0"}],
            }


def repository(draw: Draw, target: Mapping[str, Any] | None = None) -> DesiredState:
    """The project of a draw on a target, this machine by default; resources whose references are missing are left out."""
    kept: dict[str, dict[str, Any]] = {}
    for slot, (kind, needs) in SLOTS.items():
        if draw[slot] and all(need in kept for need in needs):
            head = {"apiVersion": "mlspec.dev/v1alpha1", "kind": kind, "metadata": {"name": slot}}
            kept[slot] = head | {"spec": spec(slot, draw[slot])}
    project = {
        "apiVersion": "mlspec.dev/v1alpha1",
        "kind": "Project",
        "metadata": {"name": "random"},
        "spec": {"targets": {"random": target or {"local": {}}}},
    }
    text = yaml.safe_dump_all([project, *kept.values()], sort_keys=False)
    loaded = load.build({"specs.yaml": text}, (), Path("/random"))
    assert loaded.project is not None, loaded.diagnostics
    entries = {"load.py:rows": "a" * 64, "train.py:train": "b" * 64}
    code = {
        code_key("specs.yaml", entry): Bundle(digest, {entry.partition(":")[0]: b"# never runs\n"})
        for entry, digest in entries.items()
    }
    return DesiredState(loaded.project, loaded.project.settings.targets["random"], code)


def state(cluster: MemoryCluster) -> dict[Key, Any]:
    """What a cluster holds, without identities."""
    return {one.key: (one.body, one.annotations) for one in cluster.list() if one.key.kind != "Run"}


class Killed(BaseException):
    """The process dies here."""


def held(cluster: MemoryCluster) -> inventory.Inventory:
    """What the inventory holds."""
    return inventory.read(Session.open(cluster.state, "test"), cluster.identity)


class Fragile(MemoryCluster):
    """Dies at the write after `left` more; checks that each write was announced in the inventory."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 10**9
        kept = self.state
        commit = kept.commit

        def one_by_one(token: int, writes: Sequence[Put]) -> None:
            """As ConfigMaps are written: killed in between, the first rows are there."""
            for put in writes:
                self.left -= 1
                if self.left < 0:
                    raise Killed
                commit(token, [put])

        kept.commit = one_by_one  # type: ignore[method-assign]

    def _announced(self, key: Key) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        assert any(key in entry.objects for entry in held(self).entries.values()), f"{key} is not announced"

    def create(self, body: Mapping[str, Any], annotations: Mapping[str, str]) -> Object:
        meta = body["metadata"]
        self._announced(Key(body["apiVersion"], body["kind"], meta.get("namespace", ""), meta["name"]))
        return super().create(body, annotations)

    def delete(self, key: Key, uid: str) -> None:
        self._announced(key)
        super().delete(key, uid)


@LAWS
@given(st.lists(repositories, min_size=1, max_size=3))
def test_after_apply_nothing_is_left_to_do(draws: list[Draw]) -> None:
    """plan(apply(plan)) is empty, and applying again touches no object: a quiet loop stays quiet."""
    cluster = Fragile()
    for draw in draws:
        wanted = repository(draw)
        settle(wanted, cluster, Script())
        assert look(wanted, cluster).plan.empty
        versions = {one.key: one.version for one in cluster.list()}
        assert settle(wanted, cluster, Script()) == []
        assert versions == {one.key: one.version for one in cluster.list()}


@LAWS
@given(repositories, repositories, st.integers(0, 12), st.integers(0, 12))
def test_a_killed_apply_is_finished_by_the_next(before: Draw, after: Draw, first: int, second: int) -> None:
    """Killed between any two writes, twice: the next apply reaches the same state, and nothing is forgotten."""
    cluster, smooth = Fragile(), MemoryCluster()
    for draw, budget in ((before, first), (after, second)):
        wanted = repository(draw)
        settle(wanted, smooth, Script())
        cluster.left = budget
        try:
            settle(wanted, cluster, Script())
        except Killed:
            cluster.left = 10**9
            settle(wanted, cluster, Script())
        cluster.left = 10**9
        assert state(cluster) == state(smooth)
        announced = {key for entry in held(cluster).entries.values() for key in entry.objects}
        assert {one.key for one in cluster.list()} <= announced


@LAWS
@given(
    st.lists(repositories, min_size=1, max_size=2), st.lists(st.sampled_from(["g0", "g1", "x"]), unique=True)
)
def test_what_others_made_is_never_touched(draws: list[Draw], names: list[str]) -> None:
    """Objects that mlspec has not made survive every edit and a destroy, also when they carry our names."""
    cluster = MemoryCluster()
    for name in names:
        body = {
            "apiVersion": "local.mlspec.dev/v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"theirs": 1},
        }
        cluster.create(body, {})
    theirs = {one.key: one for one in cluster.list()}
    for draw in draws:
        wanted = repository(draw)
        for _ in range(8):
            seen = look(wanted, cluster)
            for outcome in perform(wanted, cluster, seen):
                assert not outcome.error or outcome.write.key in theirs or "kept back" in outcome.error
            for one in list(cluster.list()):
                if one.key not in theirs:
                    end(one, cluster, Script())
        assert {key: cluster.get(key) for key in theirs} == theirs
    for one in inventory.alive(cluster, held(cluster)):
        cluster.delete(one.key, one.uid)
    assert {one.key: one for one in cluster.list()} == theirs


@LAWS
@given(repositories, repositories)
def test_a_plan_looks_and_does_not_touch(before: Draw, after: Draw) -> None:
    """Looking twice gives the same plan and changes nothing, or no reviewer could trust it."""
    cluster = MemoryCluster()
    settle(repository(before), cluster, Script())
    objects, rows = {one.key: one for one in cluster.list()}, cluster.state.read()
    wanted = repository(after)
    assert look(wanted, cluster).plan == look(wanted, cluster).plan
    assert {one.key: one for one in cluster.list()} == objects
    assert cluster.state.read() == rows


def test_a_write_over_a_changed_object_is_refused() -> None:
    """Who wrote in between wins; the next look decides anew."""
    cluster = MemoryCluster()
    one = cluster.create({"apiVersion": "v", "kind": "Service", "metadata": {"name": "a"}}, {})
    cluster.settle(one.key, {"phase": "ready"})
    with pytest.raises(Conflict):
        cluster.apply({**one.body, "spec": {}}, {}, one.version)
