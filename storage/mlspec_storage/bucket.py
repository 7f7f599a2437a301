"""Reads and writes of one bucket. A write is new (`If-None-Match: *`), or of what was read before (`If-Match`): what two
processes want to write at once is decided by the server, since no lock reaches both.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html

Endpoint, region and credentials are those of the AWS SDKs: `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ..., or the
identity of the workload. https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import exceptions
from botocore.config import Config

PART = 64 * 2**20
"""Bytes of one request; larger files go in parts. S3 takes 10,000 of them, so up to 640 GB."""
READS = 3
"""Attempts to read a file to its end."""
CONFLICTS = 6
"""Attempts of a write while the server is busy with another one to the same key (409)."""
SHA256 = "sha256"
"""Metadata of every object: the digest of its content. An ETag is a digest only sometimes."""
DENIED = {
    "403", "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure",
}  # fmt: skip
ELSEWHERE = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
PASSING = {
    "408", "429", "500", "502", "503", "504", "ExpiredToken", "InternalError", "OperationAborted", "RequestTimeout",
    "RequestTimeTooSkewed", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
}  # fmt: skip
UNREACHABLE = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.IncompleteReadError,
    ConnectionError,
    TimeoutError,
)
RIGHTS = "it needs s3:ListBucket on the bucket, and s3:GetObject and s3:PutObject on what is in it"
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for pods in the Secret PROJECT-env), or use an identity of the workload"


class Refused(Exception):
    """Why a bucket could not be read or written, in one sentence without secrets; `hint` is the way out. `passing`: the same
    may well succeed later."""

    def __init__(self, message: str, hint: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint, self.passing = message, hint, passing


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it was read. `etag` names this version of it."""

    data: bytes
    etag: str


