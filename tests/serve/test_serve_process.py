"""The server as a process: swaps and replacements without a failed request, limits, drains, and the request log."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlspec_runtime.serve import compile, v2
from mlspec_runtime.serve.app import App
from mlspec_runtime.serve.log import Entry, RequestLog
from serve import serving as s

SLEEP = "import time\ndef step(columns):\n    time.sleep(0.3)\n    return columns\n"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s.Server]:
    """One process for the tests that only need another graph (`use`): starting takes seconds, swapping does not."""
    root = tmp_path_factory.mktemp("process")
    s.classifier(root / "yes")
    for value in range(4):
        s.constant(root / f"m{value}", value)
    with s.serving(root, graph(1)) as server:
        yield server


@pytest.fixture
def server(process: s.Server) -> s.Server:
    """The same process with an empty log."""
    time.sleep(0.1)
    for file in (process.root / "logs").rglob("*.parquet"):
        file.unlink()
    return process


def graph(value: int, **more: Any) -> dict[str, Any]:
    """A graph of one model that answers `value`."""
    models = {"m": {"run": f"m-{value}", "path": f"m{value}"}}
    return s.task({"m": {"model": "m"}}, models=models, log=more.pop("log", {"flush": "50ms"}), **more)


class Load:
    """Client threads with raw keep-alive connections; every answer that is not 200 is kept as a failure."""

    def __init__(self, port: int, clients: int, reconnect: bool = False, pause: float = 0.0) -> None:
        self.port = port
        self.reconnect = reconnect
        self.pause = pause
        self.done = 0
        self.predictions: set[float] = set()
        self.failures: list[object] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
            if thread.is_alive():
                self.failures.append("a request hangs")

    def _client(self) -> None:
        body = json.dumps(s.v2())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v2/models/g/infer", body)
                response = connection.getresponse()
                answer = s.Answer(response.status, {}, response.read())
                if answer.status != 200:
                    self.failures.append((answer.status, answer.body))
                else:
                    self.predictions.add(round(answer.column()[0], 3))
                self.done += 1
            except Exception as error:
                self.failures.append(error)
                connection.close()
            if self.reconnect:
                connection.close()
            time.sleep(self.pause)


def test_a_hundred_model_swaps_under_load_fail_no_request(server: s.Server) -> None:
    """Rolling out a model must be invisible to its callers."""
    swaps = _metric(server, "mlspec_swaps_total")
    with Load(server.port, 3) as load:
        for number in range(100):
            server.use(graph(number % 4))
    assert load.failures == []
    assert load.predictions == {0, 1, 2, 3}
    assert load.done > 500
    assert _metric(server, "mlspec_swaps_total") == swaps + 100


def _metric(server: s.Server, name: str) -> float:
    text = server.request("GET", "/metrics").body.decode()
    return float(text.split(f'\n{name}{{graph="g"}} ')[1].split("\n")[0])


def test_a_hundred_swaps_of_plans_settle_every_request(tmp_path: Path) -> None:
    """The same without the pause of polling: a swap per few requests, batched and not, in one loop."""
    for number in range(2):
        s.constant(tmp_path / f"m{number}", number)
    tasks = [
        s.task({"m": {"model": "m"}}, models={"m": {"run": f"m-{n}", "path": f"m{n}"}}, generation=n)
        for n in range(2)
    ]
    log = RequestLog(tmp_path / "logs", 1.0, 0.1)
    app = App(compile.build(tasks[0], tmp_path), log, tasks=(1, 2))
    retired: list[int] = []
    body = json.dumps(s.v2()).encode()

    async def one() -> bytes:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(
            {"type": "http", "method": "POST", "path": "/v2/models/g/infer", "headers": []}, receive, send
        )
        assert sent[0]["status"] == 200
        return bytes(sent[1]["body"])

    async def everything() -> None:
        requests = []
        for number in range(1, 101):
            requests += [asyncio.create_task(one()) for _ in range(20)]
            await asyncio.sleep(0)
            app.swap(
                compile.build(tasks[number % 2], tmp_path, app.plan),
                lambda old: retired.append(old.generation),
            )
        answers = await asyncio.wait_for(asyncio.gather(*requests), 10)
        assert len(answers) == 2000

    asyncio.run(everything())
    log.close()
    assert len(retired) == 100, "every old plan lets go"
    assert log.written == 2000


def test_a_process_replacement_fails_no_request(tmp_path: Path) -> None:
    """Other code or another environment needs another process: it listens beside the old one, which then drains."""
    s.constant(tmp_path / "m1", 1)
    document = graph(1, port=s.free_port())
    old = s.start(tmp_path, document)
    with Load(document["port"], 4, True, 0.005) as load, Load(document["port"], 2, False, 0.005) as kept:
        new = s.start(tmp_path, {**document, "generation": 2}, "second.json")
        time.sleep(0.2)
        assert old.stop() == 0
        time.sleep(0.2)
        status = new.request("GET", "/status").json
    assert new.stop() == 0
    for one in (old, new):
        one.close()
    assert load.failures == []
    assert kept.failures == []
    assert status["pid"] == new.process.pid
    assert len(new.log()) == load.done + kept.done, "neither process lost a row of its log"


def test_a_port_of_somebody_else_is_refused(server: s.Server) -> None:
    """With SO_REUSEPORT alone two graphs would share a port, and each would get half of the requests."""
    with pytest.raises(AssertionError, match="cannot listen on"):
        s.start(server.root, {**graph(1), "name": "other", "port": server.port}, "other.json")


def test_a_failed_build_keeps_the_old_plan_and_says_so(server: s.Server) -> None:
    """A broken commit must not stop what serves; the one on call reads why."""
    server.use(graph(1))
    generation = server.request("GET", "/status").json["generation"]
    server.replace(
        {**graph(1, port=server.port, generation=999), "models": {"m": {"run": "m-2", "path": "nowhere"}}}
    )
    deadline = time.monotonic() + 5
    while not (error := server.request("GET", "/status").json["error"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "nowhere is not a model directory" in error["message"]
    assert "nowhere is not a model directory" in (server.root / "serve.json.stderr").read_text()
    assert server.request("GET", "/status").json["generation"] == generation
    assert server.infer(s.v2()).column() == [pytest.approx(1)]
    server.file.write_text("{")
    time.sleep(0.2)
    assert "not JSON" in server.request("GET", "/status").json["error"]["message"]
    server.use(graph(2))
    assert server.request("GET", "/status").json["error"] is None


def test_a_first_build_that_fails_ends_the_process(tmp_path: Path) -> None:
    """Nothing is served, so nothing listens; the sentence is for the user, without a traceback."""
    with pytest.raises(AssertionError) as found:
        s.start(tmp_path, graph(1))
    assert "error: " in str(found.value)
    assert "is not a model directory" in str(found.value)
    assert "Traceback" not in str(found.value)


def test_overload_is_429_and_recovers(server: s.Server) -> None:
    """Beyond its limit a process says at once that it is busy, instead of making everybody wait."""
    slow = s.python(server.root, "slow", SLEEP)
    server.use(
        s.task({"slow": {"python": "x", "timeout": "5s"}}, code={"slow": slow}, limits={"maxInFlight": 3})
    )
    answers: list[s.Answer] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/predict", b'{"a": 1}')
        response = connection.getresponse()
        found = {key.lower(): value for key, value in response.getheaders()}
        answers.append(s.Answer(response.status, found, response.read()))
        connection.close()

    _together(ask, 8)
    assert sorted(one.status for one in answers) == [200] * 3 + [429] * 5
    refused = next(one for one in answers if one.status == 429)
    assert refused.headers["retry-after"] == "1"
    assert list(refused.json) == ["error"]
    assert server.request("POST", "/predict", {"a": 1}).status == 200


def test_sigterm_finishes_requests_and_writes_the_log(tmp_path: Path) -> None:
    """A deployment must not cost an answer, nor the row that monitoring needs."""
    document = s.task(
        {"slow": {"python": "x", "timeout": "5s"}},
        code={"slow": s.python(tmp_path, "slow", SLEEP)},
        log={"flush": "1h"},
    )
    with s.serving(tmp_path, document) as server:
        statuses: list[int] = []

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("POST", "/predict", b'{"a": 1}')
            statuses.append(connection.getresponse().status)
            connection.close()

        def stop() -> None:
            time.sleep(0.15)
            statuses.append(server.stop())

        _together(ask, 4, stop)
        assert sorted(statuses) == [0, 200, 200, 200, 200]
        assert len(server.log()) == 4


def _together(ask: Callable[[], None], number: int, *others: Callable[[], None]) -> None:
    threads = [threading.Thread(target=one) for one in [*[ask] * number, *others]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_the_log_has_what_monitoring_needs(server: s.Server) -> None:
    """The contract of the request log: one row per asked row, failures too, refused requests not."""
    before = datetime.now(UTC)
    server.use(
        s.task(
            {"double": {"python": "x"}, "m": {"model": "m", "after": ["double"]}},
            models={"m": {"run": "yes-1", "path": "yes"}},
            code={"double": s.python(server.root, "double", DOUBLE)},
            log={"flush": "50ms"},
        )
    )
    one = server.infer({"id": "one", **s.v2(a=[1.0], b=[0.5])})
    two = server.infer({"id": "two", **s.v2(a=[1.0, -1.0], b=[0.5, 0.5])})
    assert server.infer({"id": "bad", **s.v2(a=[99.0], b=[0.0])}).status == 500
    assert server.infer(s.v2(a=[1.0])).status == 400
    # The server is shared: rows of tests before this one may still be on their way.
    asked = ("bad", "one", "two/0", "two/1")
    found = server.logged(4, only=asked)
    assert [row["id"] for row in found] == [*asked]
    assert (found[0]["status"], found[0]["prediction"]) == (500, None)
    row = found[1]
    assert (row["model"], row["status"], row["input.a"], row["feature.a"]) == ("yes-1", 200, 1.0, 2.0)
    assert (row["prediction"], row["probability"]) == (1.0, one.column("probability")[0])
    assert before <= row["received"] <= datetime.now(UTC)
    assert row["at"] == row["received"]
    assert [row["probability"] for row in found[2:]] == two.column("probability")
    for file in (server.root / "logs" / "g").glob("*.parquet"):
        schema = pq.read_schema(file)
        assert schema.field("at").type == schema.field("received").type == pa.timestamp("us", tz="UTC")
        assert schema.field("status").type == pa.int32()
        assert schema.field("probability").type == pa.float64()


DOUBLE = """
def step(columns):
    if columns["a"][0] == 99:
        raise RuntimeError("broken")
    columns["a"] = columns["a"] * 2
    return columns
