"""Owned: what a server-side apply would do to a live object, read from its `metadata.managedFields`, without a call.

`plan` asks `proof` for every declarative object: a quiet plan of 10,000 objects costs no call per object, and a default of
the server or a field of another manager is never taken for drift, because only fields that we own or want are compared.
What cannot be proven is UNKNOWN and is asked by a dry run (`clusters.kube.cluster`).

The rule: the apply is a no-op if the set of fields that we want is the set of fields that our Apply entry owns, and each has
the live value. Lists of items with keys keep their order (it is a part of what is applied).
Source: https://github.com/kubernetes-sigs/structured-merge-diff/blob/v6.3.3/merge/update.go (Apply), typed/tofieldset.go.
Not seen from here: webhooks that would change an unchanged object, and a schema that changed since the last apply.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mlspec_reconciler.clusters.kube import alike, managed
from mlspec_reconciler.clusters.kube.alike import Like
from mlspec_reconciler.clusters.kube.managed import ABSENT as ABSENT
from mlspec_reconciler.clusters.kube.managed import Fields, Path, Where


class Proof(StrEnum):
    """What an apply would do to a live object."""

    HOLDS = "holds"
    """Nothing, neither to its values nor to who owns them."""
    DIFFERS = "differs"
    """It would change a value or an ownership."""
    UNKNOWN = "unknown"
    """The server has to be asked."""


Difference = tuple[Path, Any, Any]
"""Where, the live value and the wanted value; ABSENT for what is not there."""


def proof(wanted: Mapping[str, Any], live: Mapping[str, Any], manager: str) -> Proof:
    """What a server-side apply of `wanted` by `manager` would do to `live`. Annotations `mlspec.dev/` do not count.

    Both are JSON values as parsed (dict, list, str, int, float, bool, None); `live` with its managedFields.
    """
    walk = _compare(wanted, live, manager)
    if walk.doubt:
        return Proof.UNKNOWN
    verdicts = {one.verdict for one in walk.found}
    if Proof.DIFFERS in verdicts:
        return Proof.DIFFERS
    return Proof.UNKNOWN if verdicts else Proof.HOLDS


def differences(wanted: Mapping[str, Any], live: Mapping[str, Any], manager: str) -> list[Difference]:
    """What an apply would set, change or remove, for a plan. Changes of ownership alone do not show.

    For an UNKNOWN proof the list holds what may change. The order of items of a list shows as the keys of both lists.
    """
    walk = _compare(wanted, live, manager)
    return [
        (managed.path_of(where, live, wanted), have, want)
        for one in walk.found
        for where, have, want in _shown(one.where, one.live, one.wanted, one.owners, walk.defaults)
    ]


def owned_digest(live: Mapping[str, Any], manager: str) -> str:
    """SHA-256 of the fields that our Apply entry owns and of their values, in the order of lists; without `mlspec.dev/`.

    It changes when somebody changes or takes over one of our fields, not with status, defaults or fields of others.
    """
    mine, others = managed.entries(live, manager)
    values = _values(live, _trimmed_fields(mine["fieldsV1"]), others) if mine else None
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def managers(live: Mapping[str, Any], path: Sequence[str | int]) -> list[str]:
    """The names of all managers (ours too) that own the field at `path` of `live`, or a part of it.

    When nobody does, those that own a value whole which it is a part of.
    """
    exact: dict[str, None] = {}
    whole: dict[str, None] = {}
    for entry in live.get("metadata", {}).get("managedFields") or ():
        match managed.owns(entry.get("fieldsV1") or {"f:": {}}, live, path):
            case True:
                exact[entry.get("manager", "")] = None
            case None:
                whole[entry.get("manager", "")] = None
    return list(exact or whole)


# The walk ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """One place where an apply does something, or may."""

    where: Where
    live: Any
    wanted: Any
    verdict: Proof
    owners: tuple[Fields, ...] = ()
    """What the other managers own in this place."""


_OURS = "mlspec.dev/"
_STRIPPED = frozenset(
    (
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "generation",
        "managedFields",
        "resourceVersion",
    )
)
"""Never owned: k8s.io/apimachinery/pkg/util/managedfields/internal/stripmeta.go."""


_SCALARS = frozenset((str, int, bool))


def _compare(wanted: Mapping[str, Any], live: Mapping[str, Any], manager: str) -> _Walk:
    """Walk all that we own and all that we want."""
    mine, others = managed.entries(live, manager)
    version = wanted.get("apiVersion")
    walk = _Walk(others, str(version).rpartition("/")[0], (mine or {}).get("time", ""))
    fields = _trimmed_fields(mine["fieldsV1"]) if mine else {}
    if mine and (
        mine.get("apiVersion") != version
        or live.get("apiVersion") != version
        or any(entry.get("apiVersion") != version for entry in others)
    ):
        walk.doubt = True  # The server converts to other versions and back, or our set is of another version.
    if "status" in wanted or "stringData" in wanted:
        walk.doubt = True  # The server takes these away from what is applied.
    walk.mapping(_trimmed(wanted), live, fields, ())
    if mine is None and not walk.found:
        walk.doubt = True
    return walk


def _trimmed(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`wanted` without what is never owned, and without our annotations."""
    body = {name: value for name, value in wanted.items() if name not in ("apiVersion", "kind", "metadata")}
    metadata = {name: value for name, value in wanted["metadata"].items() if name not in _STRIPPED}
    notes = metadata.get("annotations")
    if notes:
        metadata["annotations"] = {name: value for name, value in notes.items() if not name.startswith(_OURS)}
        if not metadata["annotations"]:
            del metadata["annotations"]
    if metadata:
        body["metadata"] = metadata
    return body


