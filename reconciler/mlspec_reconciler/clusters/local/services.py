"""Services: keep one server per Service object running, reachable on one port, and follow changes without a gap.

A changed document is written to the task file, which the server polls. What a running process cannot follow (requirements,
subject, port, mlspec's own version, the storage root: its *generation*) starts a second server beside the first one, on the same port
(SO_REUSEPORT); the first ends when the second is ready.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlspec.manifest import digest
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.local import lock, processes
from mlspec_reconciler.clusters.local.environments import EnvironmentFailed, Environments
from mlspec_reconciler.clusters.local.launch import FAR, Launcher, Owner, Running, write_json
from mlspec_reconciler.clusters.local.probe import HOST, Answer, Prober
from mlspec_reconciler.clusters.local.steps import StepSpec

JSON = Mapping[str, Any]
Phase = Literal["starting", "ready", "degraded", "failed", "stopped"]
HOPELESS = 3
"""A service that was never ready is called failed after so many ends; it is still tried again."""
FIRST_PORT, PORTS = 20_000, 10_000
"""Where ports are looked for when a service asks for none."""
MISSES = 3
"""A ready service is called degraded after so many bad answers in a row."""


@dataclass(slots=True)
class _Server:
    running: Running
    ready: bool = False
    ready_since: float | None = None
    answered: float = 0.0
    """When it answered last, or was started."""
    misses: int = 0
    """Answers in a row that were not `ready`."""
    asked: Future[Answer] | None = None
    ask_at: float = 0.0

    @property
    def pid(self) -> int | None:
        return self.running.process.pid if self.running.process is not None else None

    @property
    def port(self) -> int:
        return int(self.running.child.detail["port"])

    @property
    def generation(self) -> str:
        return str(self.running.child.detail.get("generation", ""))


class Ports:
    """The ports of this home's services, so that two of them never share one."""

    def __init__(self, home: Path) -> None:
        self._home = str(home)
        self._owners: dict[int, Owner] = {}

    def take(self, owner: Owner, wanted: int | None, before: int | None, running: bool) -> int:
        """A port for a service: the wanted one, else the one it had, else a free one. Raises OSError with the reason.

        `running`: a server of this service listens on that port already.
        """
        if wanted is not None:
            other = self._owners.get(wanted, owner)
            if other != owner:
                raise OSError(f"port {wanted} belongs to {other.kind} {other.name}; choose another one")
            if not running and not _is_free(wanted):
                raise OSError(f"port {wanted} is taken by another program; choose another one or stop it")
        elif (
            before is not None and self._owners.get(before, owner) == owner and (running or _is_free(before))
        ):
            wanted = before
        else:
            wanted = self._free(owner)
        self._owners[wanted] = owner
        return wanted

    def _free(self, owner: Owner) -> int:
        """A free port below those that the system gives to clients, and the same for the same service each time."""
        first = int(digest([self._home, owner.name])[:8], 16)
        for number in range(200):
            port = FIRST_PORT + (first + number) % PORTS
            if port not in self._owners and _is_free(port):
                return port
        raise OSError(
            f"none of 200 ports between {FIRST_PORT} and {FIRST_PORT + PORTS} is free; set a `port`"
        )

    def claim(self, owner: Owner, port: int) -> None:
        """Note the port of a server that runs already."""
        self._owners[port] = owner

    def release(self, owner: Owner, keep: int | None = None) -> None:
        """Give back the ports of a service, except one."""
        self._owners = {port: one for port, one in self._owners.items() if one != owner or port == keep}


