"""Laws of plan and apply on a real API server, over random repositories and random deeds of others (`strangers`).

After an apply a plan is empty and a second apply touches nothing; what others own stays theirs; what they do to ours is
shown with its reason, and undone or refused. MLSPEC_LONG=1 takes more examples, and other ones each time.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cluster import acting
from cluster.bed import crds
from cluster.bed.api import Document
from cluster.bed.controlplane import ControlPlane
from cluster.strangers import EDITS, Edit, Fate
from mlspec.manifest import Key
from mlspec_reconciler import apply
from mlspec_reconciler.clusters.kube.cluster import KubeCluster
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.plan import Reason, Verb, Write
from mlspec_reconciler.state import Table
from mlspec_reconciler.step import Consent, DesiredState, Observation
from plan.test_plan_laws import SLOTS, Draw, repository
from stepping import look, perform

LONG = bool(os.environ.get("MLSPEC_LONG"))
LAWS = settings(
    max_examples=120 if LONG else 8,
    deadline=None,
    derandomize=not LONG,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # an example takes seconds; a failure prints its own
    suppress_health_check=[*HealthCheck],
)
ROUNDS = 20
Deeds = Sequence[tuple[int, int]]
"""Which edit, and on which of the objects that it is possible on."""

draws = st.fixed_dictionaries({slot: st.integers(0, 3) for slot in SLOTS})
full = st.fixed_dictionaries({slot: st.integers(1, 3) for slot in SLOTS})
repositories = st.one_of(full, full, draws)
deeds = st.lists(st.tuples(st.integers(0, len(EDITS) - 1), st.integers(0, 99)), min_size=4, max_size=12)
KINDS = {
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("argoproj.io/v1alpha1", "Workflow"),
    ("argoproj.io/v1alpha1", "CronWorkflow"),
}
"""Where orphans are looked for."""
COUNTS = Counter[str]()


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    crds.install(control_plane.api, "argo")
    yield control_plane
    print("\n" + ", ".join(f"{count} {name}" for name, count in COUNTS.most_common()))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("discovery")


@dataclass
class World:
    """A namespace with a repository that is applied."""

    plane: ControlPlane
    cache: Path
    draw: Draw
    namespace: str
    rules: list[Mapping[str, str]] = field(default_factory=list)
    done: dict[Key, list[Edit]] = field(default_factory=dict)
    """What others did to our objects."""

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Load the repository and connect, as a command does."""
        target = {"kubernetes": {"namespace": self.namespace, "fields": self.rules}, "storage": "pvc://data"}
        self.wanted: DesiredState = repository(self.draw, target)
        transport = Transport.open(None, kubeconfig=self.plane.kubeconfig)
        kubernetes = self.wanted.target.kubernetes
        assert kubernetes is not None
        self.cluster = KubeCluster(transport, Discovery(transport, self.cache), kubernetes, "random")

    def look(self) -> Observation:
        """As `mlspec plan` does."""
        return look(self.wanted, self.cluster, ask=True)

    def apply(self, consent: Consent | None = None) -> list[apply.Outcome]:
        """Apply until nothing moves any more, and nothing new fails; what was done, and what fails."""
        done: list[apply.Outcome] = []
        for _ in range(ROUNDS):
            seen = look(self.wanted, self.cluster, consent or Consent())
            outcomes = perform(self.wanted, self.cluster, seen)
            done += outcomes
            ended = acting.end_runs(self.plane.api, self.namespace)
            if not ended and all(one.error for one in outcomes):
                return done
        raise AssertionError(
            f"does not settle: {[f'{one.write.verb} {one.write.key} {one.error}' for one in done]}"
        )

    def live(self) -> dict[Key, Document]:
        """Our objects, as the API server has them."""
        found: dict[Key, Document] = {}
        for key in self.held():
            one = self.plane.api.find(key.api_version, key.kind, key.name, key.namespace)
            if one is not None:
                found[key] = one
        return found

    def held(self) -> list[Key]:
        """All objects of the inventory."""
        rows = self.cluster.state.read().get(Table.INVENTORY, {})
        return sorted({Key(*one[:4]) for row in rows.values() for one in row.value["objects"]})

    def versions(self) -> dict[tuple[str, str], str]:
        """resourceVersion of every object of ours, and of our ledger."""
        kinds = {(key.api_version, key.kind) for key in self.held()} | {("v1", "ConfigMap")}
        return {
            (kind, one["metadata"]["name"]): one["metadata"]["resourceVersion"]
            for version, kind in kinds
            for one in self.plane.api.list(version, kind, self.namespace)
        }

    def suffer(self, deeds: Deeds) -> None:
        """Let others do what they do, the harmless first; at most one harm for each object."""
        chosen = [(EDITS[number], pick) for number, pick in sorted(deeds)]
        for edit, pick in sorted(chosen, key=lambda one: one[0].fate is not Fate.SURVIVES):
            possible = [
                (key, live)
                for key, live in self.live().items()
                if edit.on(live)
                and (edit not in self.done.get(key, ()) if edit.fate is Fate.SURVIVES else not self.harm(key))
            ]
            if possible:
                key, live = possible[pick % len(possible)]
                edit.do(self.plane.api, live)
                self.done.setdefault(key, []).append(edit)
                COUNTS[edit.fate.name.lower()] += 1

    def harm(self, key: Key) -> Edit | None:
        """What was done to an object that concerns us."""
        return next((one for one in self.done.get(key, ()) if one.fate is not Fate.SURVIVES), None)

    def of(self, *fates: Fate) -> dict[Key, Edit]:
        """Objects with this harm."""
        return {key: harm for key in self.done if (harm := self.harm(key)) and harm.fate in fates}

    def agree(self, choices: int) -> Consent:
        """Decide about each field that others took: it is theirs, or ours; and adopt what they made anew."""
        for number, (key, edit) in enumerate(sorted(self.of(Fate.REFUSED).items(), key=lambda one: one[0])):
            owner = "mlspec" if (choices + number) % 2 else "other"
            rule = {"kind": key.kind, "name": key.name, "field": edit.field({}), "owner": owner}
            self.rules.append(rule)
            COUNTS[f"rule {owner}"] += 1
        self.open()
        return Consent(adopt=frozenset(f"{key.kind}/{key.name}" for key in self.of(Fate.TAKEN)))

    def take(self, refused: Sequence[apply.Outcome]) -> None:
        """Whoever made an object that was adopted owns its values with us: a revision that changes one is refused until the
        project says whose it is. Nothing else may be refused here."""
        adopted = self.of(Fate.TAKEN)
        for one in refused:
            key = one.write.key
            if "kept back" in one.error:
                continue
            assert key in adopted, one.error
            fields, _, managers = one.error.removeprefix(f"{key}: ").partition(" belongs to ")
            assert managers.startswith(adopted[key].manager), one.error
            for path in fields.split(", "):
                rule = {"kind": key.kind, "name": key.name, "field": path, "owner": "mlspec"}
                if rule not in self.rules:
                    self.rules.append(rule)
                    COUNTS["rule after an adoption"] += 1
        self.open()