def _trimmed_fields(fields: Fields) -> Fields:
    """The tree of our entry without our annotations."""
    notes = fields.get("f:metadata", {}).get("f:annotations")
    if not notes:
        return fields
    kept = {name: value for name, value in notes.items() if not name.startswith(f"f:{_OURS}") and name != "."}
    metadata = {name: value for name, value in fields["f:metadata"].items() if name != "f:annotations"}
    if kept:
        metadata["f:annotations"] = kept
    rest = {name: value for name, value in fields.items() if name != "f:metadata"}
    return {**rest, "f:metadata": metadata} if metadata else rest


class _Walk:
    """One walk over what we own (FieldsV1), what we want and what is live, side by side."""

    __slots__ = ("applied", "atomic", "defaults", "doubt", "found", "native", "others")

    def __init__(self, others: Sequence[Mapping[str, Any]], group: str, applied: str) -> None:
        self.applied = applied
        self.others = others
        self.native = group in alike.BUILT_IN
        known = "" if self.native else group
        self.atomic = alike.ATOMIC_IN.get(known, frozenset())
        self.defaults = alike.DEFAULTS.get(known, alike.NOTHING)
        self.doubt = False
        self.found: list[_Found] = []

    def mapping(self, wanted: dict[str, Any], live: Any, owned: Fields, where: Where) -> None:
        """Compare the fields of a map or an object of a schema."""
        if type(live) is not dict:
            live = {}
        matched = 0
        for element, below in owned.items():
            name = element[2:]
            if name in wanted:
                matched += 1
                want = wanted[name]
                if below:
                    self.node(want, live.get(name, ABSENT), below, (*where, element))
                else:
                    have = live.get(name, ABSENT)
                    kind = type(want)
                    if kind not in _SCALARS or kind is not type(have) or want != have:
                        self.leaf(want, have, (*where, element))
            elif element != ".":
                self.removed(live.get(name, ABSENT), (*where, element), below)
        if matched != len(wanted):
            for name, want in wanted.items():
                if "f:" + name not in owned:
                    self.added(want, live.get(name, ABSENT), (*where, "f:" + name))

    def node(self, wanted: Any, live: Any, owned: Fields, where: Where) -> None:
        """Compare a place below which we own something."""
        first = next(iter(owned)) if "." not in owned else next((one for one in owned if one != "."), ".")
        kind = type(wanted)
        match first[0]:
            case "f" if kind is dict and wanted:
                self.mapping(wanted, live, owned, where)
            case "k" if kind is list and wanted:
                self.items(wanted, live, owned, where, managed.key_names(first))
            case "v" if kind is list and wanted:
                self.items(wanted, live, owned, where, None)
            case "f" | "k" | "v":
                self.removed(live, where, owned)
                if wanted:
                    self.say(Proof.DIFFERS, where, live, wanted)
            case _:
                self.say(Proof.UNKNOWN, where, live, wanted)

    def items(
        self, wanted: list[Any], live: Any, owned: Fields, where: Where, names: tuple[str, ...] | None
    ) -> None:
        """Compare an associative list (`names` are its key fields) or a set (None)."""
        elements = {managed.identity(element): element for element in owned if element != "."}
        places: dict[Any, int] = {}
        for place, item in enumerate(live if type(live) is list else ()):
            key = managed.item_identity(item, names)
            if key in places:
                return self.say(
                    Proof.UNKNOWN, where, live, wanted
                )  # The server has its rules for duplicates.
            places[key] = place
        last, ordered, seen = -1, True, set()
        for item in wanted:
            key = managed.item_identity(item, names)
            if key not in elements and names is not None and type(item) is dict:
                key = managed.defaulted(item, names, elements, owned)
            if key in seen:
                return self.say(Proof.UNKNOWN, where, live, wanted)
            seen.add(key)
            element = elements.get(key)
            place = places.get(key, -1)
            have = ABSENT if place < 0 else live[place]
            if element is None:
                self.added(item, have, (*where, managed.element_of(key, names)))
            elif place < 0:
                self.say(Proof.UNKNOWN, (*where, element), ABSENT, item)
            elif owned[element]:
                self.node(item, have, owned[element], (*where, element))
            elif names is not None:
                self.say(Proof.UNKNOWN, (*where, element), have, item)
            if place >= 0:
                ordered = ordered and place > last
                last = place
        for key, element in elements.items():
            if key not in seen:
                place = places.get(key, -1)
                self.removed(ABSENT if place < 0 else live[place], (*where, element), owned[element])
        if not ordered:
            shared = [key for key in places if key in seen]
            self.say(
                Proof.DIFFERS,
                where,
                [managed.plain(key) for key in shared],
                [
                    managed.plain(key)
                    for key in (managed.item_identity(item, names) for item in wanted)
                    if key in places
                ],
            )
        return None

    def leaf(self, want: Any, have: Any, where: Where) -> None:
        """Compare a value that we own whole: a scalar, an atomic list or map, or a map that we applied empty."""
        if have is ABSENT:
            # Who removes a field ends our ownership of it. So the server left it out, as it does with null and with zeros.
            dropped = want == alike.DROPPED.get(where[-1], ABSENT) and (
                self.native or where[0] == "f:metadata"
            )
            if not dropped or not self.rewritten(where):
                self.say(Proof.UNKNOWN, where, have, want)
            return
        if type(want) is dict:
            # Where others own parts of it, it is not atomic: we applied it empty.
            if any(managed.children(tree) for tree in self.below(where)):
                if want or type(have) is not dict:
                    self.say(Proof.DIFFERS, where, have, want)
                return
            if not want:
                if have != {}:
                    self.say(Proof.UNKNOWN, where, have, want)
                return
        match alike.like(want, have, where[-1][2:], self.defaults):
            case Like.SAME if type(want) is not dict or where[-1] in alike.ATOMIC or where[-1] in self.atomic:
                return
            case Like.DEFAULTS if self.rewritten(where):
                return
            case Like.QUANTITY if self.native and alike.is_quantity(where) and self.rewritten(where):
                return
            case Like.OTHER:
                self.say(Proof.DIFFERS, where, have, want)
            case _:
                self.say(Proof.UNKNOWN, where, have, want)

    def added(self, want: Any, have: Any, where: Where) -> None:
        """A field that we want and do not own. Empty lists may own nothing, so they may be no change."""
        self.say(Proof.UNKNOWN if _weightless(want) else Proof.DIFFERS, where, have, want)

    def removed(self, have: Any, where: Where, owned: Fields) -> None:
        """A field that we own and do not want any more. The value goes where no other manager owns it."""
        for below, value in _unshared(have, where, owned, self.below(where)):
            self.say(Proof.DIFFERS, below, value, ABSENT)
        if not self.found or self.found[-1].where[: len(where)] != where:
            self.say(Proof.DIFFERS, where, have, have)

    def say(self, verdict: Proof, where: Where, have: Any, want: Any) -> None:
        """Note a finding."""
        self.found.append(_Found(where, have, want, verdict, tuple(self.below(where))))

    def below(self, where: Where) -> list[Fields]:
        """What other managers own in this place: one tree for each that owns it or a part of it."""
        return managed.below(self.others, where)

    def rewritten(self, where: Where) -> bool:
        """Whether a value that the server writes in its own way every time is no change.

        It is one for another owner of this place (a conflict). And it renews the time of our entry, which moves it behind
        the entries of those who applied after us.
        """
        return not any(
            entry.get("operation") == "Apply" and entry.get("time", "") >= self.applied
            for entry in self.others
        ) and not any(not tree or "." in tree for tree in self.below(where))