class Bucket:
    """The objects below `s3://BUCKET/PREFIX`, by their path there. May be shared by threads."""

    def __init__(self, url: str, *, timeout: float = 60.0, attempts: int = 4) -> None:
        parts = urlsplit(url)
        self.url = url
        self._name = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._config = Config(
            connect_timeout=min(5.0, timeout),
            read_timeout=timeout,
            max_pool_connections=16,
            retries={"mode": "standard", "total_max_attempts": attempts},
            # Servers that are older than the SDK's newer checksums refuse them. Readers compare SHA256 instead.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._made: Any = None
        self._lock = threading.Lock()

    def read(self, path: str) -> Found | None:
        """A small object; None when there is none."""
        with self._refusals():
            answer = self._get(path)
            return None if answer is None else Found(answer["Body"].read(), answer["ETag"])

    def fetch(self, path: str, target: Path) -> str | None:
        """Write an object to a file, whole or not at all; returns its ETag, or None when there is none."""
        for _ in range(
            READS - 1
        ):  # the client repeats requests, and not what breaks while their answer is read
            try:
                return self._fetch(path, target)
            except Refused as error:
                if not error.passing:
                    raise
        return self._fetch(path, target)

    def _fetch(self, path: str, target: Path) -> str | None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with self._refusals():
                answer = self._get(path)
                if answer is None:
                    return None
                with temporary.open("wb") as file:
                    for block in answer["Body"].iter_chunks(2**20):
                        file.write(block)
            temporary.replace(target)
            return str(answer["ETag"])
        finally:
            temporary.unlink(missing_ok=True)

    def paths(self, below: str) -> Iterator[str]:
        """Paths of all objects below `below/`, in their order."""
        with self._refusals():
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._name, Prefix=f"{self._prefix}{below.rstrip('/')}/"):
                for one in page.get("Contents", ()):
                    yield one["Key"].removeprefix(self._prefix)

    def digest(self, path: str) -> str | None:
        """SHA-256 of an object that `put` or `create` wrote; None when there is no such object."""
        with self._refusals():
            try:
                answer = self._client().head_object(Bucket=self._name, Key=self._prefix + path)
            except exceptions.ClientError as error:
                if _code(error) in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise
            return str(answer["Metadata"].get(SHA256, ""))

    def put(self, path: str, body: bytes | Path) -> None:
        """Write an object, whatever there was."""
        self._write(path, body, {})

    def create(self, path: str, body: bytes | Path) -> bool:
        """Write an object that is not there yet. False: there is one, with another content; one with the same counts as ours,
        as after an answer that was lost."""
        if self._write(path, body, {"IfNoneMatch": "*"}) is not None:
            return True
        return self.digest(path) == digest(body)

    def insist(self, path: str) -> None:
        """Raise `Refused` when the server takes the condition of a write and writes all the same, as older ones do: shown by an
        empty object, which is written twice."""
        self.create(path, b"")
        if self._write(path, b"", {"IfNoneMatch": "*"}) is not None:
            raise self._unconditional()

    def replace(self, path: str, body: bytes | Path, etag: str | None) -> str | None:
        """Write an object over the version that was read (None: over none). Returns the new ETag, or None when it has changed
        meanwhile."""
        written = self._write(path, body, {"IfMatch": etag} if etag else {"IfNoneMatch": "*"})
        if written is None and (found := self.read(path)) and _sha256(found.data) == digest(body):
            return found.etag  # ours: only the answer was lost
        return written

    def _get(self, path: str) -> Any:
        try:
            return self._client().get_object(Bucket=self._name, Key=self._prefix + path)
        except exceptions.ClientError as error:
            if _code(error) in ("404", "NoSuchKey"):
                return None
            raise

    def _write(self, path: str, body: bytes | Path, condition: Mapping[str, str]) -> str | None:
        """The ETag of what was written; None when the condition does not hold."""
        metadata = {SHA256: digest(body)}
        target = {"Bucket": self._name, "Key": self._prefix + path}
        with self._refusals():
            for attempt in range(CONFLICTS):
                try:
                    if isinstance(body, Path) and body.stat().st_size > PART:
                        return self._in_parts(target, body, metadata, condition)
                    data = body.read_bytes() if isinstance(body, Path) else body
                    answer = self._client().put_object(**target, Body=data, Metadata=metadata, **condition)
                    return str(answer["ETag"])
                except exceptions.ClientError as error:
                    code = _code(error)
                    if code in ("412", "PreconditionFailed") or (
                        "IfMatch" in condition and code in ("404", "NoSuchKey")
                    ):
                        return None
                    if code not in ("409", "ConditionalRequestConflict") or attempt == CONFLICTS - 1:
                        raise
                    time.sleep(0.2 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _in_parts(
        self, target: Mapping[str, str], body: Path, metadata: Mapping[str, str], condition: Mapping[str, str]
    ) -> str:
        client = self._client()
        upload = {
            **target,
            "UploadId": client.create_multipart_upload(**target, Metadata=metadata)["UploadId"],
        }
        try:
            parts: list[dict[str, Any]] = []
            with body.open("rb") as file:
                while data := file.read(PART):
                    number = len(parts) + 1
                    answer = client.upload_part(**upload, PartNumber=number, Body=data)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            done = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            client.abort_multipart_upload(**upload)
            raise
        return str(done["ETag"])

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = boto3.session.Session().client("s3", config=self._config)
            return self._made

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the client raises, in words. They name the bucket and the code, never what the server or the SDK echo."""
        try:
            yield
        except exceptions.ClientError as error:
            raise self._refused(_code(error)) from None
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
        ):
            raise Refused(f"there are no credentials for the bucket {self._name}", CREDENTIALS) from None
        except UNREACHABLE:
            place = self._endpoint()
            raise Refused(
                f"the bucket {self._name} cannot be reached at {place}",
                "check AWS_ENDPOINT_URL, and that the network lets requests pass",
                passing=True,
            ) from None
        except (exceptions.BotoCoreError, ValueError) as error:
            raise Refused(
                f"the bucket {self._name} cannot be used: {type(error).__name__}",
                "check AWS_ENDPOINT_URL (a URL such as http://minio.storage:9000) and AWS_REGION",
            ) from None

    def _refused(self, code: str) -> Refused:
        if code == "NoSuchBucket":
            return Refused(f"there is no bucket {self._name}", "make it, or mend `storage` of the target")
        if code in DENIED:
            message = f"the bucket {self._name} may not be used with these credentials ({code})"
            return Refused(message, f"{RIGHTS}; {CREDENTIALS}")
        if code in ("501", "NotImplemented"):
            return self._unconditional()
        if code in ELSEWHERE:
            return Refused(f"the bucket {self._name} is in another region ({code})", "set AWS_REGION")
        passing = code in PASSING or code.startswith("5")
        return Refused(
            f"the bucket {self._name} answered {code}",
            "it is tried again" if passing else "the server's documentation says what this means",
            passing=passing,
        )

    def _unconditional(self) -> Refused:
        return Refused(
            f"the server of the bucket {self._name} does not know conditional writes",
            "take one that does: If-None-Match and If-Match of PutObject",
        )

    def _endpoint(self) -> str:
        """Where it is, without the credentials that an address may hold."""
        parts = urlsplit(str(self._made.meta.endpoint_url)) if self._made is not None else urlsplit("")
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or "its endpoint"


def digest(body: bytes | Path) -> str:
    """SHA-256 of bytes or of a file."""
    if isinstance(body, bytes):
        return _sha256(body)
    with body.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _code(error: exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "an error"))
