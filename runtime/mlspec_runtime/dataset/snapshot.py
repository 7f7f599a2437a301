"""Snapshots: what they are called, how they lie on disk, and what is known of each column.

The identity is a hash of the content: names and types of the columns in their order, and the values row by row in the
order in which the source delivered them. So the order of rows is content (a training function sees it), while chunks, row
groups, compression, the version of Parquet, the machine and the moment are not: the same rows are the same snapshot, and a
refresh that brings nothing new starts nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.kinds.dataset import DatasetSpec
from mlspec_runtime import duck
from mlspec_runtime.dataset.columns import name_of
from mlspec_runtime.duck import quote
from mlspec_runtime.task import Document, write_json

DATA, META = "data.parquet", "snapshot.json"
ROW_GROUP = 122_880
"""DuckDB's own vector layout: one row group feeds one thread."""
BATCH = 65_536
BINS = 20
TOP = 20


def write(
    table: pa.Table, name: str, spec: DatasetSpec, checks: list[Document], root: Path, now: datetime
) -> tuple[str, bool]:
    """Store the table below `datasets/<name>/`; returns its identity and whether it was there before.

    The folder appears whole or not at all (temporary folder, fsync, rename); one that exists is kept as it is.
    """
    identity = identify(table)
    folder = root / "datasets" / name / identity
    if (folder / META).exists():
        return identity, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    temporary = folder.parent / f".{identity}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    data = temporary / DATA
    pq.write_table(table.replace_schema_metadata(None), data, compression="zstd", row_group_size=ROW_GROUP)
    with data.open("rb") as file:
        os.fsync(file.fileno())
    document = {
        "dataset": name,
        "snapshot": identity,
        "taken": now.isoformat(),
        "rows": table.num_rows,
        "bytes": data.stat().st_size,
        "key": spec.key,
        "time": spec.time.document() if spec.time else None,
        "schema": [{"name": field.name, "type": name_of(field.type)} for field in table.schema],
        "checks": checks,
        "statistics": statistics(table),
    }
    write_json(temporary / META, document)
    try:
        temporary.rename(folder)
    except OSError:  # another process has written the same content meanwhile
        shutil.rmtree(temporary, ignore_errors=True)
        return identity, True
    return identity, False


def _sweep(folder: Path) -> None:
    """Remove what killed writers left behind a day ago or earlier."""
    for item in folder.glob(".*.*"):
        if time.time() - item.stat().st_mtime > 86_400:
            shutil.rmtree(item, ignore_errors=True)


def identify(table: pa.Table) -> str:
    """Sixteen hexadecimal digits over schema and values; equal for equal tables, however they are chunked."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"mlspec snapshot 1\n{table.num_rows}\n".encode())
    for field in table.schema:
        digest.update(f"{field.name}\0{name_of(field.type)}\0".encode())
        column = table[field.name]
        if pa.types.is_nested(field.type) or not _is_known(field.type):
            session = duck.connect(t=pa.table({"v": column}))
            column = session.sql("SELECT CAST(v AS VARCHAR) AS v FROM t").to_arrow_table()["v"]
        for start in range(0, table.num_rows, BATCH):
            _hash(digest, column.slice(start, BATCH).combine_chunks())
    return digest.hexdigest()


def _is_known(dtype: pa.DataType) -> bool:
    return name_of(dtype) != str(dtype) or dtype in (
        pa.string(),
        pa.int32(),
        pa.int64(),
        pa.float32(),
        pa.float64(),
    )


def _hash(digest: Any, values: pa.Array) -> None:
    """Validity, then values with a fixed value under NULL, little-endian; text as lengths and bytes."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    digest.update(np.packbits(pc.is_valid(values).to_numpy(zero_copy_only=False)).tobytes())
    match values.type:
        case kind if kind == pa.string():
            texts = pc.fill_null(values, "")
            digest.update(pc.binary_length(texts).to_numpy().astype("<i4", copy=False).data)
            offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[
                texts.offset : texts.offset + len(texts) + 1
            ]
            data = texts.buffers()[2]
            digest.update(memoryview(data)[offsets[0] : offsets[-1]] if data is not None else b"")
        case kind if kind == pa.bool_():
            digest.update(np.packbits(pc.fill_null(values, False).to_numpy(zero_copy_only=False)).tobytes())
        case kind if pa.types.is_floating(kind):
            digest.update(
                pc.fill_null(values, 0.0).to_numpy().astype(f"<f{kind.bit_width // 8}", copy=False).data
            )
        case kind:
            whole = values.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
            digest.update(
                pc.fill_null(whole, 0).to_numpy().astype(f"<i{kind.bit_width // 8}", copy=False).data
            )


def statistics(table: pa.Table) -> dict[str, Document]:
    """Per column: nulls, min, max, mean, approximate number of distinct values, and a histogram or the most frequent values."""
    if table.num_columns == 0:
        return {}
    plain = [field for field in table.schema if not pa.types.is_nested(field.type)]
    session = duck.connect(t=table)
    parts = []
    for field in plain:
        c = quote(field.name)
        mean = f"avg({c})" if _is_number(field.type) else "NULL"
        parts.append(
            f"count(*) - count({c}), CAST(min({c}) AS VARCHAR), CAST(max({c}) AS VARCHAR), {mean}, approx_count_distinct({c})"
        )
    row = session.sql(f"SELECT {', '.join(parts)} FROM t").fetchall()[0] if parts else ()
    result: dict[str, Document] = {}
    for index, field in enumerate(plain):
        nulls, least, most, mean, distinct = row[5 * index : 5 * index + 5]
        number = _is_number(field.type)
        result[field.name] = {
            "nulls": nulls,
            "min": float(least) if number and least is not None else least,
            "max": float(most) if number and most is not None else most,
            "mean": mean,
            "distinct": distinct,
            **_shape(table[field.name], session, field, table.num_rows),
        }
    return result


def _is_number(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))


def _shape(values: pa.ChunkedArray, session: Any, field: pa.Field, rows: int) -> Document:
    if rows == values.null_count:
        return {}
    if field.type in (pa.string(), pa.bool_()):
        query = f"SELECT CAST({quote(field.name)} AS VARCHAR) v, count(*) n FROM t WHERE v IS NOT NULL GROUP BY v ORDER BY n DESC, v LIMIT {TOP}"
        return {"top": [[value, count] for value, count in session.sql(query).fetchall()]}
    filled = values.drop_null()
    if pa.types.is_date32(field.type):
        filled = filled.cast(pa.int32())
    elif pa.types.is_timestamp(field.type):
        filled = filled.cast(pa.int64())
    elif not _is_number(field.type):
        return {}
    numbers = filled.to_numpy().astype(np.float64, copy=False)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) == 0:
        return {}
    edges = np.linspace(numbers.min(), numbers.max(), BINS + 1)
    if not (np.diff(edges) > 0).all():  # one value, or too near for so many bins
        edges = edges[[0, -1]]
    counts, edges = np.histogram(numbers, bins=edges)
    return {
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}
    }
