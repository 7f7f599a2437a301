"""Ranges of data: which rows a training reads, as git says it and as a request moves it.

A range is absolute (`from`, `to`) or relative (`last: 90d`); before anything runs it becomes two dates, which the plan shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar

from pydantic import Field

from mlspec.resource import Duration, Moment, Name, OneOf, Share, Sql, moment, seconds


class DataUse(OneOf):
    """Rows for the function: a FeatureView (point-in-time features and label) or a Dataset as it is."""

    CHOICES: ClassVar[tuple[str, ...]] = ("view", "dataset")

    view: Name | None = None
    """The FeatureView."""
    dataset: Name | None = None
    """The Dataset."""
    from_: Moment | None = Field(None, alias="from")
    """First moment (inclusive) of the question or event time."""
    to: Moment | None = None
    """Last moment (exclusive)."""
    last: Duration | None = None
    """Instead of `from` and `to`: so much up to the newest data of the moment at which git first said what it says now. The
    moment is kept: the same commit always means the same rows. A request ends the range at its own moment."""
    skip: Duration | None = None
    """With `last`: end this long before the newest data, as for a training range that a test range follows."""
    label: Sql | None = None
    """Label expression of a Dataset's rows; the column `label` of the function's table."""
    where: Sql | None = None
    """Only rows of the asking dataset that meet this condition."""
    share: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    """Rows whose hashed key falls into this interval of [0, 1): a split that is stable when rows are added."""


Uses = Mapping[str, DataUse]


def relative(data: Uses) -> bool:
    """Whether any range depends on the newest data."""
    return any(use.last for use in data.values())


def resolved(data: Uses, end: str) -> dict[str, DataUse]:
    """With dates in place of relative ranges, which end at `end` (ISO 8601)."""
    return {name: _resolved(use, moment(end)) if use.last else use for name, use in data.items()}


def _resolved(use: DataUse, end: datetime) -> DataUse:
    to = end - timedelta(seconds=seconds(use.skip)) if use.skip else end
    start = to - timedelta(seconds=seconds(use.last or "0s"))
    return use.model_copy(
        update={"from_": start.isoformat(), "to": to.isoformat(), "last": None, "skip": None}
    )


def end_of(newest: str) -> str:
    """Where a range must end to hold the row of this moment: the next whole second, ISO 8601 in UTC."""
    return (moment(newest).astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)).isoformat()


def shifted(data: Uses, at: str, window: str | None) -> dict[str, DataUse]:
    """The ranges, moved so that the newest moment is `at`; `window` stretches or cuts the oldest end."""
    concrete = resolved(data, at)
    ends = [moment(use.to) for use in concrete.values() if use.to]
    if not ends:
        return concrete
    shift = moment(at) - max(ends)
    starts = [moment(use.from_) for use in concrete.values() if use.from_]
    oldest = min(starts, default=None)
    result = {}
    for name, use in concrete.items():
        start = moment(use.from_) + shift if use.from_ else None
        if start and window and oldest and use.from_ and moment(use.from_) == oldest:
            start = moment(at) - timedelta(seconds=seconds(window))
        end = moment(use.to) + shift if use.to else None
        result[name] = use.model_copy(
            update={"from_": start.isoformat() if start else None, "to": end.isoformat() if end else None}
        )
    return result


def empty(data: Uses) -> list[str]:
    """The entries whose range has no moment in it, as after a window that is shorter than the ranges behind it."""
    return [
        name for name, use in data.items() if use.from_ and use.to and moment(use.from_) >= moment(use.to)
    ]


def span(data: Uses) -> str:
    """`2013-01-01 to 2013-03-25`, over all entries; empty when no entry has dates."""
    starts = [moment(use.from_) for use in data.values() if use.from_]
    ends = [moment(use.to) for use in data.values() if use.to]
    if not starts and not ends:
        return ""
    first = day(min(starts)) if starts else "the beginning"
    return f"{first} to {day(max(ends)) if ends else 'the end'}"


def newest(data: Uses) -> datetime | None:
    """The newest moment of all entries; None without dates."""
    return max((moment(use.to) for use in data.values() if use.to), default=None)


def written(value: datetime) -> str:
    """As people write a moment in a spec: a date, or ISO 8601 in UTC where it is not midnight."""
    value = value.astimezone(UTC)
    text = value.isoformat().replace("+00:00", "Z")
    return text.removesuffix("T00:00:00Z")


def day(value: datetime) -> str:
    """A date, with the time of day (UTC) where it is not midnight."""
    value = value.astimezone(UTC)
    midnight = (value.hour, value.minute, value.second, value.microsecond) == (0, 0, 0, 0)
    return value.strftime("%Y-%m-%d" if midnight else "%Y-%m-%d %H:%M")
