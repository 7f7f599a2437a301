"""Runs as people read them: what became of each, on which data, who asked for it, and what its gates say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlspec.lifecycle import Candidate, Memory, Request, Stage, State
from mlspec.workload import RunFact
from mlspec_reconciler.show.plan import duration

WORDS: Mapping[Stage, str] = {
    Stage.TRAINING: "training",
    Stage.FAILED: "failed",
    Stage.REFUSED: "refused",
    Stage.ACCEPTED: "accepted",
    Stage.SERVING: "serving",
    Stage.PINNED: "pinned",
    Stage.SWITCHED_AWAY: "switched away",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One run. `word` is its phase, or for a training where it stands: serving, accepted, refused, ..."""

    name: str
    word: str
    fact: RunFact
    reason: str = ""
    request: Request | None = None
    gates: tuple[str, ...] = ()
    """What its gates said when it was accepted."""


def collect(
    runs: Mapping[str, RunFact], lives: Mapping[str, State], memories: Mapping[str, Memory]
) -> list[Shown]:
    """All runs, oldest first. `lives` are the models as the applied revision judges them, by job; `memories` tell what
    was accepted of jobs that are not applied now."""
    candidates: dict[str, Candidate] = {}
    for state in lives.values():
        candidates |= {one.run: one for one in state.candidates if one.run}
    accepted = {made.run: made for memory in memories.values() for made in memory.accepted.values()}
    serving = {state.really for state in lives.values()}
    found = []
    for name, fact in runs.items():
        one = candidates.get(name)
        word, reason = str(fact.phase), ""
        if one is not None:
            word, reason = WORDS.get(one.stage, str(fact.phase)), one.reason
            if one.stage is Stage.ACCEPTED and name in serving:  # a switch leads to it
                word = WORDS[Stage.SERVING]
        elif name in accepted:
            word = "serving" if name in serving else "accepted"
        gates = tuple(accepted[name].record.get("gates", ())) if name in accepted else ()
        found.append(Shown(name, word, fact, reason, one.request if one else None, gates))
    return sorted(found, key=lambda one: (started(one.fact), one.name))


def started(fact: RunFact) -> float:
    """When its first step began; when it was made, while none has."""
    return min((float(one.get("started", 0)) for one in fact.results.values()), default=fact.created)


def row(one: Shown) -> str:
    """One line of the list, and where there is more to say a second one."""
    fact, at, took = one.fact, "", ""
    if begun := started(fact):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun))
    if fact.results:
        end = max(float(result.get("finished", 0)) for result in fact.results.values())
        took = duration(max(0.0, end - started(fact)))
    words = summary(fact.results) if fact.phase == "succeeded" else fact.message
    line = f"{one.name:<36} {one.word:<13} {at:<19} {took:>8}  {words}".rstrip()
    more = "; ".join(filter(None, (one.reason if one.word == "refused" else "", fact.made.data)))
    return f"{line}\n    {more}" if more else line


def summary(results: Mapping[str, Any]) -> str:
    """Metrics of a training, rows of what was read or computed."""
    if metrics := results.get("train", {}).get("metrics"):
        return ", ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)
        )
    for step in ("dataset", "features"):
        if step in results:
            return f"{results[step].get('rows', 0):,} rows"
    return ""


def page(one: Shown) -> str:
    """All that is known of one run."""
    fact = one.fact
    lines = [
        f"{one.name}  {one.word}" + (f": {one.reason or fact.message}" if one.reason or fact.message else "")
    ]
    about = {"resource": fact.made.resource, "data": fact.made.data.removeprefix("data ")}
    if one.request is not None:
        why = f": {one.request.reason}" if one.request.reason else ""
        about["request"] = f"{one.request.id}, by {one.request.by}{why}"
    elif fact.made.resource.startswith("TrainingJob/"):
        about["request"] = f"{fact.made.request}" if fact.made.request else "none: git's own run"
    about["made for"] = fact.made.made_for
    inputs = [f"{name} {version}" for name, version in fact.made.versions.items()]
    about["inputs"] = ", ".join(inputs)
    result = fact.results.get("train", {})
    about["metrics"] = summary(fact.results)
    if baseline := result.get("baseline"):
        compared = ", ".join(f"{name} {value:.4g}" for name, value in (baseline.get("metrics") or {}).items())
        about["compared"] = f"{baseline.get('run')} on the same rows: {compared}"
    about["gates"] = "; ".join(one.gates)
    if begun := started(fact):
        about["started"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(begun))
    if fact.results:
        end = max(float(part.get("finished", 0)) for part in fact.results.values())
        about["took"] = duration(max(0.0, end - begun))
    about["next"] = f"mlspec logs {one.name}" + (f"   mlspec reproduce {one.name}" if result else "")
    return "\n".join([*lines, *(f"  {name:<10}{words}" for name, words in about.items() if words)])


def document(found: Iterable[Shown]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "run": one.name,
            "phase": one.fact.phase,
            "standing": one.word,
            "reason": one.reason,
            "message": one.fact.message,
            "resource": one.fact.made.resource,
            "request": one.fact.made.request or None,
            "data": one.fact.made.data,
            "results": one.fact.results,
        }
        for one in found
    ]