def writes(seen: Observation) -> dict[Key, tuple[Reason, Write]]:
    """What a plan would write, and why."""
    return {write.key: (change.reason, write) for change in seen.plan.changes for write in change.writes}


def quiet(world: World) -> None:
    """A plan is empty, and an apply touches nothing. Controllers write too, so versions get three chances."""
    seen = world.look()
    assert seen.plan.empty, writes(seen)
    for attempt in range(3):
        before = world.versions()
        calls = Counter(world.cluster.transport.calls)
        assert world.apply() == []
        made = Counter(world.cluster.transport.calls) - calls
        assert not {"PATCH", "POST", "PUT", "DELETE"} & made.keys(), made
        if world.versions() == before:
            return
        time.sleep(0.5 * (attempt + 1))
    raise AssertionError("a second apply bumps resourceVersions")


def shown(world: World, before: Mapping[Key, Document]) -> None:
    """The plan shows each harm for what it is, and nothing else."""
    found = writes(world.look())
    harmed = world.of(*(fate for fate in Fate if fate is not Fate.SURVIVES))
    assert found.keys() == harmed.keys()
    same_resource = Counter(resource(before[key]) for key in world.of(Fate.RECREATED, Fate.TAKEN))
    for key, edit in harmed.items():
        reason, write = found[key]
        missing = same_resource[resource(before[key])] > 0
        match edit.fate:
            case Fate.RESTORED:
                assert (write.verb, write.refusal) == (Verb.APPLY, ""), (key, write)
                assert write.differences, key
                assert reason is (Reason.MISSING if missing else Reason.DRIFT), (key, reason)
            case Fate.REFUSED:
                assert write.verb is Verb.APPLY, (key, write)
                assert edit.manager in write.refusal, (key, write.refusal)
                assert edit.field({}) in write.refusal, (key, write.refusal)
                assert reason is (Reason.MISSING if missing else Reason.DRIFT), (key, reason)
            case Fate.RECREATED:
                assert (write.verb, reason, write.refusal) == (Verb.CREATE, Reason.MISSING, ""), key
            case Fate.TAKEN:
                assert (write.verb, reason) == (Verb.CREATE, Reason.MISSING), key
                assert f"made by {edit.manager}" in write.refusal, (key, write.refusal)
                assert f"--adopt {key.kind}/{key.name}" in write.refusal


def resource(live: Document) -> str:
    """The resource in the specs that an object was made for."""
    found: str = live["metadata"]["annotations"]["mlspec.dev/resource"]
    return found


