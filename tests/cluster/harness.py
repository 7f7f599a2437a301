"""A local cluster with a real supervisor, for tests: the tests' program (`program.py`) and short delays (`drive.py`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlspec.manifest import Key
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.local import processes
from mlspec_reconciler.clusters.local.cluster import API_VERSION, LocalCluster


def body(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """An object of the local target."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def step(
    run: str, name: str, subject: str = "ok", *, after: tuple[str, ...] = (), **document: Any
) -> dict[str, Any]:
    """A step; `timeout`, `retries` and `requirements` are taken out of the document."""
    own = {word: document.pop(word) for word in ("timeout", "retries", "requirements") if word in document}
    return {
        "name": name,
        "subject": subject,
        "document": {"name": run, "step": name, **document},
        "requirements": [],
        "timeout": 60.0,
        "retries": 1,
        "after": list(after),
        **own,
    }


def run_of(name: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    """A Run."""
    return body("Run", name, title=f"run {name}", steps=list(steps))


class Home:
    """A cluster and its supervisor in a temporary folder."""

    def __init__(self, path: Path) -> None:
        self.cluster = LocalCluster(path)
        self.supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the supervisor."""
        log = self.cluster.home / "supervisor.log"
        drive = str(Path(__file__).with_name("drive.py"))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            argv = [sys.executable, drive, str(self.cluster.home)]
            # Steps and programs get no other folder of PYTHONPATH.
            installed = self.cluster.home / "site-packages"
            installed.mkdir(exist_ok=True)
            for module in ("naps.py", "fails.py"):
                shutil.copy(Path(__file__).with_name(module), installed)
            environment = {**os.environ, "PYTHONPATH": str(installed)}
            self.supervisor = subprocess.Popen(
                argv, stdout=file, stderr=file, env=environment, start_new_session=True
            )

    def kill(self) -> None:
        """`kill -9` the supervisor, and only it."""
        assert self.supervisor is not None
        os.kill(self.supervisor.pid, signal.SIGKILL)
        self.supervisor.wait()

    def create(self, one: Mapping[str, Any]) -> Object:
        """Create an object."""
        return self.cluster.create(one, {})

    def status(self, kind: str, name: str) -> Mapping[str, Any]:
        """The status of an object; empty when there is none."""
        one = self.cluster.get(Key(API_VERSION, kind, "", name))
        return one.status if one is not None else {}

    def wait(self, what: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait until `what` is true, and return it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = what()
            if found:
                return found
            time.sleep(0.02)
        objects = "\n".join(f"{one.key}: {one.status}" for one in self.cluster.list())
        log = (self.cluster.home / "supervisor.log").read_text() if self.supervisor else ""
        raise AssertionError(f"waited {seconds} s in vain\n{objects}\n{log}")

    def ended(self, name: str, seconds: float = 20.0) -> Mapping[str, Any]:
        """Wait until a run has ended; its status."""
        found: Mapping[str, Any] = self.wait(lambda: self._ended(name), seconds)
        return found

    def _ended(self, name: str) -> Mapping[str, Any] | None:
        status = self.status("Run", name)
        return status if status.get("phase") in ("succeeded", "failed") else None

    def ready(self, name: str, seconds: float = 20.0) -> Mapping[str, Any]:
        """Wait until a service is ready; its status."""
        found: Mapping[str, Any] = self.wait(lambda: self._ready(name), seconds)
        return found

    def _ready(self, name: str) -> Mapping[str, Any] | None:
        status = self.status("Service", name)
        return status if status.get("phase") == "ready" else None

    def trace(self, word: str) -> list[tuple[str, str]]:
        """(run, step) of every start or commit that the program has traced, in order."""
        file = self.cluster.root / "trace.log"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(line[1], line[2]) for line in lines if line[0] == word]

    def alive(self) -> list[int]:
        """Pids of all marked processes of this cluster."""
        return [one.pid for group in processes.find(self.cluster.store.id).values() for one in group]


@contextmanager
def home(path: Path, *, start: bool = True) -> Iterator[Home]:
    """A home that leaves no process behind."""
    made = Home(path)
    try:
        if start:
            made.start()
        yield made
    finally:
        if made.supervisor is not None and made.supervisor.poll() is None:
            made.supervisor.terminate()  # it may be so young that it does not hold the lock yet
            made.supervisor.wait(10)
        made.cluster.stop(5.0)
        made.cluster.close()
