"""Remembered: what the rows of a StateStore mean. Requests, runs and the life of models become facts here, and what was learned
becomes rows.

The one module that knows the shape of these rows; the inventory has its own (`inventory.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mlspec.lifecycle import Acceptance, Memory, Request
from mlspec.workload import Made, RunFact
from mlspec_reconciler.state import Session, Table

JSON = Mapping[str, Any]
Change = tuple[Table, str, JSON | None]
ENDED = ("succeeded", "failed")
SERVED = 50
"""Runs that are remembered to have served, newest last."""


def requests(session: Session) -> dict[str, Request]:
    """All requests by id."""
    return {key: request(key, row) for key, row in session.rows(Table.REQUESTS).items()}


def request(key: str, row: JSON) -> Request:
    """A request from its row, or from the document in which a monitoring policy reports it."""
    subject = row.get("subject") or row.get("job") or row.get("graph") or row.get("dataset")
    expires = row.get("expires")
    return Request(
        id=key,
        action=row["action"],
        subject=str(subject),
        asker=str(row.get("asker", "")),
        at=row["at"],
        made=float(row.get("made", 0.0)),
        made_for=str(row.get("made_for", "")),
        schedule=bool(row.get("schedule", False)),
        window=row.get("window"),
        end=str(row.get("end", "")),
        run=row.get("run"),
        reason=str(row.get("reason", "")),
        expires=float(expires) if expires is not None else None,
        withdrawn=str(row.get("withdrawn", "")),
        person=str(row.get("person", "")),
    )


def request_row(one: Request) -> Change:
    """The row of a request."""
    value: dict[str, Any] = {
        "action": one.action,
        "subject": one.subject,
        "asker": one.asker,
        "at": one.at,
        "made": one.made,
        "made_for": one.made_for,
    }
    optional = {
        "schedule": one.schedule,
        "window": one.window,
        "end": one.end,
        "run": one.run,
        "reason": one.reason,
        "expires": one.expires,
        "withdrawn": one.withdrawn,
        "person": one.person,
    }
    return Table.REQUESTS, one.id, value | {name: given for name, given in optional.items() if given}


def runs(session: Session) -> dict[str, RunFact]:
    """Runs by name, with what they were made for. One whose end is not known has the phase `pending`; whether it is
    really under way, only its object says."""
    return {key: _fact(row) for key, row in session.rows(Table.RUNS).items()}


def _fact(row: JSON) -> RunFact:
    made = Made(
        str(row.get("resource", "")),
        str(row.get("made_for", "")),
        str(row.get("request", "")),
        str(row.get("data", "")),
        row.get("versions", {}),
        row.get("record", {}),
    )
    return RunFact(
        row.get("phase", "pending"),
        row.get("results", {}),
        str(row.get("message", "")),
        made,
        float(row.get("created", 0.0)),
        float(row.get("ended", 0.0)),
    )


def run_row(name: str, fact: RunFact) -> Change:
    """The row of a run."""
    made = fact.made
    optional = {
        "resource": made.resource,
        "made_for": made.made_for,
        "request": made.request,
        "data": made.data,
        "versions": dict(made.versions),
        "record": dict(made.record),
        "results": dict(fact.results) if fact.phase in ENDED else {},
        "message": fact.message if fact.phase in ENDED else "",
        "created": fact.created,
        "ended": fact.ended,
    }
    phase = {"phase": fact.phase} if fact.phase in ENDED else {}
    return Table.RUNS, name, phase | {key: value for key, value in optional.items() if value}


def memories(session: Session) -> dict[str, Memory]:
    """The life of each model so far, by the id of its job."""
    found: dict[str, Memory] = {}
    for key, row in session.rows(Table.MODELS).items():
        job, _, accepted = key.partition(" ")
        memory = found.get(job, Memory())
        if accepted:
            made = Acceptance(
                *_key(accepted), row["run"], row["previous"], row["record"], float(row.get("at", 0.0))
            )
            found[job] = replace(memory, accepted={**memory.accepted, made.key: made})
        else:
            counts = {_key(key): run for key, run in row.get("counts", {}).items()}
            found[job] = replace(memory, served=tuple(row["served"]), seen=row["seen"], counts=counts)
    return found


def memory_rows(job: str, before: Memory, after: Memory) -> Iterator[Change]:
    """What `advance` has added. Acceptances first: whoever is killed in between accepts again what serves."""
    for key, made in after.accepted.items():
        if before.accepted.get(key) != made:
            row = {"run": made.run, "previous": made.previous, "record": dict(made.record), "at": made.at}
            yield Table.MODELS, f"{job} {_text(key)}", row
    if replace(before, accepted={}) != replace(after, accepted={}):
        counts = {_text(key): run for key, run in after.counts.items()}
        row = {"served": list(after.served[-SERVED:]), "seen": dict(after.seen)}
        yield Table.MODELS, job, row | ({"counts": counts} if counts else {})


def _text(key: tuple[str, str]) -> str:
    return " ".join(key).rstrip()


def _key(text: str) -> tuple[str, str]:
    made_for, _, request = text.partition(" ")
    return made_for, request


def collected(asker: str, result: JSON, session: Session) -> Iterator[Change]:
    """The requests in the newest result of a policy that were not collected yet, and the high-water mark that keeps them
    from coming back when they are forgotten here: a policy reports all that it ever asked for (rule 8)."""
    found: Iterable[JSON] = result.get("triggers", [])
    if not found:
        return
    epoch = str(result.get("epoch", ""))
    mark = session.get(Table.MARKS, f"requests {asker}") or {}
    seen = int(mark.get("seq", 0)) if mark.get("epoch", "") == epoch else 0
    known = session.tables.get(Table.REQUESTS, {})
    newest = seen
    for document in found:
        seq = int(document.get("seq", 0))
        if (seq and seq <= seen) or document["id"] in known:
            newest = max(newest, seq)
            continue
        newest = max(newest, seq)
        yield request_row(request(str(document["id"]), {**document, "asker": asker}))
    if newest > seen:
        yield Table.MARKS, f"requests {asker}", {"epoch": epoch, "seq": newest}
