"""The serving process: bind, serve, follow the task file, drain.

    python -m mlspec_runtime serve --task FILE --root DIR

The plan is built before the socket exists, so whoever can connect is served. The socket has SO_REUSEPORT: a new process
may listen on the same port before the old one gets its SIGTERM. SIGTERM stops accepting, finishes what was asked, writes
the request log and ends with exit code 0. The supervisor replaces the task file atomically; a change is built beside the
running plan and swapped in; a build that fails changes nothing and stands in `/status` and the log.

The task document (paths are relative to the storage root):

    {"subject": "serve", "step": "serve", "name": "late-arrival", "host": "127.0.0.1", "port": 8080, "generation": 3,
     "spec": <ServingGraphSpec>,
     "models": {"late-arrival": {"run": "late-arrival-7c1e9a02", "path": "runs/late-arrival-7c1e9a02/train/model"}},
     "views": {"departure": {"spec": <FeatureViewSpec>, "dataset": <DatasetSpec>,
                             "sets": {"carrier-delay": {"spec": <FeatureSetSpec>, "path": "features/carrier-delay/<v>"}}}},
     "code": {"pre.py:scale": {"path": "code/<digest>", "entry": "pre.py:scale"}}}
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mlspec_runtime.serve import compile
from mlspec_runtime.serve.app import App
from mlspec_runtime.serve.log import RequestLog
from mlspec_runtime.serve.plan import Plan
from mlspec_runtime.serve.ship import Shipper
from mlspec_runtime.task import Document, Here, Storage, TaskError, tell_failure

POLL = 0.05
"""Seconds between two looks at the task file; one costs about 30 us."""
LINGER = 1.0
"""Seconds that idle connections get to hear `Connection: close` before they are closed at a SIGTERM."""
GRACE = 30.0
"""Seconds that requests get to finish."""


def serve(task_file: Path, root: Path, storage: Storage | None = None) -> int:
    """Serve the graph of `task_file` until SIGTERM or SIGINT; returns the exit code."""
    root = root.absolute()
    storage = storage or Here(root)
    try:
        text = task_file.read_bytes()
        task = _parse(text)
        storage.prepare(task)
        plan = compile.build(task, root)
        listener = _bind(task)
    except TaskError as error:
        print(_sentence(error), file=sys.stderr, flush=True)
        tell_failure(error.message, error.hint)
        return 1
    ship = Shipper(root, f"logs/{plan.name}", storage.send) if storage.remote else None
    log = RequestLog(root / "logs" / plan.name, plan.sample, plan.flush, ship=ship)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        app = App(plan, log)
        process = Process(task_file, root, storage, task, hashlib.sha256(text).digest(), app, listener)
        runner.run(process.run())
    log.close()
    print(f"stopped: {plan.name}", flush=True)
    if process.stuck():
        sys.stderr.flush()
        os._exit(0)  # a step hangs in its thread; the interpreter would wait for it for ever
    return 0


class Process:
    """The parts of a running server: HTTP server, application, and the watch on the task file."""

    def __init__(
        self,
        task_file: Path,
        root: Path,
        storage: Storage,
        task: Document,
        digest: bytes,
        app: App,
        listener: socket.socket,
    ) -> None:
        self._task_file = task_file
        self._root = root
        self._storage = storage
        self._digest = digest
        self._address = (task["host"], task["port"])
        self._app = app
        self._listener = listener
        self._plans = [app.plan]
        self._pools = [*app.plan.executors]
        config = uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(GRACE),
        )
        self._server = _Server(config)
        app.tasks = self._server.server_state.tasks
        app.facts = {"pid": os.getpid(), "host": task["host"], "port": listener.getsockname()[1]}

    async def run(self) -> None:
        """Serve until told to stop."""
        watch = asyncio.create_task(self._follow())
        drain = asyncio.create_task(self._drain())
        _one_thread()
        gc.collect()
        gc.freeze()  # models and modules stay; the collector need not look at them again
        host, port = self._listener.getsockname()[:2]
        plan = self._app.plan
        print(
            f"ready: {plan.name} generation {plan.generation} on http://{host}:{port} pid {os.getpid()}",
            flush=True,
        )
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            watch.cancel()
            drain.cancel()

    def stuck(self) -> bool:
        """Whether a step still runs in its thread, after the server has stopped."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + LINGER
        threads = [thread for pool in self._pools for thread in pool._threads]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return any(thread.is_alive() for thread in threads)

    async def _drain(self) -> None:
        """After the signal: stop accepting, tell the connections, then let uvicorn finish the requests."""
        await self._server.told.wait()
        self._app.draining = True
        await self._server.stop_accepting(self._listener)
        deadline = time.monotonic() + LINGER
        while self._server.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self._server.should_exit = True

    async def _follow(self) -> None:
        """Build and swap whenever the content of the task file changes."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(POLL)
            try:
                text = self._task_file.read_bytes()
            except OSError:
                continue  # gone for a moment, or for good: what runs, runs on
            digest = hashlib.sha256(text).digest()
            if digest == self._digest:
                continue
            self._digest = digest
            started = time.monotonic()
            try:
                task = _parse(text)
                if (task["host"], task["port"]) != self._address or task["name"] != self._app.plan.name:
                    raise TaskError(
                        "another name, host or port needs another process", "replace this process"
                    )
                await loop.run_in_executor(None, self._storage.prepare, task)
                plan = await loop.run_in_executor(None, compile.build, task, self._root, self._app.plan)
            except Exception as error:  # whatever is wrong with the new plan, the old one serves on
                if not isinstance(error, TaskError):
                    traceback.print_exc()
                self._refuse(error)
                continue
            _one_thread()
            self._plans.append(plan)
            self._pools = [pool for pool in self._pools if any(thread.is_alive() for thread in pool._threads)]
            self._pools += plan.executors
            self._app.log.sample, self._app.log.flush = plan.sample, plan.flush
            self._app.error = None
            self._app.swap(plan, self._retire)
            models = ", ".join(sorted(plan.models.values())) or "no model"
            took = time.monotonic() - started
            print(f"swapped: {plan.name} generation {plan.generation}, {models} ({took:.2f} s)", flush=True)

    def _refuse(self, error: Exception) -> None:
        message, hint = (
            (error.message, error.hint)
            if isinstance(error, TaskError)
            else (f"{type(error).__name__}: {error}", "")
        )
        self._app.error = {"message": message, "hint": hint, "at": time.time()}
        generation = self._app.plan.generation
        print(
            f"{_sentence(TaskError(message, hint))}\n  generation {generation} serves on",
            file=sys.stderr,
            flush=True,
        )

    def _retire(self, old: Plan) -> None:
        """The last request of an old plan is done: release what the new plan has not taken over."""
        for pool in old.executors:
            pool.shutdown(wait=False)
        for key, resource in old.resources.items():
            close = getattr(resource, "close", None)
            if close is not None and not any(
                key in plan.resources for plan in self._plans if plan is not old
            ):
                close()
        self._plans = [plan for plan in self._plans if plan is not old]


class _Server(uvicorn.Server):
    """uvicorn, with our own way out: a signal only tells, and the exit code stays 0."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.told.is_set() and sig == signal.SIGINT:
            self.force_exit = True
        asyncio.get_event_loop().call_soon_threadsafe(self.told.set)

    async def stop_accepting(self, listener: socket.socket) -> None:
        """Close the socket, but first take what waits in its queue: with SO_REUSEPORT the kernel gives it to nobody else."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                break
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)
        for server in self.servers:
            server.close()

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state={}
        )
        return protocol


def _one_thread() -> None:
    """Limit BLAS and OpenMP, as far as loaded: requests are small, and more threads per call cost more than they give."""
    threadpool_limits(limits=1)


def _parse(text: bytes) -> Document:
    try:
        task: Document = json.loads(text)
    except ValueError as error:
        raise TaskError(
            f"the task is not JSON: {error}", "the supervisor writes it; `mlspec apply` again"
        ) from None
    return {"host": "127.0.0.1", "port": 0, **task}


def _bind(task: Document) -> socket.socket:
    """The listening socket. Raises TaskError when the port belongs to anybody but a process of the same graph."""
    host, port = task["host"], task["port"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if port == 0 or _name_at(host, port) != task["name"]:
            raise TaskError(
                f"cannot listen on {host}:{port}: {error.strerror}", "set another `port` on the graph"
            ) from None
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    else:
        # Only now, so that a foreign listener on the port was an error; a successor needs it on both sockets.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _name_at(host: str, port: int) -> str | None:
    """The graph that answers at this address, if it is one of ours."""
    place = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{place}:{port}/status", timeout=5) as response:
            return str(json.loads(response.read())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sentence(error: TaskError) -> str:
    return f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else "")
