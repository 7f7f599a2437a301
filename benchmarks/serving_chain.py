"""CPU per request of a served chain (decode, scale, model, encode) against the same by hand on bare uvicorn.

    python benchmarks/serving_chain.py [--rounds 5] [--seconds 1.5]

Both serve the same V2 request of eight FP64 columns, scale it with the same function, and predict with the same
scikit-learn LogisticRegression. The bare application is the lower bound: one raw ASGI function without validation,
routing, metrics, limits, or log, that calls scikit-learn itself. It comes in two forms: `sklearn` calls `predict_proba`,
`numpy` computes its formula, as the runtime's models do for this estimator.
Rounds alternate between the servers, so a busy machine troubles all of them; the ratios of medians count.
CPU is that of the server process (user + system) by `psutil`; the client is this process: raw sockets, keep-alive.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sklearn.linear_model import LogisticRegression

from mlspec_runtime import model as models

COLUMNS = [f"x{number}" for number in range(8)]
SCALE = """
MEAN, SCALE = 0.5, 2.0


def scale(columns):
    return {name: (values - MEAN) / SCALE for name, values in columns.items()}
"""
BODY = json.dumps(
    {"inputs": [{"name": name, "shape": [1], "datatype": "FP64", "data": [0.25]} for name in COLUMNS]}
).encode()
REQUEST = (
    b"POST /v2/models/chain/infer HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def prepare(root: Path) -> dict[str, Any]:
    """Model and code on disk; returns the serve task."""
    generator = np.random.default_rng(0)
    data = generator.normal(size=(500, len(COLUMNS)))
    estimator = LogisticRegression().fit(data, data[:, 0] + generator.normal(size=500) > 0)
    (root / "model").mkdir()
    (root / "model" / "model.pkl").write_bytes(pickle.dumps(estimator))
    inputs = tuple(models.Field(name, "FP64") for name in COLUMNS)
    models.Manifest("model.pkl", inputs, "matrix", "classification", (False, True)).write(root / "model")
    (root / "code").mkdir()
    (root / "code" / "pre.py").write_text(SCALE)
    steps = {"scale": {"python": "pre.py:scale"}, "model": {"model": "m", "after": ["scale"]}}
    return {
        "name": "chain", "host": "127.0.0.1", "generation": 1, "spec": {"steps": steps},
        "models": {"m": {"run": "m-1", "path": "model"}}, "code": {"scale": {"path": "code", "entry": "pre.py:scale"}},
    }  # fmt: skip


def bare(root: Path, port: int, form: str) -> None:
    """The lower bound, in its own process."""
    import orjson
    import uvicorn
    import uvloop

    from mlspec_runtime import code

    scale = code.load("pre.py:scale", root / "code")
    estimator = pickle.loads((root / "model" / "model.pkl").read_bytes())
    headers = (b"content-type", b"application/json")

    def sklearn(data: Any) -> tuple[bool, float]:
        probability = estimator.predict_proba(data)[0, 1]
        return bool(probability > 0.5), float(probability)

    def numpy(data: Any) -> tuple[bool, float]:
        score = (data @ estimator.coef_.T + estimator.intercept_)[0, 0]
        return bool(score > 0), float(1 / (1 + np.exp(-score)))

    predict: Callable[[Any], tuple[bool, float]] = {"sklearn": sklearn, "numpy": numpy}[form]

    async def app(
        scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        message = await receive()
        document = orjson.loads(message["body"])
        columns = {one["name"]: np.array(one["data"], np.float64) for one in document["inputs"]}
        scaled = scale(columns)
        data = np.empty((1, len(COLUMNS)))
        for index, name in enumerate(COLUMNS):
            data[:, index] = scaled[name]
        label, probability = predict(data)
        outputs = [
            {"name": "prediction", "datatype": "BOOL", "shape": [1], "data": [label]},
            {"name": "probability", "datatype": "FP64", "shape": [1], "data": [probability]},
        ]
        body = orjson.dumps({"model_name": "chain", "outputs": outputs})
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [headers, length]})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        app,
        port=port,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())


def start(root: Path, name: str, task: dict[str, Any]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if name == "mlspec":
        (root / "task.json").write_text(json.dumps({**task, "port": port}))
        arguments = ["-m", "mlspec_runtime", "serve", "--task", str(root / "task.json"), "--root", str(root)]
    else:
        arguments = [__file__, "--bare", str(root), "--port", str(port), "--form", name.removeprefix("bare ")]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, port
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{name} does not answer")


async def load(port: int, clients: int, seconds: float) -> list[float]:
    """Closed loop of keep-alive connections; returns the latency of each request."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert b'"prediction"' in body
            latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies


def measure(root: Path, task: dict[str, Any], rounds: int, seconds: float) -> None:
    """Run all servers at once, idle but for the one that is asked, and print CPU per request and ratios."""
    names = ["bare sklearn", "bare numpy", "mlspec"]
    servers = {name: start(root, name, task) for name in names}
    try:
        for clients in (1, 32):
            cpu: dict[str, list[float]] = {name: [] for name in names}
            speed: dict[str, list[float]] = {name: [] for name in names}
            tail: dict[str, list[float]] = {name: [] for name in names}
            for number in range(rounds + 1):
                for name, (process, port) in servers.items():
                    watched = psutil.Process(process.pid)
                    before = sum(watched.cpu_times()[:2])
                    latencies = asyncio.run(load(port, clients, seconds if number else 0.3))
                    used = sum(watched.cpu_times()[:2]) - before
                    if number:  # the first round warms up
                        cpu[name].append(used / len(latencies) * 1e6)
                        speed[name].append(len(latencies) / seconds)
                        tail[name].append(sorted(latencies)[int(len(latencies) * 0.99)] * 1e3)
            how = "each request alone" if clients == 1 else "model calls shared within a tick"
            print(f"\n{clients} connections ({how} in mlspec)")
            for name in names:
                each = statistics.median(cpu[name])
                ratio = each / statistics.median(cpu["bare sklearn"])
                print(
                    f"  {name:13} {each:6.1f} us CPU/request   {ratio:4.2f} x bare sklearn"
                    f"   {statistics.median(speed[name]):6.0f} requests/s   p99 {statistics.median(tail[name]):.2f} ms"
                )
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait(20)


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.port, options.form)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), prepare(Path(folder)), options.rounds, options.seconds)


if __name__ == "__main__":
    main()
