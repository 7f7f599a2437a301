"""An S3 server on this machine: moto behind HTTP, one request at a time as a real one decides conditional writes, with faults."""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SECRET = "very-secret-indeed"
Request = tuple[str, str]
"""Method and path with query, as `PUT /bucket/key`."""
Fault = Callable[[str, str], str | None]
"""What happens to a request: None (nothing), `CODE` (that error, with the status `FAULTS` has), `lost` (done, and its answer is
lost), `cut` (its answer ends in the middle), `blind` (its condition is ignored)."""
FAULTS = {"AccessDenied": 403, "NotImplemented": 501, "SlowDown": 503, "InternalError": 500}


@dataclass
class S3:
    """A running server. `fault` may be set at any time; `requests` are all that came."""

    host: str = "127.0.0.1"
    fault: Fault | None = None
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(self.host, 0, self._answer, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key=SECRET,
        )

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What the SDK of a process needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """A new bucket."""
        name = f"ml-{uuid.uuid4().hex[:12]}"
        self._client.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str, below: str = "") -> dict[str, bytes]:
        """Everything in a bucket."""
        fault, self.fault = self.fault, None
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        found = {key: self._client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        self.fault = fault
        return found

    def put(self, bucket: str, root: Path, below: str = "") -> None:
        """Copy a storage root into a bucket, as `aws s3 sync` would."""
        for path in root.rglob("*"):
            if path.is_file():
                key = f"{below}{path.relative_to(root).as_posix()}"
                self._client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def write(self, bucket: str, key: str, body: bytes) -> None:
        """One object, by somebody else."""
        self._client.put_object(Bucket=bucket, Key=key, Body=body)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = str(environ["REQUEST_METHOD"])
        query = environ.get("QUERY_STRING")
        path = str(environ["PATH_INFO"]) + (f"?{query}" if query else "")
        self.requests.append((method, path))
        fault = self.fault(method, path) if self.fault else None
        if fault in FAULTS:
            body = f"<Error><Code>{fault}</Code><Message>{SECRET}</Message></Error>".encode()
            start(f"{FAULTS[fault]} {fault}", [("Content-Type", "application/xml")])
            return [body]
        if fault == "blind":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self._lock:  # else two conditional writes could both find nothing
            done = list(self._moto(environ, start))
        if fault == "cut":
            return [b"".join(done)[: len(b"".join(done)) // 2]]
        if fault == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return done
