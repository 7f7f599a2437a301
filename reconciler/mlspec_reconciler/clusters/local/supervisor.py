"""The supervisor: the one process that makes the processes of this machine equal to the objects in the store.

Started by `LocalCluster.wake`, one for each home. Level-triggered: each turn of the loop compares what is wanted with what
runs, so it may be killed at any moment and the next one goes on. SIGTERM ends it with all processes; SIGHUP ends it alone,
and the next supervisor adopts what runs.
"""

from __future__ import annotations

import argparse
import contextlib
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from mlspec.manifest import Key
from mlspec_reconciler.cluster import Object, Unavailable
from mlspec_reconciler.clusters.local import lock, processes
from mlspec_reconciler.clusters.local.environments import Environments
from mlspec_reconciler.clusters.local.launch import FAR, Launcher, Owner, Pace, Running
from mlspec_reconciler.clusters.local.probe import Prober
from mlspec_reconciler.clusters.local.runs import RunWorker
from mlspec_reconciler.clusters.local.schedules import ScheduleWorker
from mlspec_reconciler.clusters.local.services import Ports, ServiceWorker
from mlspec_reconciler.clusters.local.state import LocalState
from mlspec_reconciler.clusters.local.store import CONTROLLER, Failing, Store
from mlspec_reconciler.state import Table

T = TypeVar("T")
RUNTIME = (sys.executable, "-P", "-m", "mlspec_runtime")
PAUSE = 5.0
"""Seconds before a worker that raised what it should not is tried again."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process of the supervisor's own, kept running while a revision is applied to this machine."""

    name: str
    module: str


PROGRAMS = (Program(CONTROLLER, "mlspec_reconciler.drivers.forever"),)
"""The reconcile loop: it watches the store itself, and acts when a run has ended or a monitor asks for something."""


class Worker(Protocol):
    """What the supervisor has for each object."""

    def update(self, wanted: Object) -> None:
        """The object's body has changed."""

    def tick(self, now: float) -> float:
        """Bring the processes nearer to the object; returns after how many seconds to look again."""

    def end(self, now: float) -> bool:
        """End the processes; called until it returns True."""

    def stopped(self) -> None:
        """The supervisor stops in good order; the processes have ended."""


@dataclass(slots=True)
class _Desk:
    """An object, its worker, and when to look at it again."""

    wanted: Object
    worker: Worker
    due: float = 0.0


