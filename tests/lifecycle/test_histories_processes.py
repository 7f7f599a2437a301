"""The rules over random histories with real processes: commits, reverts, requests, withdrawals, switches, suspensions and kills.

As `test_histories.py` over a memory cluster, only that here everything runs: the command line, the supervisor with its controller,
readings, trainings and the service. Few and short; a seed replays one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.shell import mlspec
from e2e.project import Project
from lifecycle.oracle import PERSON, Oracle, Run
from mlspec.resource import moment
from mlspec_reconciler import remembered, workspace
from mlspec_reconciler.state import Table

HISTORIES = 50 if os.environ.get("MLSPEC_LONG") else 5
EVENTS = 6
SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Project
metadata: {{name: histories}}
spec: {{suspend: {suspend}}}
---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {{name: rows}}
spec:
  source: {{function: "job.py:rows"}}
  key: [id]
  time: {{event: at, delay: 0s}}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {{name: j}}
spec:
  function: "job.py:train"
  data:
    train: {{dataset: rows, label: odd, from: "2020-01-01", to: "{middle}"}}
    test: {{dataset: rows, label: odd, from: "{middle}", to: "{end}"}}
  parameters: {{score: {score}}}
  gates: [{{metric: score, min: {least}}}]
---
apiVersion: mlspec.dev/v1alpha1
kind: ServingGraph
metadata: {{name: g}}
spec:
  steps:
    model: {{model: j}}
"""
CODE = '''
import datetime

import numpy as np


class Constant:
    """Answers the same to everybody."""

    classes_ = np.array([0, 1])
    n_features_in_ = 1
    feature_names_in_ = np.array(["x"], dtype=object)

    def predict(self, rows):
        return np.ones(len(rows), dtype=int)


def rows():
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return [
        {"id": n, "at": start + datetime.timedelta(days=n), "x": float(n % 7), "odd": n % 2} for n in range(400)
    ]


def train(train, test, score):
    return {"model": Constant(), "metrics": {"score": score}}
'''
FIRST: dict[str, Any] = {
    "score": 0.8, "least": 0.7, "middle": "2020-03-01", "end": "2020-04-01", "suspend": "false"
}  # fmt: skip


