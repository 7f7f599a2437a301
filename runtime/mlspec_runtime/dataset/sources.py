"""Read the source of a Dataset into an Arrow table: Parquet, CSV, JSON (DuckDB's readers) or the user's function."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from mlspec.kinds.dataset import DatasetSpec
from mlspec_runtime import code, duck
from mlspec_runtime.task import Document, TaskError


def read(name: str, spec: DatasetSpec, task: Document, root: Path) -> pa.Table:
    """The rows of the source in their order: of files by sorted path, then as they lie in the file."""
    match spec.source.choice:
        case "function":
            return _function(name, task, root)
        case "parquet" | "csv" | "json_" as reader:
            return _files(name, reader, spec, task.get("files") or [])
        case other:
            raise TaskError(
                f"the source {other} of dataset {name} is not supported on this target",
                "read it in a function: `source: {function: load.py:rows}`",
            )


def _function(name: str, task: Document, root: Path) -> pa.Table:
    """Call the user's function with the task's parameters; relative paths are those of its bundle."""
    bundle = task.get("code")
    if not bundle:
        raise TaskError(
            f"the task of dataset {name} has no code bundle", "apply again; the bundle is made by the plan"
        )
    folder = root / bundle["path"]
    function = code.load(bundle["entry"], folder)
    value = code.call(function, folder, task.get("parameters") or {}, within=folder)
    return to_arrow(value, bundle["entry"])


def to_arrow(value: Any, entry: str) -> pa.Table:
    """A table, frame or list of records as an Arrow table. Raises TaskError naming what came instead, or the column."""
    try:
        match value:
            case pa.Table():
                return value
            case pa.RecordBatch():
                return pa.Table.from_batches([value])
            case pa.RecordBatchReader():
                return value.read_all()
            case list() | tuple() if all(isinstance(row, Mapping) for row in value):
                return pa.Table.from_pylist([dict(row) for row in value])
            case Mapping():
                return pa.table(dict(value))
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(value, pandas.DataFrame):
            indexed = value.reset_index() if any(level is not None for level in value.index.names) else value
            indexed.columns = [str(column) for column in indexed.columns]
            return pa.Table.from_pandas(indexed, preserve_index=False)
        if hasattr(value, "collect") and not hasattr(value, "__arrow_c_stream__"):  # a lazy Polars frame
            value = value.collect()
        if hasattr(value, "__arrow_c_stream__"):
            return pa.table(value)
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = " ".join(str(part) for part in error.args)
        raise TaskError(
            f"what {entry} returned is not a table of plain columns: {reason}", "give each column one type"
        ) from None
    raise TaskError(
        f"{entry} returned {type(value).__name__}, not a table",
        "return a pandas or Polars DataFrame, a PyArrow table, or a list of dicts",
    )


def _files(name: str, reader: str, spec: DatasetSpec, files: list[str]) -> pa.Table:
    if not files:
        pattern = spec.source.parquet or spec.source.csv or spec.source.json_
        raise TaskError(
            f"no file matches {pattern}, the source of dataset {name}",
            "paths are relative to the file of the spec",
        )
    paths = sorted(files)
    absent = [path for path in paths if not Path(path).exists()]
    if absent:
        raise TaskError(f"the source {absent[0]} of dataset {name} is gone", "put it back, or apply again")
    try:
        return _duckdb(reader, spec, paths, sample=20_480)
    except duckdb.ConversionException:  # a value after the sample had another type: look at the whole file
        try:
            return _duckdb(reader, spec, paths, sample=-1)
        except duckdb.Error as error:
            raise _unreadable(name, error) from None
    except duckdb.Error as error:
        if "CSV Error" in str(error) or "JSON" in str(error):
            try:
                return _duckdb(reader, spec, paths, sample=-1)
            except duckdb.Error as again:
                raise _unreadable(name, again) from None
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: duckdb.Error) -> TaskError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [
        duck.message(error),
        *(line for line in lines[1:] if line.startswith(("Original Line", "Line:", "Could not"))),
    ]
    return TaskError(
        f"the source of dataset {name} cannot be read: {'; '.join(kept)}",
        "declare the column's type under `columns`",
    )


def _duckdb(reader: str, spec: DatasetSpec, paths: list[str], sample: int) -> pa.Table:
    """Read files with DuckDB. Declared CSV columns are read as text, so that the cast tells all their faults itself."""
    session = duckdb.connect()
    session.execute("SET TimeZone = 'UTC'")
    literal = "[" + ", ".join("'" + path.replace("'", "''") + "'" for path in paths) + "]"
    match reader:
        case "parquet":
            source = f"read_parquet({literal}, union_by_name = true)"
        case "csv":
            source = f"read_csv({literal}, header = true, union_by_name = true, sample_size = {sample})"
            known = _names(session, source)
            text = [column for column in spec.columns if column in known]
            types = "{" + ", ".join(f"'{column}': 'VARCHAR'" for column in text) + "}"
            source = source[:-1] + (f", types = {types})" if text else ")")
        case _:
            source = f"read_json({literal}, union_by_name = true, sample_size = {sample})"
            found = _names(session, source)
            text = [
                column for column, rule in spec.columns.items() if rule.type == "string" and column in found
            ]
            if text:
                found |= dict.fromkeys(text, "VARCHAR")
                types = (
                    "{"
                    + ", ".join(
                        "'{}': '{}'".format(k.replace("'", "''"), v.replace("'", "''"))
                        for k, v in found.items()
                    )
                    + "}"
                )
                source = source[:-1] + f", columns = {types})"
    return session.sql(f"SELECT * FROM {source}").to_arrow_table()


def _names(session: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    return {row[0]: row[1] for row in session.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
