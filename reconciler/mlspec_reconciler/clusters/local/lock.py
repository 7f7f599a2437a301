"""The supervisor's lock: at most one supervisor for a home, and who it is.

The kernel holds the lock (`flock`), so it is free as soon as the holder is dead, however it died.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlspec_reconciler.clusters.local import processes

NAME = "supervisor.lock"


@dataclass(frozen=True, slots=True)
class Holder:
    """The supervisor that runs."""

    pid: int
    about: str
    """Version of mlspec and storage root: what another supervisor would do differently."""


def version() -> str:
    """The version of mlspec that is installed here."""
    try:
        return importlib.metadata.version("mlspec-gitops")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def about(root: Path) -> str:
    """What a supervisor of this version with this storage root says about itself."""
    return f"{version()} {root.absolute()}"


@contextmanager
def hold(home: Path, patience: float, about: str) -> Iterator[bool]:
    """Hold the lock and write down who does; yields False when another process keeps it for `patience` seconds."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / NAME).open("a+") as file:
        until = time.monotonic() + patience
        while not _try(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > until:
                yield False
                return
            time.sleep(0.02)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "born": processes.born(os.getpid()), "about": about}))
        file.flush()
        yield True
        file.truncate(0)


def holder(home: Path) -> Holder | None:
    """Who holds the lock; None when nobody does (or it was taken this moment)."""
    try:
        with (home / NAME).open() as file:
            if _try(file.fileno(), fcntl.LOCK_SH):
                return None
            found = json.loads(file.read() or "{}")
    except (FileNotFoundError, ValueError):
        return None
    if (
        not found or abs(processes.born(found["pid"]) - found["born"]) > 5
    ):  # the text of a holder before this one
        return None
    return Holder(found["pid"], found["about"])


def held(path: Path) -> bool:
    """Whether any process holds the lock file `path`."""
    try:
        with path.open() as file:
            return not _try(file.fileno(), fcntl.LOCK_EX)
    except FileNotFoundError:
        return False


def _try(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
