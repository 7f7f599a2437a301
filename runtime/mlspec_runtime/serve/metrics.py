"""Counters of the serving process: cheap to count, turned into Prometheus text and status figures when somebody asks."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from mlspec_runtime.serve.log import RequestLog
from mlspec_runtime.serve.plan import Plan

EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram in seconds."""

WINDOW = 60
"""Seconds that rate and percentiles look back."""


class Counters:
    """What one process has done. All methods are called from the loop."""

    __slots__ = (
        "_buckets",
        "_recent",
        "_seconds",
        "in_flight",
        "rows",
        "started",
        "statuses",
        "swaps",
        "total",
    )

    def __init__(self) -> None:
        self.started = time.time()
        self.statuses: dict[int, int] = {}
        self.in_flight = 0
        self.rows = 0
        self.swaps = 0
        self.total = 0.0
        self._buckets = [0] * (len(EDGES) + 1)
        self._recent: deque[tuple[float, float]] = deque(maxlen=8192)
        self._seconds: dict[int, int] = {}

    def count(self, status: int, ended: float, seconds: float, rows: int) -> None:
        """One inference request. `ended` is a `time.perf_counter()`."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.rows += rows
        self.total += seconds
        self._buckets[bisect_left(EDGES, seconds)] += 1
        self._recent.append((ended, seconds))
        second = int(ended)
        self._seconds[second] = self._seconds.get(second, 0) + 1
        if len(self._seconds) > 2 * WINDOW:
            for old in [key for key in self._seconds if key < second - WINDOW]:
                del self._seconds[old]

    def rate(self) -> float:
        """Requests per second over the last minute, or since the start if that is shorter."""
        now = time.perf_counter()
        count = sum(number for second, number in self._seconds.items() if second >= int(now) - WINDOW)
        return count / min(WINDOW, max(time.time() - self.started, 1.0))

    def percentiles(self, *shares: float) -> list[float | None]:
        """Latency in seconds at these shares, of the last minute (at most its newest 8,192 requests)."""
        after = time.perf_counter() - WINDOW
        found = sorted(seconds for ended, seconds in self._recent if ended >= after)
        return [found[min(int(share * len(found)), len(found) - 1)] if found else None for share in shares]

    def histogram(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        bounds = [*(repr(edge) for edge in EDGES), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self._buckets), strict=True)]


class _Collector:
    def __init__(self, counters: Counters, plan: Plan, log: RequestLog) -> None:
        self.counters, self.plan, self.log = counters, plan, log

    def collect(self) -> Iterator[Metric]:
        counters, plan = self.counters, self.plan
        requests = CounterMetricFamily(
            "mlspec_requests", "Inference requests by HTTP status.", labels=["graph", "status"]
        )
        for status, number in sorted(counters.statuses.items()):
            requests.add_metric([plan.name, str(status)], number)
        yield requests
        latency = HistogramMetricFamily(
            "mlspec_request_seconds", "Time from the request's head to its answer.", labels=["graph"]
        )
        latency.add_metric([plan.name], counters.histogram(), counters.total)
        yield latency
        yield _gauge("mlspec_in_flight", "Inference requests in flight.", plan, counters.in_flight)
        yield _counter("mlspec_rows", "Rows answered.", plan, counters.rows)
        yield _counter("mlspec_swaps", "Plans swapped in since the start.", plan, counters.swaps)
        yield _gauge("mlspec_generation", "Generation of the graph in use.", plan, plan.generation)
        yield _counter("mlspec_log_rows", "Rows of the request log written.", plan, self.log.written)
        yield _counter("mlspec_log_dropped_rows", "Rows of the request log dropped.", plan, self.log.dropped)
        info = InfoMetricFamily("mlspec_model", "Run of each model in use.", labels=["graph", "model"])
        for name, run in plan.models.items():
            info.add_metric([plan.name, name], {"run": run})
        yield info
        for suffix, text, field in (
            ("seconds", "Seconds spent in a step.", "seconds"),
            ("calls", "Calls of a step.", "calls"),
            ("errors", "Failures of a step.", "errors"),
        ):
            family = CounterMetricFamily(f"mlspec_step_{suffix}", text, labels=["graph", "step"])
            for step in (*plan.steps, *plan.shadow):
                family.add_metric([plan.name, step.name], getattr(step.timing, field))
            yield family


def _gauge(name: str, text: str, plan: Plan, value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["graph"])
    family.add_metric([plan.name], value)
    return family


def _counter(name: str, text: str, plan: Plan, value: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=["graph"])
    family.add_metric([plan.name], value)
    return family


def exposition(counters: Counters, plan: Plan, log: RequestLog) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counters, plan, log))
    return generate_latest(registry)
