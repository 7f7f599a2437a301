"""Alike: whether a wanted value means the live one, where a value is applied whole.

Called by `owned` for scalars, atomic lists and atomic maps. The little that has to be known of schemas stands here in tables:
names of atomic maps, zeros that are not kept, defaults inside atomic values. The tests compare them with a real server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final

from mlspec_reconciler.clusters.kube.managed import ABSENT, Where

NOTHING: Final[Mapping[str, Any]] = {}

BUILT_IN = frozenset(
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

ATOMIC = frozenset(
    f"f:{name}"
    for name in (
        "configMapKeyRef",
        "fieldRef",
        "fileKeyRef",
        "labelSelector",
        "namespaceSelector",
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

ATOMIC_IN: Mapping[str, frozenset[str]] = {
    "": frozenset(("f:nodeSelector",)),
    "kueue.x-k8s.io": frozenset(("f:nodeLabels",)),
}
"""More of them, by group; "" is what is built in."""

DROPPED: Mapping[str, Any] = {
    "f:annotations": {},
    "f:data": {},
    "f:hostNetwork": False,
    "f:labels": {},
    "f:readOnly": False,
    "f:value": "",
}
"""Zeros that the server does not keep, so that they are owned and not live. Zeros of other fields may be kept."""

DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "": {
        "fieldRef": {"apiVersion": "v1"},
        "ports": {"protocol": "TCP"},
        "resourceFieldRef": {"divisor": "0"},
        "serviceAccountToken": {"expirationSeconds": 3600},
    },
    "gateway.networking.k8s.io": {
        "backendRefs": {"group": "", "kind": "Service", "weight": 1},
        "parentRefs": {"group": "gateway.networking.k8s.io", "kind": "Gateway"},
        "path": {"type": "PathPrefix", "value": "/"},
        "rules": {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]},
    },
}
"""Defaults inside atomic values by group ("" for what is built in) and by the field that holds them. All other defaults are
in maps of which we own our own fields alone."""


class Like(StrEnum):
    """How alike a wanted and a live value are that are applied whole."""

    SAME = "same"
    DEFAULTS = "defaults"
    """Live has more: the known defaults of built-in kinds inside an atomic value."""
    QUANTITY = "quantity"
    """The same quantity, written in another way."""
    FILLED = "filled"
    """Live has more, or a value in the place of a zero: defaults of the server, or what we wanted before."""
    OTHER = "other"


_RANK = tuple(Like)
ALIKE = (Like.SAME, Like.DEFAULTS, Like.QUANTITY)


def like(want: Any, have: Any, name: str, defaults: Mapping[str, Mapping[str, Any]] = NOTHING) -> Like:
    """Compare two values that are applied whole; `name` is the field that holds them."""
    match want, have:
        case list(), list():
            if len(want) != len(have):
                return _worst([Like.FILLED if not want else Like.OTHER])
            return _worst(like(one, other, name, defaults) for one, other in zip(want, have, strict=True))
        case dict(), dict():
            more = {key: value for key, value in have.items() if key not in want}
            known = defaults.get(name, NOTHING)
            alike = [like(value, have.get(key, ABSENT), key, defaults) for key, value in want.items()]
            if more:
                filled = all(known.get(key, ABSENT) == value for key, value in more.items())
                alike.append(Like.DEFAULTS if filled else Like.FILLED)
            return _worst(alike)
        case (str() | bool(), _) | (_, str() | bool()) if type(want) is type(have) and want == have:
            return Like.SAME
        case (int() | float(), int() | float()) if want == have and bool not in (type(want), type(have)):
            return Like.SAME
        case (None, None):
            return Like.SAME
        case ("" | 0 | None | [], _) if want is not False:
            return Like.FILLED
        case (str() | int() | float(), str() | int() | float()) if bool not in (type(want), type(have)):
            return _quantities(str(want), str(have))
    return Like.OTHER if want or have is not ABSENT else Like.FILLED


def _worst(alike: Iterable[Like]) -> Like:
    return max(alike, key=_RANK.index, default=Like.SAME)


_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([EPTGMk]i?|Ki|[num]|[eE][+-]?\d+)?")
_SUFFIX: Mapping[str, Fraction] = {
    **{f"{letter}i": Fraction(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
    **{letter: Fraction(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{letter: Fraction(1, 1000**power) for power, letter in enumerate("mun", 1)},
}


def _quantities(want: str, have: str) -> Like:
    """Whether two texts are one quantity to the server: `0.1` and `100m`, `1024Mi` and `1Gi`.

    It keeps the family of a suffix, so `1073741824` replaces `1Gi`; but below 1024 it writes binary ones as decimal.
    """
    (first, family), (second, kept) = _quantity(want), _quantity(have)
    if first is None or first != second:
        return Like.OTHER
    if family == kept:
        return Like.QUANTITY
    return Like.FILLED if family == "i" and abs(first) < 1024 else Like.OTHER


def _quantity(text: str) -> tuple[Fraction | None, str]:
    """The number that a quantity means (None if it is none), and its family: `i` binary, `e` exponent, or decimal."""
    parts = _QUANTITY.fullmatch(text) if len(text) < 40 else None
    if parts is None:
        return None, ""
    suffix = parts[2] or ""
    number = Fraction(parts[1])
    if suffix[:1] in ("e", "E") and suffix[1:2] not in ("", "i"):
        return (number * Fraction(10) ** int(suffix[1:]) if len(suffix) < 5 else None), "e"
    return number * _SUFFIX.get(suffix, Fraction(1)), suffix[1:2]


def is_quantity(where: Where) -> bool:
    """Whether a field of a built-in kind is a quantity, which the server writes in its own way."""
    return where[-1] == "f:sizeLimit" or (
        len(where) > 2 and where[-3] == "f:resources" and where[-2] in ("f:requests", "f:limits")
    )
