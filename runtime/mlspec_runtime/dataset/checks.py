"""Check a table: each rule becomes one SQL condition for the rows that break it, and one scan counts them all.

Rules of columns and of the table are one list of `Rule`; to add a check is to add one entry. A rule fails when the share of
rows that break it exceeds `tolerate`. NULL breaks `nullable: false` and `sql`, and no other rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from mlspec import expressions
from mlspec.kinds.dataset import Check, Column, DatasetSpec
from mlspec.resource import seconds
from mlspec_runtime import duck
from mlspec_runtime.duck import quote
from mlspec_runtime.task import Document, TaskError

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """`count` is an aggregate: how many rows break the rule. `where` finds them; None: no row can be shown."""

    title: str
    count: str
    where: str | None
    shows: tuple[str, ...]
    tolerate: float
    severity: Literal["error", "warn"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule found. `sentence` says it all; `share` is `broken` of `rows`."""

    title: str
    severity: Literal["error", "warn"]
    passed: bool
    broken: int
    rows: int
    tolerate: float
    sentence: str
    examples: tuple[Document, ...] = ()

    def document(self) -> Document:
        """As it stands in `result.json` and `snapshot.json`."""
        return {
            "check": self.title,
            "severity": self.severity,
            "passed": self.passed,
            "broken": self.broken,
            "rows": self.rows,
            "share": self.broken / self.rows if self.rows else 0.0,
            "tolerate": self.tolerate,
            "message": "" if self.passed else self.sentence,
            "examples": list(self.examples),
        }


def check(table: pa.Table, spec: DatasetSpec, now: datetime) -> list[Outcome]:
    """Outcomes of all rules, in the order of the spec: columns, key, checks. Raises TaskError for SQL that cannot run."""
    rules = [rule for name, column in spec.columns.items() for rule in _column_rules(name, column)]
    rules += _key_rules(spec)
    rules += [rule for entry in spec.checks for rule in _table_rules(entry, table.column_names, spec)]
    session = duck.connect(t=table)
    counts = _count(session, rules)
    outcomes = [
        _outcome(session, rule, count, table.num_rows, spec)
        for rule, count in zip(rules, counts, strict=True)
    ]
    return outcomes + [outcome for entry in spec.checks for outcome in _whole(entry, table, spec, now)]


def _column_rules(name: str, column: Column) -> Iterator[Rule]:
    c = quote(name)

    def rule(title: str, where: str) -> Rule:
        return Rule(
            f"{name} {title}",
            f"count(*) FILTER (WHERE {where})",
            where,
            (name,),
            column.tolerate,
            column.severity,
        )

    if not column.nullable:
        yield rule("is not null", f"{c} IS NULL")
    if column.min is not None:
        yield rule(f">= {column.min:g}", f"{c} < {column.min!r}")
    if column.max is not None:
        yield rule(f"<= {column.max:g}", f"{c} > {column.max!r}")
    if column.values is not None:
        allowed = ", ".join(_literal(value, column.type) for value in column.values)
        title = f"in [{', '.join(str(value) for value in column.values[:10])}{', ...' if len(column.values) > 10 else ''}]"
        yield rule(title, f"{c} NOT IN ({allowed})" if allowed else f"{c} IS NOT NULL")
    if column.pattern is not None:
        yield rule(
            f"matches {column.pattern}", f"NOT regexp_full_match({c}, {_literal(column.pattern, 'string')})"
        )
    if column.unique:
        yield _unique(f"{name} is unique", (name,), column.tolerate, column.severity)


def _key_rules(spec: DatasetSpec) -> Iterator[Rule]:
    """The key should identify rows, and event times should be there: worth a warning, not worth a stop."""
    if spec.key:
        yield _unique(f"key ({', '.join(spec.key)}) is unique", tuple(spec.key), 0.0, "warn")
    if spec.time and spec.time.event not in spec.columns:
        where = f"{quote(spec.time.event)} IS NULL"
        yield Rule(
            f"{spec.time.event} is not null",
            f"count(*) FILTER (WHERE {where})",
            where,
            (spec.time.event,),
            0.0,
            "warn",
        )


def _table_rules(entry: Check, columns: list[str], spec: DatasetSpec) -> Iterator[Rule]:
    if entry.sql is not None:
        expression = expressions.parse(entry.sql)
        if expression.problem:
            raise TaskError(
                f"the check `{entry.sql}` is not a row expression: {expression.problem}", expression.hint
            )
        where = f"NOT coalesce(CAST(({expression.sql}) AS BOOLEAN), false)"
        read = {column.lower() for column in expression.columns}
        shows = tuple(name for name in columns if name.lower() in read)
        yield Rule(
            entry.sql, f"count(*) FILTER (WHERE {where})", where, shows, entry.tolerate, entry.severity
        )
    if entry.unique is not None:
        missing = [name for name in entry.unique if name not in columns]
        if missing:
            raise TaskError(
                f"the check unique names {', '.join(missing)}, which is no column",
                f"columns: {', '.join(columns)}",
            )
        yield _unique(
            f"({', '.join(entry.unique)}) is unique", tuple(entry.unique), entry.tolerate, entry.severity
        )