class ServiceWorker:
    """Keeps one Service object served.

    Status: `{phase, port, url, pid, restarts, since, message, document}`; `since` is when the phase began, `document` the
    digest of the document that the server was told last.
    """

    def __init__(
        self, launcher: Launcher, environments: Environments, prober: Prober, ports: Ports, service: Object
    ) -> None:
        self._launcher, self._environments, self._prober, self._ports = launcher, environments, prober, ports
        self.owner = Owner(service.uid, service.key.kind, service.key.name)
        status = service.status
        self._port: int | None = status.get("port")
        self._phase: Phase = status.get("phase", "starting")
        self._since: float | None = status.get("since")
        self._was_ready = self._phase in ("ready", "degraded")
        self._restarts = int(status.get("restarts", 0))
        self._failures = 0
        self._retry_at = 0.0
        self._message = ""
        self._stored: JSON = status
        self._leaving: list[_Server] = []
        self._current: _Server | None = None
        self._next: _Server | None = None
        self._tokens: list[str] = []
        self._trim_at = 0.0
        self._told = ("", "")
        """Generation and digest of the document that was written last."""
        self.update(service)
        self._recover()

    def _recover(self) -> None:
        for running in self._launcher.recover(self.owner.uid):
            server = _Server(running)
            if not running.alive():
                self._tokens.append(running.child.token)
            elif self._current is None:
                self._current = server
            elif self._next is None:
                self._next = server
            else:
                self._leaving.append(server)
        if self._current is not None:
            self._port = self._current.port
            self._ports.claim(self.owner, self._current.port)

    def update(self, service: Object) -> None:
        """Follow the object: called when its body has changed."""
        spec = service.body["spec"]
        self._step = StepSpec.read(spec["step"])
        self._wanted_port: int | None = spec.get("port")
        self._ready_path = str(spec.get("readyPath", "/v2/health/ready"))
        told = [
            self._step.subject,
            self._step.requirements,
            self._wanted_port,
            lock.about(self._launcher.root),
        ]
        self._generation = digest(told)[:12]
        self._document = digest(self._step.document)[:12]
        self._failures, self._retry_at = 0, 0.0  # a change may be the cure: try it at once

    def tick(self, now: float) -> float:
        """Look once, do what is to be done; returns after how many seconds to look again."""
        self._leaving = [server for server in self._leaving if not self._gone(server, now)]
        if self._next is not None:
            self._tick_next(self._next, now)
        if self._current is not None:
            self._tick_current(self._current, now)
        if now >= self._trim_at:
            self._trim_at = now + 60.0
            processes.trim(self._launcher.log(self.owner, self._step.name))
        if self._current is None and self._next is not None:
            self._current, self._next = self._next, None
        outdated = self._current is not None and self._current.generation != self._generation
        if (self._current is None or (outdated and self._next is None)) and now >= self._retry_at:
            self._start(now)
        self._tell()
        self._store(now)
        return self._delay(now)

    def end(self, now: float) -> bool:
        """Call until it returns True: ends the servers."""
        self._leaving += [server for server in (self._current, self._next) if server is not None]
        self._current = self._next = None
        self._leaving = [server for server in self._leaving if not self._gone(server, now)]
        if self._leaving:
            return False
        self._ports.release(self.owner)
        self._launcher.forget_tasks(self.owner)
        self._forget_ended()
        return True

    def stopped(self) -> None:
        """The supervisor stops, and the servers with it: say so."""
        status = {**self._stored, "phase": "stopped", "pid": None, "message": "stopped with its supervisor"}
        self._launcher.store.set_status(self.owner.uid, status)

    def _tick_current(self, server: _Server, now: float) -> None:
        if not server.running.alive():
            self._lost(server, now)
            self._current = None
            return
        self._probe(server, now, alone=not self._next and not self._leaving)
        if server.ready:
            self._was_ready = True
            if server.ready_since is not None and now - server.ready_since > self._launcher.pace.settled:
                self._failures = 0
        elif server.ready_since is not None and now - server.answered > self._launcher.pace.silent:
            self._message = f"gave no answer for {self._launcher.pace.silent:g} s"
            if server.running.process is not None:
                server.running.process.sweep()  # it would not hear a SIGTERM, and takes requests on the shared port
            self._count_failure(now)
            self._leaving.append(server)
            self._current = None

    def _tick_next(self, server: _Server, now: float) -> None:
        if not server.running.alive():
            self._lost(server, now)
            self._next = None
        elif server.generation != self._generation:
            self._leaving.append(server)
            self._next = None
        else:
            self._probe(server, now, alone=False)
            if server.ready and self._current is not None:
                self._leaving.append(self._current)
                self._current, self._next = server, None
                self._port = server.port
                self._ports.release(self.owner, keep=self._port)

    def _lost(self, server: _Server, now: float) -> None:
        """A server ended by itself."""
        process = server.running.process
        code = process.code if process is not None else None
        self._message = processes.how_it_ended(code, self._launcher.log(self.owner, self._step.name))
        if process is not None:
            process.sweep()
        self._tokens.append(server.running.child.token)
        self._count_failure(now)

    def _count_failure(self, now: float) -> None:
        self._failures += 1
        self._restarts += 1
        self._retry_at = now + self._launcher.pace.backoff(self._failures)

    def _gone(self, server: _Server, now: float) -> bool:
        process = server.running.process
        if process is not None and server.running.alive():
            process.end(now, self._launcher.pace.drain)
            return False
        if process is not None:
            process.sweep()
        self._tokens.append(server.running.child.token)
        return True

    def _start(self, now: float) -> None:
        try:
            interpreter = self._launcher.program[0]
            if self._step.requirements:
                found = self._environments.interpreter(self._step.requirements, now)
                if found is None:
                    self._message = f"installs {', '.join(self._step.requirements)}"
                    return
                interpreter = found
            port = self._take_port()
            server = self._launch(interpreter, port, now)
        except (EnvironmentFailed, OSError) as error:
            self._message = str(error)
            self._failures += 1
            self._retry_at = now + self._launcher.pace.backoff(self._failures)
            return
        if server is None:
            return
        if self._current is None:
            self._current, self._port = server, port
        else:
            self._next = server

    def _take_port(self) -> int:
        before = self._port
        running = bool(self._current or self._leaving) and self._wanted_port in (None, before)
        return self._ports.take(self.owner, self._wanted_port, before, running)

    def _launch(self, interpreter: str, port: int, now: float) -> _Server | None:
        task = self._write_task(port)
        root = str(self._launcher.root)
        running = self._launcher.start(
            self.owner,
            self._step.name,
            [
                interpreter,
                *self._launcher.program[1:],
                self._step.subject,
                "--task",
                str(task),
                "--root",
                root,
            ],
            self._launcher.home,
            attempt=self._restarts + 1,
            detail={"generation": self._generation, "port": port},
        )
        return _Server(running, answered=now) if running is not None else None

    def _tell(self) -> None:
        """Give a changed document to the server that can follow it."""
        for server in (self._current, self._next):
            new = self._told != (self._generation, self._document)
            if new and server is not None and server.generation == self._generation:
                self._write_task(server.port)

    def _write_task(self, port: int) -> Path:
        task = self._launcher.task(self.owner, self._generation)
        write_json(task, {**self._step.document, "host": HOST, "port": port})
        self._told = (self._generation, self._document)
        return task

    def _probe(self, server: _Server, now: float, *, alone: bool) -> None:
        pace = self._launcher.pace
        if server.asked is not None and server.asked.done():
            answer = server.asked.result()
            server.asked = None
            server.answered = now if answer != "silent" else server.answered or now
            server.misses = 0 if answer == "ready" else server.misses + 1
            server.ready = server.misses == 0 or (server.ready and server.misses < MISSES)
            if server.ready:
                server.ready_since = server.ready_since or now
            server.ask_at = now + (pace.probe if answer == "ready" else pace.probe_soon)
        if server.asked is None and now >= server.ask_at:
            port = server.port
            server.asked = self._prober.ask(port, self._ready_path, None if alone else server.pid)

    def _store(self, now: float) -> None:
        phase, message = self._verdict()
        if phase != self._phase or self._since is None:
            self._phase, self._since = phase, now
        if phase == "ready":
            self._message = ""
        status = {
            "phase": phase,
            "port": self._port,
            "url": f"http://{HOST}:{self._port}" if self._port is not None else None,
            "pid": self._current.pid if self._current is not None else None,
            "restarts": self._restarts,
            "since": self._since,
            "message": message,
            "document": self._document,
        }
        if status != self._stored:
            with self._launcher.store.write():
                self._launcher.store.set_status(self.owner.uid, status)
                self._forget_ended()
            self._stored = status
        elif self._tokens:
            self._forget_ended()

    def _forget_ended(self) -> None:
        with self._launcher.store.write():
            for token in self._tokens:
                self._launcher.store.ended(token)
        self._tokens = []

    def _verdict(self) -> tuple[Phase, str]:
        current = self._current
        if current is not None and current.ready:
            if current.generation != self._generation and self._failures:
                return "degraded", f"still the version before; the new one {self._message}"
            return "ready", ""
        if self._was_ready:
            return "degraded", self._message or "is alive but not ready"
        if self._failures >= HOPELESS:
            return "failed", self._message
        return "starting", self._message

    def _delay(self, now: float) -> float:
        servers = [server for server in (self._current, self._next) if server is not None]
        if self._leaving or any(server.asked is not None for server in servers):
            return 0.05
        delay = min((server.ask_at - now for server in servers), default=FAR)
        if any(server.running.adopted for server in servers):
            delay = min(delay, 0.5)
        if self._current is None or (self._next is None and self._current.generation != self._generation):
            delay = min(delay, max(0.1, self._retry_at - now))
        return delay


def _is_free(port: int) -> bool:
    """Whether nobody listens on the port and a server may; closed connections that the kernel still remembers do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        if client.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            server.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True
