"""Helpers of the serving tests: real models on disk, real server processes, and requests without retries."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlspec_runtime import model as models
from mlspec_runtime.task import write_json

INPUTS = ("a", "b")


def classifier(folder: Path, slope: float = 1.0, labels: tuple[Any, ...] = (False, True)) -> Path:
    """A logistic regression of a and b; the second label where `slope * a > 0`."""
    generator = np.random.default_rng(0)
    data = generator.normal(size=(200, 2))
    target = np.where(slope * data[:, 0] > 0, labels[1], labels[0])
    return _save(folder, LogisticRegression().fit(data, target), "classification", labels)


def constant(folder: Path, value: float) -> Path:
    """A regression that answers `value` for any a and b."""
    data = np.random.default_rng(0).normal(size=(20, 2))
    return _save(folder, LinearRegression().fit(data, np.full(20, value)), "regression", None)


def _save(folder: Path, estimator: Any, task: Any, classes: tuple[Any, ...] | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.pkl").write_bytes(pickle.dumps(estimator))
    inputs = tuple(models.Field(name, "FP64") for name in INPUTS)
    models.Manifest("model.pkl", inputs, "matrix", task, classes).write(folder)
    return folder


def python(root: Path, name: str, source: str) -> dict[str, str]:
    """A code bundle of one file with the function `step`; returns its entry in the task."""
    folder = root / "code" / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.py").write_text(source)
    return {"path": str(folder.relative_to(root)), "entry": "step.py:step"}


def task(steps: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A serve task of the graph `g`. `models` and `code` are as in the task document; other keys go into the spec."""
    own = {
        key: more.pop(key) for key in ("models", "code", "views", "port", "generation", "name") if key in more
    }
    document: dict[str, Any] = {
        "subject": "serve", "step": "serve", "name": "g", "host": "127.0.0.1", "port": 0, "generation": 1,
        "models": {}, "views": {}, "code": {}, "spec": {"steps": steps, **more},
    }  # fmt: skip
    return document | own


def v2(rows: int = 1, **columns: list[Any]) -> dict[str, Any]:
    """A V2 request of FP64 columns (BYTES for strings); without columns a and b of ones."""
    columns = columns or {name: [1.0] * rows for name in INPUTS}
    return {
        "inputs": [
            {
                "name": k,
                "shape": [len(v)],
                "datatype": "BYTES" if isinstance(v[0], str) else "FP64",
                "data": v,
            }
            for k, v in columns.items()
        ]
    }


@dataclass
class Answer:
    """Status, headers in lower case, and body of one response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def column(self, name: str = "prediction") -> list[Any]:
        """The data of one V2 output."""
        assert self.status == 200, self.body
        return next(one["data"] for one in self.json["outputs"] if one["name"] == name)


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[str]
    port: int
    file: Path
    root: Path
    connection: http.client.HTTPConnection

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request over a connection that is kept, without retries."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self.connection.request(method, path, data, dict(headers or {}))
        response = self.connection.getresponse()
        found = {key.lower(): value for key, value in response.getheaders()}
        return Answer(response.status, found, response.read())

    def infer(self, body: Any, **headers: str) -> Answer:
        """POST to the V2 endpoint; underscores in header names become dashes."""
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.request("POST", "/v2/models/g/infer", body, sent)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def close(self) -> None:
        """End the process, if it still runs, and release what belongs to it."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def use(self, document: Mapping[str, Any]) -> Server:
        """Serve another graph in the same process, from the same root; returns when it does."""
        generation = int(self.request("GET", "/status").json["generation"]) + 1
        self.replace({**document, "port": self.port, "generation": generation})
        status = self.wait_for("generation", generation)
        assert status["error"] is None
        return self

    def replace(self, document: Mapping[str, Any]) -> None:
        """Give the process another task, as the supervisor does."""
        write_json(self.file, document)

    def wait_for(self, field: str, value: Any, within: float = 10) -> dict[str, Any]:
        """The status once `field` has the value."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            status: dict[str, Any] = self.request("GET", "/status").json
            if status[field] == value:
                return status
            time.sleep(0.02)
        raise AssertionError(f"{field} is {status[field]}, not {value}")

    def logged(
        self, number: int, shadow: bool = False, within: float = 5, only: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """The rows of the request log (of these ids), once there are at least `number`."""
        deadline = time.monotonic() + within
        while True:
            rows = [row for row in self.log(shadow) if not only or row["id"] in only]
            if len(rows) >= number or time.monotonic() > deadline:
                return rows
            time.sleep(0.05)

    def log(self, shadow: bool = False) -> list[dict[str, Any]]:
        """The rows of the request log, by id."""
        folder = self.root / "logs" / "g" / ("shadow" if shadow else "")
        rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
        return sorted(rows, key=lambda row: str(row["id"]))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(root: Path, document: Mapping[str, Any], file: str = "serve.json") -> Server:
    """Start a server process and wait until it is ready."""
    document = {**document, "port": document["port"] or free_port()}
    path = root / file
    write_json(path, document)
    command = [sys.executable, "-m", "mlspec_runtime", "serve", "--task", str(path), "--root", str(root)]
    errors = (root / f"{file}.stderr").open("w")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready: "), (root / f"{file}.stderr").read_text()
    return Server(
        process,
        document["port"],
        path,
        root,
        http.client.HTTPConnection("127.0.0.1", document["port"], timeout=20),
    )


@contextmanager
def serving(root: Path, document: Mapping[str, Any]) -> Iterator[Server]:
    """A server for the length of a block."""
    server = start(root, document)
    try:
        yield server
    finally:
        server.close()
