"""The step `frames` of a training run: each entry of the job's `data` as one Parquet file of features and `label`.

A view's rows come from the point-in-time join; a dataset's rows are taken as they are, minus the columns that its label
reads (a label's source among the features is the plainest leak). Rows without a label are left out: nothing can be learnt
or measured on them. Columns named `__*` (moment and keys of a question) stay in the file; the function does not get them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec.ranges import DataUse
from mlspec.resource import moment, seconds
from mlspec_runtime import duck
from mlspec_runtime.dataset.columns import name_of
from mlspec_runtime.duck import quote
from mlspec_runtime.features import definition, join
from mlspec_runtime.task import Document, TaskError, write_json

LABEL = join.LABEL


@dataclass(frozen=True, slots=True)
class Frame:
    """One table for the function. `note` says what was left out, in one clause."""

    table: pa.Table
    note: str = ""


def run(task: Document, root: Path) -> Document:
    """Build every frame of the run. `task["data"]`: name -> {use, dataset: {path, spec}, view, as_of}.

    Raises TaskError when a range is empty, an expression cannot run, or a frame has no feature.
    """
    folder = root / "runs" / task["name"] / "frames"
    write_json(folder / "task.json", task)
    result: dict[str, Document] = {}
    for name, entry in task["data"].items():
        started = time.perf_counter()
        frame = build(name, entry, root)
        pq.write_table(frame.table, folder / f"{name}.parquet", compression="zstd")
        result[name] = {**describe(frame.table), "seconds": round(time.perf_counter() - started, 3)}
        summary = result[name]
        note = f" ({frame.note})" if frame.note else ""
        label = f", label {summary['label']}" if summary["label"] else ""
        print(
            f"{name}: {summary['rows']:,} rows, {len(summary['features'])} features{label}{note}", flush=True
        )
    return {"frames": result}


def describe(table: pa.Table) -> Document:
    """Rows, features with their types, and the label: share of true, counts of up to 20 classes, or mean."""
    features = [field for field in table.schema if field.name != LABEL and not field.name.startswith("__")]
    return {
        "rows": table.num_rows,
        "features": [{"name": field.name, "type": name_of(field.type)} for field in features],
        "label": _label(table[LABEL]) if LABEL in table.column_names else None,
    }


def _label(values: pa.ChunkedArray) -> Document:
    if values.type == pa.bool_():
        return {"share": round(pc.mean(values.cast(pa.int8())).as_py(), 6)}
    if not pa.types.is_floating(values.type):
        counts = pc.value_counts(values).to_pylist()
        if len(counts) <= 20:
            return {
                "counts": {
                    str(c["values"]): c["counts"] for c in sorted(counts, key=lambda c: str(c["values"]))
                }
            }
    return (
        {"mean": pc.mean(values).as_py()} if values.type != pa.string() else {"classes": len(values.unique())}
    )


def build(name: str, entry: Document, root: Path) -> Frame:
    """One frame, from its view or its dataset."""
    use = DataUse.model_validate(entry["use"])
    frame = from_view(name, use, entry, root) if entry.get("view") else from_dataset(name, use, entry, root)
    features = [
        column for column in frame.table.column_names if column != LABEL and not column.startswith("__")
    ]
    if not features:
        raise TaskError(
            f"data {name} has no feature column", "the label reads all of its columns; give the dataset more"
        )
    return frame


def from_view(name: str, use: DataUse, entry: Document, root: Path) -> Frame:
    """Answers of a FeatureView for the rows of its asking dataset, each as of its own moment."""
    spec = DatasetSpec.model_validate(entry["dataset"]["spec"])
    data = root / entry["dataset"]["path"] / "data.parquet"
    sets = entry["view"]["sets"]
    table = join.join(
        data,
        spec,
        FeatureViewSpec.model_validate(entry["view"]["spec"]),
        {key: (FeatureSetSpec.model_validate(one["spec"]), root / one["path"]) for key, one in sets.items()},
        start=moment(use.from_) if use.from_ else None,
        end=moment(use.to) if use.to else None,
        where=use.where,
        as_of=moment(entry["as_of"]) if entry.get("as_of") else None,
        share=(use.share[0], use.share[1]) if use.share else None,
    )
    if table.num_rows == 0:
        raise _empty(name, use, spec, pq.read_table(data, columns=[spec.time.event] if spec.time else None))
    return labelled(name, table, [])


def from_dataset(name: str, use: DataUse, entry: Document, root: Path) -> Frame:
    """Rows of a dataset's snapshot within `from`, `to`, `where` and `share`, in their order."""
    spec = DatasetSpec.model_validate(entry["dataset"]["spec"])
    table = pq.read_table(root / entry["dataset"]["path"] / "data.parquet")
    label = definition.expression(use.label, f"data {name}: label") if use.label else None
    reads = {column.lower() for column in label.columns} | {LABEL} if label else set()
    dropped = [column for column in table.column_names if column.lower() in reads]
    selected = [quote(column) for column in table.column_names if column not in dropped]
    selected += [f"({label.sql}) AS {LABEL}"] if label else []
    conditions = conditions_of(name, use, spec, table.column_names, entry.get("as_of"))
    query = f"SELECT {', '.join(selected)} FROM t" + (
        f" WHERE {' AND '.join(conditions)}" if conditions else ""
    )
    session = duck.connect(t=table)
    try:
        found = session.sql(query).to_arrow_table()
    except duckdb.Error as error:
        hint = "mend `label` or `where`"
        raise TaskError(f"data {name} cannot be computed: {duck.message(error)}", hint) from None
    if found.num_rows == 0:
        raise _empty(name, use, spec, table)
    return labelled(
        name, found, [f"left out because the label reads them: {', '.join(dropped)}"] if dropped else []
    )


