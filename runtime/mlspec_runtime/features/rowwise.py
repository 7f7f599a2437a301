"""Row expressions of a request: the few simple ones directly, the others on DuckDB, with the same results.

A request is a few rows, and a DuckDB query costs about half a millisecond whatever it does. So columns, times shifted by a fixed
interval and clock parts of a time are computed here (`tests/features` proves them equal to DuckDB), and one query evaluates the rest.
Values are Python's: timestamps int microseconds UTC, dates int days, NULL None.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlglot import exp

from mlspec.expressions import Expression, identifier
from mlspec_runtime import duck
from mlspec_runtime.features import values
from mlspec_runtime.task import TaskError

Row = Mapping[str, list[Any]]
Closure = Callable[[Row], list[Any]]

_UNITS = {
    "MICROSECOND": 1,
    "MILLISECOND": 1_000,
    "SECOND": 1_000_000,
    "MINUTE": 60_000_000,
    "HOUR": 3_600_000_000,
}
_DAY = 86_400_000_000


class Rows:
    """Named expressions over requests whose columns have these types (names of `values.TYPES`)."""

    def __init__(self, wanted: Mapping[str, Expression], columns: Mapping[str, str]) -> None:
        self._closures: dict[str, Closure] = {}
        self.types: dict[str, pa.DataType] = {}
        """Type of each expression's values."""
        rest: dict[str, Expression] = {}
        for name, one in wanted.items():
            found = _closure(one.tree, columns) if one.tree is not None else None
            if found is None:
                rest[name] = one
            else:
                self._closures[name], kind = found
                self.types[name] = values.TYPES[kind]
        self._rest = tuple(rest)
        self._columns = tuple(sorted({column for one in rest.values() for column in one.columns}))
        if rest:
            self._prepare(rest, columns)

    def _prepare(self, rest: Mapping[str, Expression], columns: Mapping[str, str]) -> None:
        """One statement for all expressions that need the engine; its types come from a table without rows."""
        empty = pa.table(
            {name: pa.array([], values.TYPES[columns[name]]) for name in self._columns}
            or {"one": pa.array([], pa.int64())}
        )
        self.types |= {name: array.type for name, array in values.evaluate(empty, rest).items()}
        self._lock = threading.Lock()
        self._session = duck.connect()
        self._session.execute("SET threads = 1")
        inner = []
        for place, name in enumerate(self._columns, 1):
            match columns[name]:
                case "timestamp":
                    inner.append(f"make_timestamptz(unnest(${place}::BIGINT[])) AS {identifier(name)}")
                case "date":
                    inner.append(f"DATE '1970-01-01' + unnest(${place}::INTEGER[]) AS {identifier(name)}")
                case kind:
                    inner.append(f"unnest(${place}::{values.SQL[kind]}[]) AS {identifier(name)}")
        selected = [self._plain(one.sql, self.types[name]) for name, one in rest.items()]
        source = f"(SELECT {', '.join(inner)})" if inner else "(SELECT unnest($1::BIGINT[]))"
        (self._statement,) = self._session.extract_statements(f"SELECT {', '.join(selected)} FROM {source}")

    @staticmethod
    def _plain(sql: str, dtype: pa.DataType) -> str:
        if pa.types.is_timestamp(dtype):
            return f"epoch_us(CAST(({sql}) AS TIMESTAMPTZ))"
        if pa.types.is_date(dtype):
            return f"CAST(({sql}) AS DATE) - DATE '1970-01-01'"
        return f"CAST(({sql}) AS {values.SQL[values.name_of(dtype)]})"

    def evaluate(self, row: Row, rows: int) -> dict[str, list[Any]]:
        """The value of each expression for each of `rows` rows. Raises TaskError if one cannot be evaluated."""
        result = {
            name: closure(row) if row else closure({"": [None] * rows})
            for name, closure in self._closures.items()
        }
        if self._rest:
            given = [row[name] for name in self._columns] or [[0] * rows]
            with self._lock:
                try:
                    found = self._session.execute(self._statement, given).fetchall()
                except duckdb.Error as error:
                    raise TaskError(f"the row cannot be evaluated: {duck.message(error)}") from None
            for place, name in enumerate(self._rest):
                result[name] = [_clean(one[place]) for one in found]
        return result