def _weightless(want: Any) -> bool:
    """Whether there is nothing in a value but empty lists."""
    return want == [] or (type(want) is dict and want != {} and all(map(_weightless, want.values())))


# What is shown -----------------------------------------------------------------------------------------------------------


def _shown(
    where: Where, have: Any, want: Any, owners: tuple[Fields, ...], defaults: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Where, Any, Any]]:
    """The values that change within a finding: a wanted map says nothing about the other fields of the live one."""
    name = where[-1][2:] if where else ""
    if type(want) is dict and type(have) is dict and where and where[-1] not in alike.ATOMIC:
        for key, value in want.items():
            below = tuple(tree[f"f:{key}"] for tree in owners if f"f:{key}" in tree)
            yield from _shown((*where, f"f:{key}"), have.get(key, ABSENT), value, below, defaults)
    elif type(want) is list and type(have) is list and owners and managed.children(owners[0]):
        yield from _shown_items(where, have, want, owners, defaults)
    elif alike.like(want, have, name, defaults) not in alike.ALIKE and not (have is ABSENT and not want):
        yield from _shown_whole(where, have, want, name, defaults)


def _shown_whole(
    where: Where, have: Any, want: Any, name: str, defaults: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Where, Any, Any]]:
    """The parts that change of a value that is applied whole: what is live and not wanted goes, unless it is a default."""
    if type(want) is dict and type(have) is dict:
        known = defaults.get(name, alike.NOTHING)
        for key in {**want, **have}:
            old, new = have.get(key, ABSENT), want.get(key, ABSENT)
            if new is not ABSENT or known.get(key, ABSENT) != old:
                yield from _shown_whole((*where, f"f:{key}"), old, new, key, defaults)
    elif (
        type(want) is list
        and type(have) is list
        and want
        and len(want) == len(have)
        and type(want[0]) is dict
    ):
        for place, (old, new) in enumerate(zip(have, want, strict=True)):
            yield from _shown_whole((*where, f"i:{place}"), old, new, name, defaults)
    elif alike.like(want, have, name, defaults) not in alike.ALIKE:
        yield where, have, want


