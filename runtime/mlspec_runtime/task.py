"""One step of a run, as a process: read the task document, do the work once, commit the result.

A step commits by renaming `result.json` into its folder while it holds the folder's lock. So the same step never
succeeds twice, whoever starts it and however often: a second process waits for the lock and then finds the result.
With storage in S3 `root` is a scratch folder, and `mlspec_runtime.storage` commits by a conditional write.

Layout below the storage root (`root`), the same on a laptop, in a pod and in a bucket:

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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

Document = dict[str, Any]
FINAL = 2
"""Exit code of a step that will fail again: a mistake in the specs, the code or the data. Engines do not repeat it."""
MESSAGE_LIMIT = 4096
Subject = Callable[[Document, Path], Document]
"""`run(task, root) -> result`: both are JSON documents; `root` is the storage root."""


class TaskError(Exception):
    """A failure that the user can mend: `message` is one sentence, `hint` the way out. Shown without a traceback.

    `passing`: nobody needs to mend it, the same step may well succeed later.
    """

    def __init__(self, message: str, hint: str = "", *, passing: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.passing = passing


class Storage(Protocol):
    """What lies behind the root: nothing (`Here`), or a bucket (`mlspec_runtime.storage`). Every method raises TaskError."""

    remote: bool
    """Whether others see a file only after it was sent."""

    def committed(self, task: Document) -> Document | None:
        """The result of a step that has succeeded before."""

    def prepare(self, task: Document) -> None:
        """Have everything below the root that a step, or the graph of a service, reads."""

    def commit(self, task: Document, result: Document) -> Document:
        """Make a step's files and its result visible to all, once; returns the result that counts."""

    def replace(self, task: Document, result: Document) -> None:
        """Make the newest result of a schedule visible to all."""

    def keep(self, task: Document, name: str, outcome: Document) -> Document:
        """Make the files of a step durable, with `outcome` as the file `name` in its folder; returns the one that counts, which
        is that of another attempt when it was faster. A later attempt finds it in its folder."""

    def pull(self, path: str, known: Collection[str] = ()) -> None:
        """Have a path of the layout below the root; of a log, all files but the `known` ones. Nothing comes of a path
        that is not there."""

    def take(self, path: str) -> None:
        """Have the newest version of a file that changes."""

    def save(self, path: str) -> None:
        """Send a file that was taken, over the version that was taken and no other."""

    def send(self, path: str) -> None:
        """Send a new file with a name that nobody else uses."""


class Here:
    """The root itself: what is written there is seen by all."""

    remote = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def committed(self, task: Document) -> Document | None:
        """As in `Storage`."""
        result = _folder(task, self._root) / "result.json"
        return json.loads(result.read_text()) if result.exists() else None

    def commit(self, task: Document, result: Document) -> Document:
        """As in `Storage`."""
        self.replace(task, result)
        return result

    def replace(self, task: Document, result: Document) -> None:
        """As in `Storage`."""
        write_json(_folder(task, self._root) / "result.json", result)

    def keep(self, task: Document, name: str, outcome: Document) -> Document:
        """As in `Storage`."""
        write_json(_folder(task, self._root) / name, outcome)
        return outcome

    def prepare(self, task: Document) -> None:
        """It is there."""

    def pull(self, path: str, known: Collection[str] = ()) -> None:
        """It is there."""

    def take(self, path: str) -> None:
        """It is there."""

    def save(self, path: str) -> None:
        """It is there."""

    def send(self, path: str) -> None:
        """It is there."""


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


def perform(subject: Subject, task: Document, root: Path, storage: Storage | None = None) -> int:
    """Run one step; returns the exit code. 0: committed (now or before), 1: failed and may succeed later, 2: will fail
    again; a failure leaves `error.json` beside the lock."""
    held = storage or Here(root)

    def once() -> Document:
        if (result := held.committed(task)) is not None:
            print(f"{task['name']}/{task['step']} has succeeded before; its result is kept", flush=True)
            return result
        started = time.time()
        held.prepare(task)
        outcome = subject(task, root)
        return held.commit(task, {"started": started, "finished": time.time(), **outcome})

    return _attempt(once, task, root)


def repeat(subject: Subject, task: Document, root: Path, storage: Storage | None = None) -> int:
    """Run one evaluation of a schedule; the newest result replaces the one before. Returns the exit code."""
    held = storage or Here(root)

    def again() -> Document:
        started = time.time()
        held.prepare(task)
        outcome = subject(task, root)
        result = {"started": started, "finished": time.time(), **outcome}
        held.replace(task, result)
        return result

    return _attempt(again, task, root)


def _folder(task: Document, root: Path) -> Path:
    return root / "runs" / str(task["name"]) / str(task["step"])


def _attempt(work: Callable[[], Document], task: Document, root: Path) -> int:
    folder = _folder(task, root)
    with exclusive(folder / "lock"):
        (folder / "error.json").unlink(missing_ok=True)
        try:
            result = work()
        except TaskError as error:
            print(
                f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else ""),
                file=sys.stderr,
                flush=True,
            )
            report = {"message": error.message, "hint": error.hint}
            write_json(folder / "error.json", report | ({"retry": True} if error.passing else {}))
            tell_failure(error.message, error.hint)
            return 1 if error.passing else FINAL
        except (
            Exception
        ) as error:  # the edge of the process: whatever happened is reported, its trace is in the log
            traceback.print_exc()
            report = _report(error)
            write_json(folder / "error.json", report)
            tell_failure(report["message"], report["hint"])
            return 1 if report["retry"] else FINAL
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
