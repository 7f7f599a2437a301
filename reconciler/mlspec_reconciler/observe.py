"""Observe: gather the facts that compiling depends on, from the cluster, from what is remembered and from the files that specs
name. Only reads: what was learned is returned as rows, and `step` makes it durable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mlspec.compile import readings
from mlspec.diagnostics import Diagnostic
from mlspec.engine import Reading
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.project import Target
from mlspec.lifecycle import Request
from mlspec.manifest import OWN
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.workload import Facts, Files, RunFact
from mlspec_reconciler import bundle, checkout, remembered
from mlspec_reconciler.cluster import Cluster, Object
from mlspec_reconciler.remembered import ENDED, Change
from mlspec_reconciler.state import Session, Table

RESOURCE = f"{OWN}resource"
"""Annotation of every object that mlspec made: the resource that it belongs to."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The facts of one moment, and what of it is not remembered yet."""

    facts: Facts
    learned: tuple[Change, ...] = ()


def facts(
    cluster: Cluster,
    objects: Iterable[Object],
    session: Session,
    target: Target,
    code: Mapping[str, bundle.Bundle],
    files: Mapping[str, Files],
    due: Mapping[str, Request],
    now: float,
) -> Observed:
    """The facts of this moment. `due` are requests that have just come due, `now` is the wall clock."""
    live = list(objects)
    understood = readings(target.choice)
    runs, ended = _runs(cluster, live, understood, remembered.runs(session), now)
    asked = list(_asked(live, understood, session))
    requests = remembered.requests(session) | dict(due)
    requests |= {
        key: remembered.request(key, row)
        for table, key, row in asked
        if table is Table.REQUESTS and row is not None
    }
    found = Facts(
        code={key: one.digest for key, one in code.items()},
        bundles={one.digest: one.files for one in code.values()},
        files=files,
        runs=runs,
        requests=tuple(sorted(requests.values(), key=lambda one: one.order)),
        memories=remembered.memories(session),
        now=now,
    )
    return Observed(found, (*ended, *asked))


def _runs(
    cluster: Cluster,
    live: Iterable[Object],
    understood: Mapping[str, Reading],
    kept: Mapping[str, RunFact],
    now: float,
) -> tuple[dict[str, RunFact], list[Change]]:
    """What is known about runs, and the ends that are new. What the target says goes before what is remembered, but a
    success is never taken back: its object may be half gone by now. Of what has neither ended nor an object, nothing
    is known: it was announced, and never made."""
    known = {name: fact for name, fact in kept.items() if fact.phase in ENDED}
    told: dict[str, RunFact] = dict(cluster.runs())
    for one in live:
        read = understood.get(one.key.kind)
        if read is not None and read.run is not None and not one.deleting:
            told[one.key.name] = read.run(one.live)
    learned: list[Change] = []
    for name, fact in told.items():
        before = known.get(name)
        if before is not None and (before.phase == "succeeded" or _same(before, fact)):
            continue
        row = kept.get(name)
        fact = replace(
            fact, made=row.made if row else fact.made, created=row.created if row else fact.created
        )
        if fact.phase in ENDED:
            fact = replace(fact, ended=now)
            learned.append(remembered.run_row(name, fact))
        known[name] = fact
    return known, learned


def _same(one: RunFact, other: RunFact) -> bool:
    return (one.phase, one.message, one.results) == (other.phase, other.message, other.results)


def _asked(live: Iterable[Object], understood: Mapping[str, Reading], session: Session) -> Iterator[Change]:
    """Requests of monitoring policies that were not collected yet."""
    for one in live:
        read = understood.get(one.key.kind)
        if read is not None and read.result is not None:
            yield from remembered.collected(one.annotations.get(RESOURCE, ""), read.result(one.live), session)


def source_files(project: Project, root: Path) -> tuple[dict[str, Files], list[Diagnostic]]:
    """The files that Datasets name, by content, and whether git versions them. A pattern without a match is a diagnostic."""
    found: dict[str, Files] = {}
    problems: list[Diagnostic] = []
    for resource in project.order:
        if resource.kind != "Dataset":
            continue
        pattern = _pattern(cast(DatasetSpec, resource.spec))
        if pattern is None:
            continue
        paths = _matches(root, resource, pattern)
        if not paths:
            problems.append(
                Diagnostic(
                    "error",
                    "missing-file",
                    f"{resource.id}: no file matches {pattern}",
                    resource.mark,
                    f"paths are relative to {Path(resource.mark.path).parent or '.'}/",
                )
            )
            continue
        found[resource.id] = Files(_content(paths), tuple(str(path) for path in paths))
    outside = _of_the_world(root, [Path(path) for one in found.values() for path in one.paths])
    return {
        name: replace(one, versioned=not outside.intersection(map(Path, one.paths)))
        for name, one in found.items()
    }, problems


def _of_the_world(root: Path, paths: list[Path]) -> set[Path]:
    """Files whose content git does not decide about; none where git cannot say."""
    try:
        return checkout.ignored(root, paths) if paths else set()
    except checkout.Unknown:
        return set()


def _pattern(spec: DatasetSpec) -> str | None:
    return spec.source.parquet or spec.source.csv or spec.source.json_


def _matches(root: Path, resource: Resource, pattern: str) -> list[Path]:
    folder = (root / resource.mark.path).parent
    if Path(pattern).is_absolute():
        anchor = Path(pattern).anchor
        return sorted(Path(anchor).glob(str(Path(pattern).relative_to(anchor))))
    return sorted(path.absolute() for path in folder.glob(pattern) if path.is_file())


def _content(paths: Iterable[Path]) -> str:
    hasher = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hasher.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()
