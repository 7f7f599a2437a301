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

In a pod, whoever has no access to the storage learns the outcome from the container's termination message:
`MLSPEC_MESSAGE` names its file, `MLSPEC_MESSAGE_LIMIT` the bytes that Kubernetes keeps of it.
https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Document = dict[str, Any]
FINAL = 2
"""Exit code of a step that will fail again: a mistake in the specs, the code or the data. Engines do not repeat it."""
MESSAGE_LIMIT = 4096
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
    """Run one step; returns the exit code. 0: committed (now or before), 1: failed and may succeed later, 2: will fail
    again; a failure leaves `error.json` beside the lock."""
    folder = root / "runs" / task["name"] / task["step"]
    with exclusive(folder / "lock"):
        result = folder / "result.json"
        if result.exists():
            print(f"{task['name']}/{task['step']} has succeeded before; its result is kept", flush=True)
            _tell_result(json.loads(result.read_text()))
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
        tell_failure(error.message, error.hint)
        return FINAL
    except (
        Exception
    ) as error:  # the edge of the process: whatever happened is reported, its trace is in the log
        traceback.print_exc()
        report = _report(error)
        write_json(folder / "error.json", report)
        tell_failure(report["message"], report["hint"])
        return 1 if report["retry"] else FINAL
    result = {"started": started, "finished": time.time(), **outcome}
    write_json(folder / "result.json", result)
    _tell_result(result)
    return 0


def tell_failure(message: str, hint: str) -> None:
    """One line for the termination message: what is wrong, and the way out."""
    line = "; ".join(" ".join(part.split()) for part in (message, hint) if part)
    _tell(line.encode()[: _limit()].decode(errors="ignore"))


def _tell_result(result: Mapping[str, Any]) -> None:
    """The result as JSON, or as `z:` and base64 of the deflated JSON when it is too large; nothing when that is, too."""
    text = json.dumps(result, sort_keys=True, separators=(",", ":"))
    if len(text.encode()) > _limit():
        text = "z:" + base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    if len(text) <= _limit():
        _tell(text)


def _tell(text: str) -> None:
    path = os.environ.get("MLSPEC_MESSAGE")
    if path:
        with suppress(OSError):  # the storage holds the outcome; nobody fails for a message
            Path(path).write_text(text, "utf-8")


def _limit() -> int:
    return int(os.environ.get("MLSPEC_MESSAGE_LIMIT") or MESSAGE_LIMIT)


def _report(error: Exception) -> Document:
    """`retry` tells the supervisor that the same step may well succeed later."""
    return {
        "message": f"{type(error).__name__}: {error}",
        "hint": "the log has the traceback",
        "retry": isinstance(error, ConnectionError | TimeoutError),
    }
