"""The ASGI application: a dozen fixed routes, matched by hand, around one reference to the current plan.

    POST /v2/models/NAME/infer              Open Inference Protocol V2, JSON and binary tensors
    POST /v2/models/NAME/versions/V/infer   the same, if V is what is served
    POST /predict                           rows as JSON objects
    GET  /v2  /v2/health/live  /v2/health/ready  /v2/models/NAME  /v2/models/NAME/ready
    GET  /metrics  /status

A request takes the plan once, when it starts, and keeps it to its end; so `swap` is an assignment, and an old plan is
done when its last request is. Every answer that is not 200 has the body `{"error": "..."}`.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from mlspec_runtime.serve import metrics, rows, v2
from mlspec_runtime.serve.fault import Fault
from mlspec_runtime.serve.log import Entry, RequestLog
from mlspec_runtime.serve.plan import Plan, Run

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

VERSION = "0.1.0"
RETRY_AFTER = (b"retry-after", b"1")
CLOSE = (b"connection", b"close")
CANCELLED = 499
"""Status in log and metrics of a request that was cancelled before it had an answer."""
JSON = (b"content-type", b"application/json")


@dataclass(slots=True)
class _Serving:
    """A plan and the number of requests that hold it."""

    plan: Plan
    since: float
    """When the models of the plan came into use."""
    paths: dict[str, bool]
    """Path of an inference -> whether it is V2."""
    users: int = 0
    retired: Callable[[Plan], None] | None = None
    """Called when the last request lets go, after another plan has taken over."""


@dataclass(slots=True)
class App:
    """The application. `first` is the plan to start with; `tasks` are the requests that the HTTP server works on."""

    first: Plan
    log: RequestLog
    tasks: Collection[object] = ()
    """Lets a lonely request take the inline way, and others share model calls."""
    batching: bool = True
    draining: bool = False
    """Set before the process ends: not ready, and every answer closes its connection."""
    error: dict[str, Any] | None = None
    """The last build that failed, for `/status`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the process adds to `/status`."""
    counters: metrics.Counters = field(default_factory=metrics.Counters)
    _serving: _Serving = field(init=False)

    def __post_init__(self) -> None:
        self._serving = _serving(self.first, time.time())

    @property
    def plan(self) -> Plan:
        """The plan that new requests take."""
        return self._serving.plan

    def swap(self, plan: Plan, retired: Callable[[Plan], None]) -> None:
        """Serve `plan` from now on; `retired(old)` is called when the old one's last request is done."""
        old = self._serving
        since = old.since if plan.models == old.plan.models else time.time()
        self._serving = _serving(plan, since)
        self.counters.swaps += 1
        old.retired = retired
        if old.users == 0:
            retired(old.plan)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] != "http":
            return
        serving = self._serving
        path = scope["path"]
        is_v2 = serving.paths.get(path)
        if is_v2 is not None and scope["method"] == "POST":
            await self._infer(serving, is_v2, scope, receive, send)
            return
        try:
            status, headers, body = 200, *self._page(serving, scope["method"], path)
        except Fault as fault:
            status, headers, body = fault.status, [JSON, *fault.headers], _error(fault)
        length = (b"content-length", str(len(body)).encode())
        await self._send(send, status, [*headers, length], body)

    async def _infer(
        self, serving: _Serving, is_v2: bool, scope: Message, receive: Receive, send: Send
    ) -> None:
        started = time.perf_counter()
        received = time.time()
        counters, plan = self.counters, serving.plan
        run: Run | None = None
        answer: v2.Columns = {}
        status, rows_answered = CANCELLED, 0
        counters.in_flight += 1
        serving.users += 1
        try:
            try:
                if counters.in_flight > plan.limits.in_flight:
                    raise Fault(
                        429,
                        f"{plan.limits.in_flight} requests are in flight already; try again",
                        (RETRY_AFTER,),
                    )
                request = await _decode(plan, is_v2, scope, receive, received)
                run = Run(request, len(plan.names))
                batched = self.batching and plan.batches and len(self.tasks) > 1
                if batched or plan.awaits:
                    answer = await plan.answer_async(run, batched)
                else:
                    answer = plan.answer(run)
                if not plan.outputs:
                    plan.outputs.update({name: v2.datatype(values) for name, values in answer.items()})
                encode = v2.encode if is_v2 else rows.encode
                reply = encode(request, answer, plan.name, plan.version)
                status, headers, body = 200, reply.headers, reply.body
                rows_answered = request.rows
            except Fault as fault:
                status, body = fault.status, _error(fault)
                headers = [JSON, (b"content-length", str(len(body)).encode()), *fault.headers]
            except Exception as error:  # the process boundary: our own bug must not cost the connection
                traceback.print_exc(file=sys.stderr)
                status, body = 500, _error(Fault(500, f"internal error: {type(error).__name__}: {error}"))
                headers = [JSON, (b"content-length", str(len(body)).encode())]
            await self._send(send, status, headers, body)
        finally:
            ended = time.perf_counter()
            counters.in_flight -= 1
            counters.count(status, ended, ended - started, rows_answered)
            try:
                if run is not None:
                    self._note(plan, run, status, answer)
            finally:
                serving.users -= 1
                if serving.users == 0 and serving.retired is not None:
                    serving.retired(serving.plan)

    def _note(self, plan: Plan, run: Run, status: int, answer: v2.Columns) -> None:
        """Log a request that has reached the plan, and run and log its shadow steps."""
        if not run.parts:
            self.log.put(
                Entry(run.request, run.at, run.models, status, run.features, answer if status == 200 else {})
            )
        for part in run.parts:
            value = plan.answer_of(part) if status == 200 else {}
            self.log.put(Entry(part.request, part.at, part.models, status, part.features, value))
        if plan.shadow and status == 200:
            for part in run.parts or [run]:
                for one in plan.run_shadow(part):
                    self.log.put(
                        Entry(
                            one.run.request,
                            one.run.at,
                            one.models,
                            status,
                            one.features,
                            one.output,
                            shadow=True,
                        )
                    )

    async def _send(
        self, send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> None:
        if self.draining:
            headers = [*headers, CLOSE]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _page(self, serving: _Serving, method: str, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body of everything but inference. Raises `Fault` 404 or 405, and 503 when not ready."""
        plan = serving.plan
        if path in serving.paths:
            raise Fault(405, f"{path} takes POST, not {method}", ((b"allow", b"POST"),))
        model = f"/v2/models/{plan.name}"
        ready = not self.draining
        document: dict[str, Any]
        match path:
            case "/v2" | "/v2/":
                document = {"name": "mlspec", "version": VERSION, "extensions": ["binary_tensor_data"]}
            case "/v2/health/live":
                document = {"live": True}
            case "/v2/health/ready":
                document = {"ready": ready}
            case "/status":
                document = self._status(serving)
            case "/metrics":
                document = {}
            case _ if path in (model, *(f"{model}/versions/{version}" for version in _versions(plan))):
                document = _metadata(plan)
            case _ if path in (
                f"{model}/ready",
                *(f"{model}/versions/{one}/ready" for one in _versions(plan)),
            ):
                document = {"name": plan.name, "ready": ready}
            case _:
                raise _unknown(plan, path)
        if method not in ("GET", "HEAD"):
            raise Fault(405, f"{path} takes GET, not {method}", ((b"allow", b"GET, HEAD"),))
        if document.get("ready") is False:
            raise Fault(503, "the process is about to end")
        if path == "/metrics":
            text = metrics.exposition(self.counters, plan, self.log)
            return [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], text
        return [JSON], orjson.dumps(document)

    def _status(self, serving: _Serving) -> dict[str, Any]:
        """`/status`. Times are seconds; `p50` and `p99` are of the last minute; `error` is the last failed build."""
        counters = self.counters
        p50, p99 = counters.percentiles(0.5, 0.99)
        failures = sum(number for status, number in counters.statuses.items() if status >= 500)
        return {
            "name": serving.plan.name,
            "generation": serving.plan.generation,
            "models": dict(serving.plan.models),
            "since": serving.since,
            "started": counters.started,
            "ready": not self.draining,
            "requests": sum(counters.statuses.values()),
            "failures": failures,
            "statuses": {str(status): number for status, number in sorted(counters.statuses.items())},
            "inFlight": counters.in_flight,
            "rows": counters.rows,
            "rate": counters.rate(),
            "p50": p50,
            "p99": p99,
            "log": {"written": self.log.written, "dropped": self.log.dropped},
            "error": self.error,
            **self.facts,
        }


def _serving(plan: Plan, since: float) -> _Serving:
    model = f"/v2/models/{plan.name}"
    paths = {f"{model}/infer": True, "/predict": False}
    paths.update({f"{model}/versions/{version}/infer": True for version in _versions(plan)})
    return _Serving(plan, since, paths)


def _versions(plan: Plan) -> tuple[str, ...]:
    return tuple(dict.fromkeys((plan.version, str(plan.generation))))


def _unknown(plan: Plan, path: str) -> Fault:
    parts = path.split("/")
    if path.startswith("/v2/models/") and parts[3] != plan.name:
        return Fault(404, f'unknown model "{parts[3]}"; this process serves {plan.name}')
    if (
        path.startswith(f"/v2/models/{plan.name}/versions/")
        and len(parts) > 5
        and parts[5] not in _versions(plan)
    ):
        return Fault(404, f'unknown version "{parts[5]}"; versions are {", ".join(_versions(plan))}')
    return Fault(404, f"unknown path {path}; try /v2/models/{plan.name}, /predict, /status or /metrics")


def _metadata(plan: Plan) -> dict[str, Any]:
    inputs = [
        {"name": one.name, "datatype": one.datatype or "BYTES", "shape": [-1]}
        | ({} if one.required else {"parameters": {"optional": True}})
        for one in (plan.inputs or {}).values()
    ]
    outputs = [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in plan.outputs.items()]
    return {
        "name": plan.name,
        "versions": list(_versions(plan)),
        "platform": "mlspec_graph",
        "inputs": inputs,
        "outputs": outputs,
    }


def _error(fault: Fault) -> bytes:
    return orjson.dumps({"error": v2.text(fault.message)})


async def _decode(plan: Plan, is_v2: bool, scope: Message, receive: Receive, received: float) -> v2.Request:
    """Read the body and decode it. Raises `Fault` 4xx."""
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    header_length = None
    limit = plan.limits.body
    for name, value in headers:
        if name == b"content-length":
            if int(value) > limit:
                raise Fault(413, f"the body has {int(value)} bytes; at most {limit} are allowed", (CLOSE,))
        elif name == v2.INFERENCE_HEADER:
            header_length = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Fault(415, "send the body without content-encoding")
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _rest(receive, body, limit)
    elif message["type"] == "http.disconnect":
        raise Fault(400, "the connection was closed before the body was complete")
    if is_v2:
        request = v2.decode(body, header_length, plan.inputs, plan.limits.rows, received)
    else:
        request = rows.decode(body, plan.inputs, plan.limits.rows, received)
    request.headers = headers
    return request


async def _rest(receive: Receive, first: bytes, limit: int) -> bytes:
    """The whole of a body that comes in several parts. Raises `Fault` 413 as soon as it is too large."""
    parts, size, more = [first], len(first), True
    while more:
        if size > limit:
            raise Fault(413, f"the body has more than {limit} bytes", (CLOSE,))
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Fault(400, "the connection was closed before the body was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > limit:
        raise Fault(413, f"the body has more than {limit} bytes", (CLOSE,))
    return b"".join(parts)