def _shown_items(
    where: Where,
    have: list[Any],
    want: list[Any],
    owners: tuple[Fields, ...],
    defaults: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[Where, Any, Any]]:
    """The items that change in a list which another manager owns by items, and we do not own yet."""
    first = next(iter(managed.children(owners[0])))
    names = managed.key_names(first) if first[0] == "k" else None
    items = {managed.item_identity(item, names): item for item in have}
    for item in want:
        key = managed.item_identity(item, names)
        element = managed.element_of(key, names)
        below = tuple(tree[element] for tree in owners if element in tree)
        yield from _shown((*where, element), items.get(key, ABSENT), item, below, defaults)


def _unshared(
    have: Any, where: Where, owned: Fields, others: Sequence[Fields]
) -> Iterator[tuple[Where, Any]]:
    """The values in a place that go when we give it up, because nobody else owns them."""
    if have is ABSENT or any(not tree or ("." in tree and not owned) for tree in others):
        return
    if not others:
        yield where, have
        return
    for element, below in owned.items():
        if element != ".":
            value = managed.child(have, element)
            yield from _unshared(
                value, (*where, element), below, [one[element] for one in others if element in one]
            )


def _values(live: Any, owned: Fields, others: Sequence[Mapping[str, Any]], where: Where = ()) -> Any:
    """The owned part of a value, for a digest."""
    children = managed.children(owned)
    if not children:
        if type(live) is dict and any(managed.children(tree) for tree in managed.below(others, where)):
            return {}  # We applied it empty, what is in it belongs to others.
        return None if live is ABSENT else [live]
    if children[0][0] == "f":
        return {
            element: _values(managed.child(live, element), owned[element], others, (*where, element))
            for element in children
        }
    names = managed.key_names(children[0]) if children[0][0] == "k" else None
    places = {
        managed.item_identity(item, names): place
        for place, item in enumerate(live if type(live) is list else ())
    }
    present = sorted((places.get(managed.identity(one), -1), one) for one in children)
    return [
        [one, _values(live[place], owned[one], others, (*where, one))] if place >= 0 else [one]
        for place, one in present
    ]
