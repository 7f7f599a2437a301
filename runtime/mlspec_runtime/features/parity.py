"""Parity: does the service give the features that training would have seen? Logged requests, answered again by the join.

`mlspec features parity` calls `check` on a graph's request log. Exact types need no tolerance: one differing cell is a fault, for example rows
whose arrival time was wrong, an event that reached the dataset but never the store, or a column that the caller fills otherwise
than the dataset does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.features import definition, join, materialise, online, rowwise, store, values
from mlspec_runtime.features.definition import SetPlan, SetUse
from mlspec_runtime.task import TaskError

EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """One cell that differs: the request's id, the feature, what was served, what the join gives."""

    id: str
    feature: str
    served: Any
    expected: Any


@dataclass(frozen=True, slots=True)
class Parity:
    """The outcome over `rows` logged rows: differing cells by feature, and the first of them."""

    rows: int
    cells: int
    differing: Mapping[str, int]
    examples: tuple[Difference, ...]


def check(
    log: pa.Table,
    view: FeatureViewSpec,
    ask: DatasetSpec,
    sets: Mapping[str, tuple[FeatureSetSpec, Path]],
    types: Mapping[str, str] | None = None,
) -> Parity:
    """Answer the rows of a request log (`id`, `at`, `input.*`, `feature.*`) again and compare cell by cell.

    `sets` and `types` are those of the `ViewReader` that served. What was ingested since materialisation counts with the moment
    at which it was known. Raises TaskError if the log lacks a column that the view reads.
    """
    plan = definition.view_plan(view, ask, {name: spec for name, (spec, _) in sets.items()})
    kinds = online.kinds_of(plan, ask, types or {})
    found = values.evaluate(_rows(log, kinds, ask), join.questions(plan))
    found["at"] = values.plain(log["at"], "at")
    sources = {use.set: _events(use.plan, sets[use.set][1]) for use in plan.uses if isinstance(use, SetUse)}
    features, _ = join.answer(plan, found, sources)
    always = join.counted(plan)
    differing: dict[str, int] = {}
    examples: list[Difference] = []
    compared = [name for name in plan.names if f"feature.{name}" in log.column_names]
    for name in compared:
        expected = features[name] if name in always else values.model_form(features[name])
        served = values.plain(log[f"feature.{name}"], name)
        served = served.cast(expected.type) if served.type != expected.type else served
        same = pc.fill_null(pc.equal(served, expected), False)
        same = pc.or_(same, pc.and_(pc.is_null(served), pc.is_null(expected)))
        wrong = np.flatnonzero(~np.asarray(same)).tolist()
        if wrong:
            differing[name] = len(wrong)
        examples += [
            Difference(log["id"][row].as_py(), name, served[row].as_py(), expected[row].as_py())
            for row in wrong[: EXAMPLES - len(examples)]
        ]
    return Parity(log.num_rows, log.num_rows * len(compared), differing, tuple(examples))


def _rows(log: pa.Table, kinds: Mapping[str, str | None], ask: DatasetSpec) -> pa.Table:
    """The logged inputs as rows of the asking dataset."""
    zone = ZoneInfo(ask.time.timezone) if ask.time and ask.time.timezone else ZoneInfo("UTC")
    event = ask.time.event if ask.time else None
    columns = {}
    for name, kind in kinds.items():
        if f"input.{name}" not in log.column_names:
            if name == event:  # asked without a moment, that is, now
                columns[name] = values.plain(log["at"], "at")
                continue
            raise TaskError(f"the request log has no column input.{name}, which the view reads")
        given = log[f"input.{name}"].to_pylist()
        known = kind or online.guess(given)
        items = rowwise.read_column(given, known, zone, name)
        stored = {"timestamp": pa.int64(), "date": pa.int32()}.get(known, values.TYPES[known])
        columns[name] = pa.array(items, stored).cast(values.TYPES[known])
    return pa.table(columns or {"at": values.plain(log["at"], "at")})


def _events(plan: SetPlan, path: Path) -> pa.Table:
    """The events of a set, materialised and ingested, in their order."""
    folder = path if path.is_dir() else path.parent
    events = pq.read_table(folder / materialise.EVENTS)
    opened = store.Store(folder / materialise.ONLINE)
    try:
        late = opened.late()
    finally:
        opened.close()
    if not late.num_rows:
        return events
    return materialise.sort(pa.concat_tables([events, late.cast(events.schema)]), plan)
