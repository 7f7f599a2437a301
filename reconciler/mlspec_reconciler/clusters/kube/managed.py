"""Managed: `metadata.managedFields` as it is written (FieldsV1), and the values that its elements name.

FieldsV1 is a tree: `f:` a field, `k:` an item of an associative list by its key fields, `v:` an item of a set, `.` the place
itself beside what is below it; `{}` is owned whole. Called by `owned`.
Source: https://github.com/kubernetes-sigs/structured-merge-diff/blob/v6.3.3/fieldpath/serialize-pe.go
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def entries(
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


def below(entries: Sequence[Mapping[str, Any]], where: Where) -> list[Fields]:
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


def children(tree: Fields) -> list[str]:
    return [element for element in tree if element != "."]


def child(value: Any, element: str) -> Any:
    """The value that an element of FieldsV1 names, or ABSENT."""
    if element[0] == "f":
        return value.get(element[2:], ABSENT) if type(value) is dict else ABSENT
    if element[0] == "i":
        return value[int(element[2:])] if type(value) is list and int(element[2:]) < len(value) else ABSENT
    place = place_of(value, element)
    return value[place] if place is not None else ABSENT


def place_of(value: Any, element: str) -> int | None:
    """The index of the item that a `k:` or `v:` element names."""
    if type(value) is not list or element[0] not in "kv":
        return None
    names = key_names(element) if element[0] == "k" else None
    key = identity(element)
    return next((place for place, item in enumerate(value) if item_identity(item, names) == key), None)


def path_of(where: Where, live: Any, wanted: Any) -> Path:
    """A place of FieldsV1 as a path into live, or into wanted where it is not live."""
    path: list[str | int] = []
    for element in where:
        if element[0] == "f":
            path.append(element[2:])
        elif element[0] == "i":
            path.append(int(element[2:]))
        else:
            place = place_of(live, element)
            if place is None:
                place = place_of(wanted, element)
            path.append(element if place is None else place)
        live, wanted = child(live, element), child(wanted, element)
    return tuple(path)


def owns(fields: Fields, live: Any, path: Sequence[str | int]) -> bool | None:
    """Whether a tree owns the value at `path` or a part of it; None for a value that it is a part of."""
    for step in path:
        if not fields:
            return None
        if type(step) is int:
            if type(live) is not list or step >= len(live):
                return False
            element = next((one for one in fields if one[0] in "kv" and place_of(live, one) == step), "")
            live = live[step]
        else:
            element = f"f:{step}"
            live = live.get(step) if type(live) is dict else None
        if element not in fields:
            return False
        fields = fields[element]
    return True


@lru_cache(maxsize=16_384)
def _parsed(element: str) -> Any:
    """The JSON of a `k:` or `v:` element."""
    return json.loads(element[2:])


@lru_cache(maxsize=16_384)
def identity(element: str) -> Any:
    """What identifies an item: the values of its key fields in the order of their names, or the value of a set."""
    parsed = _parsed(element)
    if element[0] == "v":
        return _hashable(parsed)
    values = tuple(parsed[name] for name in sorted(parsed))
    return values[0] if len(values) == 1 else values


@lru_cache(maxsize=1_024)
def key_names(element: str) -> tuple[str, ...]:
    """The names of the key fields."""
    return tuple(sorted(_parsed(element)))


def item_identity(item: Any, names: tuple[str, ...] | None) -> Any:
    """The identity of an item of a list, as `identity` says it for an element of FieldsV1."""
    if names is None:
        return _hashable(item)
    if type(item) is not dict:
        return ABSENT
    if len(names) == 1:
        return _hashable(item.get(names[0], ABSENT))
    return tuple(_hashable(item.get(name, ABSENT)) for name in names)


def _hashable(value: Any) -> Any:
    return value if type(value) is not dict and type(value) is not list else json.dumps(value, sort_keys=True)


def defaulted(
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
    return fitting[0] if missing and len(fitting) == 1 else item_identity(item, names)


def element_of(key: Any, names: tuple[str, ...] | None) -> str:
    """The element of FieldsV1 of a new item."""
    if names is None or key is ABSENT:
        return "v:" + json.dumps(key, default=str)
    values = (key,) if len(names) == 1 else key
    known = {name: value for name, value in zip(names, values, strict=True) if value is not ABSENT}
    return "k:" + json.dumps(known, separators=(",", ":"))


def plain(key: Any) -> Any:
    return list(key) if type(key) is tuple else key
