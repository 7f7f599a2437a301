"""Values: row expressions on DuckDB, the few types that features have, and their form as numpy arrays.

A feature or key is one of: int64, double, string, boolean, date, timestamp (microseconds, UTC). NaN is NULL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlspec.expressions import Expression, identifier
from mlspec_runtime import duck
from mlspec_runtime.task import TaskError

UTC_TIME = pa.timestamp("us", tz="UTC")
TYPES: dict[str, pa.DataType] = {
    "int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "boolean": pa.bool_(), "date": pa.date32(),
    "timestamp": UTC_TIME,
}  # fmt: skip
SQL = {
    "int64": "BIGINT",
    "double": "DOUBLE",
    "string": "VARCHAR",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}

Array = npt.NDArray[Any]


def name_of(dtype: pa.DataType) -> str:
    """The name of a plain type."""
    return next(name for name, known in TYPES.items() if known == dtype)


def plain(values: pa.Array | pa.ChunkedArray, what: str) -> pa.Array:
    """The values as one array of a plain type. Raises TaskError for nested types; `what` names the expression."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    dtype = array.type
    if pa.types.is_dictionary(dtype):
        array, dtype = array.cast(dtype.value_type), dtype.value_type
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype) or dtype == pa.uint64():
        array = array.cast(pa.float64(), safe=False)
        nan = pc.is_nan(array)
        return pc.if_else(nan, pa.scalar(None, pa.float64()), array) if pc.any(nan).as_py() else array
    if pa.types.is_integer(dtype):
        return array.cast(pa.int64())
    if pa.types.is_boolean(dtype):
        return array
    if (
        pa.types.is_null(dtype)
        or pa.types.is_string(dtype)
        or pa.types.is_large_string(dtype)
        or dtype == pa.string_view()
    ):
        return array.cast(pa.string())
    if pa.types.is_date(dtype):
        return array.cast(pa.date32())
    if pa.types.is_timestamp(dtype):
        return array.cast(pa.timestamp("us", tz=dtype.tz), safe=False).cast(UTC_TIME)
    raise TaskError(
        f"{what} is of type {dtype}", "an expression must give a number, text, truth value, date or timestamp"
    )


def evaluate(rows: pa.Table, wanted: Mapping[str, Expression | str]) -> dict[str, pa.Array]:
    """Each expression (or trusted SQL) over the rows, in their order, as arrays of plain types.

    Raises TaskError that names the expression: an unknown column, a type that does not fit, a value that cannot be cast.
    """
    if not wanted:
        return {}
    texts = {name: one.sql if isinstance(one, Expression) else one for name, one in wanted.items()}
    selected = ", ".join(f"({sql}) AS {identifier(name)}" for name, sql in texts.items())
    session = duck.connect(rows=rows)
    try:
        result = session.sql(f"SELECT {selected} FROM rows").to_arrow_table()
    except duckdb.Error:
        raise _blame(session, wanted, texts, rows) from None
    finally:
        session.close()
    return {name: plain(result[name], name) for name in wanted}


def _blame(
    session: duckdb.DuckDBPyConnection,
    wanted: Mapping[str, Expression | str],
    texts: Mapping[str, str],
    rows: pa.Table,
) -> TaskError:
    """Which of the expressions fails, and why."""
    for name, one in wanted.items():
        shown = one.text if isinstance(one, Expression) else name
        have = {column.lower() for column in rows.column_names}
        missing = (
            sorted(c for c in one.columns if c.lower() not in have) if isinstance(one, Expression) else []
        )
        if missing:
            return TaskError(
                f"{shown}: there is no column {missing[0]}", f"the rows have {', '.join(rows.column_names)}"
            )
        try:
            session.sql(f"SELECT ({texts[name]}) AS x FROM rows").to_arrow_table()
        except duckdb.Error as error:
            hint = "guard the expression with CASE, NULLIF or TRY_CAST; a NULL is a legal value"
            return TaskError(f"{shown} cannot be evaluated: {duck.message(error)}", hint)
    return TaskError("the expressions cannot be evaluated together", "simplify them")


def microseconds(array: pa.Array, what: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Timestamps as int64 microseconds and whether each is there. A date counts as its midnight in UTC."""
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(array.type):
        raise TaskError(
            f"{what} is of type {name_of(array.type)}, not a timestamp", "cast it: CAST(... AS TIMESTAMPTZ)"
        )
    valid = np.asarray(array.is_valid())
    return np.asarray(array.cast(pa.int64()).fill_null(0)), valid


def numbers(array: pa.Array) -> Array:
    """A numeric column as numpy; NULL is 0."""
    if pa.types.is_boolean(array.type):
        return np.asarray(array.fill_null(False).cast(pa.int8()))
    return np.asarray(array.fill_null(0))


def fit_key(array: pa.Array, dtype: pa.DataType, what: str) -> pa.Array:
    """Key values of a question in the type of the set's key column; a number that is not whole equals no whole key."""
    if array.type == dtype or array.null_count == len(array):
        return array.cast(dtype) if array.type == dtype else pa.nulls(len(array), dtype)
    if pa.types.is_floating(array.type) and pa.types.is_integer(dtype):
        numbers = array.to_numpy(zero_copy_only=False)
        whole = np.isfinite(numbers) & (np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0**63)
        return pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    if pa.types.is_integer(array.type) and pa.types.is_floating(dtype):
        return array.cast(dtype, safe=False)
    raise TaskError(
        f"{what} is of type {name_of(dtype)}, but the question gives {name_of(array.type)}",
        f"cast it in the view: key: {{...: CAST(... AS {SQL[name_of(dtype)]})}}",
    )


def model_form(array: pa.Array) -> pa.Array:
    """The type in which models see a feature that may be NULL, in training and in requests alike: numbers and truth values are
    double, dates are timestamps. (A column that is int64 in one batch and double in the next, because of a NULL, would
    change the model's signature.)"""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if pa.types.is_integer(array.type):
        return array.cast(pa.float64(), safe=False)
    return array.cast(UTC_TIME) if pa.types.is_date(array.type) else array


def to_numpy(array: pa.Array | pa.ChunkedArray) -> Array:
    """A feature of the join as the array that a request gives: NaN, None or NaT for NULL; counts stay int64."""
    flat = (
        pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) and array.num_chunks else array
    )
    if pa.types.is_floating(flat.type):
        return np.asarray(flat.fill_null(float("nan")))
    if pa.types.is_timestamp(flat.type):
        return np.asarray(flat.cast(pa.int64()).fill_null(np.iinfo(np.int64).min)).view("datetime64[us]")
    return np.asarray(flat) if pa.types.is_integer(flat.type) else np.array(flat.to_pylist(), dtype=object)