def traces(world: World) -> None:
    """What others own is still there."""
    live = world.live()
    for key, edits in world.done.items():
        if key not in live or key in world.of(Fate.RECREATED, Fate.TAKEN):
            continue
        for edit in edits:
            if edit.fate is Fate.SURVIVES:
                assert edit.there(live[key]), (edit.name, key)


def fields(live: Document) -> Document:
    """What an apply could overrun."""
    return {name: value for name, value in live.items() if name not in ("status", "metadata")}


@LAWS
@given(draw=repositories, deeds=deeds, choices=st.integers(0, 255))
def test_deeds_of_others_are_kept_undone_or_refused(
    plane: ControlPlane, cache: Path, draw: Draw, deeds: Deeds, choices: int
) -> None:
    """The tool is one writer among many, and says so."""
    world = World(plane, cache, draw, plane.namespace("laws"))
    assert not [one.error for one in world.apply() if one.error]
    quiet(world)
    before = world.live()
    world.suffer(deeds)
    damaged = world.live()
    shown(world, before)
    refused = world.of(Fate.REFUSED, Fate.TAKEN)
    for one in world.apply():
        assert not one.error or one.write.key in refused or "kept back" in one.error, one.error
    after = world.live()
    for key in refused:
        assert fields(after[key]) == fields(damaged[key]), f"{key} was overrun"
    consent = world.agree(choices)
    assert not [one.error for one in world.apply(consent) if one.error]
    healed = world.live()
    for rule in world.rules:
        [key] = [one for one in refused if (one.kind, one.name) == (rule["kind"], rule["name"])]
        kept = (before if rule["owner"] == "mlspec" else damaged)[key]
        edit = refused[key]
        assert _at(healed[key], edit.field({})) == _at(kept, edit.field({})), (rule, healed[key])
    traces(world)
    quiet(world)
    COUNTS["examples"] += 1
    COUNTS["objects"] += len(healed)


@LAWS
@given(first=repositories, second=repositories, deeds=deeds, choices=st.integers(0, 255))
@example(  # a record is adopted with its value, and then the model is trained again
    first={"d0": 3, "d1": 1, "g0": 2, "g1": 1, "j0": 1, "j1": 1, "p0": 3, "r0": 2, "s0": 3, "v0": 3},
    second={"d0": 2, "d1": 2, "g0": 2, "g1": 2, "j0": 1, "j1": 1, "p0": 3, "r0": 3, "s0": 1, "v0": 1},
    deeds=[(30, 59), (6, 54), (0, 84), (10, 94)],
    choices=150,
)
def test_a_new_revision_goes_over_the_deeds_of_others(
    plane: ControlPlane, cache: Path, first: Draw, second: Draw, deeds: Deeds, choices: int
) -> None:
    """Edits in git and in the cluster meet: the end is what the specs say, beside what others own."""
    world = World(plane, cache, first, plane.namespace("laws"))
    assert not [one.error for one in world.apply() if one.error]
    world.suffer(deeds)
    theirs = {
        key: live["metadata"]["uid"] for key, live in world.live().items() if key in world.of(Fate.TAKEN)
    }
    world.draw = second
    consent = world.agree(choices)
    if refused := [one for one in world.apply(consent) if one.error]:
        world.take(refused)
        assert not [one.error for one in world.apply(consent) if one.error]
    traces(world)
    quiet(world)
    for key, uid in theirs.items():
        live = plane.api.get(key.api_version, key.kind, key.name, key.namespace)
        assert live["metadata"]["uid"] == uid, f"{key} of somebody else was deleted"
    ours = {
        (kind, one["metadata"]["name"])
        for version, kind in {(key.api_version, key.kind) for key in world.held()} | KINDS
        for one in plane.api.list(version, kind, world.namespace, labelSelector="mlspec.dev/project=random")
        if not one["metadata"].get("ownerReferences")
        and "mlspec.dev/digest" in one["metadata"]["annotations"]
    }
    assert ours <= {(key.kind, key.name) for key in world.held()}, "an orphan"
    COUNTS["examples"] += 1


def _at(live: Document, path: str) -> Any:
    """The value of a field of `EDITS`."""
    match path:
        case 'spec.template.spec.containers[name="main"].image':
            return next(
                one for one in live["spec"]["template"]["spec"]["containers"] if one["name"] == "main"
            )["image"]
        case 'spec.ports[port=80,protocol="TCP"].targetPort':
            return next(one for one in live["spec"]["ports"] if one["port"] == 80)["targetPort"]
        case "metadata.labels.app.kubernetes.io/managed-by":
            return live["metadata"]["labels"]["app.kubernetes.io/managed-by"]
        case _:
            value: Any = live
            for name in path.split("."):
                value = value[name]
            return value
