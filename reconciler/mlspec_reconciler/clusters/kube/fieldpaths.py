"""Fields of objects as the API server names them in conflicts: `spec.template.spec.containers[name="main"].image`.

The `fields` rules of a target name them so. Names may have dots in them (`metadata.labels.example.org/team`), so the value
that a path leads into says where a name ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_ITEM = re.compile(r'\[((?:"(?:[^"\\]|\\.)*"|[^]"])*)]')
_KEY = re.compile(r'(\w*)=("(?:[^"\\]|\\.)*"|[^,]+)')


def covers(rule: str, field: str) -> bool:
    """Whether a rule speaks of this field: it names the field, or something that the field is a part of."""
    return field == rule or (field.startswith(rule) and field[len(rule)] in ".[")


def without(value: Any, field: str) -> Any:
    """A copy without the field; the same when it has none."""
    match value:
        case Mapping():
            if (name := _name(value, field)) is not None:
                rest = field[len(name) :].removeprefix(".")
                if not rest:
                    return {each: below for each, below in value.items() if each != name}
                return {**value, name: without(value[name], rest)}
        case list() if found := _ITEM.match(field):
            rest = field[found.end() :].removeprefix(".")
            place = next((index for index, item in enumerate(value) if _is_item(item, found[1])), None)
            if place is not None:
                kept = [without(value[place], rest)] if rest else []
                return [*value[:place], *kept, *value[place + 1 :]]
    return value


def _is_item(item: Any, selector: str) -> bool:
    """Whether an item of a list is meant by `name="main"` or, in a set, `="a"`."""
    for name, value in _KEY.findall(selector):
        try:
            wanted = json.loads(value)
        except ValueError:
            wanted = value
        have = item.get(name, wanted) if isinstance(item, Mapping) and name else item  # absent: a default
        if have != wanted:
            return False
    return True


def owned(fields: Mapping[str, Any], field: str) -> list[str] | None:
    """Where the field stands in the FieldsV1 of a manager, key by key; None where it does not."""
    if found := _ITEM.match(field):
        here = next((key for key in fields if _names_item(key, found[1])), None)
        rest = field[found.end() :].removeprefix(".")
    else:
        name = _name([key[2:] for key in fields if key.startswith("f:")], field)
        here = None if name is None else f"f:{name}"
        rest = field[len(name or "") :].removeprefix(".")
    if here is None:
        return None
    below = owned(fields[here], rest) if rest else []
    return None if below is None else [here, *below]


def pointer(keys: Iterable[str]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def _name(names: Iterable[str], field: str) -> str | None:
    """The longest of the names with which a path may begin."""
    return max((name for name in names if covers(name, field)), key=len, default=None)


def _names_item(key: str, selector: str) -> bool:
    sort, _, value = key.partition(":")
    return sort in ("k", "v") and _is_item(json.loads(value), selector)
