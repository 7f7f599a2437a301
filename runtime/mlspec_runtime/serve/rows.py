"""The endpoint for people: `POST /predict` with rows as JSON objects; the same path inside as V2.

`{"rows": [{"carrier": "AA", "distance": 300}, ...]}`, or one row as an object by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from mlspec_runtime.serve import v2
from mlspec_runtime.serve.fault import Fault

_WANTED: dict[str, tuple[tuple[type, ...], str]] = {
    "b": ((bool,), "true or false"),
    "f": ((int, float), "a number"),
    "i": ((int,), "a whole number"),
    "u": ((int,), "a whole number"),
    "O": ((str,), "a string"),
}


def decode(body: bytes, inputs: Mapping[str, v2.Input] | None, max_rows: int, received: float) -> v2.Request:
    """Decode and check rows. Raises `Fault` 400 naming row and field, or 413 for more than `max_rows` rows."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Fault(400, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Fault(400, 'the body must be {"rows": [{...}, ...]} or one row as an object')
    rows, identity = [document], ""
    if isinstance(document.get("rows"), list):
        rows, identity = document["rows"], document.get("id") or ""
        unknown = sorted(set(document) - {"rows", "id"})
        if unknown or not isinstance(identity, str):
            raise Fault(
                400, f"beside rows only a string id is allowed{', not ' + unknown[0] if unknown else ''}"
            )
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        raise Fault(400, "rows must be objects with at least one field")
    if len(rows) > max_rows:
        raise Fault(413, f"{len(rows)} rows in one request; at most {max_rows} are allowed")
    names = inputs if inputs is not None else rows[0]
    for index, row in enumerate(rows):
        for name in row:
            if name not in names:
                raise Fault(
                    400, f'row {index} has an unknown field "{v2.text(name)}"; fields are {", ".join(names)}'
                )
    columns: v2.Columns = {}
    for name in names:
        one = v2.Input(name) if inputs is None else inputs[name]
        if one.required or any(name in row for row in rows):
            columns[name] = _column(one, rows)
    v2.require(columns, inputs)
    return v2.Request(identity or v2.identity(), columns, len(rows), received)


def _column(one: v2.Input, rows: list[dict[str, Any]]) -> v2.Array:
    missing = next((index for index, row in enumerate(rows) if one.name not in row), None)
    if missing is not None and one.required:
        raise Fault(400, f'row {missing} has no "{one.name}"')
    values = [row.get(one.name) for row in rows]
    dtype = v2.DTYPES[one.datatype or _guess(values)]
    types, wanted = _WANTED[dtype.kind]
    nullable = dtype.kind in "fO"
    for index, value in enumerate(values):
        good = isinstance(value, types) and (dtype.kind == "b" or not isinstance(value, bool))
        if not good and not (value is None and nullable):
            raise Fault(400, f'"{one.name}" of row {index} must be {wanted}')
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype)
    except (OverflowError, ValueError) as error:
        raise Fault(400, f'"{one.name}" does not fit {one.datatype}: {error}') from None


def _guess(values: list[Any]) -> str:
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return "BOOL"
    if known and all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return "INT64" if len(known) == len(values) else "FP64"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return "FP64"
    return "BYTES"


def encode(request: v2.Request, answer: v2.Columns, model: str, version: str) -> v2.Reply:
    """`{"predictions": [{"prediction": ..., "probability": ...}, ...], "id", "model", "version"}`, one per row."""
    lists = {
        name: [v2.text(value) for value in values.tolist()]
        if v2.datatype(values) == "BYTES"
        else values.tolist()
        for name, values in answer.items()
    }
    predictions = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    body = orjson.dumps({"predictions": predictions, "id": request.id, "model": model, "version": version})
    return v2.Reply(
        body, [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    )
