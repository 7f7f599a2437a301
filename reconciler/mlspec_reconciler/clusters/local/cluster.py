"""`LocalCluster`: the contract of a cluster on this machine. Writes go to the store; the supervisor makes them true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlspec.manifest import Key
from mlspec.workload import RunFact
from mlspec_reconciler.cluster import Conflict, Object, Preview, Unavailable, key_of
from mlspec_reconciler.clusters.local import lock, processes
from mlspec_reconciler.clusters.local.state import LocalState
from mlspec_reconciler.clusters.local.store import CONTROLLER, Failing, RunRecord, Store

JSON = Mapping[str, Any]
API_VERSION = "local.mlspec.dev/v1"
POLL = 0.05
"""Seconds between two looks at the store while watching."""


class LocalCluster:
    """The objects of one home (`.mlspec`) and the processes that belong to them. Safe to use from several threads.

    `root` is the storage root that processes get; `HOME/store` by default. Looking makes nothing, the first write the home.
    """

    concurrency = 1

    def __init__(self, home: Path, root: Path | None = None) -> None:
        self.home = home.absolute()
        self.root = (root or home / "store").absolute()
        self.store = Store(self.home / "state.db")
        self.state = LocalState(self.store)
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def identity(self) -> str:
        """`local/PLACE`, and one part more from the first write on."""
        return f"local/{self.store.identity}"

    def close(self) -> None:
        """Release the store. What runs goes on."""
        self.store.close()

    def get(self, key: Key) -> Object | None:
        """One object, or None."""
        return self.store.get(key)

    def list(self) -> Iterable[Object]:
        """All objects."""
        return self.store.objects()

    def create(self, body: JSON, annotations: Mapping[str, str]) -> Object:
        """Create; `Conflict` when it exists."""
        key = key_of(body)
        with self.store.write():
            old = self.store.get(key)
            if old is not None:
                raise Conflict(f"{key} {'is being deleted' if old.deleting else 'exists already'}")
            return self.store.put(key, body, annotations, None)

    def apply(self, body: JSON, annotations: Mapping[str, str], version: str | None = None) -> Object:
        """Create or replace the body; with `version`, `Conflict` unless the live object has it."""
        key = key_of(body)
        with self.store.write():
            old = self.store.get(key)
            if old is not None and old.deleting:
                raise Conflict(f"{key} is being deleted")
            if version is not None and (old is None or old.version != version):
                raise Conflict(f"{key} has changed since version {version}")
            if old is not None and old.body == body and old.annotations == annotations:
                return old
            if old is not None and key.kind == "Run" and old.body != body:
                raise Conflict(f"{key} exists already; a run is never changed")
            return self.store.put(key, body, annotations, old)

    def holds(self, body: JSON, live: Object) -> bool:
        """The store is ours alone."""
        return True

    def preview(self, writes: Sequence[tuple[JSON, Mapping[str, str], Object | None]]) -> Sequence[Preview]:
        """Every write is accepted."""
        return [Preview() for _ in writes]

    def delete(self, key: Key, uid: str) -> None:
        """Delete exactly this object: at once when nothing runs for it, otherwise once the supervisor has ended that."""
        with self.store.write():
            old = self.store.get(key)
            if old is not None and old.uid == uid:
                self.store.request_deletion(uid)

    def cancel(self, live: Object) -> RunFact | None:
        """End its processes; what it has finished so far stays. The history of runs says it."""
        self.delete(live.key, live.uid)
        return None

    def retry(self, live: Object) -> bool:
        """A run that is made anew does not repeat the steps that have committed their results."""
        return False

    def watch(self, timeout: float) -> Iterator[Key]:
        """Keys of objects as they change, until `timeout` seconds pass without a change. Counts from this call."""
        return self._follow(self.store.counter(), self.store.versions(), timeout)

    def _follow(self, counter: int, known: dict[Key, int], timeout: float) -> Iterator[Key]:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            newest = self.store.counter()
            if newest == counter:
                time.sleep(POLL)
                continue
            counter, found = newest, self.store.versions()
            changed = {key for key, version in found.items() if known.get(key) != version} | (
                known.keys() - found.keys()
            )
            known = found
            yield from sorted(changed)
            until = time.monotonic() + timeout

    def runs(self) -> Mapping[str, RunFact]:
        """Every run that was ever made here, by name, also when its object is gone."""
        return {one.name: RunFact(one.phase, one.results, one.message) for one in self.store.runs()}

    def history(self, name: str | None = None) -> list[RunRecord]:  # type: ignore[valid-type]  # `list` is a method here
        """The run history with times and attempts, oldest first; of one run when `name` is given."""
        return self.store.runs(name)

    def lacks(self, kinds: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """Every kind is known."""
        return {}

    def forbidden(self, kinds: Iterable[tuple[str, str]]) -> Sequence[str]:
        """Everything is permitted."""
        return ()

    def logs(self, key: Key) -> tuple[Path, ...]:
        """The log files of an object, by step; the supervisor's own is `HOME/logs/supervisor.log`."""
        return tuple(sorted((self.home / "logs" / key.kind.lower() / key.name).glob("*.log")))

    def printed(self, live: Object, lines: int) -> Mapping[str, str]:
        """From the log files, by step."""
        return {
            path.stem: "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in self.logs(live.key)
        }

    @property
    def awake(self) -> bool:
        """Whether a supervisor runs. When none does, statuses tell what was, not what is."""
        return lock.holder(self.home) is not None

    @property
    def failing(self) -> Failing | None:
        """How the controller ended the last time, when it keeps ending and a supervisor starts it again and again."""
        found = self.store.failing().get(CONTROLLER)
        return found if found is not None and found.failures > 1 and self.awake else None

    def wake(self, patience: float = 20.0) -> int:
        """Start the supervisor unless it runs; returns its pid. A supervisor of another version, or with another storage
        root, is replaced.

        Raises `Unavailable` when it does not start within `patience` seconds.
        """
        log, about = self.home / "logs" / "supervisor.log", lock.about(self.root)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            holder = lock.holder(self.home)
            started = self._supervisor if self._supervisor and self._supervisor.poll() is None else None
            if holder is not None and holder.about == about:
                if started is None or started.pid == holder.pid:
                    return holder.pid  # otherwise wait until ours has seen that it came too late
            elif holder is not None:
                _signal(holder.pid, signal.SIGHUP)  # it leaves; its children stay for the next one
            elif started is None:
                if self._supervisor is not None and self._supervisor.returncode > 0:
                    self._supervisor = None
                    raise Unavailable(
                        f"the supervisor does not start: {processes.last_error(log)} (log: {log})"
                    )
                self._supervisor = self._start(log)
            time.sleep(0.02)
        raise Unavailable(f"the supervisor did not start within {patience:.0f} s (log: {log})")

    def _start(self, log: Path) -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        processes.trim(log)
        module = "mlspec_reconciler.clusters.local.supervisor"
        argv = [sys.executable, "-P", "-m", module, "--home", str(self.home), "--root", str(self.root)]
        with log.open("ab") as file:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.home,
                env=processes.inherited(),
                start_new_session=True,
            )

    def stop(self, grace: float = 15.0) -> None:
        """End the supervisor and every process of this home, also those that a killed supervisor left, and wait for it.

        Objects stay; `wake` continues them.
        """
        told: dict[int, float] = {}
        while not self._stopped(grace):
            holder = lock.holder(self.home)
            if holder is not None and holder.pid not in told:
                told[holder.pid] = time.monotonic() + grace
                _signal(holder.pid, signal.SIGTERM)
            elif holder is not None and time.monotonic() > told[holder.pid]:
                _signal(holder.pid, signal.SIGKILL)
        processes.wait(told, grace)
        if self._supervisor is not None:
            self._supervisor.wait()
            self._supervisor = None

    def _stopped(self, grace: float) -> bool:
        """Whether no supervisor runs; then the processes that one left behind are ended."""
        with lock.hold(self.home, 0.05, "stops") as mine:
            if mine:
                processes.end_marked(self.store.id, grace)
                self.store.clear()
        return mine


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
