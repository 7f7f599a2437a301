"""Environments: the interpreter for a list of requirements, made by `mlspec_runtime.environment` in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from mlspec.manifest import digest
from mlspec_reconciler.clusters.local import processes
from mlspec_reconciler.clusters.local.launch import Launcher, Owner, Running

OWNER = Owner("", "Environment", "environments")
MAKER = (sys.executable, "-P", "-m", "mlspec_runtime.environment")
MEMORY = 5.0
"""Seconds for which a failure is told to everyone who asks before it is tried again."""


class EnvironmentFailed(Exception):
    """The requirements cannot be installed; the message is for the user."""


@dataclass(slots=True)
class _Making:
    running: Running
    out: Path


class Environments:
    """Interpreters by requirements; each is made once, whoever asks."""

    def __init__(self, launcher: Launcher, maker: tuple[str, ...] = MAKER) -> None:
        self._launcher = launcher
        self._maker = maker
        self._ready: dict[tuple[str, ...], str] = {}
        self._making: dict[tuple[str, ...], _Making] = {}
        self._failed: dict[tuple[str, ...], tuple[float, str]] = {}
        for old in launcher.recover(
            ""
        ):  # half-made ones of an earlier supervisor: begun anew when somebody asks
            if old.child.detail.get("environment"):
                if old.process is not None:
                    processes.end_all([old.process.handle], 2.0)
                launcher.store.ended(old.child.token)

    def interpreter(self, requirements: tuple[str, ...], now: float) -> str | None:
        """The Python that has these packages; None while it is being made.

        Raises `EnvironmentFailed` with the reason.
        """
        ready = self._ready.get(requirements)
        if ready is not None and Path(ready).exists():
            return ready
        failed = self._failed.get(requirements)
        if failed is not None and now < failed[0]:
            raise EnvironmentFailed(failed[1])
        making = self._making.get(requirements)
        if making is None:
            self._make(requirements)
            return None
        return None if making.running.alive() else self._conclude(requirements, making, now)

    def _make(self, requirements: tuple[str, ...]) -> None:
        name = digest(sorted(requirements))[:12]
        out = self._launcher.home / "tasks" / "environment" / f"{name}.out"
        out.parent.mkdir(parents=True, exist_ok=True)
        argv = [*self._maker, "--requirements", json.dumps(list(requirements))]
        cwd = self._launcher.home
        running = self._launcher.start(OWNER, name, argv, cwd, detail={"environment": True}, out=out)
        if running is not None:
            self._making[requirements] = _Making(running, out)

    def _conclude(self, requirements: tuple[str, ...], making: _Making, now: float) -> str:
        process, step = making.running.process, making.running.child.step
        del self._making[requirements]
        self._launcher.store.ended(making.running.child.token)
        code = process.code if process is not None else None
        said = making.out.read_text().strip().splitlines() if making.out.exists() else []
        if code == 0 and said and Path(said[-1]).exists():
            self._ready[requirements] = said[-1]
            return said[-1]
        log = self._launcher.log(OWNER, step)
        reason = processes.last_error(log) or processes.how_it_ended(code, log)
        message = f"cannot install {', '.join(requirements)}: {reason}"
        self._failed[requirements] = (now + MEMORY, message)
        raise EnvironmentFailed(message)
