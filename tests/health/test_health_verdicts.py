"""Health of live objects: each file is `<group>/<Kind>/<verdict>_<why>.yaml` with an object and the sentence on call."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mlspec.compile import ENGINES
from mlspec.engine import Live
from mlspec.health import State

ROOT = Path(__file__).parent
CASES = sorted(ROOT.glob("*/*/*.yaml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")))
def test_an_object_is_judged(path: Path) -> None:
    """The verdict decides whether somebody is woken, the sentence what they look at first."""
    case = yaml.safe_load(path.read_text())
    body = case["object"]
    live = Live(body, body["status"], tuple(case.get("parts", ())))
    choice = "local" if path.parent.parent.name == "local.mlspec.dev" else "kubernetes"
    readings = {
        kind: reading
        for engines in ENGINES[choice].values()
        for engine in engines.values()
        for kind, reading in engine.reads.items()
    }
    found = readings[body["kind"]].health(live)
    assert found.state is State(path.name.split("_", 1)[0])
    assert found.sentence == case["sentence"]


def test_every_state_of_every_kind_has_a_case() -> None:
    """A kind of object that runs has cases for being ready and for having failed."""
    seen = {(path.parent.name, path.name.split("_", 1)[0]) for path in CASES}
    for kind in ("Workflow", "CronWorkflow", "Job", "Deployment", "Run", "Service", "Schedule"):
        assert {(kind, "ready"), (kind, "failed")} <= seen
