"""A plan as text for a terminal, Markdown for a pull request, or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlspec.diagnostics import Mark
from mlspec.manifest import Key
from mlspec.resource import Path
from mlspec_reconciler.plan import Action, Change, FieldChange, Plan, Reason, Verb, Write

VERSION = 1
SYMBOLS: Mapping[Action, str] = {
    Action.CREATE: "+",
    Action.UPDATE: "~",
    Action.RUN: ">",
    Action.CONTINUE: ">",
    Action.FOLLOW: "~",
    Action.DELETE: "-",
    Action.UNSUPPORTED: "!",
}
COLORS: Mapping[str, str] = {"+": "32", "~": "33", ">": "36", "-": "31", "!": "35", "x": "31", "±": "31"}
SHOWN = 5
"""Fields of one object that a plan lists."""
AGAIN = (Reason.INPUT, Reason.TRIGGER)
"""Reasons to run once more what has run."""
UNCOMMITTED = "The working tree has uncommitted changes: this is not the plan of a commit."
Locate = Callable[[str, Path], Mark | None]
"""`(resource id, path in its spec) -> place in git`."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plan: symbol, subject, place in git, and words."""

    symbol: str
    subject: str
    place: str
    words: str


def lines(plan: Plan, locate: Locate, titles: Mapping[str, str], notes: Mapping[str, str]) -> list[Line]:
    """The plan line by line. `titles` names runs, `notes` adds by resource or run what the plan does not hold (gates, expected alerts, costs)."""
    result: list[Line] = []
    for change in plan.changes:
        symbol = SYMBOLS[change.action]
        result.extend(_change_lines(change, symbol, locate, titles, notes))
        for write in change.writes:
            result.extend(_write_lines(change, write))
    return result


def _change_lines(
    change: Change, symbol: str, locate: Locate, titles: Mapping[str, str], notes: Mapping[str, str]
) -> list[Line]:
    if change.run:
        return [Line(symbol, titles.get(change.run, change.run), change.run, _run_words(change, notes))]
    if change.action is Action.DELETE:
        return [Line(symbol, change.resource, "", f"{change.sentence}; {_deleted(change)}")]
    words = "; ".join(part for part in (change.sentence, notes.get(change.resource, "")) if part)
    if not change.fields:
        return [Line(symbol, change.resource, _place(locate(change.resource, ())), words)]
    result: list[Line] = []
    for index, one in enumerate(change.fields):
        place = _place(locate(change.resource, one.path if one.new is not None else one.path[:-1]))
        extra = f"  ({words})" if words and index == 0 else ""
        first = index == 0
        result.append(
            Line(symbol if first else " ", change.resource if first else "", place, _field(one) + extra)
        )
    return result


def _write_lines(change: Change, write: Write) -> list[Line]:
    """What people must know of a single object: that it is refused or replaced, and what somebody else has changed in it."""
    name = str(write.key)
    if write.refusal:
        return [Line("x", "", name, write.refusal)]
    if write.forced_by:
        words = f"is replaced, because {write.forced_by} cannot be changed in place; needs --allow-replace"
        return [Line("±", "", name, words)]
    if write.verb is Verb.ADOPT:
        return [Line("~", "", name, "is taken over")]
    if change.reason is not Reason.DRIFT:
        return []
    shown = [_field(FieldChange(one.path, one.old, one.new)) for one in write.differences[:SHOWN]]
    if len(write.differences) > SHOWN:
        shown.append(f"and {len(write.differences) - SHOWN} more")
    return [Line(" ", "", name, words) for words in shown]


def _deleted(change: Change) -> str:
    names = [str(write.key) for write in change.writes]
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    return f"deletes {', '.join(names)}" if names else "there is nothing to delete"


def _run_words(change: Change, notes: Mapping[str, str]) -> str:
    last = f"about {duration(change.last_seconds)}, as last time" if change.last_seconds is not None else ""
    return "; ".join(part for part in (change.sentence, last, notes.get(change.run, "")) if part)


def _field(change: FieldChange) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in change.path).lstrip(".")
    match change.old, change.new:
        case None, new:
            return f"{path}: {_value(new)} added"
        case old, None:
            return f"{path}: {_value(old)} removed"
        case old, new:
            return f"{path}: {_value(old)} -> {_value(new)}"


