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
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

Path = tuple[str | int, ...]
"""Into the live object; where an item or field is not live yet, into the wanted one."""

Where = tuple[str, ...]
"""The same place in FieldsV1: `f:spec`, `k:{"name":"main"}`, `v:"a"`."""

Fields = Mapping[str, Any]
"""A tree of FieldsV1; `{}` is a field that is owned whole, `.` says that the place itself is owned besides what is below."""


class Absent:
    """The type of ABSENT."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()
"""In the place of a value that is not there (None is a value: null)."""


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
    shown: list[Difference] = []
    for one in _compare(wanted, live, manager).found:
        shown += (
            (_path(where, live, wanted), have, want)
            for where, have, want in _shown(one.where, one.live, one.wanted, one.owners)
        )
    return shown


def owned_digest(live: Mapping[str, Any], manager: str) -> str:
    """SHA-256 of the fields that our Apply entry owns and of their values, in the order of lists; without `mlspec.dev/`.

    It changes when somebody changes or takes over one of our fields, not with status, defaults or fields of others.
    """
    mine, others = _entries(live, manager)
    values = _values(live, _trimmed_fields(mine["fieldsV1"]), others) if mine else None
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def managers(live: Mapping[str, Any], path: Sequence[str | int]) -> list[str]:
    """The names of all managers (ours too) that own the field at `path` of `live`, a part of it, or a value it is part of."""
    names = []
    for entry in live.get("metadata", {}).get("managedFields") or ():
        name = entry.get("manager", "")
        if name not in names and _touches(entry.get("fieldsV1") or {}, live, path):
            names.append(name)
    return names


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

_BUILT_IN = frozenset(
    (
        "",
        "apps",
        "autoscaling",
        "batch",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "storage.k8s.io",
    )
)
"""Groups whose objects the server keeps as Go structures: it drops zeros, fills in defaults, rewrites quantities."""

_SCALARS = frozenset((str, int, bool))


def _compare(wanted: Mapping[str, Any], live: Mapping[str, Any], manager: str) -> _Walk:
    """Walk all that we own and all that we want."""
    mine, others = _entries(live, manager)
    version = wanted.get("apiVersion")
    walk = _Walk(others, native=str(version).rpartition("/")[0] in _BUILT_IN)
    fields = _trimmed_fields(mine["fieldsV1"]) if mine else {}
    if mine and (
        mine.get("apiVersion") != version
        or live.get("apiVersion") != version
        or any(entry.get("apiVersion") != version for entry in others if entry.get("subresource") != "scale")
    ):
        walk.doubt = True  # The server converts to other versions and back, or our set is of another version.
    if "status" in wanted or "stringData" in wanted:
        walk.doubt = True  # The server takes these away from what is applied.
    walk.mapping(_trimmed(wanted), live, fields, ())
    if mine is None and not walk.found:
        walk.doubt = True
    return walk


def _entries(
    live: Mapping[str, Any], manager: str
) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """Our Apply entry (there is one per manager: the server keys appliers without their version), and all others."""
    mine = None
    others = []
    for entry in live["metadata"].get("managedFields") or ():
        if (
            entry.get("operation") == "Apply"
            and entry.get("manager") == manager
            and not entry.get("subresource")
            and entry.get("fieldsV1") is not None
        ):
            mine = entry
        else:
            others.append(entry)
    return mine, others


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

    __slots__ = ("doubt", "found", "native", "others")

    def __init__(self, others: Sequence[Mapping[str, Any]], *, native: bool) -> None:
        self.others = others
        self.native = native
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
                self.items(wanted, live, owned, where, _names(first))
            case "v" if kind is list and wanted:
                self.items(wanted, live, owned, where, None)
            case "f" | "k" | "v":
                self.say(Proof.DIFFERS, where, live, wanted)
            case _:
                self.say(Proof.UNKNOWN, where, live, wanted)

    def items(
        self, wanted: list[Any], live: Any, owned: Fields, where: Where, names: tuple[str, ...] | None
    ) -> None:
        """Compare an associative list (`names` are its key fields) or a set (None)."""
        elements = {_key(element): element for element in owned if element != "."}
        places: dict[Any, int] = {}
        for place, item in enumerate(live if type(live) is list else ()):
            key = _item_key(item, names)
            if key in places:
                return self.say(
                    Proof.UNKNOWN, where, live, wanted
                )  # Duplicates: the server has its own rules.
            places[key] = place
        last, ordered, seen = -1, True, set()
        for item in wanted:
            key = _item_key(item, names)
            if key not in elements and names is not None and type(item) is dict:
                key = _defaulted(item, names, elements, owned)
            if key in seen:
                return self.say(Proof.UNKNOWN, where, live, wanted)
            seen.add(key)
            element = elements.get(key)
            place = places.get(key, -1)
            have = ABSENT if place < 0 else live[place]
            if element is None:
                self.added(item, have, (*where, _element(key, names)))
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
                [_plain(key) for key in shared],
                [_plain(key) for key in (_item_key(item, names) for item in wanted) if key in places],
            )
        return None

    def leaf(self, want: Any, have: Any, where: Where) -> None:
        """Compare a value that we own whole: a scalar, an atomic list or map, or a map that we applied empty."""
        if have is ABSENT:
            # Who removes a field ends our ownership of it. So the server left it out, as it does with null and with zeros.
            dropped = want == _DROPPED.get(where[-1], ABSENT) and (self.native or where[0] == "f:metadata")
            if not dropped or self.holders(where):
                self.say(Proof.UNKNOWN, where, have, want)
            return
        if type(want) is dict:
            if any(
                _children(tree) for tree in self.below(where)
            ):  # Others own parts of it: it is not atomic.
                if want or type(have) is not dict:
                    self.say(Proof.DIFFERS, where, have, want)
                return
            if not want:
                if have != {}:
                    self.say(Proof.UNKNOWN, where, have, want)
                return
        match _like(want, have, where[-1][2:]):
            case _Like.SAME if (
                type(want) is not dict
                or where[-1] in _ATOMIC
                or (self.native and where[-1] == "f:nodeSelector")
            ):
                return
            case _Like.DEFAULTS if self.native and not self.holders(where):
                return
            case _Like.QUANTITY if self.native and _is_quantity(where) and not self.holders(where):
                return
            case _Like.OTHER:
                self.say(Proof.DIFFERS, where, have, want)
            case _:
                self.say(Proof.UNKNOWN, where, have, want)

    def added(self, want: Any, have: Any, where: Where) -> None:
        """A field that we want and do not own. An empty list of items with keys owns nothing, so it may be no change."""
        self.say(Proof.UNKNOWN if want == [] else Proof.DIFFERS, where, have, want)

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
        return _below(self.others, where)

    def holders(self, where: Where) -> bool:
        """Whether another manager owns exactly this place."""
        return any(not tree or "." in tree for tree in self.below(where))


# Values ------------------------------------------------------------------------------------------------------------------


class _Like(StrEnum):
    """How alike a wanted and a live value are that are applied whole."""

    SAME = "same"
    DEFAULTS = "defaults"
    """Live has more: the known defaults of built-in kinds inside an atomic value."""
    QUANTITY = "quantity"
    """The same quantity, written in another way."""
    FILLED = "filled"
    """Live has more, or a value in the place of a zero: defaults of the server, or what we wanted before."""
    OTHER = "other"


_RANK = tuple(_Like)
_ALIKE = (_Like.SAME, _Like.DEFAULTS, _Like.QUANTITY)

_ATOMIC = frozenset(
    f"f:{name}"
    for name in (
        "configMapKeyRef",
        "fieldRef",
        "fileKeyRef",
        "labelSelector",
        "namespaceSelector",
        "nodeLabels",
        "objectSelector",
        "podSelector",
        "preference",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "resourceFieldRef",
        "roleRef",
        "scopeSelector",
        "secretKeyRef",
        "selector",
        "targetRef",
    )
)
"""Maps that are atomic in every kind that has a field of this name. A map that is owned whole is atomic, or was
applied empty and filled by defaults; the name tells which (a test compares this table with the schema of the server)."""

_DROPPED: Mapping[str, Any] = {
    "f:annotations": {},
    "f:data": {},
    "f:hostNetwork": False,
    "f:labels": {},
    "f:readOnly": False,
    "f:value": "",
}
"""Zeros that the server does not keep, so that they are owned and not live. Zeros of other fields may be kept."""

_DEFAULTED: Mapping[str, Mapping[str, Any]] = {
    "fieldRef": {"apiVersion": "v1"},
    "ports": {"protocol": "TCP"},
    "resourceFieldRef": {"divisor": "0"},
    "serviceAccountToken": {"expirationSeconds": 3600},
}
"""Defaults of built-in kinds inside atomic values, by the field that holds them. All other defaults are in maps of which we
own our own fields alone."""


def _like(want: Any, have: Any, name: str) -> _Like:
    """Compare two values that are applied whole; `name` is the field that holds them."""
    match want, have:
        case list(), list():
            if len(want) != len(have):
                return _worst([_Like.FILLED if not want else _Like.OTHER])
            return _worst(_like(one, other, name) for one, other in zip(want, have, strict=True))
        case dict(), dict():
            more = {key: value for key, value in have.items() if key not in want}
            known = _DEFAULTED.get(name, {})
            alike = [_like(value, have.get(key, ABSENT), key) for key, value in want.items()]
            if more:
                filled = all(known.get(key) == value for key, value in more.items())
                alike.append(_Like.DEFAULTS if filled else _Like.FILLED)
            return _worst(alike)
        case (str() | bool(), _) | (_, str() | bool()) if type(want) is type(have) and want == have:
            return _Like.SAME
        case (int() | float(), int() | float()) if want == have and bool not in (type(want), type(have)):
            return _Like.SAME
        case (None, None):
            return _Like.SAME
        case ("" | 0 | None | [], _) if want is not False:
            return _Like.FILLED
        case (str() | int() | float(), str() | int() | float()) if _same_quantity(want, have):
            return _Like.QUANTITY
    return _Like.OTHER if want or have is not ABSENT else _Like.FILLED


def _worst(alike: Iterable[_Like]) -> _Like:
    return max(alike, key=_RANK.index, default=_Like.SAME)


_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([EPTGMk]i?|Ki|[num]|[eE][+-]?\d+)?")
_SUFFIX: Mapping[str, Fraction] = {
    **{f"{letter}i": Fraction(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
    **{letter: Fraction(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{letter: Fraction(1, 1000**power) for power, letter in enumerate("mun", 1)},
}


def _same_quantity(want: float | str, have: float | str) -> bool:
    """Whether two scalars mean the same quantity: `"0.1"` and `"100m"`, `1` and `"1"`."""
    if bool in (type(want), type(have)):
        return False
    first, second = _quantity(str(want)), _quantity(str(have))
    return first is not None and first == second


def _quantity(text: str) -> Fraction | None:
    """The number that a quantity means; None if it is none."""
    parts = _QUANTITY.fullmatch(text)
    if parts is None or len(text) > 40:
        return None
    suffix = parts[2] or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return Fraction(parts[1]) * Fraction(10) ** int(suffix[1:]) if len(suffix) < 5 else None
    return Fraction(parts[1]) * _SUFFIX.get(suffix, Fraction(1))


def _is_quantity(where: Where) -> bool:
    """Whether a field of a built-in kind is a quantity, which the server writes in its own way."""
    return where[-1] == "f:sizeLimit" or (
        len(where) > 2 and where[-3] == "f:resources" and where[-2] in ("f:requests", "f:limits")
    )


# Items of lists ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16_384)
def _parsed(element: str) -> Any:
    """The JSON of a `k:` or `v:` element."""
    return json.loads(element[2:])


@lru_cache(maxsize=16_384)
def _key(element: str) -> Any:
    """What identifies an item: the values of its key fields in the order of their names, or the value of a set."""
    parsed = _parsed(element)
    if element[0] == "v":
        return _hashable(parsed)
    values = tuple(parsed[name] for name in sorted(parsed))
    return values[0] if len(values) == 1 else values


@lru_cache(maxsize=1_024)
def _names(element: str) -> tuple[str, ...]:
    """The names of the key fields."""
    return tuple(sorted(_parsed(element)))


def _item_key(item: Any, names: tuple[str, ...] | None) -> Any:
    """The identity of an item of a list, as `_key` says it for an element of FieldsV1."""
    if names is None:
        return _hashable(item)
    if type(item) is not dict:
        return ABSENT
    if len(names) == 1:
        return _hashable(item.get(names[0], ABSENT))
    return tuple(_hashable(item.get(name, ABSENT)) for name in names)


def _hashable(value: Any) -> Any:
    return value if type(value) is not dict and type(value) is not list else json.dumps(value, sort_keys=True)


def _defaulted(
    item: dict[str, Any], names: tuple[str, ...], elements: Mapping[Any, str], owned: Fields
) -> Any:
    """The identity of an item that leaves out key fields: the owned item that did so too (`protocol: TCP` of a port)."""
    missing = [name for name in names if name not in item]
    fitting = [
        key
        for key, element in elements.items()
        if all(name in missing or _parsed(element)[name] == item[name] for name in names)
        and not any(f"f:{name}" in owned[element] for name in missing)
    ]
    return fitting[0] if missing and len(fitting) == 1 else _item_key(item, names)


def _element(key: Any, names: tuple[str, ...] | None) -> str:
    """The element of FieldsV1 of a new item."""
    if names is None or key is ABSENT:
        return "v:" + json.dumps(key, default=str)
    values = (key,) if len(names) == 1 else key
    known = {name: value for name, value in zip(names, values, strict=True) if value is not ABSENT}
    return "k:" + json.dumps(known, separators=(",", ":"))


def _plain(key: Any) -> Any:
    return list(key) if type(key) is tuple else key


# What is shown -----------------------------------------------------------------------------------------------------------


def _shown(
    where: Where, have: Any, want: Any, owners: tuple[Fields, ...]
) -> Iterator[tuple[Where, Any, Any]]:
    """The values that change within a finding: a wanted map says nothing about the other fields of the live one."""
    if type(want) is dict and type(have) is dict and where and where[-1] not in _ATOMIC:
        for name, value in want.items():
            below = tuple(tree[f"f:{name}"] for tree in owners if f"f:{name}" in tree)
            yield from _shown((*where, f"f:{name}"), have.get(name, ABSENT), value, below)
    elif type(want) is list and type(have) is list and owners and _children(owners[0]):
        yield from _shown_items(where, have, want, owners)
    elif _like(want, have, where[-1][2:] if where else "") not in _ALIKE and not (
        have is ABSENT and not want
    ):
        yield where, have, want


def _shown_items(
    where: Where, have: list[Any], want: list[Any], owners: tuple[Fields, ...]
) -> Iterator[tuple[Where, Any, Any]]:
    """The items that change in a list which another manager owns by items, and we do not own yet."""
    first = next(iter(_children(owners[0])))
    names = _names(first) if first[0] == "k" else None
    items = {_item_key(item, names): item for item in have}
    for item in want:
        key = _item_key(item, names)
        element = _element(key, names)
        below = tuple(tree[element] for tree in owners if element in tree)
        yield from _shown((*where, element), items.get(key, ABSENT), item, below)


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
            value = _child(have, element)
            yield from _unshared(
                value, (*where, element), below, [one[element] for one in others if element in one]
            )


def _below(entries: Sequence[Mapping[str, Any]], where: Where) -> list[Fields]:
    """What entries of managedFields own in a place."""
    trees = []
    for entry in entries:
        tree = entry.get("fieldsV1")
        for element in where:
            tree = tree.get(element) if tree else None
            if tree is None:
                break
        if tree is not None:
            trees.append(tree)
    return trees


def _children(tree: Fields) -> list[str]:
    return [element for element in tree if element != "."]


def _child(value: Any, element: str) -> Any:
    """The value that an element of FieldsV1 names, or ABSENT."""
    if element[0] == "f":
        return value.get(element[2:], ABSENT) if type(value) is dict else ABSENT
    place = _place(value, element)
    return value[place] if place is not None else ABSENT


def _place(value: Any, element: str) -> int | None:
    """The index of the item that a `k:` or `v:` element names."""
    if type(value) is not list or element[0] not in "kv":
        return None
    names = _names(element) if element[0] == "k" else None
    key = _key(element)
    return next((place for place, item in enumerate(value) if _item_key(item, names) == key), None)


def _path(where: Where, live: Any, wanted: Any) -> Path:
    """A place of FieldsV1 as a path into live, or into wanted where it is not live."""
    path: list[str | int] = []
    for element in where:
        if element[0] == "f":
            path.append(element[2:])
        else:
            place = _place(live, element)
            if place is None:
                place = _place(wanted, element)
            path.append(element if place is None else place)
        live, wanted = _child(live, element), _child(wanted, element)
    return tuple(path)


def _touches(fields: Fields, live: Any, path: Sequence[str | int]) -> bool:
    """Whether a tree owns the value at `path`, a part of it, or a value that it is a part of."""
    for step in path:
        if not fields:
            return True
        if type(step) is int:
            if type(live) is not list or step >= len(live):
                return False
            element = next((one for one in fields if one[0] in "kv" and _place(live, one) == step), None)
            live = live[step]
        else:
            element = f"f:{step}"
            live = live.get(step) if type(live) is dict else None
        if element is None or element not in fields:
            return False
        fields = fields[element]
    return True


def _values(live: Any, owned: Fields, others: Sequence[Mapping[str, Any]], where: Where = ()) -> Any:
    """The owned part of a value, for a digest."""
    children = _children(owned)
    if not children:
        if type(live) is dict and any(_children(tree) for tree in _below(others, where)):
            return {}  # We applied it empty, what is in it belongs to others.
        return None if live is ABSENT else [live]
    if children[0][0] == "f":
        return {
            element: _values(_child(live, element), owned[element], others, (*where, element))
            for element in children
        }
    places = sorted((place, one) for one in children if (place := _place(live, one)) is not None)
    gone = sorted(set(children) - {one for _, one in places})
    present = [[one, _values(live[place], owned[one], others, (*where, one))] for place, one in places]
    return present + [[one] for one in gone]
