"""Files of the request log on their way to where monitoring reads them, when that is not this disk.

A thread sends what is written, the oldest first, and removes it here. What cannot be sent waits for the next try, up to a
limit; then the newest files go, as the ring of `log` refuses the newest rows, and it is said. Serving waits for none of it. A
process that is started again in the same pod finds what its predecessor has left, and sends it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlspec_runtime.task import TaskError

LIMIT = 256 * 2**20
"""Bytes that may wait on disk."""
PAUSE = (1.0, 60.0)
"""Seconds between two tries."""
LAST = 15.0
"""Seconds for what is left when the process ends; Kubernetes ends it a minute after the signal."""


class Shipper:
    """Sends the files of `folder` (below `root`) by `send(path)`, which raises TaskError when it cannot."""

    def __init__(self, root: Path, folder: str, send: Callable[[str], None], limit: int = LIMIT) -> None:
        self.dropped = 0
        self._root, self._folder, self._send, self._limit = root, folder, send, limit
        self._said = ""
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="request-log-ship", daemon=True)
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """There are new files."""
        self._wake.set()

    def close(self) -> None:
        """Send what is left, for a while, and say what could not be sent."""
        self._closed = True
        self._wake.set()
        self._thread.join(LAST)
        if left := self._waiting():
            self._lose(left, "the process ends, and they could not be sent")

    def _work(self) -> None:
        pause = PAUSE[0]
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            if self._pass():
                pause = PAUSE[0]
                continue
            self._bound()
            if not self._closed:
                self._sleep(pause)
                pause = min(pause * 2, PAUSE[1])
            self._wake.set()
        end = time.monotonic() + LAST
        while not self._pass() and time.monotonic() < end - PAUSE[0]:
            time.sleep(PAUSE[0])

    def _sleep(self, pause: float) -> None:
        """A pause that `close` ends."""
        end = time.monotonic() + pause
        while not self._closed and time.monotonic() < end:
            time.sleep(0.1)

    def _pass(self) -> bool:
        """Send what waits; False when something could not be sent."""
        for file in self._waiting():
            try:
                self._send(str(file.relative_to(self._root)))
            except TaskError as error:
                if error.message != self._said:
                    print(
                        f"request log: {error.message}; {error.hint}; its files wait",
                        file=sys.stderr,
                        flush=True,
                    )
                self._said = error.message
                return False
            file.unlink()
        if self._said:
            print("request log: its files are sent again", flush=True)
        self._said = ""
        return True

    def _waiting(self) -> list[Path]:
        """Files that are written, the oldest first: their names begin with the time."""
        found = (self._root / self._folder).rglob("*.parquet")
        return sorted((file for file in found if not file.name.startswith(".")), key=lambda file: file.name)

    def _bound(self) -> None:
        kept, over = 0, []
        for file in self._waiting():
            kept += file.stat().st_size
            if kept > self._limit:
                over.append(file)
        if over:
            self._lose(over, f"more than {self._limit >> 20} MiB wait to be sent")
            for file in over:
                file.unlink()

    def _lose(self, files: list[Path], why: str) -> None:
        rows = sum(map(_rows, files))
        self.dropped += rows
        print(f"request log: {rows} rows lost: {why}", file=sys.stderr, flush=True)


def _rows(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException):
        return 0
