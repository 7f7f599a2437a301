"""Processes of the local cluster: start one, recognise it after a crash, end it with everything that it started.

Each process leads its own session and carries `MLSPEC_CHILD=CLUSTER/TOKEN` in its environment. The mark, not the pid,
says that a process is ours: a pid may be reused, and the supervisor may die between a start and its note of the pid.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mlspec_reconciler import searchpath

MARK = "MLSPEC_CHILD"
PATH = "PYTHONPATH"
HEADER = "---- mlspec "
"""Begins the line that heads each attempt in a log."""
LOG_LIMIT = 16 * 2**20
"""Bytes of a log file; beyond, it is moved to `FILE.1` and begun anew."""


@dataclass(slots=True)
class Process:
    """A process that was started here (`popen`) or by an earlier supervisor (`popen` is None)."""

    pid: int
    handle: psutil.Process
    popen: subprocess.Popen[bytes] | None = None
    ending: float | None = field(default=None)
    """When it was told to end."""

    def alive(self) -> bool:
        """Whether it still runs."""
        if self.popen is not None:
            return self.popen.poll() is None
        return _runs(self.handle)

    @property
    def code(self) -> int | None:
        """Exit code of an ended process (negative: a signal); None when an earlier supervisor started it."""
        return None if self.popen is None else self.popen.poll()

    def end(self, now: float, grace: float) -> None:
        """Call until it is not alive: asks it to end, and kills its whole group when it has not after `grace` seconds."""
        if self.ending is None:
            self.ending = now
            _signal_group(self.pid, signal.SIGTERM)
        elif now - self.ending > grace:
            _signal_group(self.pid, signal.SIGKILL)

    def sweep(self) -> None:
        """Kill what an ended process left behind in its group."""
        _signal_group(self.pid, signal.SIGKILL)


def start(argv: Sequence[str], mark: str, log: Path, cwd: Path, out: Path | None = None) -> Process:
    """Start a marked process in a session of its own. Output goes to the end of `log` (stdout to `out` when given).

    Raises OSError when the program cannot be started.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file, (out or log).open("ab" if out is None else "wb") as stdout:
        environment = {**inherited(), MARK: mark, "PYTHONUNBUFFERED": "1"}
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=file,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
    return Process(popen.pid, psutil.Process(popen.pid), popen)


def find(cluster: str) -> dict[str, list[psutil.Process]]:
    """All live processes that carry a mark of this cluster, by token; session leaders first."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            owner, _, token = process.environ().get(MARK, "").partition("/")
            if owner == cluster and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(token, []).append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    for processes in found.values():
        processes.sort(key=lambda one: (not _leads(one.pid), one.pid))
    return found


def adopt(processes: Sequence[psutil.Process]) -> Process | None:
    """The process of an earlier supervisor among those with its token; None when only what it had started is left."""
    if processes and _leads(processes[0].pid):
        return Process(processes[0].pid, processes[0])
    return None


def end_all(processes: Iterable[psutil.Process], grace: float) -> None:
    """End processes and wait until they are gone: SIGTERM, after `grace` seconds SIGKILL."""
    rest = list(processes)
    for signalled in (signal.SIGTERM, signal.SIGKILL):
        for process in rest:
            try:
                process.send_signal(signalled)
            except psutil.NoSuchProcess:
                continue
        rest = _wait(rest, grace)


def end_marked(cluster: str, grace: float) -> None:
    """End every process that carries a mark of this cluster, also those that are started meanwhile."""
    while found := find(cluster):
        end_all([one for group in found.values() for one in group], grace)


def wait(pids: Iterable[int], seconds: float) -> None:
    """Wait until processes that were told to end are gone."""
    _wait([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], seconds)


def _wait(processes: list[psutil.Process], grace: float) -> list[psutil.Process]:
    until = time.monotonic() + grace
    rest = [process for process in processes if _runs(process)]
    while rest and time.monotonic() < until:
        time.sleep(0.02)
        rest = [process for process in rest if _runs(process)]
    return rest


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def born(pid: int) -> float:
    """When a process was started, in seconds since the epoch; 0 when there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def booted() -> float:
    """When this machine was started, in seconds since the epoch."""
    return float(psutil.boot_time())


def serves(pid: int, client: int) -> bool:
    """Whether a process, or a child of it, holds the server's end of the connection from our port `client`."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        connections = [one for member in family for one in member.net_connections(kind="tcp")]
    except psutil.Error:
        return False
    return any(one.raddr and one.raddr.port == client for one in connections)


def trim(log: Path) -> None:
    """Keep a log within its limit. Writers append, so they go on at the start of the emptied file."""
    try:
        if log.stat().st_size > LOG_LIMIT:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        return


def last_error(log: Path) -> str:
    """What the newest attempt in a log says about its failure: its last `error: ` line, otherwise its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in _newest_attempt(text) if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:300]


def _newest_attempt(text: str) -> list[str]:
    _, mark, tail = text.rpartition(HEADER)
    return tail.splitlines()[1:] if mark else text.splitlines()


def how_it_ended(code: int | None, log: Path) -> str:
    """`exited with code 3: LAST LINE`, `was killed by SIGKILL` (which leaves no last words), `ended while nobody watched`."""
    if code is None:
        return "ended while nobody watched"
    if code < 0:
        known = {one.value: one.name for one in signal.Signals}
        return f"was killed by {known.get(-code, f'signal {-code}')}"
    said = last_error(log)
    return f"exited with code {code}" + (f": {said}" if said else "")


def inherited() -> Mapping[str, str]:
    """This process's environment for another one: it is no child of ours until it is marked, and imports nothing of the
    caller's PYTHONPATH that is neither installed nor in its code bundle."""
    found = {name: value for name, value in os.environ.items() if name not in (MARK, PATH)}
    kept = searchpath.without_unidentified(os.environ.get(PATH, ""))
    return found | ({PATH: kept} if kept else {})
