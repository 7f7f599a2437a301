"""The contract of a source: where the revision comes from that a target should hold. `sources/` has one file for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlspec_reconciler.step import DesiredState


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision, and what names it: equal names, equal revisions."""

    name: str
    desired: DesiredState | None
    problem: str = ""
    """Why it cannot be compiled; the last good revision goes on."""


class Source(Protocol):
    """Where revisions come from."""

    def newest(self) -> Revision | None:
        """The newest revision; None when there is none any more, and nothing is to be driven. Writes nothing."""
