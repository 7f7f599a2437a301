"""Plays a target: a project from texts, and a memory cluster on which every run ends as a case says."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlspec.lifecycle import PERSON, Request
from mlspec.manifest import digest
from mlspec_reconciler import apply, bundle, load, observe, terminal
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.remembered import request_row
from mlspec_reconciler.show import plan as show
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import (
    APPLY_CONSENT,
    Consent,
    DesiredState,
    Memory,
    Observation,
    observe_and_plan,
    step,
)

ROUNDS = 30
CLOCK = itertools.count(1_700_000_000.0)
"""Wall clock of the stories: a second a look."""


@dataclass
class Script:
    """How runs end. Keys are titles of runs (`train late-arrival`), from the file `runs.json` of a case."""

    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    fail: Mapping[str, str] = field(default_factory=dict)
    leave: tuple[str, ...] = ()
    """These do not end."""

    @staticmethod
    def read(document: Mapping[str, Any]) -> Script:
        """From JSON."""
        return Script(
            document.get("metrics", {}),
            document.get("rows", {}),
            document.get("fail", {}),
            tuple(document.get("leave", ())),
        )


def wanted(root: Path, target: str | None = None) -> DesiredState:
    """The project in a folder; its diagnostics fail the test."""
    loaded = load.load([root], root=root)
    assert loaded.project is not None, [str(one) for one in loaded.diagnostics]
    code, problems = bundle.gather(loaded.project, root)
    files, more = observe.source_files(loaded.project, root)
    assert not [*problems, *more], [*problems, *more]
    chosen = loaded.project.settings.targets[target or next(iter(loaded.project.settings.targets))]
    return DesiredState(loaded.project, chosen, code, files)


def settle(project: DesiredState, cluster: MemoryCluster, script: Script, *, retry: bool = True) -> list[str]:
    """Apply until nothing moves, as `reconcile` does, and tell what happened: one line per write and end of a run."""
    story: list[str] = []
    memory = Memory()
    for _ in range(ROUNDS):
        done = step(project, cluster, cluster.state, Consent(retry=retry), next(CLOCK), memory)
        memory = done.memory
        story += [_told(one) for one in done.outcomes]
        assert not [one.error for one in done.outcomes if one.error]
        ended = [line for one in cluster.list() if (line := end(one, cluster, script))]
        story += ended
        if not done.outcomes and not done.stored and not ended:
            return story
    raise AssertionError(f"does not settle: {story}")


def look(project: DesiredState, cluster: MemoryCluster, consent: Consent = APPLY_CONSENT) -> Observation:
    """What a plan finds."""
    return observe_and_plan(project, cluster, Session.open(cluster.state, "look"), consent, next(CLOCK))


def _told(outcome: apply.Outcome) -> str:
    return f"{outcome.write.verb:<7} {outcome.write.key}"


def end(live: Object, cluster: MemoryCluster, script: Script) -> str:
    """End a run that waits, as the script says; services and schedules become ready."""
    if live.key.kind == "Service" and not live.status:
        cluster.settle(live.key, {"phase": "ready", "url": "http://127.0.0.1:1"})
    if live.key.kind == "Schedule" and not live.status:
        cluster.settle(live.key, {"phase": "ready", "lastResult": {"summary": "quiet"}})
    fact = cluster.runs().get(live.key.name)
    if live.key.kind != "Run" or fact is None or fact.phase != "pending":
        return ""
    title = str(live.body["spec"]["title"])
    if title in script.leave:
        return ""
    if title in script.fail:
        cluster.fail(live.key.name, script.fail[title])
        return f"failed  {title}"
    results = {
        step["name"]: result(step, title, live.key.name, script) for step in live.body["spec"]["steps"]
    }
    cluster.succeed(live.key.name, results)
    return f"ended   {title}"


def result(step: Mapping[str, Any], title: str, run: str, script: Script) -> dict[str, Any]:
    """What the runtime would commit for a step: content-addressed where the runtime's is."""
    document = step["document"]
    took = {"started": 0.0, "finished": 3.8 if step["subject"] != "train" else 41.0}
    match step["subject"]:
        case "dataset":
            spec = {
                name: value
                for name, value in document["spec"].items()
                if name in ("source", "columns", "where")
            }
            rows = script.rows.get(title, 1000)
            snapshot = digest([spec, document["code"], document["parameters"], rows])[:16]
            path = f"datasets/{document['dataset']}/{snapshot}"
            return took | {"snapshot": snapshot, "path": path, "rows": rows, "newest": "2013-06-01T00:00:00Z"}
        case "features":
            path = f"features/{document['set']}/{document['version']}"
            return took | {"path": path, "rows": 26115, "keys": 16}
        case "train":
            metrics = dict(script.metrics.get(title, {"auc": 0.75}))
            baseline = document["baseline"]
            return took | {
                "metrics": metrics,
                "inputs": [],
                "baseline": {"run": baseline["run"], "metrics": {"auc": 0.75}} if baseline else None,
            }
        case _:
            return took


