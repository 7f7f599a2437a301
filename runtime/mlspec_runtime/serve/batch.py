"""Tick micro-batching: requests that reach a model within one turn of the event loop share one call of it.

There is no timer, so a lonely request waits for nothing. A failing batch is tried again request by request, so a bad row
fails only its own request; and every future is settled, whatever happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from mlspec_runtime.serve.v2 import Columns

Predict = Callable[[Columns, int], Columns]

LARGE = 256
"""Requests with more rows than this run by themselves: sharing would only copy them."""

_Item = tuple[Columns, int, "asyncio.Future[Columns]"]


class Batcher:
    """Collects the calls of one model; belongs to one event loop."""

    __slots__ = ("_predict", "_waiting", "batches", "requests")

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._waiting: list[_Item] = []
        self.batches = 0
        self.requests = 0

    def submit(self, columns: Columns, rows: int) -> asyncio.Future[Columns]:
        """The prediction for `columns`, with those of all others that are submitted in this turn of the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Columns] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((columns, rows, future))
        return future

    def _flush(self) -> None:
        items, self._waiting = self._waiting, []
        try:
            groups: dict[tuple[object, ...], list[_Item]] = {}
            for item in items:
                key = (
                    (len(groups),) if item[1] > LARGE else tuple(values.dtype for values in item[0].values())
                )
                groups.setdefault(key, []).append(item)
            for group in groups.values():
                self._call(group)
        finally:
            for _, _, future in items:
                if not future.done():
                    future.set_exception(RuntimeError("the batch ended without an answer"))

    def _call(self, group: list[_Item]) -> None:
        self.batches += 1
        self.requests += len(group)
        if len(group) > 1:
            try:
                total = sum(rows for _, rows, _ in group)
                merged = {
                    name: np.concatenate([columns[name] for columns, _, _ in group]) for name in group[0][0]
                }
                output = self._predict(merged, total)
                if any(len(values) != total for values in output.values()):
                    raise ValueError("the model returned another number of rows")
            except Exception:
                pass  # one of them is to blame; alone, each gets its own answer
            else:
                start = 0
                for _, rows, future in group:
                    if not future.done():
                        future.set_result(
                            {name: values[start : start + rows] for name, values in output.items()}
                        )
                    start += rows
                return
        for columns, rows, future in group:
            if future.done():
                continue
            try:
                future.set_result(self._predict(columns, rows))
            except Exception as error:
                future.set_exception(error)
