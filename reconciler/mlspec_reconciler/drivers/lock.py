"""One driver at a time per folder: the kernel releases the locks when a process dies.

A step holds `exclusive`. A command that drives until nothing moves also holds `driving` from its first step to its last; meanwhile
the controller of this machine makes none, so that who asked is told what was done.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for the lock file `path` and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def driving(path: Path) -> Iterator[None]:
    """Say that a command drives, beside the lock file `path`; several may at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def driven(path: Path) -> bool:
    """Whether a command drives now."""
    try:
        with _beside(path).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _beside(path: Path) -> Path:
    return path.with_suffix(".driving")
