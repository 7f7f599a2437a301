"""Status: for each resource one stable sentence, and for what needs attention the next command."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlspec.compile import Compiled, readings
from mlspec.engine import Reading
from mlspec.health import Health, State
from mlspec.kind import Lowered
from mlspec.kinds.project import Target
from mlspec.lifecycle import Stage
from mlspec.resource import Resource
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.plan import Plan
from mlspec_reconciler.step import Observation, health

ATTENTION = ("alert", "failed", "degraded")
UNREAD = Reading(lambda live: Health(State.UNKNOWN))
WINDOWS = 8
"""How many windows and features `details` lists."""


@dataclass(frozen=True, slots=True)
class Line:
    """One resource: a word (`ok`, `runs`, `waits`, `alert`, `failed`, ...), a sentence and what to do next."""

    word: str
    resource: str
    sentence: str
    next: str = ""
    place: str = ""
    """`file:line` of the spec."""

    @property
    def way(self) -> str:
        """Where to look and what to do, for what needs somebody."""
        place = self.place if self.word in ATTENTION else ""
        return "; ".join(filter(None, (place, f"next: {self.next}" if self.next else "")))


def lines(
    order: Sequence[Resource], seen: Observation, target: Target, suspended: bool = False
) -> list[Line]:
    """The state of every resource that has something to say."""
    owners: dict[str, list[Object]] = {}
    for one in seen.objects:
        owners.setdefault(one.annotations.get("mlspec.dev/resource", ""), []).append(one)
    return [
        replace(line, place=f"{resource.mark.path}:{resource.mark.line}")
        for resource in order
        if (line := _line(resource, owners.get(resource.id, []), seen.compiled, seen.plan, target, suspended))
        is not None
    ]


def _line(
    resource: Resource,
    objects: list[Object],
    compiled: Compiled,
    plan: Plan,
    target: Target,
    suspended: bool,
) -> Line | None:
    lowered = compiled.lowered[resource.id]
    if resource.id in compiled.unsupported:
        return Line("none", resource.id, compiled.unsupported[resource.id])
    if lowered.failed:
        return Line("failed", resource.id, lowered.failed, _look_into(resource, lowered))
    judged = [(one, health(one, target)) for one in objects]
    reads = readings(target.choice)
    for one, found in judged:
        if _read(one, reads).run is not None:
            continue
        if found.state is State.FAILED:
            return Line("failed", resource.id, found.sentence, f"mlspec logs {resource.id}")
        if found.state is State.DEGRADED:
            return Line("degraded", resource.id, found.sentence, f"mlspec logs {resource.id}")
    running = [
        (one, found)
        for one, found in judged
        if _read(one, reads).run is not None and found.state in (State.PROGRESSING, State.WAITING)
    ]
    if running:
        one, found = running[0]
        note = f"; {lowered.note}" if lowered.note else ""
        if found.state is State.WAITING and target.kubernetes is not None:
            return Line("waits", resource.id, f"{one.key.name}: {found.sentence}{note}")
        return Line("runs", resource.id, f"{one.key.name} is running{note}")
    if lowered.waits:
        if lowered.output is not None:  # what is there goes on until the new one is
            return Line("ok", resource.id, f"{lowered.note}; {', '.join(lowered.waits)} is next")
        pending = any(change.resource == resource.id for change in plan.changes) and not suspended
        return Line(
            "waits",
            resource.id,
            _until(lowered.waits) + ("; mlspec apply starts it" if pending else ""),
        )
    match resource.kind:
        case "ServingGraph":
            service = next((pair for pair in judged if _read(pair[0], reads).url is not None), None)
            return _graph(resource, service, reads, lowered.note)
        case "MonitoringPolicy":
            schedule = next((one for one in objects if _read(one, reads).result is not None), None)
            return _policy(resource, schedule, reads)
        case "ResourcePool":
            return _pool(resource, judged)
        case "Model" if lowered.life is None:  # it follows no job, so it is pinned
            return Line("ok", resource.id, lowered.note)
        case "Project" | "Function" | "Receiver" | "FeatureView" | "Model":
            return None
        case "TrainingJob" if lowered.warning:
            return Line("warns", resource.id, lowered.note)
        case _:
            return Line("ok", resource.id, lowered.note or "as declared")


def _until(waits: Sequence[str]) -> str:
    """`for Dataset/flights`, `until late has a run that passes its gates`."""
    conditions = [one.replace("once ", "until ", 1) for one in waits if one.startswith("once ")]
    others = [one for one in waits if not one.startswith("once ")]
    return "; ".join([*([f"for {', '.join(others)}"] if others else []), *conditions])


def _look_into(resource: Resource, lowered: Lowered) -> str:
    """The command that says more of a failure: the page of a run that its gates refused, or the log."""
    candidates = lowered.life.candidates if lowered.life is not None and lowered.life.retry is None else ()
    refused = next((one.run for one in reversed(candidates) if one.stage is Stage.REFUSED), "")
    return f"mlspec runs {refused}" if refused else f"mlspec logs {resource.id}"


def _pool(resource: Resource, judged: Sequence[tuple[Object, Health]]) -> Line:
    """What is used of a pool, as its queue says; there is no queue where there is no Kueue."""
    found = next((health for one, health in judged if one.key.kind == "ClusterQueue"), None)
    if found is None:
        return Line("waits", resource.id, "to be created", "mlspec apply")
    return Line("ok" if found.state is State.READY else "waits", resource.id, found.sentence)


def _read(one: Object, reads: Mapping[str, Reading]) -> Reading:
    return reads.get(one.key.kind) or UNREAD


def _graph(
    resource: Resource, service: tuple[Object, Health] | None, reads: Mapping[str, Reading], note: str
) -> Line:
    if service is None:
        return Line("waits", resource.id, "to be created", "mlspec apply")
    live, found = service
    read = _read(live, reads)
    url = read.url(live.live) if read.url is not None else ""
    if found.state is not State.READY:
        return Line("starts", resource.id, found.sentence or "starting")
    about = _ask(f"{url}/status")
    words = [url]
    if about and about.get("p99") is not None:
        words.append(f"{about['rate']:.0f} req/s, p99 {about['p99'] * 1000:.0f} ms")
    words.append(note)
    return Line("ok", resource.id, "  ".join(word for word in words if word))


def _policy(resource: Resource, live: Object | None, reads: Mapping[str, Reading]) -> Line:
    result = result_of(live, reads)
    firing = [alert for alert in result.get("alerts", {}).values() if alert.get("state") == "firing"]
    if firing:
        critical = any(alert.get("severity") == "critical" for alert in firing)
        sentence = "; ".join(str(alert["sentence"]) for alert in firing)
        return Line("alert" if critical else "warns", resource.id, sentence, f"mlspec status {resource.id}")
    if live is None:
        return Line("waits", resource.id, "to be created", "mlspec apply")
    return Line("ok", resource.id, str(result.get("summary", "no evaluation yet")))


def result_of(live: Object | None, reads: Mapping[str, Reading]) -> Mapping[str, Any]:
    """The newest evaluation of a schedule; empty when there is none."""
    read = _read(live, reads) if live is not None else UNREAD
    return read.result(live.live) if live is not None and read.result is not None else {}


def _ask(url: str) -> Mapping[str, Any] | None:
    """What a local service says of itself; None when it does not answer within seconds, as on a machine that is busy."""
    if not url.startswith("http://127.0.0.1"):
        return None
    try:
        with urllib.request.urlopen(url, timeout=3.0) as answer:
            document: Mapping[str, Any] = json.load(answer)
            return document
    except (urllib.error.URLError, OSError, ValueError):
        return None


def text(rows: Sequence[Line], headline: str, color: bool) -> str:
    """For a terminal."""
    colors = {"ok": "32", "runs": "36", "warns": "33", "waits": "33", "starts": "36", "none": "35"}
    width = max((len(row.resource) for row in rows), default=0)
    out = [headline, ""]
    for row in rows:
        word = f"{row.word:<8}"
        shown = f"\x1b[{colors.get(row.word, '31')}m{word}\x1b[0m" if color else word
        out.append(f"  {shown} {row.resource:<{width}}  {row.sentence}".rstrip())
        if row.way:
            out.append(f"  {'':8} {'':<{width}}  {row.way}")
    return "\n".join(out)


def details(objects: Sequence[Object], target: Target) -> list[str]:
    """The objects of one resource, a line each, and what a monitoring policy has seen."""
    out = [""]
    for one in objects:
        found = health(one, target)
        out.append(f"  {one.key}  {found.state}  {found.sentence}".rstrip())
        out.extend(_evaluation(result_of(one, readings(target.choice))))
    return out


def _evaluation(result: Mapping[str, Any]) -> list[str]:
    out = []
    for window in result.get("performance", [])[-WINDOWS:]:
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in window["metrics"].items())
        out.append(
            f"    window {window['start'][:10]}  outcome known for {window['known']:,} of {window['rows']:,}  "
            f"{metrics}  {window['model']}"
        )
    for feature in result.get("drift", [])[:WINDOWS]:
        word = "drifts" if feature["drifts"] else "steady"
        against = feature.get("against", "training data")
        distance = f"distance from {against} {feature['effect']:.2f} (0 to 1)"
        out.append(f"    {word}  {feature['feature']}  {distance}, {_probability(feature['p'])}")
    out += [
        f"    asked for: {one['action']} at {one['at'][:16]}, because {one['reason']}"
        for one in result.get("triggers", [])
    ]
    out += [
        f"    proposes: {one['action']}, because {one['reason']}; see: mlspec propose"
        for one in result.get("proposals", [])
    ]
    out += [f"    {_notification(one)}" for one in result.get("messages", [])]
    return out


def _probability(p: float) -> str:
    """A p value; what a float cannot hold is no certainty."""
    return f"p = {p:.1g}" if p >= 1e-300 else "p < 1e-300"


def _notification(message: Mapping[str, Any]) -> str:
    """What became of one message to a receiver."""
    receiver, sentence, problem = message["receiver"], message["sentence"], message["problem"]
    if message["state"] == "delivered":
        return f"notified {receiver}: {sentence}"
    if message["state"] == "failed":
        return f"notification to {receiver}: given up after {message['attempts']} attempts, {problem} ({sentence})"
    return f"notification to {receiver}: not sent{f', {problem}' if problem else ' yet'} ({sentence})"


def attention(rows: Sequence[Line]) -> int:
    """How many resources need somebody."""
    return sum(row.word in ATTENTION for row in rows)
