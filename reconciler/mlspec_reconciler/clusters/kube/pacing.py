"""How fast we ask: a bound on the rate of requests and the pauses between attempts. Nothing here knows HTTP."""

from __future__ import annotations

import random
import threading
import time


class Bucket:
    """A token bucket: `rate` requests per second in the long run, `burst` at once. Safe to use from several threads."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._tokens = burst
        self._filled = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token, which may be one of the future, and answer how many seconds to wait for it."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate) - 1
            self._filled = now
            return max(0.0, -self._tokens / self.rate)

    def put(self) -> None:
        """Give a token back that was taken for nothing."""
        with self._lock:
            self._tokens += 1


class Backoff:
    """Pauses with decorrelated jitter, so that clients which failed together do not come back together.

    Brooker, Exponential Backoff and Jitter (AWS Architecture Blog, 2015): `min(longest, uniform(shortest, 3 * last))`.
    """

    def __init__(self, shortest: float = 0.1, longest: float = 10.0) -> None:
        self.shortest, self.longest = shortest, longest
        self._last = shortest

    def next(self, retry_after: float | None = None) -> float:
        """Seconds until the next attempt: never less than the server asked for."""
        self._last = min(self.longest, random.uniform(self.shortest, self._last * 3))
        return self._last if retry_after is None else retry_after + min(self._last, 1.0)

    def reset(self) -> None:
        """Something worked."""
        self._last = self.shortest