def _unique(title: str, names: tuple[str, ...], tolerate: float, severity: Literal["error", "warn"]) -> Rule:
    """Broken rows are those beyond the first of each value; NULLs never repeat, as in SQL."""
    filled = " AND ".join(f"{quote(name)} IS NOT NULL" for name in names)
    value = quote(names[0]) if len(names) == 1 else "(" + ", ".join(quote(name) for name in names) + ")"
    count = f"count(*) FILTER (WHERE {filled}) - count(DISTINCT {value}) FILTER (WHERE {filled})"
    where = f"{filled} AND {value} IN (SELECT {value} FROM t WHERE {filled} GROUP BY ALL HAVING count(*) > 1)"
    return Rule(title, count, where, names, tolerate, severity)


def _count(session: duckdb.DuckDBPyConnection, rules: list[Rule]) -> list[int]:
    if not rules:
        return []
    try:
        row = session.sql(f"SELECT {', '.join(rule.count for rule in rules)} FROM t").fetchall()[0]
    except duckdb.Error:
        return [_count_alone(session, rule) for rule in rules]  # find the one that cannot run, and name it
    return [int(value) for value in row]


def _count_alone(session: duckdb.DuckDBPyConnection, rule: Rule) -> int:
    try:
        row = session.sql(f"SELECT {rule.count} FROM t").fetchall()[0]
    except duckdb.Error as error:
        raise TaskError(
            f"the check `{rule.title}` cannot be computed: {duck.message(error)}", "mend the check"
        ) from None
    return int(row[0])


def _outcome(
    session: duckdb.DuckDBPyConnection, rule: Rule, broken: int, rows: int, spec: DatasetSpec
) -> Outcome:
    passed = broken <= rule.tolerate * rows
    if broken == 0 or passed:
        return Outcome(rule.title, rule.severity, passed, broken, rows, rule.tolerate, f"{rule.title}: holds")
    examples = _examples(session, rule, spec)
    allowed = f", tolerated {_percent(rule.tolerate)}" if rule.tolerate else ""
    shown = "; ".join(", ".join(f"{key}={value}" for key, value in example.items()) for example in examples)
    sentence = f"{rule.title}: broken in {broken:,} of {rows:,} rows ({_percent(broken / rows)}{allowed})"
    sentence += f", for example {shown}" if shown else ""
    return Outcome(rule.title, rule.severity, False, broken, rows, rule.tolerate, sentence, tuple(examples))


def _examples(session: duckdb.DuckDBPyConnection, rule: Rule, spec: DatasetSpec) -> list[Document]:
    if rule.where is None:
        return []
    names = dict.fromkeys([*spec.key, *rule.shows])
    shown = ", ".join(f"CAST({quote(name)} AS VARCHAR) AS {quote(name)}" for name in names) or "1 AS row"
    found = session.sql(f"SELECT {shown} FROM t WHERE {rule.where} LIMIT {EXAMPLES}").fetchall()
    return [dict(zip(names, row, strict=False)) for row in found]


def _whole(entry: Check, table: pa.Table, spec: DatasetSpec, now: datetime) -> Iterator[Outcome]:
    """Checks that are about the table and no row: its size and its age."""

    def outcome(title: str, passed: bool, found: str) -> Outcome:
        return Outcome(title, entry.severity, passed, 0, table.num_rows, 0.0, f"{title}: {found}")

    if entry.rows is not None:
        least, most = entry.rows.min or 0, entry.rows.max
        title = f"rows from {least:,}" + (f" to {most:,}" if most is not None else "")
        fits = table.num_rows >= least and (most is None or table.num_rows <= most)
        yield outcome(title, fits, f"there are {table.num_rows:,}")
    if entry.freshness is not None:
        title = f"newest row at most {entry.freshness.max_age} old"
        if spec.time is None:
            raise TaskError(
                "the check freshness needs the event time of the dataset", "add `time: {event: COLUMN}`"
            )
        newest = pc.max(table[spec.time.event]).as_py() if table.num_rows else None
        if newest is None:
            yield outcome(title, False, "no row has an event time")
        else:
            age = (now - newest).total_seconds()
            yield outcome(
                title,
                age <= seconds(entry.freshness.max_age),
                f"it is of {newest.isoformat()}, {_age(age)} old",
            )


def _literal(value: Any, column_type: str) -> str:
    """A SQL literal; in a string column numbers are compared as text."""
    if column_type == "string" or isinstance(value, str):
        return "'" + str(value).replace("'", "''") + "'"
    return str(value).upper() if isinstance(value, bool) else repr(value)


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _age(age: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * length:
            return f"{age / length:.0f} {unit}"
    return f"{age:.0f} s"
