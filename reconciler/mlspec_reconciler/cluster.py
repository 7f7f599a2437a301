"""The contract of a cluster: it stores objects and runs them. `clusters/` has one file or folder for each.

`tests/cluster/contract.py` runs the same cases over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlspec.manifest import Key
from mlspec.workload import RunFact


@dataclass(frozen=True, slots=True)
class Object:
    """One live object: the body that was applied, what the cluster says about it, and its identity there."""

    key: Key
    body: Mapping[str, Any]
    status: Mapping[str, Any]
    uid: str
    version: str
    """Changes with each change of body or status (resourceVersion)."""
    annotations: Mapping[str, str]
    """mlspec's own: origin, revision, digest."""
    deleting: bool = False
    """Its deletion was asked for and goes on; until it is gone, `create` and `apply` answer `Conflict`."""


def key_of(body: Mapping[str, Any]) -> Key:
    """The key of an object with this body."""
    metadata = body["metadata"]
    return Key(body["apiVersion"], body["kind"], metadata.get("namespace", ""), metadata["name"])


class Conflict(Exception):
    """The object changed since it was read, or exists already. Nothing was done."""


class Unavailable(Exception):
    """The cluster cannot be asked now. Says nothing about what exists."""


class Cluster(Protocol):
    """Where manifests go. All methods raise `Unavailable` when the cluster does not answer."""

    @property
    def identity(self) -> str:
        """Names this cluster among all; saved plans and inventories are bound to it."""

    def get(self, key: Key) -> Object | None:
        """One object, or None when it is certain that there is none."""

    def list(self) -> Iterable[Object]:
        """All objects that this project may own."""

    def create(self, body: Mapping[str, Any], annotations: Mapping[str, str]) -> Object:
        """Create; `Conflict` when it exists."""

    def apply(
        self, body: Mapping[str, Any], annotations: Mapping[str, str], version: str | None = None
    ) -> Object:
        """Create or replace the body; with `version`, `Conflict` unless the live object has it."""

    def delete(self, key: Key, uid: str) -> None:
        """Ask for deletion of exactly this object (by uid); nothing when it is gone already."""

    def watch(self, timeout: float) -> Iterator[Key]:
        """Keys of objects that change, as they change, for at most `timeout` seconds without a change.

        Counts from the call, not from the first `next()`: watch, then list, then wait, and no change is missed.
        """

    def wake(self) -> object:
        """Make sure that somebody runs the objects; nothing to do where the cluster takes care of itself."""

    def runs(self) -> Mapping[str, RunFact]:
        """Every run that was ever made here, by name, also when its object is gone."""

    def note(self, name: str) -> Mapping[str, Any] | None:
        """A small document that the reconciler keeps beside the objects (inventory, applied revision)."""

    def set_note(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace a document; durable when this returns."""
