"""An HTTP proxy on loopback that breaks what passes, by rules. In front of a real API server, or of a function.

    with faults.Proxy("https://127.0.0.1:6443") as proxy:
        proxy.add(faults.Answer(429, retry_after=2), verb="PATCH", times=3)
        proxy.add(faults.Lost(504), verb="POST", path="/configmaps$", times=1)      # done, but nobody hears it
        proxy.add(faults.Events(duplicate=True, stale=True), verb="WATCH")
        transport = Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path, token))
        ...
        assert proxy.busiest(1.0) < 50                                              # requests in the worst second

The first rule that matches and is not used up decides; without one, requests pass. Verbs are GET, LIST, WATCH, POST, PUT,
PATCH, DELETE and DELETECOLLECTION; `path` is a regular expression that is searched in the path with its query.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml


@dataclass(frozen=True)
class Answer:
    """Answer this instead of asking the server. `body`: bytes are sent as HTML, None makes a Status."""

    status: int
    reason: str = ""
    message: str = "injected"
    retry_after: float | str | None = None
    causes: tuple[dict[str, str], ...] = ()
    body: bytes | None = None


@dataclass(frozen=True)
class Lost:
    """The server does it; its answer is lost. `status` is answered instead, 0 cuts the connection."""

    status: int = 0


@dataclass(frozen=True)
class Cut:
    """Cut the connection: before the server is asked, or in the middle of the body of its answer."""

    within: bool = False


@dataclass(frozen=True)
class Stall:
    """Accept and never answer (until the proxy is closed or the client goes). The server is not asked."""


@dataclass(frozen=True)
class Slow:
    """Wait before the server is asked."""

    seconds: float


@dataclass(frozen=True)
class Old:
    """Answer as the same request was answered the first time (a stale read)."""


@dataclass(frozen=True)
class Events:
    """Change the events of a watch. `stop`: after so many events, `end` (cleanly), `cut`, `gone` (ERROR 410) or `stall`."""

    duplicate: bool = False
    stale: bool = False
    """Send the first event of an object again after each later one."""
    stop: int | None = None
    by: str = "end"
    bookmarks: bool = True
    garbage: bool = False


Fault = Answer | Lost | Cut | Stall | Slow | Old | Events


@dataclass
class Rule:
    """`left`: how often it will still be applied. `skip`: matching requests that pass before. `each`: once to each path."""

    fault: Fault
    verb: str | None
    path: re.Pattern[str]
    left: float
    skip: int
    each: bool = False
    met: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Seen:
    """One request: when (monotonic), what, and what became of it."""

    time: float
    verb: str
    path: str
    fault: Fault | None
    body: bytes = field(repr=False, default=b"")


@dataclass(frozen=True)
class Reply:
    """What a function answers that stands in for a server. An iterator of dicts as body is streamed as watch events."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Server = Callable[[str, str, bytes], Reply]
"""(verb, path with query, body) -> Reply."""


