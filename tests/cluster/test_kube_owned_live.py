"""Proofs from managedFields against the judge: what a dry run of the same apply does on a real API server.

Objects of the kinds that the compiler emits live through random histories (`histories`): applies by us and by others,
edits, scaling, status. `proof` must never say HOLDS where the server would change a value or an owner, or refuse.
MLSPEC_HISTORIES=20000 runs more of them.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from cluster.bed import crds
from cluster.bed.api import Api, ApiError
from cluster.bed.controlplane import ControlPlane
from cluster.histories import absorbed, desired, edited, excerpt
from mlspec_reconciler.clusters.kube import alike, owned
from mlspec_reconciler.clusters.kube.owned import Proof, differences, owned_digest, proof

Body = dict[str, Any]
GOLDEN = Path(__file__).parents[1] / "golden"
WIDE = Path(__file__).parent / "wide.yaml"
"""Kinds and fields that the compiler does not emit today: what is proven must not depend on its habits."""
HISTORIES = int(os.environ.get("MLSPEC_HISTORIES", "250"))
MANAGER = "mlspec"


@dataclass
class World:
    """A namespace of a real API server, and what lives there."""

    api: Api
    namespace: str
    manifests: list[Body]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def fresh(self, manifest: Body) -> Body:
        """A copy under a name of its own, without the annotations that a proof leaves out."""
        body = copy.deepcopy(manifest)
        body["metadata"]["name"] = f"{body['metadata']['name']}-{next(self.numbers)}".lower()
        if "namespace" in body["metadata"]:
            body["metadata"]["namespace"] = self.namespace
        notes = body["metadata"].pop("annotations", {})
        kept = {name: value for name, value in notes.items() if not name.startswith("mlspec.dev/")}
        body["metadata"] |= {"annotations": kept} if kept else {}
        return body

    def apply(self, body: Body, manager: str = MANAGER, **query: str) -> Body:
        return self.api.request(
            "PATCH",
            self.api.path(body),
            body,
            content_type="application/apply-patch+yaml",
            fieldManager=manager,
            **{"force": "true", **query},
        )

    def live(self, body: Body) -> Body:
        return self.api.request("GET", self.api.path(body))

    def put(self, body: Body) -> None:
        self.api.request("PUT", self.api.path(body), body, fieldManager="kubectl-edit")

    def patch(self, body: Body, subresource: str, change: Body) -> None:
        path = f"{self.api.path(body)}/{subresource}"
        self.api.request(
            "PATCH", path, change, content_type="application/merge-patch+json", fieldManager="controller"
        )

    def delete(self, body: Body) -> None:
        metadata = body["metadata"]
        self.api.delete(body["apiVersion"], body["kind"], metadata["name"], metadata.get("namespace"))

    def judged(self, wanted: Body) -> tuple[Body, str]:
        """The live object, and what a dry run says that an apply would do to it: same, changed, or a status of HTTP."""
        while True:
            live = self.live(wanted)
            try:
                result: Body | None = self.apply(wanted, dryRun="All", force="false")
                verdict = "same" if _timeless(result) == _timeless(live) else "changed"
            except ApiError as error:
                verdict = str(error.status)
            if self.live(wanted)["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]:
                return live, verdict  # Nobody wrote in between.


def _timeless(body: Body) -> Body:
    body = copy.deepcopy(body)
    del body["metadata"]["resourceVersion"]
    for entry in body["metadata"].get("managedFields", ()):
        entry.pop("time", None)
    return body


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane) -> World:
    crds.install(control_plane.api, "argo", "kueue", "gateway", "mlspec")
    manifests = [*_documents(*sorted((GOLDEN / "compile").glob("*.yaml"))), *_documents(WIDE)]
    return World(control_plane.api, control_plane.namespace("owned"), manifests)


def _documents(*paths: Path) -> Iterator[Body]:
    for path in paths:
        for document in yaml.safe_load_all(path.read_text()):
            if document and not document["apiVersion"].startswith("local."):
                yield json.loads(json.dumps(document))


def test_every_manifest_of_the_compiler_is_proven_after_its_apply(world: World) -> None:
    """A quiet plan of what we emit costs no call per object; controllers and status in between change nothing."""
    for manifest in _documents(*sorted(GOLDEN.glob("compile/*.yaml")), *sorted(GOLDEN.glob("render/*.yaml"))):
        wanted = world.fresh(manifest)
        applied = {
            **wanted,
            "metadata": {**wanted["metadata"], "annotations": {"mlspec.dev/origin": "a.yaml:1"}},
        }
        world.apply(applied)
        live, verdict = world.judged(applied)
        assert verdict == "same"
        assert proof(wanted, live, MANAGER) is Proof.HOLDS, (wanted, owned.differences(wanted, live, MANAGER))
        assert differences(wanted, live, MANAGER) == []
        world.delete(wanted)


def test_no_history_makes_a_proof_wrong(world: World) -> None:
    """One wrong HOLDS is a change that is never made and that nobody is told about."""
    tally: Counter[tuple[str, str]] = Counter()
    wrong = []
    for seed in range(HISTORIES):
        wanted = _life(world, Random(seed))
        live, verdict = world.judged(wanted)
        said = proof(wanted, live, MANAGER)
        tally[said.value, verdict] += 1
        shown = differences(wanted, live, MANAGER)
        if (
            (said is Proof.HOLDS and (verdict != "same" or shown))
            or (said is Proof.DIFFERS and verdict == "same")
            or not all(_fits(live, difference) for difference in shown)
        ):
            wrong.append(
                {
                    "seed": seed,
                    "said": said,
                    "verdict": verdict,
                    "shown": shown,
                    "live": live,
                    "wanted": wanted,
                }
            )
        world.delete(wanted)
    print(dict(tally), *(json.dumps(one, default=str) for one in wrong), sep="\n")
    assert [one["seed"] for one in wrong] == []
    proven, asked = tally["holds", "same"], tally["unknown", "same"]
    assert proven > HISTORIES // 4, "most histories must come to the interesting state: nothing to do"
    assert asked < proven / 8, "a proof that mostly asks saves no call"
    assert tally["differs", "changed"] > HISTORIES // 6


def _fits(live: Body, difference: owned.Difference) -> bool:
    """Whether a difference shows the live value that is at its path (for items in another order: their keys)."""
    path, value, _ = difference
    place: Any = live
    for step in path:
        if value is owned.ABSENT and (type(place) is not dict or step not in place):
            return True
        if type(place) is not (dict if type(step) is str else list):
            return False
        place = place[step]
    return bool(place == value) or (type(place) is list and len(place) >= len(value))


def _life(world: World, random: Random) -> Body:
    """Let an object live for a while; what we want of it now."""
    base = world.fresh(random.choice(world.manifests))
    wanted = edited(random, base, random.choice((0, 0, 1, 2)))
    try:
        world.apply(wanted)
    except ApiError:
        wanted = base
        world.apply(wanted)
    for _ in range(random.choice((0, 0, 1, 2, 3))):
        live = world.live(base)
        try:
            match random.choice(
                ("edit", "edit", "other", "other", "part", "ours", "absorb", "status", "scale")
            ):
                case "edit":
                    world.put(edited(random, desired(live), random.choice((1, 1, 2))))
                case "other":
                    new = edited(random, desired(live), random.choice((0, 1, 2)))
                    world.apply(excerpt(random, new, random.choice((0.3, 0.6, 0.9))), "other")
                case "part":
                    new = edited(random, wanted, random.choice((0, 1, 2)))
                    world.apply(excerpt(random, new, random.choice((0.3, 0.6, 0.9))), "another")
                case "ours":
                    new = edited(random, wanted, random.choice((1, 2)))
                    world.apply(new)
                    wanted = new
                case "absorb":
                    new = absorbed(random, wanted, live, random.choice((1, 2, 3)))
                    world.apply(new)
                    wanted = new
                case "status":
                    world.patch(base, "status", {"status": {"observedGeneration": 7}})
                case "scale":
                    world.patch(base, "scale", {"spec": {"replicas": random.randrange(4)}})
        except ApiError:
            pass  # Refused: the object stays as it is.
    match random.randrange(6):
        case 0 | 1:
            return wanted
        case 2 | 3 | 4:
            return edited(random, wanted, random.choice((1, 1, 2)))
        case _:
            return absorbed(random, wanted, world.live(base), random.choice((1, 2, 3)))


def test_the_digest_of_owned_values_follows_the_values_alone(world: World) -> None:
    """A saved plan is stale when somebody changed an owned value, and not because a controller wrote status."""
    wanted = world.fresh(next(one for one in world.manifests if one["kind"] == "Deployment"))
    wanted["spec"]["replicas"] = 1
    world.apply(wanted)
    digest = owned_digest(world.live(wanted), MANAGER)
    world.patch(wanted, "status", {"status": {"observedGeneration": 7}})
    world.apply({**wanted, "metadata": {**wanted["metadata"], "labels": {"team": "a"}}, "spec": {}}, "other")
    assert owned_digest(world.live(wanted), MANAGER) == digest
    world.patch(wanted, "scale", {"spec": {"replicas": 3}})
    live = world.live(wanted)
    assert owned_digest(live, MANAGER) != digest
    assert differences(wanted, live, MANAGER) == [(("spec", "replicas"), 3, 1)]
    assert owned.managers(live, ("spec", "replicas")) == ["controller"]
    world.delete(wanted)


def test_the_names_of_atomic_maps_are_those_of_the_schema(world: World) -> None:
    """The one piece of schema knowledge of a proof: a map of such a name is never owned by parts."""
    every: dict[str, set[str]] = defaultdict(set)
    by_group: dict[str, dict[str, set[str]]] = {}
    for path, group in world.api.request("GET", "/openapi/v3")["paths"].items():
        if path.startswith("apis/") or path == "api/v1":
            document = world.api.request("GET", group["serverRelativeURL"].partition("?")[0])
            name = path.split("/")[1] if path.startswith("apis/") else ""
            found = by_group.setdefault("" if name in alike.BUILT_IN else name, defaultdict(set))
            _maps(document.get("components", {}).get("schemas", {}), found)
    for found in by_group.values():
        for name, kinds in found.items():
            every[name] |= kinds
    assert {name: every[name[2:]] for name in alike.ATOMIC} == {name: {"atomic"} for name in alike.ATOMIC}
    for group, names in alike.ATOMIC_IN.items():
        assert {name: by_group[group][name[2:]] for name in names} == {name: {"atomic"} for name in names}


def _maps(schemas: Body, kinds: dict[str, set[str]]) -> None:
    """Gather for each field of a schema that is a map whether it is atomic or granular."""

    def walk(name: str | None, schema: Body) -> None:
        reference = schema.get("$ref") or (schema.get("allOf") or [{}])[0].get("$ref")
        target = schemas[reference.rsplit("/", 1)[1]] if reference else schema
        if name and (target.get("type") == "object" or "properties" in target):
            either = schema.get("x-kubernetes-map-type") or target.get("x-kubernetes-map-type", "granular")
            kinds[name].add(either)
        if reference:
            return
        for inner, below in (target.get("properties") or {}).items():
            if inner != "status":
                walk(inner, below)
        for key in ("additionalProperties", "items"):
            if isinstance(target.get(key), dict):
                walk(None, target[key])

    for owner, schema in schemas.items():
        if "ResourceAttributes" not in owner:  # Of access reviews, which nobody applies.
            walk(None, schema)
