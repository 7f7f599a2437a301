"""Observe: gather the facts that compiling depends on, from the cluster and from the files that specs name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from mlspec.compile import readings
from mlspec.diagnostics import Diagnostic
from mlspec.engine import Reading
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.project import Target
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.workload import Facts, Files, RunFact, Trigger
from mlspec_reconciler import bundle
from mlspec_reconciler.cluster import Cluster, Object

TRIGGERS = "triggers"


def facts(
    cluster: Cluster,
    objects: Iterable[Object],
    target: Target,
    code: Mapping[str, bundle.Bundle],
    files: Mapping[str, Files],
) -> Facts:
    """The facts of this moment. Requests of monitoring policies and the ends of runs are made durable here, so that they
    outlive the objects that say so."""
    live = list(objects)
    understood = readings(target.choice)
    records: dict[str, Any] = {}
    results: list[Mapping[str, Any]] = []
    for one in live:
        read = understood.get(one.key.kind)
        if read is not None and read.record is not None and (data := read.record(one.live)):
            records[one.key.name] = data
        if read is not None and read.result is not None:
            results.append(read.result(one.live))
    return Facts(
        code={key: one.digest for key, one in code.items()},
        bundles={one.digest: one.files for one in code.values()},
        files=files,
        runs=_runs(cluster, live, understood),
        records=records,
        triggers=_triggers(cluster, results),
    )


def _runs(cluster: Cluster, live: Iterable[Object], understood: Mapping[str, Reading]) -> dict[str, RunFact]:
    """What is known about runs: what the live object says goes before what is remembered."""
    known = dict(cluster.runs())
    for one in live:
        read = understood.get(one.key.kind)
        if read is None or read.run is None or one.deleting:
            continue
        fact, before = read.run(one.live), known.get(one.key.name)
        if before is not None and before.phase == "succeeded":
            continue  # a success is never taken back: its object may be half gone by now
        known[one.key.name] = fact
        if fact.phase in ("succeeded", "failed") and fact != before:
            cluster.remember(one.key.name, fact)
    return known


def remember(cluster: Cluster, requests: Iterable[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Add requests to those that were ever made, by id; returns all."""
    known: dict[str, Any] = dict((cluster.note(TRIGGERS) or {}).get("triggers", {}))
    before = len(known)
    for request in requests:
        known.setdefault(request["id"], dict(request))
    if len(known) > before:
        cluster.set_note(TRIGGERS, {"triggers": known})
    return known


def _triggers(cluster: Cluster, results: Iterable[Mapping[str, Any]]) -> tuple[Trigger, ...]:
    known = remember(cluster, (request for result in results for request in result.get("triggers", [])))
    found = [
        Trigger(
            id=name,
            action=request["action"],
            subject=str(request.get("graph") or request.get("job") or request.get("dataset")),
            at=request["at"],
            window=request.get("window"),
            run=request.get("run"),
            reason=request.get("reason", ""),
        )
        for name, request in known.items()
    ]
    return tuple(sorted(found, key=lambda one: (one.at, one.id)))


def source_files(project: Project, root: Path) -> tuple[dict[str, Files], list[Diagnostic]]:
    """The files that Datasets name, by content. A pattern without a match is a diagnostic."""
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
    return found, problems


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
