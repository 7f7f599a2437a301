"""Health: what an engine makes of one live object. Pure functions of the object produce it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The six states, from good to bad to unknown."""

    READY = "ready"
    """A service answers, a schedule is active, a run has succeeded, a record is stored."""
    PROGRESSING = "progressing"
    """Moves towards ready by itself."""
    WAITING = "waiting"
    """Cannot move until something else happens; the sentence says what."""
    DEGRADED = "degraded"
    """Works, but not as it should."""
    FAILED = "failed"
    """Will not become ready by itself."""
    UNKNOWN = "unknown"
    """Could not be read. Never taken for absent."""


@dataclass(frozen=True, slots=True)
class Health:
    """A state and one stable sentence for the person on call."""

    state: State
    sentence: str = ""
