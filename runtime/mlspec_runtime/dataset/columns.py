"""Give each column the type that it shall have: the declared one, or a plain one of the same meaning.

All faults of all columns come in one error. What is stored is always one of: string, boolean, int32, int64, float, double,
date, timestamp (microseconds, UTC), or, for undeclared columns only, a nested type as it came. A NaN is NULL.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from mlspec.kinds.dataset import ColumnType, DatasetSpec
from mlspec_runtime import duck
from mlspec_runtime.task import TaskError

UTC_TIME = pa.timestamp("us", tz="UTC")

ARROW: dict[ColumnType, pa.DataType] = {
    "string": pa.string(), "boolean": pa.bool_(), "int32": pa.int32(), "int64": pa.int64(), "float": pa.float32(),
    "double": pa.float64(), "date": pa.date32(), "timestamp": UTC_TIME,
}  # fmt: skip

SQL: dict[ColumnType, str] = {
    "boolean": "BOOLEAN", "int32": "INTEGER", "int64": "BIGINT", "float": "FLOAT", "double": "DOUBLE", "date": "DATE",
}  # fmt: skip


class Fault(Exception):
    """Why a column does not become its type: one clause."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How timestamps without a time zone are read, and where remarks about them go."""

    zone: str | None
    remarks: list[str]


def name_of(dtype: pa.DataType) -> str:
    """The type in the words of the spec; Arrow's word for a type that the spec does not have."""
    return next((name for name, known in ARROW.items() if known == dtype), str(dtype))


def cast(name: str, table: pa.Table, spec: DatasetSpec) -> tuple[pa.Table, list[str]]:
    """The table with each column in its type, and remarks. Raises TaskError with every fault."""
    faults = [*_structure(table, spec)]
    clock = Clock(spec.time.timezone if spec.time else None, [])
    if clock.zone is not None:
        try:
            ZoneInfo(clock.zone)
        except (ValueError, OSError, KeyError):
            hint = "write a name of the IANA database, such as America/New_York; the package tzdata holds it"
            raise TaskError(f"the time zone {clock.zone} of dataset {name} is unknown here", hint) from None
    times = {column for column in ((spec.time.event, spec.time.known) if spec.time else ()) if column}
    result: dict[str, pa.ChunkedArray] = {}
    for column in table.column_names if len(set(table.column_names)) == table.num_columns else ():
        values = table[column]
        declared = spec.columns[column].type if column in spec.columns else None
        wanted: ColumnType | None = declared or ("timestamp" if column in times else None)
        try:
            result[column] = convert(values, wanted, column, clock)
        except Fault as fault:
            faults.append(f"{column} {fault}")
    if faults:
        count = f"{len(faults)} columns" if len(faults) > 1 else "1 column"
        raise TaskError(
            f"{count} of dataset {name} do not fit" + "".join(f"\n  {fault}" for fault in faults),
            "mend the source, or the column under `columns`",
        )
    return pa.table(result), clock.remarks


def _structure(table: pa.Table, spec: DatasetSpec) -> list[str]:
    """Faults of the set of columns."""
    have = table.column_names
    faults = [
        f"{column} occurs twice in the source" for column in sorted({c for c in have if have.count(c) > 1})
    ]
    needed = dict.fromkeys(spec.columns, "is declared")
    needed |= dict.fromkeys(spec.key, "is in the key")
    if spec.time:
        needed |= {spec.time.event: "is the event time"} | (
            {spec.time.known: "is the arrival time"} if spec.time.known else {}
        )
    for column, why in needed.items():
        if column not in have:
            near = difflib.get_close_matches(column, have, 1)
            faults.append(
                f"{column} {why} but not in the source"
                + (f"; did you mean {near[0]}?" if near else f", which has {', '.join(have)}")
            )
    if spec.time:
        for column in filter(None, (spec.time.event, spec.time.known)):
            if column in spec.columns and spec.columns[column].type != "timestamp":
                faults.append(
                    f"{column} is a time of the dataset but declared as {spec.columns[column].type}; declare it as timestamp"
                )
    if spec.strict:
        faults += [
            f"{column} is not declared, and the dataset is strict"
            for column in have
            if column not in spec.columns
        ]
    return faults


def convert(values: pa.ChunkedArray, wanted: ColumnType | None, column: str, clock: Clock) -> pa.ChunkedArray:
    """One column in the type `wanted`, or in the plain type of the same meaning. Raises Fault."""
    values = _plain(values, column, clock)
    have = values.type
    if wanted is None or have == ARROW[wanted]:
        return values
    if have == pa.string():
        return _from_text(values, wanted, column, clock)
    if wanted == "timestamp":
        if pa.types.is_date(have):
            return _zoned(values.cast(pa.timestamp("us")), column, clock)
        raise Fault(
            f"is of type {name_of(have)}; a timestamp comes from a timestamp, a date or ISO 8601 text"
        )
    if wanted == "date" and have == UTC_TIME:
        return values.cast(pa.date32(), safe=False)
    number = pa.types.is_integer(have) or pa.types.is_floating(have)
    if wanted == "boolean" and number:
        _refuse(values, pc.invert(pc.is_in(values, value_set=pa.array([0, 1]).cast(have))), wanted)
    if wanted == "date" and not pa.types.is_date(have):
        raise Fault(f"is of type {name_of(have)}; a date comes from a date, a timestamp or ISO 8601 text")
    try:
        return values.cast(ARROW[wanted])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _not_exact(values, wanted, str(error)) from None


