"""A graph whose storage is S3: its model is pulled at the start, and its request log is sent without making anybody wait."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlspec_runtime.serve import log as logs
from mlspec_runtime.serve import ship
from mlspec_runtime.serve.ship import Shipper
from mlspec_runtime.task import TaskError, write_json
from s3 import S3
from serve import serving as s

GRAPH = {
    "models": {"m": {"run": "m-1", "path": "runs/m-1/train/model"}},
    "log": {"flush": "100ms"},
}


@pytest.fixture
def root(tmp_path: Path, s3_server: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scratch folder of a pod, beside a bucket with a trained model."""
    s.classifier(tmp_path / "store/runs/m-1/train/model")
    write_json(tmp_path / "store/runs/m-1/train/result.json", {})
    s3_server.put(bucket, tmp_path / "store")
    monkeypatch.setenv("MLSPEC_STORAGE", f"s3://{bucket}")
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def rows(server: S3, bucket: str) -> list[str]:
    """Ids of the requests whose rows are in the bucket."""
    files = server.objects(bucket, "logs/g/").values()
    return sorted(str(one) for data in files for one in pq.read_table(io.BytesIO(data))["id"].to_pylist())


def until(server: S3, bucket: str, ids: list[str], within: float = 20) -> None:
    """The rows arrive."""
    end = time.monotonic() + within
    while rows(server, bucket) != ids and time.monotonic() < end:
        time.sleep(0.1)
    assert rows(server, bucket) == ids


def test_a_graph_serves_from_a_bucket_and_logs_into_it(root: Path, s3_server: S3, bucket: str) -> None:
    """Also while the bucket does not answer: requests are answered as fast, files wait, and arrive later."""
    with s.serving(root, s.task({"m": {"model": "m"}}, **GRAPH)) as server:
        assert server.infer({**s.v2(), "id": "a"}).status == 200
        until(s3_server, bucket, ["a"])
        s3_server.fault = lambda method, path: "SlowDown"
        started = time.monotonic()
        for _ in range(20):
            assert server.infer({**s.v2(), "id": "b"}).status == 200
        assert time.monotonic() - started < 2
        time.sleep(0.5)
        s3_server.fault = None
        until(s3_server, bucket, ["a", *["b"] * 20])
        assert server.infer({**s.v2(), "id": "c"}).status == 200
        assert server.stop() == 0
    assert rows(s3_server, bucket) == ["a", *["b"] * 20, "c"], "SIGTERM sends what is left"
    assert not list(root.rglob("logs/**/*.parquet"))


def test_a_process_sends_what_its_predecessor_left(root: Path, s3_server: S3, bucket: str) -> None:
    """A container that was killed comes again in the same pod, with the same scratch folder."""
    with s.serving(root, s.task({"m": {"model": "m"}}, **GRAPH)) as server:
        s3_server.fault = lambda method, path: "SlowDown"
        server.infer({**s.v2(), "id": "a"})
        server.logged(1)
        server.process.kill()
        server.process.wait()
    s3_server.fault = None
    with s.serving(root, s.task({"m": {"model": "m"}}, **GRAPH)):
        until(s3_server, bucket, ["a"])


def test_a_graph_without_its_bucket_says_why(root: Path, s3_server: S3, bucket: str) -> None:
    """The pod's message is a sentence, and Kubernetes starts it again."""
    s3_server.fault = lambda method, path: "AccessDenied"
    write_json(root / "serve.json", s.task({"m": {"model": "m"}}, **GRAPH))
    command = [sys.executable, "-m", "mlspec_runtime", "serve", "--task", str(root / "serve.json")]
    done = subprocess.run([*command, "--root", str(root)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the bucket {bucket} may not be used with these credentials")
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_committed_is_not_served(
    tmp_path: Path, root: Path, s3_server: S3, bucket: str
) -> None:
    """Half a model in the bucket is no model."""
    s3_server.write(bucket, "runs/m-2/train/model/model.pkl", b"half")
    document = s.task(
        {"m": {"model": "m"}}, **GRAPH | {"models": {"m": {"run": "m-2", "path": "runs/m-2/train/model"}}}
    )
    write_json(root / "serve.json", document)
    command = [sys.executable, "-m", "mlspec_runtime", "serve", "--task", str(root / "serve.json")]
    done = subprocess.run([*command, "--root", str(root)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert not (root / "runs/m-2").exists()


def written(root: Path, number: int, size: int = 10) -> list[Path]:
    """Files of the log that nobody has sent."""
    return [logs.write(root / "logs/g", pa.table({"id": np.arange(size)})) for _ in range(number)]


def test_a_disk_that_fills_loses_the_newest_rows_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bucket that is gone for days must not fill a node; the count is what `/status` and the metrics show."""
    monkeypatch.setattr(ship, "PAUSE", (0.05, 0.05))
    monkeypatch.setattr(ship, "LAST", 0.2)
    files = written(tmp_path, 5)
    limit = sum(file.stat().st_size for file in files[:3])

    def refuse(path: str) -> None:
        raise TaskError("the bucket b answered SlowDown", "it is tried again", passing=True)

    shipper = Shipper(tmp_path, "logs/g", refuse, limit)
    end = time.monotonic() + 5
    while shipper.dropped < 20 and time.monotonic() < end:
        time.sleep(0.02)
    assert [file.exists() for file in files] == [True, True, True, False, False]
    shipper.close()
    assert shipper.dropped == 50
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "request log: the bucket b answered SlowDown; it is tried again; its files wait",
        "request log: 20 rows lost: more than 0 MiB wait to be sent",
        "request log: 30 rows lost: the process ends, and they could not be sent",
    ]


def test_files_go_once_and_in_their_order(tmp_path: Path) -> None:
    """Also those of shadow steps."""
    files = written(tmp_path, 4)
    logs.write(tmp_path / "logs/g/shadow", pa.table({"id": [1]}))
    sent: list[str] = []
    shipper = Shipper(tmp_path, "logs/g", sent.append)
    shipper.close()
    assert sent[:4] == [f"logs/g/{file.name}" for file in files]
    assert sent[4].startswith("logs/g/shadow/")
    assert shipper.dropped == 0
