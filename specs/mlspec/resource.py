"""The building blocks of the spec language: base model, scalar types, references, resources.

`mlspec.kinds` uses these to write one file per kind; `mlspec.parse` turns documents into `Resource` values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from mlspec.diagnostics import Mark

Path = tuple[str | int, ...]

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
IDENTIFIER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
_DURATION = re.compile(r"([0-9]{1,15})(ms|s|m|h|d|w)")
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
LONGEST = 36_500 * 86_400.0
"""The longest duration in seconds: a hundred years, with which every calendar and every counter of microseconds can do."""
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
_QUANTITY_FACTOR = {
    "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip


class Base(BaseModel):
    """Every model of the spec language: unknown fields are errors, values are frozen, names are camelCase in YAML."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=False,
        defer_build=True,
        strict=False,
    )

    def document(self) -> dict[str, Any]:
        """The spec as plain JSON data under its YAML names, without unset and default fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class OneOf(Base):
    """A model of which exactly one of the `CHOICES` fields is set, as in `source: {parquet: ...}`."""

    CHOICES: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _exactly_one(self) -> OneOf:
        chosen = [name for name in self.CHOICES if getattr(self, name) is not None]
        if len(chosen) != 1:
            names = [to_camel(name.rstrip("_")) for name in self.CHOICES]
            given = [to_camel(name.rstrip("_")) for name in chosen]
            found = f"{' and '.join(given)} are set" if given else "none is set"
            raise PydanticCustomError(
                "one_of",
                "exactly one of {choices} is needed; {found}",
                {"choices": ", ".join(names), "found": found},
            )
        return self

    @property
    def choice(self) -> str:
        """The (Python) name of the field that is set."""
        return next(name for name in self.CHOICES if getattr(self, name) is not None)


def seconds(duration: str) -> float:
    """Seconds of a duration such as `30s`, `5m`, `3h`, `90d`; ValueError for anything else."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(f"not a duration: {duration!r}")
    return int(match[1]) * _DURATION_SECONDS[match[2]]


def amount(quantity: str | float) -> float:
    """The number of a Kubernetes quantity: `500m` -> 0.5, `4Gi` -> 4294967296."""
    match = _QUANTITY.match(str(quantity))
    if match is None:
        raise ValueError(f"not a quantity: {quantity!r}")
    return float(match[1]) * _QUANTITY_FACTOR.get(match[2] or "", 1.0)


def moment(text: str) -> datetime:
    """An ISO 8601 date or time as an aware datetime; without an offset it is UTC."""
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _duration(value: str) -> str:
    if not _DURATION.fullmatch(value):
        raise PydanticCustomError(
            "duration", 'a duration is a whole number and a unit, such as "30s", "5m", "3h", "90d"'
        )
    if seconds(value) > LONGEST:
        raise PydanticCustomError("duration", "the longest duration is a hundred years, 36500d")
    return value


def _interval(value: str) -> str:
    if seconds(_duration(value)) == 0:
        raise PydanticCustomError("empty_range", 'such as "30s", "5m", "1d"')
    return value


def _quantity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _QUANTITY.match(str(value)):
        raise PydanticCustomError(
            "quantity", 'a quantity is a number with an optional unit, such as 2, "500m", "4Gi"'
        )
    return str(value)


def _moment(value: str) -> str:
    try:
        moment(value)
    except ValueError:
        raise PydanticCustomError(
            "time", 'a time is ISO 8601, such as "2013-01-31" or "2013-01-31T18:00:00Z"'
        ) from None
    return value


def _share(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        return float(value[:-1]) / 100
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise PydanticCustomError(
        "share", 'a share is a number from 0 to 1 or a percentage, such as 0.001 or "0.1%"'
    )


Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
"""A DNS label: lower case letters, digits and dashes."""
Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN, max_length=128)]
"""A column, feature, metric or parameter name."""
Duration = Annotated[str, AfterValidator(_duration)]
Interval = Annotated[str, AfterValidator(_interval)]
"""A duration greater than zero: a window, a timeout, the time between two starts."""
Quantity = Annotated[str, BeforeValidator(_quantity)]
Moment = Annotated[str, AfterValidator(_moment)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]
SQL_LENGTH = 4000
"""Characters of a SQL expression, as typed and as normalised."""
Sql = Annotated[str, Field(min_length=1, max_length=SQL_LENGTH)]
"""A SQL row expression; `mlspec.expressions` says which SQL is allowed."""
CodeRef = Annotated[str, Field(pattern=r"^([\w./-]+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*$")]
"""`file.py:function`, relative to the file of the spec, or `package.module:function`."""


def replaced(value: Any, path: Path, leaf: Any) -> Any:
    """A spec, or plain data, with another value at `path`; names of fields as in YAML. Nothing is validated."""
    if not path:
        return leaf
    first, rest = path[0], path[1:]
    match value:
        case Base():
            fields = type(value).model_fields
            name = next(name for name, one in fields.items() if first in (name, one.alias))
            return value.model_copy(update={name: replaced(getattr(value, name), rest, leaf)})
        case Mapping():
            return {**value, first: replaced(value[first], rest, leaf)}
        case _:
            assert isinstance(first, int)
            return [*value[:first], replaced(value[first], rest, leaf), *value[first + 1 :]]


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to another resource, by name. `kinds` lists what it may be; `path` is where it stands in the spec."""

    kinds: tuple[str, ...]
    name: str
    path: Path = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """One typed document. `spec` is a model of its kind; `mark` is the first line of the document."""

    kind: str
    name: str
    spec: Base
    mark: Mark
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    document: int = 0

    @property
    def id(self) -> str:
        """`Kind/name`, as plans and statuses print it."""
        return f"{self.kind}/{self.name}"
