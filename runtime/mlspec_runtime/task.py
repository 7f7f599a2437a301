"""One step of a run, as a process: read the task document, do the work once, commit the result.

A step commits by renaming `result.json` into its folder while it holds the folder's lock. So the same step never
succeeds twice, whoever starts it and however often: a second process waits for the lock and then finds the result.

Layout below the storage root (`root`), the same on a laptop and in a pod:

    code/<digest>/                      code bundles
    datasets/<name>/<snapshot>/         data.parquet, snapshot.json
    features/<set>/<version>/           events.parquet, online.sqlite, meta.json
    runs/<run>/<step>/result.json       committed results; beside them what the step made (model, frames, ...)
    logs/<graph>/*.parquet              request log
    monitors/<policy>/                  state.sqlite
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Subject = Callable[[Document, Path], Document]
"""`run(task, root) -> result`: both are JSON documents; `root` is the storage root."""


class TaskError(Exception):
    """A failure that the user can mend: `message` is one sentence, `hint` the way out. Shown without a traceback."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(document, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the kernel releases it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def perform(subject: Subject, task: Document, root: Path) -> int:
    """Run one step; returns the exit code. 0: committed (now or before), 1: failed, with `error.json` beside the lock."""
    folder = root / "runs" / task["name"] / task["step"]
    with exclusive(folder / "lock"):
        result = folder / "result.json"
        if result.exists():
            print(f"{task['name']}/{task['step']} has succeeded before; its result is kept", flush=True)
            return 0
        return _attempt(subject, task, root, folder)


def repeat(subject: Subject, task: Document, root: Path) -> int:
    """Run one evaluation of a schedule; the newest result replaces the one before. Returns the exit code."""
    folder = root / "runs" / task["name"] / task["step"]
    with exclusive(folder / "lock"):
        return _attempt(subject, task, root, folder)


def _attempt(subject: Subject, task: Document, root: Path, folder: Path) -> int:
    started = time.time()
    (folder / "error.json").unlink(missing_ok=True)
    try:
        outcome = subject(task, root)
    except TaskError as error:
        print(
            f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else ""),
            file=sys.stderr,
            flush=True,
        )
        write_json(folder / "error.json", {"message": error.message, "hint": error.hint})
        return 1
    except (
        Exception
    ) as error:  # the edge of the process: whatever happened is reported, its trace is in the log
        traceback.print_exc()
        write_json(folder / "error.json", _report(error))
        return 1
    write_json(folder / "result.json", {"started": started, "finished": time.time(), **outcome})
    return 0


def _report(error: Exception) -> Document:
    """`retry` tells the supervisor that the same step may well succeed later."""
    return {
        "message": f"{type(error).__name__}: {error}",
        "hint": "the log has the traceback",
        "retry": isinstance(error, ConnectionError | TimeoutError),
    }
