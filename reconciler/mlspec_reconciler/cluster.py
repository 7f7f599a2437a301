"""The contract of a cluster: it stores objects and runs them. `clusters/` has one file or folder for each.

`tests/cluster/contract.py` runs the same cases over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlspec.engine import Live
from mlspec.manifest import Key, digest
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
    parts: tuple[Mapping[str, Any], ...] = ()
    """What controllers made for it: pods, queue entries, runs of a schedule."""

    @property
    def live(self) -> Live:
        """As its engine reads it."""
        return Live(self.body, self.status, self.parts)

    @property
    def content(self) -> str:
        """Digest of all that an apply could overrun: it changes with what people edit, not with what the object does."""
        body = {name: value for name, value in self.body.items() if name not in ("metadata", "status")}
        metadata = self.body.get("metadata", {})
        edited = {name: metadata.get(name) for name in ("labels", "finalizers")}
        told = _told(metadata.get("managedFields") or ())
        notes = {**(metadata.get("annotations") or {}), **self.annotations}
        return digest([self.uid, body, edited, {name: notes[name] for name in notes if name not in told}])


def _told(managers: Sequence[Mapping[str, Any]]) -> set[str]:
    """Annotations that say what an object does: written together with its status (revision of a Deployment)."""
    by: dict[bool, set[str]] = {True: set(), False: set()}
    for one in managers:
        notes = (one.get("fieldsV1") or {}).get("f:metadata", {}).get("f:annotations", {})
        by[one.get("subresource") == "status"] |= {name.removeprefix("f:") for name in notes}
    return by[True] - by[False]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that an apply would set, change or remove; None where the field is absent."""

    path: tuple[str | int, ...]
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Preview:
    """What the cluster says to a write before it is made."""

    changes: bool = True
    """False when the write would change nothing."""
    differences: tuple[Difference, ...] = ()
    """As far as they are known."""
    refusal: str = ""
    """Why the cluster would not accept it, in one sentence with the way out; empty when it would."""
    forced_by: str = ""
    """The immutable field for which the object must be replaced."""
    foreign: str = ""
    """Who made the object that is there already, when it was not mlspec."""


def is_same(before: str, now: str) -> bool:
    """Whether a cluster that was called `before` is the one that is called `now`.

    A name may gain a part, and never changes one: a local store has a place before its first write, and is one of its own
    after it. So a plan that was saved before the first apply holds, and one of a store that was removed does not.
    """
    return set(before.split("/")) <= set(now.split("/"))


STOPPED = "stopped by mlspec stop"
"""Message of a run that a person ended."""


def key_of(body: Mapping[str, Any]) -> Key:
    """The key of an object with this body."""
    metadata = body["metadata"]
    return Key(body["apiVersion"], body["kind"], metadata.get("namespace", ""), metadata["name"])


class Conflict(Exception):
    """The object changed since it was read, or exists already. Nothing was done."""


class Refused(Exception):
    """The cluster does not accept the object: it is invalid, not permitted, or a field belongs to somebody else. Trying
    again will not help; the sentence says what will."""


class Immutable(Refused):
    """The object exists, and a field that would change cannot be changed in place."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Unavailable(Exception):
    """The cluster cannot be asked now. Says nothing about what exists."""


class Cluster(Protocol):
    """Where manifests go. All methods raise `Unavailable` when the cluster does not answer."""

    @property
    def identity(self) -> str:
        """Names this cluster among all; saved plans and inventories are bound to it."""

    @property
    def concurrency(self) -> int:
        """How many writes at a time do it good."""

    def get(self, key: Key) -> Object | None:
        """One object, or None when it is certain that there is none."""

    def list(self) -> Iterable[Object]:
        """All objects that this project may own."""

    def create(self, body: Mapping[str, Any], annotations: Mapping[str, str]) -> Object:
        """Create; `Conflict` when it exists."""

    def apply(
        self, body: Mapping[str, Any], annotations: Mapping[str, str], version: str | None = None
    ) -> Object:
        """Create or replace the body; with `version`, `Conflict` unless the live object is as it was then.

        On Kubernetes other managers' fields stay, and a field that belongs to one of them is `Refused`.
        """

    def holds(self, body: Mapping[str, Any], live: Object) -> bool | None:
        """Whether an apply of `body` would change nothing, as far as it can be told without asking; None: cannot be told."""

    def preview(
        self, writes: Sequence[tuple[Mapping[str, Any], Mapping[str, str], Object | None]]
    ) -> Sequence[Preview]:
        """Ask what would come of applying these bodies with these annotations over these live objects (None: creating).
        Changes nothing."""

    def delete(self, key: Key, uid: str) -> None:
        """Ask for deletion of exactly this object (by uid); nothing when it is gone already."""

    def cancel(self, live: Object) -> RunFact | None:
        """End a run before its time: it has failed, and is not started again until a person applies. Returns its end where
        nothing here will say it later."""

    def retry(self, live: Object) -> bool:
        """Let a failed run go on from the step that failed. False: it can only be made anew, as an apply does."""

    def watch(self, timeout: float) -> Iterator[Key]:
        """Keys of objects that change, as they change, for at most `timeout` seconds without a change.

        Counts from the call, not from the first `next()`: watch, then list, then wait, and no change is missed.
        """

    def wake(self) -> object:
        """Make sure that somebody runs the objects; nothing to do where the cluster takes care of itself."""

    def runs(self) -> Mapping[str, RunFact]:
        """What the target itself remembers of runs whose objects may be gone, by name."""

    def lacks(self, kinds: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """Which of these (apiVersion, kind) the cluster does not know, with what to do about it."""

    def forbidden(self, kinds: Iterable[tuple[str, str]]) -> Sequence[str]:
        """What we are not permitted to do with objects of these (apiVersion, kind), a sentence each."""

    def printed(self, live: Object, lines: int) -> Mapping[str, str]:
        """The last lines that the processes of an object have printed, by process."""
