"""A project in a temporary folder and the command `mlspec`, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

EXAMPLES = Path(__file__).parents[2] / "examples"
MLSPEC = [sys.executable, "-m", "mlspec_reconciler.cli"]


class Project:
    """One copy of an example. `stop` leaves no process behind."""

    def __init__(self, example: str, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(EXAMPLES / example, folder, ignore=shutil.ignore_patterns(".mlspec", "__pycache__"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command in the background, its output in one pipe."""
        return subprocess.Popen(
            [*MLSPEC, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )

    def run(self, *arguments: str, code: int = 0, timeout: float = 240) -> str:
        """The command's output; its exit code must be `code`."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == code, (
            f"mlspec {' '.join(arguments)} gave {process.returncode}:\n{output}"
        )
        return output

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace one piece of text."""
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def plan(self) -> dict[str, Any]:
        """The plan as data."""
        document: dict[str, Any] = json.loads(self.run("plan", "--output", "json"))
        return document

    def changed(self) -> list[tuple[str, str]]:
        """`(action, resource)` of the plan."""
        return [(change["action"], change["resource"]) for change in self.plan()["changes"]]

    def runs(self) -> dict[str, dict[str, Any]]:
        """Every run by name."""
        return {run["run"]: run for run in json.loads(self.run("runs", "--output", "json"))["runs"]}

    def objects(self) -> dict[str, dict[str, Any]]:
        """Each live object with its spec and status, by `Kind name`."""
        document = json.loads(self.start("status", "--output", "json").communicate(timeout=60)[0])
        return {f"{one['kind']} {one['name']}": one for one in document["objects"]}

    def url(self, graph: str) -> str:
        """Address of a graph."""
        return str(self.objects()[f"Service {graph}"]["status"]["url"])

    def metric(self, job: str, name: str) -> float:
        """Apply, and the metric of the model that serves then."""
        self.run("apply", "--yes")
        return float(self.objects()[f"Record model-{job}"]["spec"]["data"]["metrics"][name])

    def processes(self) -> list[psutil.Process]:
        """Processes that belong to this project."""
        return self.processes_of(self.folder)

    @staticmethod
    def processes_of(folder: Path) -> list[psutil.Process]:
        """Processes that name a folder."""
        found = []
        for process in psutil.process_iter():
            try:
                named = any(str(folder) in word for word in process.cmdline())
                if named and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def supervisor(self) -> psutil.Process | None:
        """The supervisor, when it runs."""
        return next(
            (
                one
                for one in self.processes()
                if "mlspec_reconciler.clusters.local.supervisor" in one.cmdline()
            ),
            None,
        )

    def stop(self) -> None:
        """Destroy, and kill what a failing test left."""
        self.start("destroy", "--yes").communicate(timeout=60)
        for process in self.processes():
            process.send_signal(signal.SIGKILL)


def ask(url: str, document: dict[str, Any]) -> tuple[int, Any]:
    """POST a JSON document; status and answer."""
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