class Proxy:
    """Listens on a free port of 127.0.0.1 from `with` to its end.

    `server`: the URL of an API server (its certificate is not checked), or a function. `certificate`: a PEM file with
    certificate and key; the proxy then speaks TLS, and plain HTTP without one.
    """

    def __init__(self, server: str | Server, certificate: Path | None = None) -> None:
        self.server = server
        self.rules: list[Rule] = []
        self.seen: list[Seen] = []
        self.done: list[tuple[str, str, int, bytes]] = []
        """What the server was asked for and answered: verb, path, status and the body of the request."""
        self._old: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.closing = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._listener = _Listener(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self._scheme = "http"
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            self._listener.socket = tls.wrap_socket(
                self._listener.socket, server_side=True, do_handshake_on_connect=False
            )
            self._scheme = "https"

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()
        self.cut()

    def add(
        self,
        fault: Fault,
        *,
        verb: str | None = None,
        path: str = "",
        times: float = float("inf"),
        skip: int = 0,
        each: bool = False,
    ) -> Rule:
        """Add a rule at the end; the rule can be changed (`left = 0` ends it)."""
        rule = Rule(fault, verb, re.compile(path), times, skip, each)
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Everything passes from now on. What stalls, stalls on."""
        with self._lock:
            self.rules.clear()

    def cut(self) -> None:
        """Cut all open connections now."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def kubeconfig(self, folder: Path, token: str = "none", namespace: str = "default") -> Path:
        """A kubeconfig for this proxy with one context, `faulty`."""
        cluster = {"server": self.url} | (
            {"insecure-skip-tls-verify": True} if self._scheme == "https" else {}
        )
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faulty",
            "contexts": [
                {"name": "faulty", "context": {"cluster": "faulty", "user": "u", "namespace": namespace}}
            ],
            "clusters": [{"name": "faulty", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        file = folder / "faulty.kubeconfig"
        file.write_text(yaml.safe_dump(document))
        return file

    def count(self, verb: str | None = None, path: str = "") -> int:
        """Requests seen so far."""
        return sum(one.verb == (verb or one.verb) and bool(re.search(path, one.path)) for one in [*self.seen])

    def busiest(self, seconds: float) -> int:
        """The largest number of requests within any so many seconds."""
        times = sorted(one.time for one in [*self.seen])
        return max((sum(start <= at < start + seconds for at in times) for start in times), default=0)

    def _decide(self, verb: str, path: str, body: bytes) -> Fault | None:
        with self._lock:
            fault = None
            for rule in self.rules:
                if rule.left > 0 and verb == (rule.verb or verb) and rule.path.search(path):
                    if rule.skip > 0:
                        rule.skip -= 1
                        continue
                    if rule.each and path.partition("?")[0] in rule.met:
                        continue
                    rule.met.add(path.partition("?")[0])
                    rule.left -= 1
                    fault = rule.fault
                    break
            self.seen.append(Seen(time.monotonic(), verb, path, fault, body))
            return fault


class _Listener(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what we are here for."""


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.upstream: http.client.HTTPConnection | None = None
        with self.owner._lock:
            self.owner._open.add(self.connection)

    def finish(self) -> None:
        with self.owner._lock:
            self.owner._open.discard(self.connection)
        if self.upstream:
            self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        verb = _verb(self.command, self.path)
        fault = self.owner._decide(verb, self.path, body)
        match fault:
            case Answer():
                return self._answer(fault)
            case Cut(within=False):
                return self._cut()
            case Stall():
                return self._stall()
            case Slow(seconds):
                self.owner.closing.wait(seconds)
            case Old() if self.path in self.owner._old:
                return self._write(*self.owner._old[self.path])
        if verb == "WATCH":
            return self._watch(body, fault if isinstance(fault, Events) else Events())
        status, headers, content = self._ask(verb, body)
        if self.command == "GET":
            self.owner._old.setdefault(self.path, (status, headers, content))
        match fault:
            case Lost(0):
                return self._cut()
            case Lost(lost):
                return self._answer(Answer(lost, message="the answer is lost"))
            case Cut():
                self._head(status, headers | {"content-length": str(len(content))})
                self.wfile.write(content[: len(content) // 2])
                return self._cut()
        return self._write(status, headers, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def _ask(self, verb: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not isinstance(self.owner.server, str):
            reply = self.owner.server(verb, self.path, body)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            return reply.status, {"content-type": "application/json"} | reply.headers, content
        response = self._forward(body)
        self.owner.done.append((verb, self.path, response.status, body))
        return response.status, _kept(response), response.read()

    def _forward(self, body: bytes) -> http.client.HTTPResponse:
        assert isinstance(self.owner.server, str)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        for fresh in (False, True):
            if self.upstream is None or fresh:
                self.upstream = _connect(self.owner.server)
            try:
                self.upstream.request(self.command, self.path, body or None, headers)
                return self.upstream.getresponse()
            except (http.client.HTTPException, OSError):
                if fresh:
                    raise
        raise AssertionError

    def _watch(self, body: bytes, faults: Events) -> None:
        if isinstance(self.owner.server, str):
            response = self._forward(body)
            if response.status != 200:
                return self._write(response.status, _kept(response), response.read())
            events: Iterable[Any] = map(json.loads, response)
        else:
            reply = self.owner.server("WATCH", self.path, body)
            if reply.status != 200:
                return self._write(reply.status, reply.headers, json.dumps(reply.body).encode())
            events = reply.body
        self._head(200, {"content-type": "application/json", "transfer-encoding": "chunked"})
        sent = 0
        for event in _changed(events, faults):
            if faults.stop is not None and sent >= faults.stop:
                break
            self._chunk(b"{not json\n" if faults.garbage else json.dumps(event).encode() + b"\n")
            sent += 1
        if self.upstream:
            self.upstream.close()
            self.upstream = None
        match faults.by if faults.stop is not None and sent >= faults.stop else "end":
            case "cut":
                return self._cut()
            case "stall":
                return self._stall()
            case "gone":
                status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                self._chunk(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _answer(self, fault: Answer) -> None:
        if fault.body is not None:
            headers, content = {"content-type": "text/html"}, fault.body
        else:
            reason = fault.reason or _REASONS.get(fault.status, "InternalError")
            status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            status |= {"code": fault.status, "reason": reason, "message": fault.message}
            status["details"] = {"causes": list(fault.causes)}
            headers, content = {"content-type": "application/json"}, json.dumps(status).encode()
        if fault.retry_after is not None:
            headers["retry-after"] = str(fault.retry_after)
        self._write(fault.status, headers, content)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self._head(status, headers | {"content-length": str(len(content))})
        self.wfile.write(content)

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _stall(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.flush()
            while not self.owner.closing.is_set():
                self.connection.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    if not self.connection.recv(1):
                        break
        self.close_connection = True


_HOP = frozenset(("host", "connection", "content-length", "transfer-encoding", "accept-encoding"))
_REASONS = {
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def _verb(method: str, path: str) -> str:
    parts = urlsplit(path)
    prefix = {"api": 2, "apis": 3}.get(parts.path.split("/")[1], 99)
    rest = parts.path.split("/")[1 + prefix :]
    collection = len(rest[2:] if rest[:1] == ["namespaces"] and len(rest) > 2 else rest) == 1
    match method:
        case "GET" if parse_qs(parts.query).get("watch") in (["1"], ["true"]):
            return "WATCH"
        case "GET" if collection:
            return "LIST"
        case "DELETE" if collection:
            return "DELETECOLLECTION"
    return method


def _connect(server: str) -> http.client.HTTPConnection:
    parts = urlsplit(server)
    assert parts.hostname
    if parts.scheme == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(parts.hostname, parts.port, context=tls)
    return http.client.HTTPConnection(parts.hostname, parts.port)


def _kept(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name: value for name, value in response.getheaders() if name.lower() not in _HOP}


def _changed(events: Iterable[Any], faults: Events) -> Iterator[Any]:
    first: dict[str, Any] = {}
    for event in events:
        if event["type"] == "BOOKMARK":
            if faults.bookmarks:
                yield event
            continue
        yield event
        uid = event["object"].get("metadata", {}).get("uid", "")
        if faults.duplicate:
            yield event
        if faults.stale and uid in first:
            yield first[uid]
        first.setdefault(uid, event)
