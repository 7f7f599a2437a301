"""`mlspec apply` that dies after so many calls of the API server. A library for tests, and a program that really is killed.

    python dying.py WRITES ARGUMENTS...      # `mlspec ARGUMENTS`, killed (SIGKILL) after its WRITES-th write was answered

What another thread has under way at that moment may arrive or not, as with any process that is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlspec_reconciler import cli
from mlspec_reconciler.clusters.kube.transport import Answer, Transport


class Killed(BaseException):
    """The process ends here: no handler of errors sees it, and nothing more is sent."""


def stop() -> None:
    """Die within a process that lives on."""
    raise Killed


def kill() -> None:
    """Die."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Life:
    """How many calls are left, and what was done in them."""

    left: float = float("inf")
    every_call: bool = False
    """Count every call, also reads and dry runs."""
    die: Callable[[], None] = stop
    dead: bool = False
    calls: int = 0
    writes: int = 0
    made: Counter[str] = field(default_factory=Counter)
    """Objects that a call has made, by collection and name."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def lived(self, method: str, path: str, options: dict[str, Any], answer: Answer | None) -> None:
        """A call was answered."""
        dry = "dryRun" in (options.get("query") or {})
        write = method != "GET" and not dry and "authorization.k8s.io" not in path
        with self._lock:
            self.calls += 1
            self.writes += write
            if write and answer is not None and answer.status == 201:
                name = answer.body["metadata"]["name"]
                self.made[f"{path.split('/')[-1 if method == 'POST' else -2]}/{name}"] += 1
            self.left -= write or self.every_call
            self.dead = self.dead or self.left <= 0
            if not self.dead:
                return
        self.die()

    def watch_over(self, transport: Transport) -> Transport:
        """Let the calls of a transport count."""
        transport.request = self.counting(transport.request)  # type: ignore[method-assign]
        return transport

    def counting(self, request: Callable[..., Answer]) -> Callable[..., Answer]:
        """`Transport.request`, counted."""

        def counted(*arguments: Any, **options: Any) -> Answer:
            if self.dead:
                self.die()
            answer = None
            try:
                answer = request(*arguments, **options)
            finally:
                method, path = arguments[-2:]
                self.lived(method, path, options, answer)
            return answer

        return counted


def main() -> int:
    """The program."""
    life = Life(left=int(sys.argv[1]), die=kill)
    Transport.request = life.counting(Transport.request)  # type: ignore[method-assign]
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