def text(project: DesiredState, seen: Observation) -> str:
    """The plan as `mlspec plan` prints it."""
    return show.text(terminal.plan_rows(project, seen), seen.plan, "laptop", False)


def told(case: Path, folder: Path) -> str:
    """The whole story of a case: the plan, and what applying it does. `folder` is empty, for the two revisions."""
    script = json.loads((case / "runs.json").read_text()) if (case / "runs.json").exists() else {}
    cluster = MemoryCluster()
    for name in ("before", "between"):
        if (case / f"{name}.yaml").exists():
            settle(wanted(revision(case, name, folder)), cluster, Script.read(script.get(name, {})))
    if "triggers" in script:
        _trigger(script["triggers"], cluster)
    for one in [one for one in cluster.list() if str(one.key) in script.get("lost", ())]:
        cluster.delete(one.key, one.uid)
    project = wanted(revision(case, "after", folder))
    retry = bool(script.get("retry", True))
    seen = look(project, cluster, Consent(retry=retry))
    lines = [text(project, seen), "", "then:"]
    story = settle(project, cluster, Script.read(script.get("after", {})), retry=retry)
    lines += [f"  {line}" for line in story] or ["  nothing"]
    records = {
        one.key.name: one.body["spec"]["data"]["run"] for one in cluster.list() if one.key.kind == "Record"
    }
    lines += ["serves:", *(f"  {name}: {run}" for name, run in sorted(records.items()))] if records else []
    return "\n".join(lines) + "\n"


def revision(case: Path, name: str, folder: Path) -> Path:
    """The repository of a case at one moment: the shared code, its spec as `specs.yaml`, and its own files on top."""
    root = folder / name
    shutil.copytree(Path(__file__).parent / "code", root)
    shutil.copyfile(case / f"{name}.yaml", root / "specs.yaml")
    if (case / name).is_dir():
        shutil.copytree(case / name, root, dirs_exist_ok=True)
    return root


def _trigger(triggers: list[dict[str, Any]], cluster: MemoryCluster) -> None:
    """As a monitoring policy reports requests: made for what git said when the policy was compiled."""
    live = {one.key.name: one for one in cluster.list()}
    serving = next((one.body["spec"]["data"]["run"] for one in live.values() if one.key.kind == "Record"), "")
    schedule = next(one for one in live.values() if one.key.kind == "Schedule")
    made_for = next(iter(schedule.body["spec"]["step"]["document"]["made_for"].values()), "")
    for one in triggers:
        if one["action"] == "refresh":
            row = Request(
                one["id"], "refresh", one["dataset"], PERSON, one["at"], next(CLOCK), reason=one["reason"]
            )
            Session.open(cluster.state, "test").put([request_row(row)])
    triggers = [one for one in triggers if one["action"] != "refresh"]
    requests = [{**one, "run": serving, "made_for": made_for, "made": next(CLOCK)} for one in triggers]
    cluster.settle(schedule.key, {"phase": "ready", "lastResult": {"summary": "drift", "triggers": requests}})