class History:
    """One project, and what the rules say of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        (folder / "job.py").write_text(CODE)
        self.git = dict(FIRST)
        self.commits = [dict(FIRST)]
        self.oracle = Oracle(self.facts(), rows=0, newest=0.0)
        self.names: dict[str, Run] = {}
        self.story = [f"seed {seed}"]

    def facts(self) -> dict[str, Any]:
        """The revision as the rules see it."""
        days = {name: moment(self.git[name]).timestamp() for name in ("middle", "end")}
        start = moment("2020-01-01").timestamp()
        return {
            "code": 0, "requirements": 0, "parameters": self.git["score"], "evaluation": 0, "engine": 0,
            "data": {"train": {"from": start, "to": days["middle"]},
                     "test": {"from": days["middle"], "to": days["end"]}},
            "schedule": None, "reads": {}, "recipe": 0, "gates": [{"min": self.git["least"]}], "new_data": False,
            "policy": False, "refresh": None, "pin": None, "suspend": self.git["suspend"] == "true",
        }  # fmt: skip

    def commit(self, **changes: Any) -> None:
        """Git says something else."""
        self.git |= changes
        self.commits.append(dict(self.git))
        self.story.append(f"commit {self.git}")
        (self.folder / "specs.yaml").write_text(SPECS.format(**self.git))
        self.oracle.commit(self.facts())

    def event(self) -> None:
        """Something happens, and is applied."""
        what = self.random.choice(
            ("commit", "commit", "revert", "ask", "ask", "withdraw", "switch", "suspend")
        )
        match what:
            case "commit":
                name, values = self.random.choice(
                    [
                        ("score", (0.6, 0.8, 0.9)),
                        ("least", (0.5, 0.7, 0.85)),
                        ("end", ("2020-04-01", "2020-05-01")),
                    ]
                )
                self.commit(**{name: self.random.choice(values)})
            case "revert":
                self.commit(**self.random.choice(self.commits))
            case "suspend":
                self.commit(suspend="true")
                self.apply()
                self.check()
                self.commit(suspend="false")
            case _ if self.git["suspend"] == "true":
                return
            case "ask":
                self.person("retrain", "j", "--at", self.random.choice(("2020-06-01", "2020-07-01")))
            case "withdraw":
                open_ = [key for key, one in self.oracle.requests.items() if not one["withdrawn"]]
                if open_:
                    name = self.random.choice(open_)
                    self.story.append(f"withdraw {name}")
                    assert mlspec(self.folder, "withdraw", name).returncode == 0
                    self.oracle.withdraw(name)
            case "switch":
                self.person("switch", "g")
        self.apply()

    def person(self, *arguments: str) -> None:
        """A person asks; the rules are told with the words that were remembered."""
        known = set(self.oracle.requests)
        done = mlspec(self.folder, *arguments)
        self.story.append(f"{arguments} gave {done.returncode}")
        if done.returncode:  # there is nothing to switch to
            assert "error[no-switch]" in done.stderr, done.stderr
            return
        for key, one in remembered.requests(workspace.find(self.folder).session()).items():
            if key not in known:
                self.oracle.ask(
                    key,
                    {
                        "asker": PERSON,
                        "action": one.action,
                        "at": moment(one.at).timestamp(),
                        "made": one.made,
                        "made_for": self.oracle.s,
                        "run": self.names.get(one.run or ""),
                        "expires": one.expires,
                    },
                )

    def apply(self) -> None:
        """`mlspec apply`, sometimes with everything killed in the middle, and what the rules make of it."""
        if self.random.random() < 0.4:
            process = Project.start(self._project(), "apply", "--yes")
            time.sleep(self.random.uniform(0.2, 4.0))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            for one in Project.processes_of(self.folder):
                if one.is_running() and one.pid != os.getpid():
                    one.send_signal(signal.SIGKILL)
            psutil.wait_procs(Project.processes_of(self.folder), timeout=5)
            self.story.append("killed")
        done = mlspec(self.folder, "apply", "--yes")
        self.story.append(f"applied: {done.returncode} {done.stdout} {done.stderr}")
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        for _ in range(
            10
        ):  # until nothing more starts: each run ends at once, with the score of its parameters
            started = self.oracle.settle(time.time(), retry=True)
            for run in started:
                self.oracle.end(run, float(self.git["score"]), None)
            if not started:
                return

    def _project(self) -> Project:
        made = Project.__new__(Project)
        made.folder = self.folder
        return made

    def check(self) -> None:
        """What runs there are, for which candidates, and which of them answers."""
        place = workspace.find(self.folder)
        session = place.session()
        runs = {name: one for name, one in remembered.runs(session).items() if name.startswith("j-")}
        said = {one.made.made_for for one in runs.values()}
        assert len(runs) == len(self.oracle.runs), (self.story, runs.keys(), self.oracle.runs.keys())
        order = sorted(runs, key=lambda name: runs[name].created)
        for name, run in zip(order, self.oracle.runs, strict=True):
            self.names[name] = run
            assert runs[name].made.request == run[1], self.story
            assert runs[name].phase == "succeeded", (self.story, runs[name].message)
        assert len(said) == len({run[0] for run in self.oracle.runs}), self.story
        assert len(session.rows(Table.APPLIED)) == 1
        live = [one for one in place.local.list() if one.key.kind == "Service"]
        serves = [one.body["spec"]["step"]["document"]["models"]["j"]["run"] for one in live]
        expected = self.oracle.serving(time.time())
        assert [self.names[name] for name in serves] == ([expected] if expected else []), self.story


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(HISTORIES))
def test_real_processes_follow_the_rules(seed: int, tmp_path: Path) -> None:
    """What was proven over dictionaries holds when everything really runs, and is killed."""
    history = History(tmp_path, seed)
    try:
        history.commit()
        history.apply()
        history.check()
        for _ in range(EVENTS):
            history.event()
            history.check()
        text = json.loads(mlspec(tmp_path, "runs", "--output", "json").stdout)
        assert {one["phase"] for one in text["runs"]} == {"succeeded"}, history.story
    finally:
        mlspec(tmp_path, "destroy", "--yes", "--purge")
        for one in Project.processes_of(tmp_path):
            one.send_signal(signal.SIGKILL)
