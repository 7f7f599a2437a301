"""Tick micro-batching: requests of one turn of the loop share a call, and do not share their fate."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlspec_runtime.serve import compile
from mlspec_runtime.serve.app import App
from mlspec_runtime.serve.batch import LARGE, Batcher
from mlspec_runtime.serve.log import RequestLog
from mlspec_runtime.serve.v2 import Columns
from serve import serving as s


class Doubling:
    """A model that doubles `a`, refuses negative numbers, and remembers the sizes of its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def predict(self, columns: Columns, rows: int) -> Columns:
        self.calls.append(rows)
        if columns["a"].dtype.kind == "f" and (columns["a"] < 0).any():
            raise ValueError("negative")
        return {"prediction": columns["a"] * 2}


def submit(model: Doubling, *values: Any) -> list[Any]:
    """The outcome of each request, all submitted in one turn of the loop."""

    async def everything() -> list[Any]:
        batcher = Batcher(model.predict)
        futures = [batcher.submit({"a": np.array(one)}, len(one)) for one in values]
        return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)

    outcomes = asyncio.run(everything())
    return [one if isinstance(one, Exception) else one["prediction"].tolist() for one in outcomes]


def test_requests_of_one_tick_share_a_call() -> None:
    """This is what makes it 2 to 3 times cheaper; each gets its own rows."""
    model = Doubling()
    assert submit(model, [1.0], [2.0, 3.0], [4.0]) == [[2.0], [4.0, 6.0], [8.0]]
    assert model.calls == [4]


def test_a_bad_row_fails_only_its_own_request() -> None:
    """In ray, an exception in a batch has hung the others for ever."""
    good, bad, other = submit(Doubling(), [1.0], [-1.0, 5.0], [3.0])
    assert (good, other) == ([2.0], [6.0])
    assert isinstance(bad, ValueError)


def test_a_model_that_loses_rows_fails_loudly() -> None:
    """Rows must never be shifted to another caller."""

    class Losing(Doubling):
        def predict(self, columns: Columns, rows: int) -> Columns:
            return {"prediction": columns["a"][:1]}

    assert submit(Losing(), [1.0], [2.0]) == [[1.0], [2.0]], "alone each is right"


def test_other_types_and_large_requests_are_called_apart() -> None:
    """Joining int and float columns would change what the model sees; joining large ones only copies."""
    model = Doubling()
    large = [1.0] * (LARGE + 1)
    assert submit(model, [1], [1.5], [2], large)[:3] == [[2], [3.0], [4]]
    assert sorted(model.calls) == [1, 2, LARGE + 1]


def test_a_caller_that_is_gone_does_not_stop_the_others() -> None:
    """A cancelled future among the batch is skipped."""

    async def everything() -> list[float]:
        batcher = Batcher(Doubling().predict)
        futures = [batcher.submit({"a": np.array([float(n)])}, 1) for n in range(3)]
        futures[1].cancel()
        await asyncio.sleep(0)
        answers = await asyncio.gather(futures[0], futures[2])
        return [one["prediction"].item() for one in answers]

    assert asyncio.run(everything()) == [0.0, 4.0]


def test_batched_and_single_requests_get_the_same_answers(tmp_path: Path) -> None:
    """What a request gets must not depend on who asks at the same time; a refused one does not hurt the others."""
    s.classifier(tmp_path / "m")
    document = s.task({"m": {"model": "m"}}, models={"m": {"run": "m-1", "path": "m"}})
    plan = compile.build(document, tmp_path)
    log = RequestLog(tmp_path / "logs", 1.0, 60)
    values = [float(n) - 5 for n in range(10)] + [None]

    async def ask(app: App, value: float | None) -> tuple[int, Any]:
        sent: list[Any] = []
        body = json.dumps(s.v2(a=[value], b=[1.0])).encode() if value is not None else NULL

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(
            {"type": "http", "method": "POST", "path": "/v2/models/g/infer", "headers": []}, receive, send
        )
        return sent[0]["status"], json.loads(sent[1]["body"]).get("outputs")

    async def everything(app: App) -> list[tuple[int, Any]]:
        return await asyncio.gather(*(ask(app, value) for value in values))

    batched = asyncio.run(everything(App(plan, log, tasks=(1, 2))))
    single = asyncio.run(everything(App(plan, log, tasks=(1,))))
    log.close()
    assert [status for status, _ in batched] == [status for status, _ in single] == [200] * 10 + [400]
    for (_, together), (_, alone) in zip(batched[:10], single[:10], strict=True):
        assert together[0]["data"] == alone[0]["data"]
        assert together[1]["data"] == pytest.approx(alone[1]["data"], rel=1e-12)
    batcher = plan.steps[0].model
    assert batcher is not None
    assert batcher.batcher.requests > batcher.batcher.batches


NULL = json.dumps(
    {"inputs": [{"name": n, "datatype": "FP64", "shape": [1], "data": [None]} for n in s.INPUTS]}
).encode()


def test_no_thread_is_needed() -> None:
    """A lonely request waits for nothing: no timer, no thread."""
    before = threading.active_count()
    assert submit(Doubling(), [1.0]) == [[2.0]]
    assert threading.active_count() == before