def _plain(values: pa.ChunkedArray, column: str, clock: Clock) -> pa.ChunkedArray:
    """Storage details removed: dictionaries, widths, units, NaN."""
    dtype = values.type
    if pa.types.is_dictionary(dtype):
        values = values.cast(dtype.value_type)
        dtype = values.type
    if pa.types.is_null(dtype) or pa.types.is_large_string(dtype) or dtype == pa.string_view():
        return values.cast(pa.string())
    if pa.types.is_decimal(dtype) or pa.types.is_float16(dtype):
        return values.cast(pa.float64())
    if pa.types.is_floating(dtype):
        nan = pc.is_nan(values)
        return pc.if_else(nan, pa.scalar(None, dtype), values) if pc.any(nan).as_py() else values
    if pa.types.is_integer(dtype) and dtype not in (pa.int32(), pa.int64()):
        try:
            return values.cast(pa.int32() if dtype.bit_width < 32 else pa.int64())
        except pa.ArrowInvalid:
            raise Fault(
                "has numbers above 2^63 - 1; declare it as double or string, and cast it in the source"
            ) from None
    if pa.types.is_date(dtype):
        return values.cast(pa.date32())
    if pa.types.is_timestamp(dtype):
        moments = values.cast(pa.timestamp("us", tz=dtype.tz), safe=False)
        return moments.cast(UTC_TIME) if dtype.tz else _zoned(moments, column, clock)
    return values


def _zoned(values: pa.ChunkedArray, column: str, clock: Clock) -> pa.ChunkedArray:
    """Naive timestamps as moments of the dataset's time zone."""
    if values.null_count == len(values):
        return values.cast(UTC_TIME)
    if clock.zone is None:
        raise Fault("has timestamps without a time zone; say which one they are in: `time: {timezone: UTC}`")
    early = pc.assume_timezone(values, clock.zone, ambiguous="earliest", nonexistent="earliest")
    late = pc.assume_timezone(values, clock.zone, ambiguous="latest", nonexistent="latest")
    unclear = pc.sum(pc.not_equal(early, late)).as_py() or 0
    if unclear:
        clock.remarks.append(
            f"{column}: {unclear:,} values lie in a clock change of {clock.zone}; the earlier moment is taken"
        )
    return early.cast(UTC_TIME)


def _from_text(values: pa.ChunkedArray, wanted: ColumnType, column: str, clock: Clock) -> pa.ChunkedArray:
    """Parse text; an empty text is NULL."""
    session = duck.connect(t=pa.table({"v": values}))
    if wanted != "timestamp":
        parsed = session.sql(
            f"SELECT TRY_CAST(nullif(trim(v), '') AS {SQL[wanted]}) AS p FROM t"
        ).to_arrow_table()["p"]
        _all_parsed(values, parsed, wanted)
        return parsed.cast(ARROW[wanted])
    # text with an offset is a moment; text without one is a wall clock in the dataset's zone
    offset = r"regexp_matches(v, '[:\d]\s*([Zz]|UTC|[+-]\d\d(:?\d\d)?)\s*$') AND v LIKE '%:%'"
    parts = session.sql(
        f"SELECT CASE WHEN {offset} THEN TRY_CAST(trim(v) AS TIMESTAMPTZ) END AS aware,"
        f" CASE WHEN {offset} THEN NULL ELSE TRY_CAST(nullif(trim(v), '') AS TIMESTAMP) END AS naive FROM t"
    ).to_arrow_table()
    aware, naive = parts["aware"].cast(UTC_TIME), parts["naive"].cast(pa.timestamp("us"))
    _all_parsed(values, pc.coalesce(aware, naive.cast(UTC_TIME)), wanted)
    return pc.coalesce(aware, _zoned(naive, column, clock))


def _all_parsed(values: pa.ChunkedArray, parsed: pa.ChunkedArray, wanted: ColumnType) -> None:
    filled = pc.not_equal(pc.fill_null(pc.utf8_trim_whitespace(values), ""), "")
    bad = pc.and_(filled, pc.is_null(parsed))
    _refuse(values, bad, wanted)


def _refuse(values: pa.ChunkedArray, bad: pa.ChunkedArray, wanted: ColumnType) -> None:
    bad = pc.and_(pc.is_valid(values), bad)
    count = pc.sum(bad).as_py() or 0
    if count:
        examples = pc.unique(values.filter(bad)).slice(0, 3).to_pylist()
        shown = ", ".join(repr(example) for example in examples)
        raise Fault(f"is not {wanted} in {count:,} of {len(values):,} rows, for example {shown}")


def _not_exact(values: pa.ChunkedArray, wanted: ColumnType, reason: str) -> Fault:
    """Which values do not become a number of the wanted type without loss."""
    limits: dict[ColumnType, float] = {"int32": 2.0**31, "int64": 2.0**63}
    if wanted in limits and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        try:
            _refuse(values, _outside(values, limits[wanted]), wanted)
        except Fault as fault:
            return fault
    return Fault(f"is of type {name_of(values.type)}, which does not become {wanted}: {reason}")


def _outside(values: pa.ChunkedArray, limit: float) -> pa.ChunkedArray:
    numbers = values.cast(pa.float64(), safe=False)
    whole = pc.equal(numbers, pc.floor(numbers))
    return pc.invert(pc.and_(whole, pc.and_(pc.greater_equal(numbers, -limit), pc.less(numbers, limit))))
