"""The state machine of an alert: inactive -> pending -> firing -> resolved. Pure; `evaluate` keeps the states.

A window moves an alert once, in the order of time. When late rows change the verdict of a window that has been passed,
later streaks see the new verdict and the newest window may still raise the alarm, but nothing is taken back: an alert
is resolved by a newer good window only. So alerts do not flap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mlspec.resource import seconds
from mlspec_runtime.monitor.judge import Outcome

Stage = Literal["inactive", "pending", "firing", "resolved"]


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict of one window as the machine sees it. Times are microseconds, UTC."""

    start: int
    outcome: Outcome
    text: str
    value: float | None
    judged: int
    """When this could be known, on the clock of the log."""


@dataclass(frozen=True, slots=True)
class State:
    """One alert now. `cursor` is the last window that moved it, `since` the start of what the sentence tells."""

    stage: Stage = "inactive"
    since: int | None = None
    fired: int | None = None
    """Window at which it fired last: the episode."""
    fired_at: int | None = None
    """When it fired last, on the clock of the log."""
    cursor: int | None = None
    at: int | None = None
    """When it was moved last, on the clock of the log."""
    value: float | None = None
    sentence: str = "no window has been judged yet"


def advance(before: State, history: Sequence[Judged], need: int, window: str, revised: bool = False) -> State:
    """Move an alert by the newest entry of `history` (oldest first, this window last).

    `need` consecutive bad windows fire it; insufficient ones neither break nor feed the streak. `revised`: the window
    has moved it before, and its verdict changed since.
    """
    now = history[-1]
    at = max(now.judged, before.at or now.judged)
    moved = dataclasses.replace(before, cursor=now.start, at=at)
    if now.outcome == "insufficient":
        return (
            moved
            if before.cursor is not None
            else dataclasses.replace(moved, sentence=f"not judged: {now.text}")
        )
    if now.outcome == "good":
        return _good(moved, before, now, window, revised)
    streak = _streak(history)
    if before.stage == "firing":
        since = before.since if before.since is not None else streak[0].start
        number = sum(1 for one in history if one.outcome == "bad" and one.start >= since)
        return _told(moved, "firing", since, now, f"{now.text} for {_length(number, window)}", window)
    since = streak[0].start
    if len(streak) >= need:
        fired = dataclasses.replace(moved, fired=now.start, fired_at=at)
        return _told(fired, "firing", since, now, f"{now.text} for {_length(len(streak), window)}", window)
    progress = f"{now.text} for {len(streak)} of {_length(need, window)}"
    return _told(moved, "pending", since, now, progress, window)


def _good(moved: State, before: State, now: Judged, window: str, revised: bool) -> State:
    if revised and before.stage in ("firing", "pending"):
        return before
    match before.stage:
        case "firing":
            return _told(moved, "resolved", now.start, now, now.text, window)
        case "resolved":
            return _told(moved, "resolved", before.since or now.start, now, now.text, window)
        case _:
            sentence = f"{now.text} on {_day(now.start, window)}"
            return dataclasses.replace(
                moved, stage="inactive", since=None, value=now.value, sentence=sentence
            )


def _told(moved: State, stage: Stage, since: int, now: Judged, text: str, window: str) -> State:
    joint = ", since" if stage in ("firing", "pending") else " since"
    sentence = f"{text}{joint} {_day(since, window)}"
    return dataclasses.replace(moved, stage=stage, since=since, value=now.value, sentence=sentence)


def _streak(history: Sequence[Judged]) -> list[Judged]:
    """The last bad windows without a good one between them, oldest first."""
    streak: list[Judged] = []
    for one in reversed(history):
        if one.outcome == "good":
            break
        if one.outcome == "bad":
            streak.append(one)
    return streak[::-1]


def _length(number: int, window: str) -> str:
    """`3 days`, `1 hour`, `4 windows of 15m`."""
    unit = {"1d": "day", "1h": "hour", "1w": "week", "1m": "minute"}.get(window)
    plural = "" if number == 1 else "s"
    return f"{number} {unit}{plural}" if unit else f"{number} window{plural} of {window}"


def _day(start: int, window: str) -> str:
    when = datetime.fromtimestamp(start / 1e6, UTC)
    day = f"{when:%b} {when.day}"
    return day if seconds(window) % 86_400 == 0 else f"{day} {when:%H:%M}"
