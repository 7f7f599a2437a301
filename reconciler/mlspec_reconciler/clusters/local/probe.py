"""Probe: ask a service over HTTP whether it is ready, without holding up the supervisor."""

from __future__ import annotations

import http.client
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from mlspec_reconciler.clusters.local import processes

HOST = "127.0.0.1"
Answer = Literal["ready", "unready", "silent"]
"""2xx; another answer; none within two seconds."""


class Prober:
    """Asks in threads of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="probe")

    def ask(self, port: int, path: str, pid: int | None = None) -> Future[Answer]:
        """Ask the server on `port`; with `pid`, an answer of another process on the same port counts as silence."""
        return self._pool.submit(_ask, port, path, pid)


def _ask(port: int, path: str, pid: int | None) -> Answer:
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.connect()
        here = connection.sock.getsockname()[1]
        connection.request("GET", path)
        response = connection.getresponse()
        if pid is not None and not processes.serves(pid, here):
            return "silent"
        return "ready" if 200 <= response.status < 300 else "unready"
    except (OSError, http.client.HTTPException):
        return "silent"
    finally:
        connection.close()