class Supervisor:
    """Use `run`, or `turn` by hand.

    `program` is the command of a step; it gets `SUBJECT --task FILE --root ROOT`. `programs` are the supervisor's own.
    """

    def __init__(
        self,
        home: Path,
        root: Path,
        program: Sequence[str] = RUNTIME,
        pace: Pace | None = None,
        programs: Sequence[Program] = PROGRAMS,
    ) -> None:
        self.home = home.absolute()
        self._pace = pace or Pace()
        self.store = Store(self.home / "state.db")
        launcher = self._launcher = Launcher(self.store, self.home, root.absolute(), program, self._pace)
        environments, prober, ports = Environments(launcher), Prober(), Ports(self.home)
        self._makers: dict[str, Callable[[Object], Worker]] = {
            "Run": lambda one: RunWorker(launcher, environments, one),
            "Service": lambda one: ServiceWorker(launcher, environments, prober, ports, one),
            "Schedule": lambda one: ScheduleWorker(launcher, environments, one),
        }
        self._keepers = [_Keeper(launcher, one) for one in programs]
        self._desks: dict[Key, _Desk] = {}
        self._seen = -1
        self._signal = 0

    def run(self) -> None:
        """Work until a signal says to end, or the home is removed. Call in the main thread, with the lock held."""
        reader, writer = socket.socketpair()
        with reader, writer:
            for end in (reader, writer):
                end.setblocking(False)
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGCHLD, lambda number, frame: None)
            place = _place(self.home)
            happened = False
            while not self._signal and _place(self.home) == place:
                delay = self.turn(everything=happened)
                select.select([reader], [], [], delay)
                happened = False
                with contextlib.suppress(BlockingIOError):
                    # What was read decides, not what select saw: a signal in between must not be lost.
                    happened = bool(reader.recv(4096))
            signal.set_wakeup_fd(-1)
        if self._signal != signal.SIGHUP:
            self._stop()

    def turn(self, *, everything: bool = False) -> float:
        """One turn of the loop; returns the seconds until the next one. `everything`: a child may have ended."""
        now, wakeups = time.time(), self._launcher.wakeups
        try:
            self._refresh(now)
            for key, desk in list(self._desks.items()):
                if everything or now >= desk.due:
                    self._look(key, desk, now)
            for keeper in self._keepers:
                keeper.tick(now)
        except Unavailable as error:
            print(error, file=sys.stderr, flush=True)
            return 1.0
        if self._launcher.wakeups != wakeups:
            for desk in self._desks.values():
                desk.due = 0.0
        soonest = min((desk.due for desk in self._desks.values()), default=now + FAR)
        return max(0.005, min(self._pace.idle, soonest - now))

    def _refresh(self, now: float) -> None:
        """Take over what has changed in the store."""
        newest = self.store.counter()
        if newest == self._seen:
            return
        versions = self.store.versions()
        for key in [key for key in self._desks if key not in versions]:
            self._desks.pop(key).worker.end(now)  # removed at once, because nothing ran for it
        for one in self.store.objects(since=self._seen):
            desk = self._desks.get(one.key)
            if desk is not None and desk.wanted.uid != one.uid:
                desk.worker.end(now)
                del self._desks[one.key]
                desk = None
            if desk is None:
                self._open(one)
            elif desk.wanted.body != one.body or one.deleting != desk.wanted.deleting:
                desk.wanted, desk.due = one, 0.0
                self._guard(one, partial(desk.worker.update, one))
        self._seen = newest

    def _open(self, one: Object) -> None:
        maker = self._makers.get(one.key.kind)
        if maker is None:  # a Record
            return
        worker = self._guard(one, partial(maker, one))
        if worker is not None:
            self._desks[one.key] = _Desk(one, worker)

    def _guard(self, one: Object, read: Callable[[], T]) -> T | None:
        """`read` the body of an object; one that our engine has not made fails, and what runs for it goes on."""
        try:
            return read()
        except (KeyError, TypeError, ValueError) as error:
            message = f"not a {one.key.kind} of this version: {type(error).__name__} {error}"
            self.store.set_status(one.uid, {"phase": "failed", "message": message})
            return None

    def _look(self, key: Key, desk: _Desk, now: float) -> None:
        try:
            if not desk.wanted.deleting:
                desk.due = now + desk.worker.tick(now)
            elif desk.worker.end(now):
                self.store.remove(desk.wanted.uid)
                del self._desks[key]
            else:
                desk.due = now + 0.05
        except Unavailable:
            raise
        except Exception:  # the boundary: one object must not hold up the others
            print(f"{key}:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            desk.due = now + PAUSE

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def _stop(self) -> None:
        processes.end_marked(self.store.id, self._pace.grace)
        with contextlib.suppress(Unavailable):  # the home may be gone
            self.store.clear()
            for desk in self._desks.values():
                desk.worker.stopped()


class _Keeper:
    """Keeps one of the supervisor's own programs running."""

    def __init__(self, launcher: Launcher, program: Program) -> None:
        self._launcher, self._program = launcher, program
        self._state = LocalState(launcher.store)
        self._owner = Owner("", "Supervisor", program.name)
        self._running: Running | None = None
        known = launcher.store.failing().get(program.name)
        self._failures = known.failures if known is not None else 0
        self._retry_at = 0.0
        for left in launcher.recover(""):
            if left.child.detail.get("program") == program.name:
                self._running = left

    def tick(self, now: float) -> None:
        wanted = self._state.holds(Table.APPLIED, "local")
        running = self._running
        if running is None:
            if wanted and now >= self._retry_at:
                self._start(now)
        elif not running.alive():
            self._launcher.store.ended(running.child.token)
            self._running = None
            if wanted:
                self._fail(now, self._how_it_ended(running))
        elif not wanted and running.process is not None:
            running.process.end(now, self._launcher.pace.grace)
        if self._failures and (not wanted or self._settled(now)):
            self._failures, self._retry_at = 0, 0.0
            self._launcher.store.set_failing(self._program.name, None)

    def _settled(self, now: float) -> bool:
        """Whether it has run for so long that what it died of before is over."""
        return self._running is not None and now - self._running.child.started > self._launcher.pace.settled

    def _start(self, now: float) -> None:
        home = self._launcher.home
        argv = [sys.executable, "-P", "-m", self._program.module, "--home", str(home)]
        detail = {"program": self._program.name}
        try:
            self._running = self._launcher.start(self._owner, self._program.name, argv, home, detail=detail)
        except OSError as error:
            print(f"{self._program.name} does not start: {error}", file=sys.stderr, flush=True)
            self._fail(now, f"it does not start: {error}")

    def _fail(self, now: float, message: str) -> None:
        """Try again later, and say so where `mlspec status` reads it."""
        self._failures += 1
        self._retry_at = now + self._launcher.pace.backoff(self._failures)
        self._launcher.store.set_failing(self._program.name, Failing(self._failures, message))

    def _how_it_ended(self, running: Running) -> str:
        """Its last words, unless it had none."""
        code = running.process.code if running.process is not None else None
        log = self._launcher.log(self._owner, self._program.name)
        said = processes.last_error(log) if code is not None and code > 0 else ""
        return said or processes.how_it_ended(code, log)


def _place(home: Path) -> int:
    """Identity of the lock file: it changes when the home is removed, or made anew."""
    try:
        return (home / lock.NAME).stat().st_ino
    except FileNotFoundError:
        return 0


def main() -> int:
    """Parse the arguments and work, unless another supervisor does already."""
    parser = argparse.ArgumentParser(prog="supervisor", description="Run the objects of a local mlspec home.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--root", type=Path, help="storage root; HOME/store by default")
    arguments = parser.parse_args()
    root = arguments.root or arguments.home / "store"
    with lock.hold(arguments.home, 0.5, lock.about(root)) as mine:
        if mine:
            Supervisor(arguments.home, root).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