"""


def test_the_log_takes_a_share_of_the_ids(server: s.Server) -> None:
    """The same id is logged by every replica or by none."""
    server.use(graph(1, log={"sample": 0.3, "flush": "50ms"}))
    for number in range(200):
        for _ in range(2):
            assert server.infer({"id": str(number), **s.v2()}).status == 200
    time.sleep(0.3)
    ids = [row["id"] for row in server.log()]
    assert 40 <= len(set(ids)) <= 80
    assert all(ids.count(one) == 2 for one in set(ids))


def test_shadow_answers_are_logged_apart(server: s.Server) -> None:
    """Monitoring of the serving model must not count the candidate's predictions."""
    split = {"arms": [{"step": "old", "weight": 100}], "shadow": ["new"]}
    server.use(
        s.task(
            {"ab": {"split": split}, "old": {"model": "old"}, "new": {"model": "new"}},
            models={"old": {"run": "old-1", "path": "m1"}, "new": {"run": "new-1", "path": "m3"}},
            log={"flush": "50ms"},
        )
    )
    assert server.infer(s.v2()).column() == [pytest.approx(1)]
    assert [(row["model"], round(row["prediction"])) for row in server.logged(1, shadow=True)] == [
        ("new-1", 3)
    ]
    assert [(row["model"], round(row["prediction"])) for row in server.logged(1)] == [("old-1", 1)]


