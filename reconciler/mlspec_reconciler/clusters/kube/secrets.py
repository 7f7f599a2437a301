"""What of an object nobody may see: the values of a Secret, and of environment variables, where people put passwords.

Messages of the server are searched for these values (`errors.clean`), and differences do not show them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlspec_reconciler.clusters.kube.errors import HIDDEN

SECRET = "Secret"
SHORTEST = 8
"""Characters of an environment variable that is searched for: shorter ones (`true`, `/tmp`, `prod`) are ordinary words."""


def values(body: Any) -> frozenset[str]:
    """The values of an object that no message may show, as they are sent and as they are meant."""
    if not isinstance(body, Mapping):
        return frozenset()
    if body.get("kind") == SECRET:
        found = {str(value) for part in ("data", "stringData") for value in (body.get(part) or {}).values()}
        return frozenset(found | {_decoded(value) for value in (body.get("data") or {}).values()} - {""})
    return frozenset(value for value in _environment(body.get("spec")) if len(value) >= SHORTEST)


def shown(kind: str, path: Sequence[str | int], value: Any) -> Any:
    """The part of an object at `path` as it may be shown."""
    if kind == SECRET and tuple(path[:2]) != ("metadata", "labels"):
        return HIDDEN
    if len(path) >= 3 and path[-3] == "env" and path[-1] == "value":
        return HIDDEN
    if path and path[-1] == "env":
        return _variables(value)
    if len(path) >= 2 and path[-2] == "env":
        return _variables([value])[0]
    return _masked(value)


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _variables(one) if name == "env" else _masked(one) for name, one in value.items()}
    return [_masked(one) for one in value] if isinstance(value, list) else value


def _variables(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [
        {**one, "value": HIDDEN} if isinstance(one, Mapping) and one.get("value") else one for one in value
    ]


def _environment(value: Any) -> Iterator[str]:
    """The values of every `env` list below."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            if name == "env" and isinstance(one, list):
                yield from (
                    str(each["value"]) for each in one if isinstance(each, Mapping) and each.get("value")
                )
            else:
                yield from _environment(one)
    elif isinstance(value, list):
        for one in value:
            yield from _environment(one)


def _decoded(value: Any) -> str:
    try:
        return base64.b64decode(value).decode()
    except (ValueError, TypeError):
        return ""
