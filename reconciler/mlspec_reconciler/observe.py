"""Observe: gather the facts that compiling depends on, from the cluster and from the files that specs name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from mlspec.diagnostics import Diagnostic
from mlspec.kinds.dataset import DatasetSpec
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.workload import Facts, Files, Trigger
from mlspec_reconciler import bundle
from mlspec_reconciler.cluster import Cluster, Object

TRIGGERS = "triggers"


def facts(
    cluster: Cluster, objects: Iterable[Object], code: Mapping[str, bundle.Bundle], files: Mapping[str, Files]
) -> Facts:
    """The facts of this moment. Requests of monitoring policies are made durable here, so that they outlive the policy."""
    live = list(objects)
    records = {one.key.name: one.body["spec"]["data"] for one in live if one.key.kind == "Record"}
    return Facts(
        code={key: one.digest for key, one in code.items()},
        files=files,
        runs=cluster.runs(),
        records=records,
        triggers=_triggers(cluster, live),
    )


def remember(cluster: Cluster, requests: Iterable[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """Add requests to those that were ever made, by id; returns all."""
    known: dict[str, Any] = dict((cluster.note(TRIGGERS) or {}).get("triggers", {}))
    before = len(known)
    for request in requests:
        known.setdefault(request["id"], dict(request))
    if len(known) > before:
        cluster.set_note(TRIGGERS, {"triggers": known})
    return known


def _triggers(cluster: Cluster, live: Iterable[Object]) -> tuple[Trigger, ...]:
    results = [one.status.get("lastResult") or {} for one in live]
    known = remember(cluster, (request for result in results for request in result.get("triggers", [])))
    found = [
        Trigger(
            id=name,
            action=request["action"],
            subject=str(request.get("job") or request.get("graph") or request.get("dataset")),
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