def test_a_shadow_branch_is_logged_by_what_it_comes_to(server: s.Server) -> None:
    """The candidate's own post-processing belongs to its prediction; a batch of rows is logged row by row."""
    plus = "def step(columns):\n    return {'prediction': columns['prediction'] + 1}\n"
    split = {"arms": [{"step": "old", "weight": 100}], "shadow": ["new"]}
    server.use(
        s.task(
            {
                "ab": {"split": split},
                "old": {"model": "old"},
                "new": {"model": "new"},
                "post": {"python": "x", "after": ["new"]},
                "last": {"python": "x", "after": ["post"]},
            },
            models={"old": {"run": "old-1", "path": "m1"}, "new": {"run": "new-2", "path": "m3"}},
            code={name: s.python(server.root, name, plus) for name in ("post", "last")},
            log={"flush": "50ms"},
        )
    )
    assert server.infer({"id": "branch", **s.v2(rows=2)}).column() == [pytest.approx(1)] * 2
    ids = ("branch/0", "branch/1")
    logged = server.logged(2, shadow=True, only=ids)
    assert [(row["id"], row["model"], round(row["prediction"])) for row in logged] == [
        (one, "new-2", 5) for one in ids
    ]
    assert [round(row["prediction"]) for row in server.logged(2, only=ids)] == [1, 1]


