"""Inventory: what mlspec has made on a target, and from which specs.

A write-ahead log in the cluster itself: objects are entered before they are created and stay until their deletion was
seen. So nothing is ever deleted that is not in it, and nothing that was made is ever forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlspec.manifest import Key
from mlspec.resource import Resource
from mlspec_reconciler.cluster import Cluster, Object, Unavailable, is_same
from mlspec_reconciler.remembered import Change
from mlspec_reconciler.state import Session, Table

IDENTITY = "cluster"
"""Row of the cluster for which everything was written."""
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
    order: int = 0
    """When it was applied first, among all: users are deleted before what they use. 0: it was never written."""


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


def read(session: Session, cluster: str) -> Inventory:
    """The inventory of a target; empty when nothing was ever applied. `cluster` is its identity.

    Raises `Unavailable` when it is not that of this cluster: restored from a backup of another one, it would name
    objects here that mlspec has never made.
    """
    owner = (session.get(Table.TARGET, IDENTITY) or {}).get("identity", cluster)
    if not is_same(owner, cluster):
        raise Unavailable(
            f"the inventory here was written for the cluster {owner}, this is {cluster}; it was copied or "
            "restored: delete it when its objects are not here"
        )
    rows = sorted(session.rows(Table.INVENTORY).items(), key=lambda one: (one[1].get("order", 0), one[0]))
    return Inventory({name: entry(name, row) for name, row in rows})


def entry(name: str, row: Mapping[str, Any]) -> Entry:
    """An entry from its row."""
    objects = [(Key(*one[:4]), *one[4:]) for one in row["objects"]]
    return Entry(
        name,
        row["spec"],
        row["place"],
        objects=tuple(key for key, *_ in objects),
        kept=frozenset(key for key, _, keep in objects if keep),
        uids={key: uid for key, uid, _ in objects if uid},
        run=row["run"],
        parts=row["parts"],
        order=int(row.get("order", 0)),
    )


def alive(cluster: Cluster, held: Inventory) -> list[Object]:
    """The live objects of the inventory: all that may ever be deleted."""
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


def changes(before: Inventory, after: Inventory, cluster: str) -> Iterator[Change]:
    """The rows that make an inventory durable. Of all kinds of rows they are written first: what is about to exist is
    known before it exists."""
    order = max((one.order for one in after.entries.values()), default=0)
    yield Table.TARGET, IDENTITY, {"identity": cluster}
    for name, one in after.entries.items():
        if before.entries.get(name) is one:
            continue
        if not one.order:
            order += 1
            one = replace(one, order=order)
        row = {
            "spec": dict(one.spec),
            "place": one.place,
            "objects": [[*_row(key), one.uids.get(key, ""), int(key in one.kept)] for key in one.objects],
            "run": one.run,
            "parts": dict(one.parts),
            "order": one.order,
        }
        yield Table.INVENTORY, name, row
    for name in before.entries:
        if name not in after.entries:
            yield Table.INVENTORY, name, None


def _row(key: Key) -> tuple[str, str, str, str]:
    return key.api_version, key.kind, key.namespace, key.name
