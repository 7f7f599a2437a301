"""Readings of live objects: each file is `<group>/<Kind>/<verdict>_<why>.yaml` with an `object`, the `parts` that
controllers made for it, the `sentence` on call, and what else is read: `run`, `result`, `record`, `url`.

Statuses are real ones where the control plane of `tests/cluster/bed` or a cluster could make them; a comment says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlspec.compile import readings
from mlspec.engine import Live
from mlspec.health import State

ROOT = Path(__file__).parent
CASES = sorted(ROOT.glob("*/*/*.yaml"))


def case_of(path: Path) -> tuple[dict[str, Any], Live]:
    """A case and its live object."""
    case = yaml.safe_load(path.read_text())
    body = case["object"]
    return case, Live(body, body.get("status") or {}, tuple(case.get("parts", ())))


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")))
def test_an_object_is_judged(path: Path) -> None:
    """The verdict decides whether somebody is woken, the sentence what they look at first."""
    case, live = case_of(path)
    choice = "local" if path.parent.parent.name == "local.mlspec.dev" else "kubernetes"
    read = readings(choice)[live.body["kind"]]
    found = read.health(live)
    assert (found.state, found.sentence) == (State(path.name.split("_", 1)[0]), case["sentence"])
    if "run" in case:
        assert read.run is not None
        fact = read.run(live)
        assert fact.phase == case["run"]["phase"]
        assert dict(fact.results) == case["run"].get("results", {})
        assert fact.message == case["run"].get("message", "")
    for name in ("result", "record", "url"):
        if name in case:
            assert getattr(read, name)(live) == case[name]


def test_every_state_of_every_kind_has_a_case() -> None:
    """A kind of object that runs has cases for being ready and for having failed."""
    seen = {(path.parent.name, path.name.split("_", 1)[0]) for path in CASES}
    for kind in ("Workflow", "CronWorkflow", "Job", "Deployment", "Run", "Service", "Schedule", "HTTPRoute"):
        assert {(kind, "ready"), (kind, "failed")} <= seen


@pytest.mark.parametrize("choice", ["local", "kubernetes"])
def test_runs_services_schedules_and_records_are_all_read(choice: str) -> None:
    """What the reconciler asks of a target, some kind of object of that target must answer."""
    found = readings(choice).values()
    for name in ("run", "url", "result", "record"):
        assert any(getattr(one, name) for one in found), name