def test_a_full_log_drops_and_counts(tmp_path: Path) -> None:
    """The log must never make a caller wait, nor grow without bound."""
    log = RequestLog(tmp_path, 1.0, 3600, capacity=10)
    request = v2.Request("id", {"a": np.ones(4)}, 4, 0.0)
    for _ in range(5):
        log.put(Entry(request, None, (), 200, {}, {}))
        time.sleep(0)
    log.close()
    assert log.written + log.dropped == 20
    assert log.written >= 8


def test_a_full_disk_loses_rows_but_not_the_log(tmp_path: Path) -> None:
    """The thread outlives a failure to write, and counts it."""
    (tmp_path / "file").write_text("")
    log = RequestLog(tmp_path / "file", 1.0, 3600)
    log.put(Entry(v2.Request("id", {"a": np.ones(4)}, 4, 0.0), None, (), 200, {}, {}))
    log.close()
    assert (log.written, log.dropped) == (0, 4)


def test_status_and_metrics_agree_with_what_was_asked(server: s.Server) -> None:
    """What the one on call and Prometheus read."""
    first = server.use(graph(1)).request("GET", "/status").json
    before = server.use(graph(1, limits={"maxRows": 10})).request("GET", "/status").json
    assert before["generation"] > first["generation"]
    assert before["since"] == first["since"], "the model is the same, so it serves since then"
    for _ in range(10):
        server.infer(s.v2(rows=2))
    server.infer({})
    status = server.request("GET", "/status").json
    text = server.request("GET", "/metrics").body.decode()
    assert (status["name"], status["models"]) == ("g", {"m": "m-1"})
    assert status["requests"] - before["requests"] == 11
    assert status["failures"] == before["failures"]
    assert status["rows"] - before["rows"] == 20
    assert 0 < status["p50"] <= status["p99"] < 10
    assert status["rate"] > 0.1
    for code, number in status["statuses"].items():
        assert f'mlspec_requests_total{{graph="g",status="{code}"}} {number}.0\n' in text
    for line in (
        f'mlspec_request_seconds_count{{graph="g"}} {status["requests"]}.0',
        f'mlspec_request_seconds_bucket{{graph="g",le="+Inf"}} {status["requests"]}.0',
        f'mlspec_rows_total{{graph="g"}} {status["rows"]}.0',
        'mlspec_model_info{graph="g",model="m",run="m-1"} 1.0',
        'mlspec_step_calls_total{graph="g",step="m"} 10.0',
        'mlspec_log_dropped_rows_total{graph="g"} 0.0',
        'mlspec_in_flight{graph="g"} 0.0',
    ):
        assert f"{line}\n" in text