def labelled(name: str, table: pa.Table, notes: list[str]) -> Frame:
    """The rows whose label is known. Raises TaskError when there is none."""
    if LABEL not in table.column_names:
        return Frame(table, "; ".join(notes))
    known = table.filter(pc.is_valid(table[LABEL])) if table[LABEL].null_count else table
    missing = table.num_rows - known.num_rows
    if known.num_rows == 0:
        raise TaskError(
            f"all {table.num_rows:,} rows of data {name} have no label", "the label is NULL in each of them"
        )
    if missing:
        notes = [*notes, f"{missing:,} rows without a label left out"]
    return Frame(known, "; ".join(notes))


def conditions_of(
    name: str, use: DataUse, spec: DatasetSpec, columns: list[str], as_of: str | None
) -> list[str]:
    """SQL conditions for the rows of a use. `as_of` leaves out what was not known by then."""
    conditions = []
    if spec.time is None and (use.from_ or use.to or as_of):
        raise TaskError(
            f"data {name} has from/to, but its dataset has no event time", "add `time: {event: COLUMN}` to it"
        )
    if spec.time is not None:
        event, known = quote(spec.time.event), quote(spec.time.known or spec.time.event)
        delay = seconds(spec.time.delay) if spec.time.delay and not spec.time.known else 0
        conditions += [f"{event} >= {_literal(use.from_)}"] if use.from_ else []
        conditions += [f"{event} < {_literal(use.to)}"] if use.to else []
        conditions += [f"{known} + INTERVAL {delay!r} SECOND <= {_literal(as_of)}"] if as_of else []
    if use.where:
        conditions.append(f"({definition.expression(use.where, f'data {name}: where').sql})")
    if use.share:
        conditions.append(share_condition(use.share, spec.key or columns))
    return conditions


def _literal(time: str) -> str:
    return f"TIMESTAMPTZ '{moment(time).isoformat()}'"


def share_condition(share: Sequence[float], columns: list[str]) -> str:
    """Rows whose hashed columns fall into [from, to) of [0, 1).

    53 bits of MD5 over the values as text, so a row stays where it is when rows are added, on every machine and version;
    the same rows as `features.join` takes for a view.
    """
    text = ", ".join(f"coalesce(CAST({quote(column)} AS VARCHAR), chr(30))" for column in columns)
    place = f"(md5_number_lower(concat_ws(chr(31), {text})) >> 11) / {2.0**53!r}"
    return f"{place} >= {share[0]!r} AND {place} < {share[1]!r}"


def _empty(name: str, use: DataUse, spec: DatasetSpec, table: pa.Table) -> TaskError:
    span = f"from {use.from_ or 'the beginning'} to {use.to or 'the end'}"
    if spec.time is not None and table.num_rows and (use.from_ or use.to):
        least, most = pc.min_max(table[spec.time.event]).as_py().values()
        has = f"its dataset has {table.num_rows:,} rows from {least.isoformat()} to {most.isoformat()}"
        return TaskError(
            f"data {name} has no row {span}",
            has + ("; `where` and `share` apply too" if use.where or use.share else ""),
        )
    which = " and ".join(key for key, value in (("where", use.where), ("share", use.share)) if value)
    return TaskError(
        f"data {name} has no row" + (f" that meets {which}" if which else ""),
        f"its dataset has {table.num_rows:,} rows",
    )
