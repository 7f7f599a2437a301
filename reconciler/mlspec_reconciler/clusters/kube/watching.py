"""What changes in collections of objects: list, then watch, for as long as it takes.

Measured against a server that fails (HTTP 410, 429, 500, cuts, silence), the watches of the known Python clients hang, end
or ask a thousand times a second. This one resumes where it was, lists again only when it must (410), says what vanished
meanwhile, drops what comes twice or too late, and never asks faster than about once a second.
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakSet

from mlspec.manifest import Key
from mlspec_reconciler.cluster import Unavailable, key_of
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.pacing import Backoff
from mlspec_reconciler.clusters.kube.transport import Stream, Transport

Target = tuple[str, str]
"""The path of a collection, and a label selector or nothing."""
_SHORTEST, _LONGEST = 240.0, 360.0
"""Seconds of one watch. Jittered, so that watches which began together do not end together."""
_IDLE = 90.0
"""Seconds without event and bookmark (sent about once a minute) after which a watch is dead."""
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_HEALTHY = 5.0
"""Seconds after which a watch that ends counts as one that worked."""
_TRIES = 3
"""Watches that fail one after the other at one resourceVersion before the collection is listed again."""
_SYNC = 30.0
"""Seconds in which a new watch must get hold of its collection."""


class Reflector:
    """Follows one collection in a thread of its own and calls `changed` with the key of each object that changes.

    Of the objects it keeps uid and resourceVersion. What is there at first is no change.
    """

    def __init__(self, transport: Transport, target: Target, changed: Callable[[Key], None]) -> None:
        self.path, selector = target
        self.synced = threading.Event()
        """It knows the collection, so no change from now on is missed. It may lose its connection; it will catch up."""
        self.trouble: Exception | None = None
        """Why the last attempt failed, None while all is well."""
        self._query = {"labelSelector": selector} if selector else {}
        self._transport = transport
        self._changed = changed
        self._known: dict[Key, tuple[str, str]] = {}
        self._version = ""
        self._stopped = threading.Event()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"mlspec-watch {self.path}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End soon; does not wait."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        backoff = Backoff(_PAUSE, _LONGEST_PAUSE)
        failures = 0
        while not self._stopped.is_set():
            begun, before, after = time.monotonic(), self._version, None
            try:
                if not self._version or failures >= _TRIES:
                    self._list()
                    before, failures = self._version, 0
                self._watch()
                self.trouble = None
            except errors.Gone:
                self._version = ""
            except (errors.ApiError, Unavailable) as error:
                self.trouble = error
                after = error.retry_after if isinstance(error, (errors.Busy, errors.ApiError)) else None
                if isinstance(error, errors.NotServed):  # its definition was deleted, and with it all objects
                    self._replace({}, "")
            if self._version not in ("", before) or time.monotonic() - begun > _HEALTHY:
                backoff.reset()
                failures = 0
            else:
                failures += 1
            self._stopped.wait(backoff.next(after))

    def _list(self) -> None:
        found, version = self._transport.scan(self.path, _identity, query=self._query, budget=0)
        self._replace(dict(found), version)

    def _replace(self, found: dict[Key, tuple[str, str]], version: str) -> None:
        """The collection is this now. Tell what is new, different or gone since we last knew."""
        before, self._known, self._version = self._known, found, version
        if self.synced.is_set():
            for key in before.keys() | found.keys():
                if before.get(key) != found.get(key):
                    self._tell(key)
        self.synced.set()

    def _watch(self) -> None:
        query = self._query | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(round(random.uniform(_SHORTEST, _LONGEST))),
        }
        stream = self._stream = self._transport.stream(self.path, query=query, idle=_IDLE)
        if self._stopped.is_set():
            stream.close()
        try:
            for event in stream:
                self._take(event["type"], event["object"])
                self.trouble = None
        finally:
            self._stream = None
            stream.close()

    def _take(self, change: str, body: Mapping[str, Any]) -> None:
        if change == "ERROR":
            raise _failure(body)
        version = str(body["metadata"]["resourceVersion"])
        if not _newer(
            version, self._version
        ):  # delivered twice, or late: events of a collection come in order
            return
        self._version = version
        if change == "BOOKMARK":
            return
        key, identity = _identity(body)
        if change == "DELETED":
            self._known.pop(key, None)
        else:
            self._known[key] = identity
        self._tell(key)

    def _tell(self, key: Key) -> None:
        if not self._stopped.is_set():
            self._changed(key)


class Watching:
    """Several collections, followed as one. Safe to use from several threads."""

    def __init__(self, transport: Transport, targets: Iterable[Target]) -> None:
        self._transport = transport
        self._reflectors: dict[Target, Reflector] = {}
        self._listeners: WeakSet[_Changes] = WeakSet()
        self._lock = threading.Lock()
        self.follow(targets)

    def follow(self, targets: Iterable[Target]) -> None:
        """Follow these collections from now on, and no others."""
        wanted = set(targets)
        with self._lock:
            for target in self._reflectors.keys() - wanted:
                self._reflectors.pop(target).stop()
            for target in wanted - self._reflectors.keys():
                self._reflectors[target] = Reflector(self._transport, target, self._changed)

    def changes(self, timeout: float) -> Iterator[Key]:
        """Keys of objects that change after this call, each once until it was taken. Ends after `timeout` seconds of quiet.

        Returns when every collection is followed; `Unavailable` when that fails.
        """
        listener = _Changes(timeout)
        with self._lock:
            reflectors = [*self._reflectors.values()]
            self._listeners.add(listener)
        until = time.monotonic() + _SYNC
        for reflector in reflectors:
            while not reflector.synced.wait(0.1):
                refused = isinstance(reflector.trouble, errors.ApiError)
                if refused or time.monotonic() > until:
                    why = reflector.trouble or "no answer"
                    raise Unavailable(f"{self._transport.server}: {reflector.path} cannot be watched: {why}")
        return listener

    def close(self) -> None:
        """Stop all, and wait for it shortly."""
        with self._lock:
            reflectors = [*self._reflectors.values()]
            self._reflectors.clear()
        for reflector in reflectors:
            reflector.stop()
        until = time.monotonic() + 1.0
        for reflector in reflectors:
            reflector.join(max(0.0, until - time.monotonic()))

    def _changed(self, key: Key) -> None:
        with self._lock:
            listeners = [*self._listeners]
        for listener in listeners:
            listener.put(key)


class _Changes(Iterator[Key]):
    """What one caller of `Watching.changes` has not seen yet; forgotten when the caller forgets it."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._keys: dict[Key, None] = {}
        self._some = threading.Condition()

    def put(self, key: Key) -> None:
        with self._some:
            self._keys.setdefault(key)
            self._some.notify()

    def __next__(self) -> Key:
        with self._some:
            if not self._some.wait_for(lambda: self._keys, self._timeout):
                raise StopIteration
            key = next(iter(self._keys))
            del self._keys[key]
            return key


def _identity(body: Mapping[str, Any]) -> tuple[Key, tuple[str, str]]:
    metadata = body["metadata"]
    return key_of(body), (metadata["uid"], metadata["resourceVersion"])


def _newer(version: str, than: str) -> bool:
    """Resource versions are numbers that grow (KEP-5504); those of an API server that does it otherwise are told apart."""
    return int(version) > int(than) if version.isdigit() and than.isdigit() else version != than


def _failure(status: Mapping[str, Any]) -> Exception:
    """What an ERROR event says: the stream is over."""
    code = int(status.get("code") or 500)
    details = status.get("details") or {}
    too_new = any(cause.get("reason") == "ResourceVersionTooLarge" for cause in details.get("causes") or ())
    if code == 410 or too_new:  # too new: the server was restored from a backup
        return errors.Gone(code, str(status.get("reason")), "list again")
    message = errors.clean(str(status.get("message") or f"status {code}"))
    return errors.Busy(f"the watch failed: {message}", details.get("retryAfterSeconds"))
