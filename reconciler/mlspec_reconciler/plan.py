"""Plan: what has to change so that a target holds what a project becomes, why, and what follows from it.

Pure: from the compiled project, the live objects and the inventory. `apply` performs a plan, `render` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any

from mlspec.compile import Compiled
from mlspec.kind import Lowered
from mlspec.kind_table import KINDS
from mlspec.manifest import OWN, Key, Manifest, digest
from mlspec.project import Project
from mlspec.resource import Path, Resource
from mlspec.workload import RunFact
from mlspec_reconciler.cluster import Difference, Object
from mlspec_reconciler.inventory import DIGEST, Entry, Inventory, is_ours, mine

ANSWERS = ("FeatureView", "Model")
"""Kinds that hold no objects of their own while they wait: a plan shows who reads them instead."""


ORIGIN = OWN + "origin"
"""Annotation of every object that mlspec made: `file:line` of the spec that asked for it."""


class Action(StrEnum):
    """What happens to a resource."""

    CREATE = "create"
    UPDATE = "update"
    RUN = "run"
    CONTINUE = "continue"
    FOLLOW = "follow"
    DELETE = "delete"
    UNSUPPORTED = "unsupported"


class Reason(StrEnum):
    """Why. Stable words for `--output json`."""

    NEW = "new"
    SPEC = "spec-changed"
    OUTPUT = "input-changed"
    MISSING = "object-missing"
    DRIFT = "changed-outside"
    FIRST = "first-run"
    INPUT = "run-input-changed"
    TRIGGER = "asked-for"
    RETRY = "failed-before"
    UPSTREAM = "upstream-runs"
    RUNNING = "runs-already"
    REMOVED = "removed-from-specs"
    TARGET = "target-cannot"


class Verb(StrEnum):
    """What happens to an object."""

    CREATE = "create"
    APPLY = "apply"
    ADOPT = "adopt"
    REPLACE = "replace"
    RESTART = "restart"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Write:
    """One call to the cluster, with the identity of the object that it was planned for."""

    verb: Verb
    key: Key
    manifest: Manifest | None = None
    uid: str = ""
    version: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Annotations that the object gets: digest, resource, `file:line`, repository and revision."""
    certain: bool = True
    """False when it may turn out that nothing has to be written: the cluster must be asked."""
    differences: tuple[Difference, ...] = ()
    """What it changes in the live object, as far as the cluster was asked."""
    refusal: str = ""
    """Why the cluster does not accept it, in one sentence with the way out."""
    forced_by: str = ""
    """The immutable field for which the object is replaced."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a spec that differs from what was applied; values are JSON, None when absent."""

    path: Path
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one resource, and why."""

    action: Action
    resource: str
    reason: Reason
    sentence: str = ""
    fields: tuple[FieldChange, ...] = ()
    writes: tuple[Write, ...] = ()
    run: str = ""
    last_seconds: float | None = None
    """How long the run before took."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes, in the order of the DAG."""

    changes: tuple[Change, ...]
    unchanged: int
    inventory: Inventory
    cluster: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do now."""
        return not any(change.writes for change in self.changes) and not self.of(
            Action.CREATE, Action.UPDATE, Action.DELETE
        )

    def of(self, *actions: Action) -> list[Change]:
        """The changes with these actions."""
        return [change for change in self.changes if change.action in actions]


PLAIN = Lowered(version="", output={})
"""Of a Project, which nothing refers to."""
Holds = Callable[[Mapping[str, Any], Object], bool | None]
"""`Cluster.holds`: whether the live object has all that the body says; None when that cannot be told here."""


@dataclass(slots=True)
class _Work:
    """The world that is planned for, and what is gathered while planning."""

    source: Mapping[str, str]
    compiled: Compiled
    objects: Mapping[Key, Object]
    runs: Mapping[str, RunFact]
    inventory: Inventory
    retry: bool
    holds: Holds
    adopt: frozenset[str]
    changes: list[Change] = field(default_factory=list)
    moving: dict[str, str] = field(default_factory=dict)
    """Resources whose output may change, with what makes them move."""
    unchanged: int = 0


def make(
    project: Project,
    compiled: Compiled,
    live: Iterable[Object],
    runs: Mapping[str, RunFact],
    inventory: Inventory,
    *,
    retry: bool = True,
    cluster: str = "",
    holds: Holds = lambda body, live: True,
    adopt: frozenset[str] = frozenset(),
) -> Plan:
    """Compare. `retry` plans failed runs again (a person asked), otherwise they are left as they are (the controller).
    `adopt` names objects of others (`Kind/name`) that shall be taken over."""
    objects = {one.key: one for one in live}
    desired: dict[str, list[Manifest]] = {}
    for manifest in compiled.manifests:
        desired.setdefault(manifest.origin.resource, []).append(manifest)
    work = _Work(project.source, compiled, objects, runs, inventory, retry, holds, adopt)
    wanted = declared(project, desired)
    for resource in wanted:
        _resource(resource, desired.get(resource.id, []), work)
    names = {resource.id for resource in wanted}
    for name, entry in reversed([*inventory.entries.items()]):  # users before what they use
        if name not in names:
            writes = tuple(_deletes(entry, reversed(entry.objects), objects))
            work.changes.append(
                Change(Action.DELETE, name, Reason.REMOVED, f"was {entry.place}", writes=writes)
            )
    return Plan(tuple(work.changes), work.unchanged, inventory, cluster)


def declared(project: Project, having: Container[str]) -> list[Resource]:
    """The resources that objects are made for, in the order of the DAG: the Project goes first where it has objects."""
    return [one for one in project.catalog.of("Project") if one.id in having] + [*project.order]


def _resource(resource: Resource, manifests: Sequence[Manifest], work: _Work) -> None:
    entry = work.inventory.entries.get(resource.id)
    lowered = work.compiled.lowered.get(resource.id, PLAIN)
    unsupported = work.compiled.unsupported.get(resource.id)
    fields = tuple(diff(entry.spec, resource.spec.document())) if entry else ()
    before = len(work.changes)
    writes = [write for manifest in manifests if not manifest.title and (write := _write(manifest, work))]
    if entry and not lowered.waits and unsupported is None:
        wanted = {manifest.key for manifest in manifests}
        stale = [key for key in entry.objects if key not in wanted and key not in entry.kept]
        writes.extend(_deletes(entry, stale, work.objects))
    if unsupported is not None:
        words = unsupported + ("; what is there stays" if entry and entry.objects else "")
        work.changes.append(Change(Action.UNSUPPORTED, resource.id, Reason.TARGET, words, fields))
    elif entry is None:
        words = _state(lowered, manifests) or (lowered.note if writes else "")
        work.changes.append(Change(Action.CREATE, resource.id, Reason.NEW, words, (), tuple(writes)))
    elif fields:
        words = _state(lowered, manifests) or (lowered.note if writes else "")
        work.changes.append(Change(Action.UPDATE, resource.id, Reason.SPEC, words, fields, tuple(writes)))
    elif writes:
        gone = [write.key for write in writes if write.verb is Verb.CREATE and write.key in entry.objects]
        drifted = [write for write in writes if _drifts(write, work.objects)]
        reason, words = Reason.OUTPUT, lowered.note
        if gone:
            reason, words = Reason.MISSING, f"{', '.join(map(str, gone))} is gone"
        elif len(drifted) == len(writes):
            names = ", ".join(str(write.key) for write in drifted)
            reason, words = Reason.DRIFT, f"{names} was changed by somebody else"
        work.changes.append(Change(Action.UPDATE, resource.id, reason, words, (), tuple(writes)))
    for manifest in manifests:
        if manifest.title:
            _run(resource, manifest, entry, work)
    follows = bool(manifests) or (bool(lowered.waits) and resource.kind not in ANSWERS)
    _follow(resource, follows, before, work)


def _state(lowered: Lowered, manifests: Sequence[Manifest]) -> str:
    """What a changed resource waits for, or why it cannot become ready; what its own run says stands at the run."""
    if lowered.waits:
        running = any(manifest.title for manifest in manifests)
        return "" if running else awaited(lowered.waits)
    return lowered.failed or lowered.warning


def awaited(waits: Sequence[str]) -> str:
    """`after Dataset/flights; once late has a run that passes its gates`."""
    conditions = [one for one in waits if one.startswith("once ")]
    others = [one for one in waits if one not in conditions]
    return "; ".join([*([f"after {', '.join(others)}"] if others else []), *conditions])


def _write(manifest: Manifest, work: _Work) -> Write | None:
    live, marks = work.objects.get(manifest.key), _marks(manifest, work.source)
    if f"{manifest.key.kind}/{manifest.key.name}" in work.adopt and (live is None or not is_ours(live)):
        return Write(Verb.ADOPT, manifest.key, manifest, marks=marks)
    if live is None or not is_ours(live):
        return Write(
            Verb.CREATE, manifest.key, manifest, marks=marks
        )  # what somebody else made refuses it: never overrun
    if live.deleting or manifest.create_only:  # what goes is not written before it is gone
        return None
    same = live.annotations.get(DIGEST) == manifest.digest
    holds = work.holds(manifest.body, live) if same else False
    if holds:
        return None
    return Write(Verb.APPLY, manifest.key, manifest, live.uid, live.version, marks, holds is not None)


def _marks(manifest: Manifest, source: Mapping[str, str]) -> dict[str, str]:
    origin = manifest.origin
    return {
        DIGEST: manifest.digest,
        ORIGIN: f"{origin.mark.path}:{origin.mark.line}",
        f"{OWN}resource": origin.resource,
        **{f"{OWN}{name}": value for name, value in source.items()},
    }


def _drifts(write: Write, objects: Mapping[Key, Object]) -> bool:
    """Whether a write only restores what somebody else changed."""
    live = objects.get(write.key)
    return (
        write.verb is Verb.APPLY
        and live is not None
        and write.manifest is not None
        and write.key.kind
        != "Secret"  # its digest does not tell whether its values were changed here or there
        and live.annotations.get(DIGEST) == write.manifest.digest
    )


def _run(resource: Resource, manifest: Manifest, entry: Entry | None, work: _Work) -> None:
    name = manifest.key.name
    fact = work.runs.get(name)
    if fact and fact.phase == "succeeded":
        return
    live = work.objects.get(manifest.key)
    title = manifest.title
    if (
        manifest.after and fact is None
    ):  # its inputs are others than those of the run that failed, its purpose is the same
        fact, live = work.runs.get(manifest.after), None
    if live is not None and not (fact and fact.phase == "failed"):
        work.moving[resource.id] = title
        words = "is under way already"
        work.changes.append(Change(Action.CONTINUE, resource.id, Reason.RUNNING, words, run=name))
        return
    if fact and fact.phase == "failed":
        if not work.retry:
            return
        verb = Verb.RESTART if live else Verb.CREATE
        uid, version = (live.uid, live.version) if live else ("", "")
        write = Write(verb, manifest.key, manifest, uid, version, _marks(manifest, work.source))
        work.changes.append(
            Change(
                Action.RUN, resource.id, Reason.RETRY, f"failed before: {fact.message}", (), (write,), name
            )
        )
    else:
        reason, sentence = _why(manifest.parts, entry, work.compiled.lowered[resource.id].because)
        seconds = _seconds(work.runs.get(entry.run)) if entry else None
        write = Write(Verb.CREATE, manifest.key, manifest, marks=_marks(manifest, work.source))
        work.changes.append(Change(Action.RUN, resource.id, reason, sentence, (), (write,), name, seconds))
    work.moving[resource.id] = title


def _why(parts: Mapping[str, str], entry: Entry | None, because: str) -> tuple[Reason, str]:
    if entry is None or not entry.run:
        return Reason.FIRST, "first run"
    changed = [name for name in parts if entry.parts.get(name) != parts[name]]
    gone = [name for name in entry.parts if name not in parts]
    if because and ("request" in changed or "refresh" in changed):
        return Reason.TRIGGER, because
    asked = [name for name in gone if name in ("request", "refresh")]
    words = ", ".join([*changed, *(f"without {name}" for name in gone if name not in asked)])
    if words:
        return Reason.INPUT, f"{words} changed"
    return Reason.INPUT, "git itself asks for it now" if asked else "its result is gone"


def _seconds(fact: RunFact | None) -> float | None:
    if fact is None or fact.phase != "succeeded" or not fact.results:
        return None
    return sum(float(one.get("finished", 0)) - float(one.get("started", 0)) for one in fact.results.values())


def _follow(resource: Resource, follows: bool, before: int, work: _Work) -> None:
    """Resources that nothing changes, but that get new inputs when a run before them ends."""
    movers = [
        f"{kind}/{reference.name}"
        for reference in KINDS[resource.kind].references(resource.spec)
        for kind in reference.kinds
        if f"{kind}/{reference.name}" in work.moving
    ]
    mine = work.changes[before:]
    lowered = work.compiled.lowered.get(resource.id, PLAIN)
    if movers and resource.id not in work.moving and not lowered.steady:
        work.moving[resource.id] = work.moving[movers[0]]
        if not mine and follows:
            sentence = f"after {work.moving[movers[0]]}"
            work.changes.append(Change(Action.FOLLOW, resource.id, Reason.UPSTREAM, sentence))
            return
    if not mine:
        work.unchanged += 1


def _deletes(entry: Entry, keys: Iterable[Key], objects: Mapping[Key, Object]) -> Iterable[Write]:
    for key in keys:
        live = objects.get(key)
        if live is not None and mine(live, entry) and not live.deleting:
            yield Write(Verb.DELETE, key, None, live.uid, live.version)


def diff(old: Any, new: Any, path: Path = ()) -> Iterable[FieldChange]:
    """Fields that differ between two JSON values, in the order of the new one. Of lists of different lengths the added
    and removed elements are told, each at its place."""
    if repr(old) == repr(new):  # most are; == would take 1 for true
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from diff(old.get(name), new.get(name), (*path, name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from diff(one, other, (*path, index))
    elif isinstance(old, list) and isinstance(new, list):
        before, after = [digest(one) for one in old], [digest(one) for one in new]
        for word, low, high, start, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if word != "equal":
                yield from (FieldChange((*path, index), old[index], None) for index in range(low, high))
                yield from (FieldChange((*path, index), None, new[index]) for index in range(start, end))
    elif old != new or type(old) is not type(new):
        yield FieldChange(path, old, new)
