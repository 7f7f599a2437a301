"""Launch: start processes for objects so that none is ever started twice or forgotten.

A process is entered in the store's table of children before it is started and stays there until its end was seen. After a
crash of the supervisor the table and the marks of the living processes together say what runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlspec_reconciler.clusters.local import processes
from mlspec_reconciler.clusters.local.store import Child, Store

JSON = Mapping[str, Any]
FAR = 3600.0
"""Delay of a worker that waits for nothing but an event."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The times of the supervisor, in seconds."""

    idle: float = 0.25
    """Between two looks at the store when nothing happens."""
    grace: float = 10.0
    """From SIGTERM to SIGKILL."""
    drain: float = 35.0
    """The same for a server that is replaced or deleted: it finishes its requests first, which may take 30 s."""
    first_backoff: float = 1.0
    """Delay of the first retry or restart; doubles with each further one."""
    longest_backoff: float = 60.0
    """Bound of the delay."""
    settled: float = 60.0
    """A service that has been ready for so long starts over with the first delay."""
    probe: float = 5.0
    """Between two health checks of a ready service."""
    probe_soon: float = 0.2
    """Between two health checks of a service that is not ready."""
    silent: float = 30.0
    """A service that gave no answer for so long is restarted."""

    def backoff(self, failures: int) -> float:
        """Delay after that many failures in a row: exponential, with a quarter of jitter."""
        return float(
            min(self.longest_backoff, self.first_backoff * 2 ** min(failures - 1, 30))
            * random.uniform(0.75, 1.25)
        )


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that a process works for; `uid` is empty for the supervisor's own programs."""

    uid: str
    kind: str
    name: str


@dataclass(slots=True)
class Running:
    """A child and its process; `process` is None when an earlier supervisor's child is gone."""

    child: Child
    process: processes.Process | None

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process is not None and self.process.alive()

    @property
    def adopted(self) -> bool:
        """Whether an earlier supervisor started it, so that no signal tells of its end."""
        return self.process is not None and self.process.popen is None

    @property
    def interrupted(self) -> bool:
        """Whether it was never started, or ended because the machine did: not its own fault."""
        return self.process is None and (self.child.pid is None or processes.booted() > self.child.started)


class Launcher:
    """Starts children and finds those of an earlier supervisor."""

    def __init__(self, store: Store, home: Path, root: Path, program: Sequence[str], pace: Pace) -> None:
        self.store = store
        self.home = home
        self.root = root
        self.program = tuple(program)
        self.pace = pace
        self.cores = os.cpu_count() or 1
        self.busy: set[str] = set()
        """Tokens of running steps; at most `cores`."""
        self.wakeups = 0
        """Counts what may let another worker go on, such as a core that became free."""
        self._survivors = processes.find(store.id)
        self._drop_strays()

    def _drop_strays(self) -> None:
        """End marked processes that no child stands for, or whose leader is dead."""
        known = {child.token for child in self.store.children()}
        for token, found in self._survivors.items():
            if token not in known or processes.adopt(found) is None:
                processes.end_all(found, 1.0)

    def recover(self, uid: str, step: str | None = None) -> list[Running]:
        """The children that an earlier supervisor started for an object (or one step of it), oldest first."""
        children = [child for child in self.store.children(uid) if step in (None, child.step)]
        return [Running(child, processes.adopt(self._survivors.get(child.token, []))) for child in children]

    def log(self, owner: Owner, step: str) -> Path:
        """The log file of a step."""
        return self.home / "logs" / owner.kind.lower() / owner.name / f"{step}.log"

    def task(self, owner: Owner, step: str) -> Path:
        """The task file of a step."""
        return self.home / "tasks" / owner.kind.lower() / owner.name / f"{step}.json"

    def forget_tasks(self, owner: Owner) -> None:
        """Remove the task files of an object."""
        shutil.rmtree(self.home / "tasks" / owner.kind.lower() / owner.name, ignore_errors=True)

    def start(
        self,
        owner: Owner,
        step: str,
        argv: Sequence[str],
        cwd: Path,
        *,
        attempt: int = 1,
        detail: JSON | None = None,
        out: Path | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Running | None:
        """Start a process; None when its object is gone or going. `before` runs once it is certain to start.

        Raises OSError when the program cannot be started.
        """
        child = Child(uuid.uuid4().hex, owner.uid, step, None, time.time(), attempt, detail or {})
        if not self.store.announce(child):
            return None
        before()
        log = self.log(owner, step)
        log.parent.mkdir(parents=True, exist_ok=True)
        processes.trim(log)
        with log.open("a") as file:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(child.started))
            file.write(f"{processes.HEADER}{moment} attempt {attempt}: {' '.join(argv)}\n")
        try:
            process = processes.start(argv, f"{self.store.id}/{child.token}", log, cwd, out)
        except OSError:
            self.store.ended(child.token)
            raise
        self.store.started(child.token, process.pid)
        return Running(child, process)


def write_json(path: Path, document: JSON) -> None:
    """Write so that a reader sees the old file or the new one; nothing when it has this content already."""
    text = json.dumps(document, indent=1, sort_keys=True)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None when there is none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
