"""The step `features`: rows of a set's dataset become events, once, for joins (Parquet) and for requests (SQLite).

An event is what a row says to this set: its key, when it happened, when it was known, and the values of the input
expressions. Rows that fail `where`, or lack a key, an event time or an arrival time, are no events. The identity of an event
is its content and the dataset's key, so a row that is delivered twice counts once; in a dataset without a key, equal rows
are different events as long as they come in one table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.expressions import identifier
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec_runtime.features import definition, store, values
from mlspec_runtime.features.definition import EVENT, ID, KNOWN, NUMERIC, SetPlan
from mlspec_runtime.task import Document, TaskError, write_json

EVENTS, ONLINE, META = "events.parquet", "online.sqlite", "meta.json"
ROW_GROUP = 122_880


def run(task: Document, root: Path) -> Document:
    """Materialise one version of a set. See the module's and `mlspec_runtime.task`'s docstrings for the documents.

    `{"set", "version", "spec", "dataset": {"path", "spec"}}` -> `{"path", "rows", "keys", "from", "to", "bytes"}`.
    """
    spec = FeatureSetSpec.model_validate(task["spec"])
    dataset = DatasetSpec.model_validate(task["dataset"]["spec"])
    data = root / task["dataset"]["path"] / "data.parquet"
    if not data.exists():
        raise TaskError(f"the snapshot {task['dataset']['path']} of dataset {spec.dataset} is not there")
    plan = definition.set_plan(spec)
    needed = columns(plan, dataset, spec.dataset)
    rows = _read(data, needed, spec.dataset)
    table = events(plan, dataset, rows, spec.dataset)
    _check_types(plan, table)
    path = f"features/{task['set']}/{task['version']}"
    inputs = {name: str(rows.schema.field(name).type) for name in rows.column_names}
    meta = {
        "set": task["set"],
        "version": task["version"],
        "spec": task["spec"],
        "dataset": {"key": dataset.key, "time": dataset.time.document() if dataset.time else None},
        "inputs": inputs,
        "schema": {field.name: values.name_of(field.type) for field in table.schema},
        "rows": table.num_rows,
    }
    keys = _commit(root / path, table, plan, meta)
    span = pc.min_max(table[EVENT]).as_py() if table.num_rows else {"min": None, "max": None}
    size = sum(item.stat().st_size for item in (root / path).iterdir())
    return {
        "path": path,
        "rows": table.num_rows,
        "keys": keys,
        "from": span["min"],
        "to": span["max"],
        "bytes": size,
    }


def columns(plan: SetPlan, dataset: DatasetSpec, name: str) -> list[str]:
    """Columns of the dataset that the events are made of."""
    if dataset.time is None or not (dataset.time.known or dataset.time.delay):
        raise TaskError(
            f"dataset {name} does not say when its rows were known, so its features could see the future",
            "give its `time` a `known` column, or a `delay` (0s if rows are known when they happen)",
        )
    needed = [
        *dataset.key,
        *plan.key,
        dataset.time.event,
        *([dataset.time.known] if dataset.time.known else []),
    ]
    for one in (*plan.inputs.values(), *([plan.where] if plan.where else [])):
        needed += sorted(one.columns)
    return list(dict.fromkeys(needed))


def _read(data: Path, needed: list[str], name: str) -> pa.Table:
    names = pq.read_schema(data).names
    folded = {have.lower(): have for have in names}
    missing = [column for column in needed if column.lower() not in folded]
    if missing:
        raise TaskError(f"dataset {name} has no column {missing[0]}", f"it has {', '.join(names)}")
    return pq.read_table(data, columns=list(dict.fromkeys(folded[column.lower()] for column in needed)))


def events(plan: SetPlan, dataset: DatasetSpec, rows: pa.Table, name: str) -> pa.Table:
    """The events of rows, in their one order: key, event time, known time, values, identity."""
    time = dataset.time
    assert time is not None
    wanted: dict[str, Any] = {f"key {column}": identifier(column) for column in plan.key}
    wanted |= dict(plan.inputs.items())
    wanted["event time"] = identifier(time.event)
    wanted["arrival time"] = identifier(time.known) if time.known else identifier(time.event)
    wanted |= {f"id {column}": identifier(column) for column in dataset.key}
    if plan.where is not None:
        wanted["where"] = plan.where
    found = values.evaluate(rows, wanted)
    event, there = values.microseconds(found["event time"], f"{time.event} of {name}")
    known, arrived = values.microseconds(found["arrival time"], f"{time.known} of {name}")
    keep = there & arrived
    if time.delay:
        known = known + definition.microseconds(time.delay)
    if plan.where is not None:
        condition = found["where"]
        if not pa.types.is_boolean(condition.type):
            raise TaskError(
                f"where of the set gives {condition.type}, not true or false", "write a comparison"
            )
        keep &= np.asarray(condition.fill_null(False))
    for column in plan.key:
        keep &= np.asarray(found[f"key {column}"].is_valid())
    table = pa.table(
        {column: found[f"key {column}"] for column in plan.key}
        | {EVENT: pa.array(event), KNOWN: pa.array(known)}
        | {column: found[column] for column in plan.inputs}
        | {f"id {column}": found[f"id {column}"] for column in dataset.key}
    ).filter(pa.array(keep))
    return _identified(table, plan, bool(dataset.key))


def _identified(table: pa.Table, plan: SetPlan, keyed: bool) -> pa.Table:
    """Sorted, with identities; what has the same identity is one event."""
    names = table.column_names
    parts = ", ".join(f"coalesce(CAST({identifier(one)} AS VARCHAR), chr(30))" for one in names)
    texts = f"concat_ws(chr(31), {parts})"
    ids = (
        values.evaluate(table, {ID: f"CAST(md5_number_lower({texts}) >> 1 AS BIGINT)"})[ID] if names else None
    )
    table = table.select([*plan.key, EVENT, KNOWN, *plan.inputs]).append_column(ID, ids)
    table = sort(table, plan)
    first = np.ones(table.num_rows, np.bool_)
    identity = np.asarray(table[ID])
    first[1:] = identity[1:] != identity[:-1]  # equal identities are equal rows, so they are neighbours
    if keyed:
        return table.filter(pa.array(first))
    start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    place = np.arange(len(first)) - start
    number = table.schema.get_field_index(ID)
    return table.set_column(number, ID, pa.array((identity + place) & 0x7FFFFFFFFFFFFFFF))


def sort(table: pa.Table, plan: SetPlan) -> pa.Table:
    """Events in their one order."""
    by = [(name, "ascending", "at_start") for name in (*plan.key, EVENT, KNOWN, *plan.inputs, ID)]
    return table.take(pc.sort_indices(table, sort_keys=by)).combine_chunks()


def _check_types(plan: SetPlan, table: pa.Table) -> None:
    for one in plan.aggregates:
        if one.op not in NUMERIC:
            continue
        dtype = table.schema.field(one.column).type
        if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)):
            shown = plan.inputs[one.column].text
            raise TaskError(
                f"feature {one.name}: {one.op} needs numbers, but {shown} is of type {values.name_of(dtype)}",
                "cast it, or use last, min, max, count or distinct",
            )


def _commit(folder: Path, table: pa.Table, plan: SetPlan, meta: Mapping[str, Any]) -> int:
    """Write the folder whole or not at all; returns the number of keys."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        pq.write_table(table, temporary / EVENTS, compression="zstd", row_group_size=ROW_GROUP)
        keys = store.create(temporary / ONLINE, table, plan)
        write_json(temporary / META, {**meta, "keys": keys})
        for name in (EVENTS, ONLINE):
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists() and not (folder / META).exists():
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:  # the same version is there already: it has the same content
            if not (folder / META).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return keys