def _clean(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def _closure(tree: exp.Expr, columns: Mapping[str, str]) -> tuple[Closure, str] | None:
    """The expression as a function of the columns, and the type of its values; None if it needs the engine."""
    match tree:
        case exp.Paren():
            return _closure(tree.this, columns)
        case exp.Column():
            name = tree.name
            return (lambda row: row[name]), columns[name]
        case exp.Add() | exp.Sub() if isinstance(tree.expression, exp.Interval):
            inner = _closure(tree.this, columns)
            shift = _interval(tree.expression)
            if inner is None or inner[1] != "timestamp" or shift is None:
                return None
            call, step = inner[0], shift if isinstance(tree, exp.Add) else -shift
            return (lambda row: [None if one is None else one + step for one in call(row)]), "timestamp"
        case exp.Extract() | exp.Hour() | exp.Minute() | exp.DayOfWeek() | exp.DayOfWeekIso():
            part = tree.name.upper() if isinstance(tree, exp.Extract) else tree.sql_name()
            inner = _closure(tree.expression if isinstance(tree, exp.Extract) else tree.this, columns)
            if inner is None or inner[1] != "timestamp" or part not in _PARTS:
                return None
            call, compute = inner[0], _PARTS[part]
            return (lambda row: [None if one is None else compute(one) for one in call(row)]), "int64"
        case _:
            return None


_PARTS: dict[str, Callable[[int], int]] = {
    "HOUR": lambda moment: moment // 3_600_000_000 % 24,
    "MINUTE": lambda moment: moment // 60_000_000 % 60,
    "DOW": lambda moment: (moment // _DAY + 4) % 7,
    "DAYOFWEEK": lambda moment: (moment // _DAY + 4) % 7,
    "DAY_OF_WEEK": lambda moment: (moment // _DAY + 4) % 7,
    "ISODOW": lambda moment: (moment // _DAY + 3) % 7 + 1,
    "DAYOFWEEK_ISO": lambda moment: (moment // _DAY + 3) % 7 + 1,
}


def _interval(tree: exp.Interval) -> int | None:
    """Microseconds of a constant interval of fixed length; in UTC a day is one."""
    amount, unit = tree.this, tree.args.get("unit")
    if not isinstance(amount, exp.Literal) or not isinstance(unit, exp.Var) or not amount.name.isdigit():
        return None
    name = unit.name.upper().rstrip("S")
    size = {**_UNITS, "DAY": _DAY, "WEEK": 7 * _DAY}.get(name)
    return None if size is None else int(amount.name) * size


def read_column(given: npt.NDArray[Any] | Sequence[Any], kind: str, zone: ZoneInfo, name: str) -> list[Any]:
    """One column of a request as values of `kind`. Raises ValueError naming the column.

    Timestamps are ISO 8601 text (without an offset: of the dataset's zone), int microseconds UTC, or datetime64.
    """
    if isinstance(given, np.ndarray) and given.dtype.kind == "M":
        moments = given.astype("datetime64[us]")
        micro = moments.astype(np.int64).tolist()
        found = [None if lost else one for one, lost in zip(micro, np.isnat(moments).tolist(), strict=True)]
        return found if kind == "timestamp" else [None if one is None else one // _DAY for one in found]
    items: list[Any] = given.tolist() if isinstance(given, np.ndarray) else list(given)
    reader = _READERS[kind]
    try:
        return [None if one is None or one != one else reader(one, zone) for one in items]
    except (ValueError, TypeError, OverflowError):
        bad = next(one for one in items if not _reads(reader, one, zone))
        raise ValueError(f"{name} must be {_WORDS[kind]}, not {bad!r}") from None


def _reads(reader: Callable[[Any, ZoneInfo], Any], value: Any, zone: ZoneInfo) -> bool:
    try:
        if value is not None and value == value:
            reader(value, zone)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_EPOCH_DAY = date(1970, 1, 1).toordinal()


def _moment(value: Any, zone: ZoneInfo) -> int:
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str):
        moment = datetime.fromisoformat(value)
    elif isinstance(value, bool) or int(value) != value:
        raise ValueError(value)
    else:
        return int(value)
    difference = (moment if moment.tzinfo else moment.replace(tzinfo=zone)) - _EPOCH
    return (difference.days * 86_400 + difference.seconds) * 1_000_000 + difference.microseconds


def _day(value: Any, zone: ZoneInfo) -> int:
    if isinstance(value, datetime):
        raise TypeError(value)
    day = value if isinstance(value, date) else date.fromisoformat(value)
    return day.toordinal() - _EPOCH_DAY


def _whole(value: Any, zone: ZoneInfo) -> int:
    if isinstance(value, str) or int(value) != value or not -(2**63) <= value < 2**63:
        raise ValueError(value)
    return int(value)


def _number(value: Any, zone: ZoneInfo) -> float:
    if isinstance(value, str):
        raise TypeError(value)
    return float(value)


def _text(value: Any, zone: ZoneInfo) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _truth(value: Any, zone: ZoneInfo) -> bool:
    if value not in (0, 1):
        raise ValueError(value)
    return bool(value)


_READERS: dict[str, Callable[[Any, ZoneInfo], Any]] = {
    "timestamp": _moment, "date": _day, "int64": _whole, "double": _number, "string": _text, "boolean": _truth,
}  # fmt: skip
_WORDS = {
    "timestamp": "a time in ISO 8601 or as microseconds since 1970", "date": "a date such as 2013-01-31",
    "int64": "a whole number", "double": "a number", "string": "text", "boolean": "true or false",
}  # fmt: skip