def _value(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # the models say 120.0 where people write 120
    text = value if isinstance(value, str) and value.strip() == value != "" else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _place(mark: Mark | None) -> str:
    return f"{mark.path}:{mark.line}" if mark else ""


def duration(seconds: float) -> str:
    """`0.4 s`, `38 s`, `12 min`, `3.5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def summary(plan: Plan) -> str:
    """`1 to change, 2 runs, 1 follows; 9 unchanged.`"""
    counts = [
        (len(plan.of(Action.CREATE)), "to create"),
        (len(plan.of(Action.UPDATE)), "to change"),
        (len(plan.of(Action.DELETE)), "to delete"),
        (len(plan.of(Action.RUN)), "run{s}"),
        (len(plan.of(Action.CONTINUE)), "under way"),
        (len(plan.of(Action.FOLLOW)), "follow{v}"),
        (len(plan.of(Action.UNSUPPORTED)), "unsupported"),
    ]
    words = [
        f"{count} {word.format(s='' if count == 1 else 's', v='s' if count == 1 else '')}"
        for count, word in counts
        if count
    ]
    return (
        f"{', '.join(words)}; {plan.unchanged} unchanged."
        if words
        else f"Nothing changes: {plan.unchanged} unchanged."
    )


def cause(plan: Plan) -> str:
    """The whole in one sentence, when a change trains what was trained before; empty otherwise."""
    edited = [change.resource for change in plan.of(Action.UPDATE) if change.reason is Reason.SPEC]
    trained = [
        one for one in plan.of(Action.RUN) if one.resource.startswith("TrainingJob/") and one.reason in AGAIN
    ]
    may = [one for one in plan.of(Action.FOLLOW) if one.resource.startswith("TrainingJob/")]
    jobs = trained or may
    if not jobs or not (edited or trained):
        return ""
    names = [one.resource.split("/", 1)[1] for one in jobs]
    what = ", ".join(names) if len(names) <= 3 else f"{len(names)} jobs"
    verb = ("will" if trained else "may") + " be trained again"
    if any(one.resource.startswith("ServingGraph/") for one in plan.of(Action.FOLLOW)):
        verb += ", and served if accepted"
    why = f"{edited[0]} changes" if edited else trained[0].sentence
    return f"{what} {verb}: {why}."


def text(rows: Sequence[Line], plan: Plan, target: str, color: bool, uncommitted: bool = False) -> str:
    """For a terminal. `uncommitted`: the specs are not those of a commit."""
    end = [UNCOMMITTED] if uncommitted else []
    if not rows:
        return "\n".join(
            [f"Nothing changes on {target}: {plan.unchanged} resources are as the specs say.", *end]
        )
    subject = max(len(row.subject) for row in rows)
    place = max(len(row.place) for row in rows)
    out = [headline, ""] if (headline := cause(plan)) else []
    for row in rows:
        symbol = (
            f"\x1b[{COLORS[row.symbol]}m{row.symbol}\x1b[0m" if color and row.symbol != " " else row.symbol
        )
        out.append(f"  {symbol} {row.subject:<{subject}}  {row.place:<{place}}  {row.words}".rstrip())
    return "\n".join([*out, "", summary(plan), *end])


def markdown(rows: Sequence[Line], plan: Plan, target: str, uncommitted: bool = False) -> str:
    """For a pull request."""
    end = ["", UNCOMMITTED] if uncommitted else []
    if not rows:
        return "\n".join([f"**mlspec plan** on `{target}`: nothing changes.", *end])
    said = [cause(plan), ""] if cause(plan) else []
    body = [f"### mlspec plan on `{target}`", "", *said, "| | what | where | why |", "|---|---|---|---|"]
    for row in rows:
        cells = (
            f"`{row.symbol}`",
            row.subject,
            f"`{row.place}`" if row.place else "",
            row.words.replace("|", "\\|"),
        )
        body.append("| " + " | ".join(cells) + " |")
    return "\n".join([*body, "", summary(plan), *end])


def document(plan: Plan, locate: Locate, target: str, uncommitted: bool = False) -> dict[str, Any]:
    """For programs; `version` changes when a field changes its meaning."""
    return {
        "version": VERSION,
        "target": target,
        "cluster": plan.cluster,
        "uncommitted": uncommitted,
        "summary": {str(action): len(plan.of(action)) for action in Action} | {"unchanged": plan.unchanged},
        "changes": [_change(change, locate) for change in plan.changes],
    }


def _change(change: Change, locate: Locate) -> dict[str, Any]:
    return {
        "action": str(change.action),
        "resource": change.resource,
        "reason": str(change.reason),
        "sentence": change.sentence,
        "place": _place(locate(change.resource, ())),
        "run": change.run or None,
        "fields": [
            {
                "path": list(one.path),
                "old": one.old,
                "new": one.new,
                "place": _place(locate(change.resource, one.path)),
            }
            for one in change.fields
        ],
        "writes": [
            {
                "verb": str(write.verb),
                "object": key_text(write.key),
                "digest": write.manifest.digest if write.manifest else None,
                "uid": write.uid or None,
                "version": write.version or None,
                "refusal": write.refusal or None,
                "forcedBy": write.forced_by or None,
                "differences": [
                    {"path": list(one.path), "old": one.old, "new": one.new} for one in write.differences
                ],
            }
            for write in change.writes
        ],
    }


def key_text(key: Key) -> str:
    """`apiVersion Kind namespace/name`, unambiguous."""
    return f"{key.api_version} {key.kind} {key.namespace}/{key.name}"
