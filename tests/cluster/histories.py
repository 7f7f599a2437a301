"""Random lives of objects: what we want next, and what people, controllers and other appliers do to a live object.

For `test_kube_owned_live`. All edits are of the shape of the object, not of its kind, so that they reach every field;
what the API server refuses is a fact like any other. The edits that matter are the sly ones: taking over a default, writing
a quantity in another way, emptying a map, swapping items.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

Body = dict[str, Any]
Steps = tuple[str | int, ...]

FIXED = {"apiVersion", "kind", "status"}
"""Fields of an object that nobody edits."""
IDENTITY = {"name", "namespace", "managedFields", "uid", "resourceVersion", "creationTimestamp", "generation"}
SPELLINGS = {
    "1": ("1000m", 1, "1.0", "1e0"),
    "2": ("2000m", "2.0"),
    "4": ("4000m",),
    "500m": ("0.5", "0.50"),
    "100m": ("0.1",),
    "512Mi": ("0.5Gi", "536870912"),
    "1Gi": ("1024Mi", "1073741824"),
    "2Gi": ("2048Mi",),
    "4Gi": ("4096Mi",),
}


def desired(body: Body) -> Body:
    """A live object as somebody would have written it: without what only the server writes."""
    kept = {name: value for name, value in copy.deepcopy(body).items() if name != "status"}
    metadata = {"managedFields", "uid", "resourceVersion", "creationTimestamp", "generation"}
    kept["metadata"] = {name: value for name, value in kept["metadata"].items() if name not in metadata}
    return kept


def edited(random: Random, body: Body, times: int) -> Body:
    """A copy with `times` random edits."""
    body = copy.deepcopy(body)
    for _ in range(times):
        places = list(_places(body))
        if not places:
            break
        parent, name, value = random.choice(places)
        match random.randrange(10):
            case 0 | 1 if type(parent) is dict:
                del parent[name]
            case 0 | 1:
                parent.remove(value)
            case 2 | 3:
                parent[name] = _other(random, value)
            case 4 if type(value) is list and len(value) > 1:
                random.shuffle(value)
            case 5 if type(value) is list and value:
                value.append(_sibling(random, random.choice(value)))
            case 6 if type(value) is list and value:
                value.pop(random.randrange(len(value)))
            case 7 if type(value) is dict:
                parent[name] = {}
            case 7 if type(value) is list:
                parent[name] = []
            case 8 if spelled := [one for one in places if type(one[2]) is str and one[2] in SPELLINGS]:
                parent, name, value = random.choice(spelled)
                parent[name] = random.choice(SPELLINGS[value])
            case 9 if type(value) is dict and all(type(one) is str for one in value.values()):
                value[f"extra{random.randrange(3)}"] = random.choice(("a", "1", ""))
            case _ if type(value) is dict:
                metadata = body["metadata"]
                notes = metadata.setdefault(random.choice(("labels", "annotations")), {})
                if type(notes) is dict:
                    notes[f"team{random.randrange(3)}"] = random.choice("ab")
    return body


def absorbed(random: Random, wanted: Body, live: Body, times: int) -> Body:
    """A copy of `wanted` with some values of `live` in it: defaults written out, fields of others taken over."""
    wanted = copy.deepcopy(wanted)
    for _ in range(times):
        missing = list(_missing(wanted, desired(live)))
        if not missing:
            break
        parent, name, value = random.choice(missing)
        parent[name] = copy.deepcopy(value) if type(value) is not dict or random.random() < 0.7 else {}
    return wanted


def excerpt(random: Random, body: Body, keep: float) -> Body:
    """A part of an object, as another applier would own it: each field stays with the probability `keep`."""

    def part(value: Any) -> Any:
        if type(value) is dict:
            return {
                name: part(below)
                for name, below in value.items()
                if name in ("name", "containerPort", "protocol", "port", "mountPath", "key")
                or random.random() < keep
            }
        if type(value) is list and value and type(value[0]) is dict:
            return [part(item) for item in value if random.random() < keep]
        return copy.deepcopy(value)

    kept: Body = {name: body[name] for name in ("apiVersion", "kind")}
    identity = {name: value for name, value in body["metadata"].items() if name in ("name", "namespace")}
    metadata = {name: part(value) for name, value in body["metadata"].items() if name not in identity}
    kept["metadata"] = {**metadata, **identity}
    for name, value in body.items():
        if name not in ("apiVersion", "kind", "metadata", "status") and random.random() < keep**0.5:
            kept[name] = part(value)
    return kept


def _places(body: Body) -> Iterator[tuple[Any, Any, Any]]:
    """All (parent, name or index, value) that may be edited."""
    for name, value in body.items():
        if name == "metadata":
            for inner, below in value.items():
                if inner not in IDENTITY:
                    yield value, inner, below
                    yield from _below(below)
        elif name not in FIXED:
            yield body, name, value
            yield from _below(value)


def _below(value: Any) -> Iterator[tuple[Any, Any, Any]]:
    pairs = value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
    for name, below in pairs:
        yield value, name, below
        yield from _below(below)


def _missing(wanted: Any, live: Any) -> Iterator[tuple[Any, Any, Any]]:
    """All (wanted map, name, live value) of fields that only the live one has."""
    if type(wanted) is dict and type(live) is dict:
        for name, value in live.items():
            if name not in wanted:
                yield wanted, name, value
            elif name not in IDENTITY:
                yield from _missing(wanted[name], value)
    elif type(wanted) is list and type(live) is list:
        for first, second in zip(wanted, live, strict=False):
            yield from _missing(first, second)


def _other(random: Random, value: Any) -> Any:
    """Another value of the same type, often a zero."""
    match value:
        case bool():
            return not value
        case int() | float():
            return random.choice((0, value + 1, float(value)))
        case str():
            return random.choice(("", f"{value}x", f"{value}0"))
        case _:
            return random.choice((None, value))


def _sibling(random: Random, item: Any) -> Any:
    """An item like another, with another identity."""
    if type(item) is not dict:
        return _other(random, item)
    item = copy.deepcopy(item)
    for name in ("name", "mountPath", "port", "containerPort", "key"):
        if name in item:
            item[name] = f"{item[name]}y" if type(item[name]) is str else item[name] + 1
    return item
