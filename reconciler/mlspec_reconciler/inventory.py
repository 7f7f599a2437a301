"""Inventory: what mlspec has made on a target, and from which specs.

A write-ahead log in the cluster itself: objects are entered before they are created and stay until their deletion was
seen. So nothing is ever deleted that is not in it, and nothing that was made is ever forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlspec.manifest import Key
from mlspec.resource import Resource
from mlspec_reconciler.cluster import Cluster, Object, Unavailable, is_same

NOTE = "inventory"
DIGEST = "mlspec.dev/digest"
"""Annotation of every object that mlspec made: digest of the body as it was applied."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource as it was applied last."""

    resource: str
    spec: Mapping[str, Any]
    place: str
    """`file:line` of the applied spec."""
    objects: tuple[Key, ...] = ()
    kept: frozenset[Key] = frozenset()
    """Those of `objects` that stay when the resource does not want them any more, until it goes: runs and their code."""
    uids: Mapping[Key, str] = field(default_factory=dict)
    """Identity of the objects, as far as their creation was seen. Only these very objects are ever deleted."""
    run: str = ""
    """The newest run that was made for it."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """What that run's name is made of."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All entries by resource id."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    def owner(self, key: Key) -> Entry | None:
        """The entry that an object belongs to."""
        return next((entry for entry in self.entries.values() if key in entry.objects), None)

    def having(
        self,
        resource: Resource,
        keys: Iterable[Key],
        kept: Iterable[Key] = (),
        run: str = "",
        parts: Mapping[str, str] | None = None,
    ) -> Entry:
        """The entry of a resource with these objects added (made when there is none)."""
        old = self.entries.get(resource.id, Entry(resource.id, {}, ""))
        objects = tuple(dict.fromkeys([*old.objects, *keys]))
        entry = replace(
            old,
            spec=resource.spec.document(),
            place=f"{resource.mark.path}:{resource.mark.line}",
            objects=objects,
            kept=old.kept | frozenset(kept),
        )
        if run:
            entry = replace(entry, run=run, parts=dict(parts or {}))
        return entry

    def without(self, resource: str, keys: Iterable[Key]) -> Inventory:
        """With these objects removed; an entry that was not declared any more goes with its last object."""
        entry = self.entries.get(resource)
        if entry is None:
            return self
        gone = set(keys)
        left = replace(
            entry,
            objects=tuple(key for key in entry.objects if key not in gone),
            kept=entry.kept - gone,
            uids={key: uid for key, uid in entry.uids.items() if key not in gone},
        )
        return Inventory({**self.entries, resource: left})

    def seeing(self, resource: str, uids: Mapping[Key, str]) -> Inventory:
        """With the identities of objects whose creation was seen."""
        entry = self.entries.get(resource)
        if entry is None or all(entry.uids.get(key) == uid for key, uid in uids.items()):
            return self
        return Inventory({**self.entries, resource: replace(entry, uids={**entry.uids, **uids})})

    def forgetting(self, resource: str) -> Inventory:
        """Without a resource whose objects are all gone."""
        return Inventory({name: entry for name, entry in self.entries.items() if name != resource})


def read(cluster: Cluster) -> Inventory:
    """The inventory of a cluster; empty when nothing was ever applied.

    Raises `Unavailable` when it is not that of this cluster: restored from a backup of another one, it would name
    objects here that mlspec has never made.
    """
    document = cluster.note(NOTE) or {}
    owner = document.get("cluster", cluster.identity)
    if not is_same(owner, cluster.identity):
        raise Unavailable(
            f"the inventory here was written for the cluster {owner}, this is {cluster.identity}; it was copied or "
            "restored: delete it when its objects are not here"
        )
    entries = {}
    for name, entry in document.get("entries", {}).items():
        rows = [(Key(*row[:4]), *row[4:]) for row in entry["objects"]]
        entries[name] = Entry(
            name,
            entry["spec"],
            entry["place"],
            objects=tuple(key for key, *_ in rows),
            kept=frozenset(key for key, _, keep in rows if keep),
            uids={key: uid for key, uid, _ in rows if uid},
            run=entry["run"],
            parts=entry["parts"],
        )
    return Inventory(entries)


def alive(cluster: Cluster) -> list[Object]:
    """The live objects of the inventory: all that may ever be deleted."""
    held = read(cluster)
    found = [
        (entry, cluster.get(key))
        for entry in reversed([*held.entries.values()])
        for key in reversed(entry.objects)
    ]
    return [one for entry, one in found if one is not None and mine(one, entry) and not one.deleting]


def is_ours(live: Object) -> bool:
    """Whether mlspec made an object. The name alone says nothing: what is announced may have existed before."""
    return DIGEST in live.annotations


def mine(live: Object, entry: Entry) -> bool:
    """Whether this very object was made for the entry: one that was made again by somebody else is not ours."""
    return is_ours(live) and entry.uids.get(live.key, live.uid) == live.uid


def write(cluster: Cluster, inventory: Inventory) -> None:
    """Make the inventory durable. Raises `Conflict` when another apply wrote it since it was read."""
    entries = {
        name: {
            "spec": dict(entry.spec),
            "place": entry.place,
            "objects": [
                [*_row(key), entry.uids.get(key, ""), int(key in entry.kept)] for key in entry.objects
            ],
            "run": entry.run,
            "parts": dict(entry.parts),
        }
        for name, entry in inventory.entries.items()
    }
    cluster.set_note(NOTE, {"cluster": cluster.identity, "entries": entries})


def _row(key: Key) -> tuple[str, str, str, str]:
    return key.api_version, key.kind, key.namespace, key.name
