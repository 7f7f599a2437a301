"""Server processes of the bed: started with a log, found dead with its tail, stopped by their own pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class StartFailed(Exception):
    """A process of the bed ended or did not become ready; the message carries the end of its log."""


class Server:
    """One long-running process.

    It leads a session of its own, so that Ctrl-C reaches pytest alone and the bed stops in order; and the kernel kills it
    when the *thread* that started it ends (PR_SET_PDEATHSIG), so that a killed test run leaves nothing behind. Start it
    from the main thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        logs: Path,
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        """`logs` gets `name`.log; `environment` is added to ours; `folder` is the working folder."""
        self.name = name
        self.command = [str(part) for part in command]
        self.log = logs / f"{name}.log"
        # Go's garbage collector took 40 % of the API server's CPU while it loaded large CRDs; memory is cheaper here.
        self._environment = {**os.environ, "GOGC": "400", "GOMEMLIMIT": "1500MiB", **(environment or {})}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again, after `stop`); the log is appended to."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        """The process id; an error before `start`."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, *, grace: float = 0.0) -> None:
        """End it: at once, or by SIGTERM with `grace` seconds. The data are temporary, nobody waits for tidiness."""
        if self._process is None:
            return
        if self.running and grace:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        if self.running:
            self._process.kill()
        self._process.wait()

    def wait_until(self, ready: Callable[[], bool], *, timeout: float = 60.0) -> None:
        """Wait for `ready`.

        Raises:
            StartFailed: the process ended first, or `timeout` seconds passed.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise StartFailed(f"{self.name} ended at its start:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name} was not ready after {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.02)

    def logged(self, text: str) -> bool:
        """Whether `text` stands in the log."""
        return self.log.exists() and text in self.log.read_text(errors="replace")

    def tail(self, lines: int = 20) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:]) or "(empty log)"


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Distinct ports that nobody listens on.

    Below the ephemeral range (32768 and up on Linux), where the kernel takes ports for outgoing connections: one of
    those could take the port before its server binds it.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20000, 32768)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def wait_for(check: Callable[[], Result], what: str, *, timeout: float = 30.0, every: float = 0.02) -> Result:
    """The first true result of `check`, asked every `every` seconds.

    Raises: TimeoutError, which names `what` was waited for and the last result.
    """
    deadline = time.monotonic() + timeout
    while not (result := check()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}; last: {result!r}")
        time.sleep(every)
    return result


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
