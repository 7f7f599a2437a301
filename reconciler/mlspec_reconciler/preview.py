"""Preview: ask the cluster what would come of the writes of a plan, before anything is written.

Between `plan` and `apply`. It shows what only the server can know (defaults, admission, owners of fields, immutable
fields) and removes writes that would change nothing. Changes nothing itself.
"""

from __future__ import annotations

from dataclasses import replace

from mlspec_reconciler.cluster import Cluster, Object, Preview
from mlspec_reconciler.plan import Action, Change, Plan, Reason, Verb, Write

ASKED = (Verb.CREATE, Verb.APPLY, Verb.ADOPT)


def settle(plan: Plan, objects: tuple[Object, ...], cluster: Cluster, *, everything: bool) -> Plan:
    """The plan as the cluster would take it. `everything`: all writes are asked for, otherwise only those of which it is
    not certain that they change something."""
    asked = [
        write
        for change in plan.changes
        for write in change.writes
        if write.manifest is not None and write.verb in ASKED and (everything or not write.certain)
    ]
    if not asked:
        return plan
    live = {one.key: one for one in objects}
    bodies = [
        (write.manifest.body, write.marks, live.get(write.key))
        for write in asked
        if write.manifest is not None
    ]
    answers = dict(zip([id(write) for write in asked], cluster.preview(bodies), strict=True))
    changes: list[Change] = []
    quiet = 0
    for change in plan.changes:
        writes = tuple(
            settled
            for write in change.writes
            if (settled := _settled(write, answers.get(id(write)))) is not None
        )
        if change.writes and not writes and _only_writes(change):
            quiet += 1
            continue
        changes.append(replace(change, writes=writes))
    return replace(plan, changes=tuple(changes), unchanged=plan.unchanged + quiet)


def _settled(write: Write, answer: Preview | None) -> Write | None:
    if answer is None:
        return write
    if not answer.changes and write.verb is Verb.APPLY:
        return None
    refusal = answer.refusal
    if answer.foreign and write.verb is Verb.CREATE:
        refusal = taken(write, answer.foreign)
    forced = answer.forced_by
    if forced and write.verb is not Verb.APPLY:  # never delete what is not ours
        refusal, forced = f"{forced} of it cannot be changed in place; rename yours, or delete it", ""
    return replace(
        write,
        verb=Verb.REPLACE if forced else write.verb,
        certain=True,
        differences=answer.differences,
        refusal=refusal,
        forced_by=forced,
    )


def taken(write: Write, maker: str) -> str:
    """What to do about an object that somebody else made."""
    name = f"{write.key.kind}/{write.key.name}"
    return f"{write.key} exists already, made by {maker}; rename yours, delete it, or take it over with --adopt {name}"


def _only_writes(change: Change) -> bool:
    """Whether a change is nothing without its writes: its spec is as it was applied."""
    return change.action is Action.UPDATE and change.reason in (Reason.OUTPUT, Reason.DRIFT)
