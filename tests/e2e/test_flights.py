"""examples/flights: the whole story, and why arrival time matters."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from e2e.project import EXAMPLES, Project


def test_the_demo_comes_true(tmp_path: Path) -> None:
    """Data, features, training, serving, lost accuracy, retraining, gates, a switch without a failed request."""
    command = [sys.executable, str(EXAMPLES / "flights" / "demo.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "Nothing changes on laptop: 12 resources are as the specs say." in done.stdout
    assert (
        "The policy asks for a retraining: auc 0.65 < 0.72 for 2 windows of 7d, since Mar 28" in done.stdout
    )
    assert " 0 failed; models that answered: late-arrival-" in done.stdout
    assert "notified oncall: accuracy firing" in done.stdout
    found = re.search(r"flights since the switch: auc (\S+) with \S+, (\S+) had", done.stdout)
    assert found is not None
    assert float(found[1]) > float(found[2]) + 0.02, (
        "the newest model is better than the first on the same flights"
    )
    assert not Project.processes_of(tmp_path), "the demo leaves no process"


def test_delays_used_before_they_were_known_inflate_the_score(tmp_path: Path) -> None:
    """The same job, with and without arrival time: the better score is the wrong one."""
    project = Project("flights", tmp_path / "flights")
    try:
        text = (project.folder / "model.yaml").read_text()
        (project.folder / "model.yaml").write_text(text.split("---\n")[0])  # the job alone, without serving
        project.edit(
            "model.yaml", 'from: "2013-03-25", to: "2013-04-01"', 'from: "2013-06-01", to: "2013-07-01"'
        )
        honest = project.metric("late-arrival", "auc")
        project.edit("data.yaml", "known: actual_arrival", "delay: 0s")
        leaking = project.metric("late-arrival", "auc")
        assert leaking > honest + 0.03, f"{leaking:.3f} against {honest:.3f}"
    finally:
        project.stop()
