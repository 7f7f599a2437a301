"""The in-memory cluster: the contract in dictionaries, for tests and for benchmarks with many objects.

Nothing runs here. A test plays the supervisor with `settle`, `succeed` and `fail`.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlspec.manifest import Key
from mlspec.workload import RunFact
from mlspec_reconciler.cluster import STOPPED, Conflict, Object, Preview, key_of
from mlspec_reconciler.state import MemoryState

JSON = Mapping[str, Any]


class MemoryCluster:
    """A cluster that lives as long as this object. Safe to use from several threads."""

    concurrency = 1

    def __init__(self) -> None:
        self.identity = f"memory/{uuid.uuid4().hex}"
        self.state = MemoryState()
        self._objects: dict[Key, Object] = {}
        self._runs: dict[str, RunFact] = {}
        self.state = MemoryState()
        self._log: list[Key] = []
        """The key of each change; its length is the newest version."""
        self._changed = threading.Condition()

    def get(self, key: Key) -> Object | None:
        """One object, or None."""
        return self._objects.get(key)

    def list(self) -> Iterable[Object]:
        """All objects."""
        with self._changed:
            return [*self._objects.values()]

    def create(self, body: JSON, annotations: Mapping[str, str]) -> Object:
        """Create; `Conflict` when it exists."""
        with self._changed:
            key = key_of(body)
            if key in self._objects:
                raise Conflict(f"{key} exists already")
            if key.kind == "Run":
                self._runs[key.name] = RunFact("pending")
            return self._put(Object(key, body, {}, uuid.uuid4().hex, "", dict(annotations)))

    def apply(self, body: JSON, annotations: Mapping[str, str], version: str | None = None) -> Object:
        """Create or replace the body; with `version`, `Conflict` unless the live object has it."""
        with self._changed:
            key = key_of(body)
            old = self._objects.get(key)
            if version is not None and (old is None or old.version != version):
                raise Conflict(f"{key} has changed since version {version}")
            if old is None:
                return self.create(body, annotations)
            if old.body == body and old.annotations == annotations:
                return old
            return self._put(replace(old, body=body, annotations=dict(annotations)))

    def holds(self, body: JSON, live: Object) -> bool:
        """Nobody but mlspec writes bodies here."""
        return True

    def preview(self, writes: Sequence[tuple[JSON, Mapping[str, str], Object | None]]) -> Sequence[Preview]:
        """Every write is accepted."""
        return [Preview() for _ in writes]

    def delete(self, key: Key, uid: str) -> None:
        """Remove exactly this object, at once."""
        with self._changed:
            old = self._objects.get(key)
            if old is not None and old.uid == uid:
                del self._objects[key]
                fact = self._runs.get(key.name) if key.kind == "Run" else None
                if fact is not None and fact.phase not in ("succeeded", "failed"):
                    self._runs[key.name] = replace(fact, phase="failed", message="deleted before it ended")
                self._note_change(key)

    def cancel(self, live: Object) -> RunFact | None:
        """End a run badly."""
        self.fail(live.key.name, STOPPED)
        return None

    def retry(self, live: Object) -> bool:
        """Runs begin anew here."""
        return False

    def watch(self, timeout: float) -> Iterator[Key]:
        """Keys of objects as they change, until `timeout` seconds pass without a change."""
        return self._follow(len(self._log), timeout)

    def wake(self) -> None:
        """Nothing runs here."""

    def runs(self) -> Mapping[str, RunFact]:
        """Every run that was ever made here, by name."""
        with self._changed:
            return dict(self._runs)

    def lacks(self, kinds: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """Every kind is known."""
        return {}

    def forbidden(self, kinds: Iterable[tuple[str, str]]) -> Sequence[str]:
        """Everything is permitted."""
        return ()

    def printed(self, live: Object, lines: int) -> Mapping[str, str]:
        """Nothing runs here."""
        return {}

    def settle(self, key: Key, status: JSON) -> None:
        """Set the status of an object, as its engine would."""
        with self._changed:
            self._put(replace(self._objects[key], status=dict(status)))

    def succeed(self, name: str, results: Mapping[str, JSON] | None = None) -> None:
        """End a run well, with these results by step."""
        self._end(name, RunFact("succeeded", dict(results or {})))

    def fail(self, name: str, message: str = "failed") -> None:
        """End a run badly."""
        self._end(name, RunFact("failed", {}, message))

    def _end(self, name: str, fact: RunFact) -> None:
        with self._changed:
            self._runs[name] = fact
            for key in [key for key in self._objects if key.kind == "Run" and key.name == name]:
                status = {"phase": fact.phase, "results": dict(fact.results), "message": fact.message}
                self.settle(key, status)

    def _put(self, new: Object) -> Object:
        self._objects[new.key] = stored = replace(new, version=str(len(self._log) + 1))
        self._note_change(new.key)
        return stored

    def _note_change(self, key: Key) -> None:
        self._log.append(key)
        self._changed.notify_all()

    def _follow(self, seen: int, timeout: float) -> Iterator[Key]:
        until = time.monotonic() + timeout
        while (rest := until - time.monotonic()) > 0:
            with self._changed:
                if len(self._log) == seen:
                    self._changed.wait(rest)
                fresh = list(dict.fromkeys(self._log[seen:]))
                seen = len(self._log)
            if fresh:
                yield from fresh
                until = time.monotonic() + timeout
