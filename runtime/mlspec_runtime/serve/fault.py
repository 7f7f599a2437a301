"""An answer that is not 200: raised anywhere below the app, turned into `{"error": ...}` by it."""

from __future__ import annotations


class Fault(Exception):
    """`status` is the HTTP status: 4xx is the caller's to mend, 5xx ours (502 and 504: a dependency of a step)."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
