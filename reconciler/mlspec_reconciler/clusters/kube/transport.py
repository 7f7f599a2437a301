"""Requests to one API server: raw JSON, retried within a budget, paced, from several threads. The ground of `clusters.kube`.

What comes back is an `Answer`, an `errors.ApiError` (refused for good) or `cluster.Unavailable` (says nothing about what
exists). A retried attempt waits with decorrelated jitter and as long as Retry-After says; all calls of a process share
one bound on requests and a lower one on retries, so that a server in trouble is left alone.
"""

from __future__ import annotations

import ipaddress
import itertools
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import orjson
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from mlspec_reconciler.cluster import Refused, Unavailable
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.login import Login
from mlspec_reconciler.clusters.kube.pacing import Backoff, Bucket
from mlspec_reconciler.clusters.kube.secrets import values

T = TypeVar("T")
R = TypeVar("R")
Objects = list[dict[str, Any]]
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain, */*"
"""What is read as text; logs are refused (406) to whoever asks for plain text alone."""
APPLY_TYPE = "application/apply-patch+yaml"
MERGE_TYPE = "application/merge-patch+json"
PATCH_TYPE = "application/json-patch+json"
PAGE = 500
"""Objects per page of a list: what kubectl and client-go use."""
_CONNECT = 10.0
_BUSY = frozenset((429, 500, 502, 503, 504))
_RESTARTS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer (2xx). `body` is the decoded JSON, None when there was none."""

    status: int
    body: Any
    headers: Mapping[str, str]
    attempts: int = 1
    """How often it was asked for; an attempt before may have been heard although its answer was not."""


class Transport:
    """One API server. Safe to use from several threads.

    `timeout`: seconds that one attempt may take. `budget`: seconds that one call may take with all its attempts and
    pauses. `rate`, `burst`: bound on requests, `retry_rate`, `retry_burst`: bound on retries, per second.
    """

    def __init__(
        self,
        login: Login,
        *,
        timeout: float = 30.0,
        budget: float = 60.0,
        concurrency: int = 8,
        rate: float = 300.0,
        burst: float = 600.0,
        retry_rate: float = 5.0,
        retry_burst: float = 20.0,
        user_agent: str | None = None,
    ) -> None:
        self.server = login.server
        self.context = login.context
        self.namespace_of_context = login.namespace
        self.fingerprint = login.fingerprint
        self.calls: Counter[str] = Counter()
        """Attempts by verb: GET, LIST, PATCH, POST, PUT, DELETE, WATCH."""
        self.concurrency = concurrency
        self.budget = budget
        self._login = login
        self._timeout = timeout
        self._headers = {"user-agent": user_agent or f"mlspec/{version('mlspec-gitops')}"}
        self._requests, self._retries = Bucket(rate, burst), Bucket(retry_rate, retry_burst)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._secrets: frozenset[str] = frozenset()
        self._compressed = not _is_loopback(self.server)

    @staticmethod
    def open(
        context: str | None,
        *,
        kubeconfig: Path | None = None,
        concurrency: int = 8,
        watches: int = 64,
        **options: Any,
    ) -> Transport:
        """A transport to the server of a kubeconfig context; None: the current one, or of the pod that we run in.

        `watches`: connections to keep for watches beside the `concurrency` ones. Other options as in `Transport`.
        Opens no connection. Raises `Unavailable` when the configuration is missing or broken.
        """
        login = Login(context, kubeconfig, concurrency + watches)
        return Transport(login, concurrency=concurrency, **options)

    def close(self) -> None:
        """End pauses between attempts and close idle connections."""
        self._closing.set()
        self._login.close()

    def authorization(self) -> str:
        """The header that logs us in elsewhere; empty when a certificate does. Raises `Refused` for a context that acts as
        somebody else: that header alone would act with all our own rights."""
        headers = dict(self._login.credentials().headers)
        if any(name.startswith("impersonate-") for name in headers):
            words = f"context {self.context} acts as somebody else, which only an API server understands"
            raise Refused(f"{words}: set ARGO_TOKEN to the token of that account (Bearer ...)")
        return headers.get("authorization", "")

    def hide(self, secrets: Iterable[str]) -> None:
        """Values that no message of this transport may show, from now on. Those of what it sends are hidden anyway."""
        with self._lock:
            self._secrets |= frozenset(secrets)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON_TYPE,
        accept: str = JSON_TYPE,
        retry: bool = True,
        timeout: float | None = None,
        budget: float | None = None,
        verb: str = "",
    ) -> Answer:
        """One call. `path` is a quoted path below the server, `body` is encoded as JSON unless it is bytes.
        What comes back is JSON, or text when `accept` is `TEXT_TYPE`.

        `retry=False` (POST): an attempt that may have done something is not repeated; what certainly did nothing is
        (no connection, 429, 503 with Retry-After). Raises `errors.ApiError` or `Unavailable`.
        """
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        url = f"{path}?{urlencode(query)}" if query else path
        headers = self._headers | {"accept": accept}
        if data is not None:
            headers["content-type"] = content_type
        if verb == "LIST" and self._compressed:
            headers["accept-encoding"] = "gzip"
        budget = self.budget if budget is None else budget
        until = time.monotonic() + budget
        seconds = timeout or self._timeout
        secrets = self._secrets | values(body)
        pauses = Backoff()
        for attempts in itertools.count(1):
            after = None
            try:
                response, content = self._attempt(method, url, data, headers, seconds, verb or method)
            except _Trouble as trouble:
                problem = trouble
            else:
                if response.status not in _BUSY or errors.refuses(response.status, _decoded_json(content)):
                    if response.status == 200 and accept == TEXT_TYPE:
                        return Answer(200, content.decode(errors="replace"), response.headers)
                    return self._answer(response, content, url, secrets, attempts)
                after = errors.retry_after(response.headers.get("retry-after"))
                problem = _Trouble(
                    f"answered {response.status}{_reason(content, secrets)}",
                    harmless=response.status == 429 or (response.status == 503 and after is not None),
                )
            if problem.final or not (retry or problem.harmless):
                unsure = "" if problem.harmless or method == "GET" else _maybe_done(method)
                raise Unavailable(f"{self.server} {problem}{unsure}")
            pause = pauses.next(after) + self._retries.take()
            left = until - time.monotonic() - pause
            if left <= 0:
                self._retries.put()
                given_up = f"; given up after {budget:g} s" if budget else ""
                raise errors.Busy(f"{self.server} {problem}{given_up}", after)
            self._wait(pause)
            seconds = min(timeout or self._timeout, max(left, 0.1))
        raise AssertionError

    def text(self, path: str, *, query: Mapping[str, str] | None = None) -> str:
        """A GET of what is not JSON: logs, `/readyz`."""
        return str(self.request("GET", path, query=query, accept=TEXT_TYPE).body)

    def scan(
        self,
        path: str,
        pick: Callable[[dict[str, Any]], R],
        *,
        query: Mapping[str, str] | None = None,
        budget: float | None = None,
    ) -> tuple[Sequence[R], str]:
        """`pick` of each object of a collection, read page by page, and the resourceVersion that they had together.

        Objects get the apiVersion and kind that lists leave out. When pages expire (410), starts again; the last try asks
        for one page of everything, which cannot expire.
        """
        for restart in range(_RESTARTS + 1):
            page = dict(query or {}) | ({"limit": str(PAGE)} if restart < _RESTARTS else {})
            picked: list[R] = []
            try:
                while True:
                    body = self.request("GET", path, query=page, budget=budget, verb="LIST").body
                    metadata, kind = body["metadata"], body["kind"].removesuffix("List")
                    for item in body.get("items") or ():
                        item.setdefault("apiVersion", body["apiVersion"])
                        item.setdefault("kind", kind)
                        picked.append(pick(item))
                    if not metadata.get("continue"):
                        return picked, metadata.get("resourceVersion", "")
                    page["continue"] = metadata["continue"]
                    page.pop("resourceVersion", None)
                    page.pop("resourceVersionMatch", None)
            except errors.Gone:
                if "continue" not in page:
                    break
        raise Unavailable(f"{self.server} cannot list {path}: its pages expire while they are read")

    def list(self, path: str, *, query: Mapping[str, str] | None = None) -> tuple[Objects, str]:
        """All objects of a collection, and the resourceVersion that they had together. They say apiVersion and kind."""
        items, version = self.scan(path, lambda item: item, query=query)
        return [*items], version

    def stream(
        self, path: str, *, query: Mapping[str, str], timeout: float | None = None, idle: float
    ) -> Stream:
        """The events of a watch: one attempt, no retry. `idle`: seconds without any byte after which it is broken.

        Raises `errors.ApiError`, `errors.Busy` (429 and 5xx) or `Unavailable`.
        """
        verb, url = "WATCH", f"{path}?{urlencode(query)}"
        headers = self._headers | {"accept": JSON_TYPE}
        wait = urllib3.Timeout(connect=min(_CONNECT, timeout or self._timeout), read=idle)
        try:
            response = self._send("GET", url, None, headers, wait, verb)
            if response.status == 200:
                return Stream(response, self.server)
            content = response.read()
        except _Trouble as trouble:
            raise Unavailable(f"{self.server} {trouble}") from trouble
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{self.server} {_trouble(error)}") from error
        if response.status in _BUSY:
            after = errors.retry_after(response.headers.get("retry-after"))
            message = f"{self.server} answered {response.status}{_reason(content, self._secrets)}"
            raise errors.Busy(message, after)
        self._answer(response, content, url, self._secrets)
        raise Unavailable(f"{self.server} answered {response.status} to a watch")

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Sequence[R | errors.ApiError]:
        """`function` of each item on `concurrency` threads, results in order.

        An `ApiError` is the answer for one item and stands in its place. Any other exception (`Unavailable`) ends the
        whole: items that have not begun are left out, those that have are waited for, and it is raised.
        """

        ended = threading.Event()

        def answer(item: T) -> R | errors.ApiError:
            if ended.is_set():
                raise Unavailable("stopped")  # never seen: the first exception is raised before
            try:
                return function(item)
            except errors.ApiError as error:
                return error
            except BaseException:
                ended.set()
                raise

        work = [*items]
        if len(work) < 2:
            return [answer(item) for item in work]
        threads = ThreadPoolExecutor(min(self.concurrency, len(work)), thread_name_prefix="mlspec-each")
        try:
            return [*threads.map(answer, work)]
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _attempt(
        self, method: str, url: str, data: bytes | None, headers: dict[str, str], seconds: float, verb: str
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """One attempt with its whole body; a 401 is tried again when there are newer credentials."""
        wait = urllib3.Timeout(connect=min(_CONNECT, seconds), read=seconds)
        response = self._send(method, url, data, headers, wait, verb)
        try:
            return response, response.read()
        except (HTTPError, OSError) as error:
            raise _trouble(error) from error
        finally:
            response.release_conn()

    def _send(
        self,
        method: str,
        url: str,
        data: bytes | None,
        headers: dict[str, str],
        wait: urllib3.Timeout,
        verb: str,
    ) -> urllib3.BaseHTTPResponse:
        for _ in range(2):
            self._wait(self._requests.take())
            credentials = self._login.credentials()
            sent = urllib3.HTTPHeaderDict(headers)
            for name, value in credentials.headers:
                sent.add(name, value)
            with self._lock:
                self.calls[verb] += 1
            try:
                response = credentials.pool.urlopen(
                    method,
                    self.server + url,
                    body=data,
                    headers=sent,
                    timeout=wait,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
            except (HTTPError, OSError) as error:
                raise _trouble(error) from error
            if response.status != 401:
                return response
            response.drain_conn()
            if not self._login.refused(credentials):
                break
        raise _Trouble(
            f"does not know us (401): the credentials of context {self.context} are wrong or expired; log in again",
            final=True,
            harmless=True,
        )

    def _answer(
        self,
        response: urllib3.BaseHTTPResponse,
        content: bytes,
        url: str,
        secrets: Iterable[str],
        attempts: int = 1,
    ) -> Answer:
        status = response.status
        try:
            body = orjson.loads(content) if content else None
        except orjson.JSONDecodeError:
            body = None
            if status == 404 and response.headers.get(
                "audit-id"
            ):  # kube-apiserver: no such API group or version
                path = url.partition("?")[0]
                raise errors.NotServed(404, "NotServed", f"the API server does not serve {path}") from None
            kind = response.headers.get("content-type", "something").partition(";")[0]
            raise Unavailable(
                f"{self.server} answered {status} with {kind}, not JSON: a proxy, or not an API server"
            ) from None
        if 200 <= status < 300:
            return Answer(status, body, response.headers, attempts)
        if isinstance(body, dict) and body.get("kind") == "Status":
            after = errors.retry_after(response.headers.get("retry-after"))
            raise errors.of_status(status, body, secrets, after)
        raise Unavailable(f"{self.server} answered {status} without saying why: not an API server")

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._closing.wait(seconds):
            raise Unavailable("stopped")


class Stream(Iterator[dict[str, Any]]):
    """The events of one watch. Ends when the server ends it; `Unavailable` when it breaks or is silent for too long."""

    def __init__(self, response: urllib3.BaseHTTPResponse, server: str) -> None:
        self._response = response
        self._server = server
        self._lines = self._split()

    def __next__(self) -> dict[str, Any]:
        line = next(self._lines)
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.close()
            raise Unavailable(f"{self._server} sent a broken event") from None
        if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
            self.close()
            raise Unavailable(f"{self._server} sent something that is no event")
        return event

    def _split(self) -> Iterator[bytes]:
        rest = b""
        try:
            while part := self._response.read1(1 << 16):
                *lines, rest = (rest + part).split(b"\n") if rest else part.split(b"\n")
                yield from filter(None, lines)
        except (HTTPError, OSError, ValueError, AttributeError) as error:  # the last two: closed meanwhile
            raise Unavailable(f"{self._server}: the watch {_trouble(error)}") from error
        finally:
            self._response.close()
        if rest:
            raise Unavailable(f"{self._server}: the watch was cut within an event")

    def close(self) -> None:
        """End it, from any thread; who waits for an event gets an exception or the end."""
        try:
            self._response.shutdown()
        except (ValueError, OSError, RuntimeError):
            self._response.close()


class _Trouble(Exception):
    """An attempt that failed. `harmless`: it certainly did nothing. `final`: the next one would fail alike."""

    def __init__(self, message: str, *, harmless: bool = False, final: bool = False) -> None:
        super().__init__(message)
        self.harmless, self.final = harmless, final


def _trouble(error: Exception) -> _Trouble:
    match error:
        case NameResolutionError():
            return _Trouble("cannot be found: its name does not resolve", harmless=True)
        case NewConnectionError():
            return _Trouble(
                "cannot be reached: the connection is refused; is the cluster running?", harmless=True
            )
        case ConnectTimeoutError():
            return _Trouble("cannot be reached: no answer to the connection", harmless=True)
        case ProxyError():
            return _Trouble("cannot be reached through the proxy", harmless=True)
        case SSLError() if isinstance(error.args[0], ssl.SSLCertVerificationError):
            reason = error.args[0].verify_message
            return _Trouble(
                f"shows a certificate that cannot be trusted: {reason}", harmless=True, final=True
            )
        case SSLError():
            return _Trouble("broke the TLS connection")
        case ReadTimeoutError() | TimeoutError():
            return _Trouble("does not answer in time")
    return _Trouble("broke the connection")


def _reason(content: bytes, secrets: Iterable[str]) -> str:
    """`: MESSAGE` of a Status, empty when the body is something else."""
    document = _decoded_json(content)
    if not isinstance(document, dict) or document.get("kind") != "Status" or not document.get("message"):
        return ""
    return f": {errors.clean(str(document['message']), secrets)}"


def _decoded_json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def _maybe_done(method: str) -> str:
    return f"; whether its {method} was done is not known"


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
