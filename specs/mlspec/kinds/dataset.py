"""Dataset: a table that comes from somewhere, with a schema, checks, and snapshots known by their content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem, did_you_mean, listed
from mlspec.kind import Catalog, CodeUse, Context, Lowered, RowSql
from mlspec.kinds.function import Bound, FunctionUse, bind, check_arguments, inline, use_reference
from mlspec.lifecycle import PERSON, Request
from mlspec.manifest import digest
from mlspec.resource import Base, Duration, Identifier, Interval, OneOf, Path, Ref, Resource, Share, Sql
from mlspec.workload import Files, Made, Run, Step, identify

ColumnType = Literal["string", "boolean", "int32", "int64", "float", "double", "date", "timestamp"]


class KafkaSource(Base):
    """A Kafka topic of JSON or Avro records (not executed by the local target yet)."""

    topic: str
    """Topic name."""
    brokers: list[str] = Field(min_length=1)
    """`host:port` of the brokers."""


class SqlSource(Base):
    """A query against a database."""

    connection: str
    """Database URL; write secrets as `${NAME}` of the environment."""
    query: str
    """The SELECT statement."""


class Source(OneOf):
    """Where the rows come from."""

    CHOICES: ClassVar[tuple[str, ...]] = ("function", "parquet", "csv", "json_", "sql", "kafka")

    function: FunctionUse | None = None
    """A plain function that returns a table (pandas, PyArrow, Polars) or a list of records: `load.py:rows`."""
    parquet: str | None = None
    """Path or glob of Parquet files, relative to the file of the spec."""
    csv: str | None = None
    """Path or glob of CSV files with a header line."""
    json_: str | None = Field(None, alias="json")
    """Path or glob of JSON files: records per line, or one array of records."""
    sql: SqlSource | None = None
    """A database query (not executed by the local target yet)."""
    kafka: KafkaSource | None = None
    """A topic (not executed by the local target yet)."""
    parameters: dict[Identifier, Any] = {}
    """Keyword arguments of the function."""


class Time(Base):
    """The two times of a row."""

    event: Identifier
    """Column of the moment that the row is about."""
    known: Identifier | None = None
    """Column of the moment at which anybody could have known the row (arrival time)."""
    delay: Duration | None = None
    """Instead of `known`: rows are known this long after their event."""
    timezone: str | None = None
    """Time zone of timestamps without one, such as `America/New_York`; without it they are an error."""


class Column(Base):
    """What one column must be."""

    type: ColumnType
    """Type of the values; they are cast to it when the snapshot is written."""
    nullable: bool = False
    """Whether NULL is allowed."""
    min: float | None = None
    """Smallest allowed value."""
    max: float | None = None
    """Largest allowed value."""
    values: list[str | int | float | bool] | None = None
    """The only allowed values."""
    pattern: str | None = None
    """Regular expression (RE2) that the whole string must match."""
    unique: bool = False
    """Whether no value may occur twice."""
    tolerate: Share = 0.0
    """Share of rows that may break the rules of this column."""
    severity: Literal["error", "warn"] = "error"
    """Whether broken rules stop the run or only warn."""


class Rows(Base):
    """Bounds of the row count."""

    min: int | None = Field(None, ge=0)
    """Least number of rows."""
    max: int | None = Field(None, ge=0)
    """Greatest number of rows."""


class Freshness(Base):
    """How old the newest row may be."""

    max_age: Interval
    """Greatest age of the newest event time when the snapshot is taken."""


class Check(OneOf):
    """One check over the whole table."""

    CHOICES: ClassVar[tuple[str, ...]] = ("rows", "sql", "unique", "freshness")

    rows: Rows | None = None
    """Bounds of the row count."""
    sql: Sql | None = None
    """A condition that each row must meet; rows where it is false or NULL break it."""
    unique: list[Identifier] | None = Field(None, min_length=1)
    """Columns whose combination must not repeat."""
    freshness: Freshness | None = None
    """Age of the newest event."""
    tolerate: Share = 0.0
    """Share of rows that may break the check."""
    severity: Literal["error", "warn"] = "error"
    """Whether a broken check stops the run or only warns."""


class Refresh(OneOf):
    """When the source is read again. Readings never overlap: what comes due during one is a single reading after it, and
    meanwhile dependants use the snapshot before."""

    CHOICES: ClassVar[tuple[str, ...]] = ("every", "cron")

    every: Interval | None = None
    """Interval between two readings, at least a second."""
    cron: str | None = None
    """Five-field cron expression, UTC."""


class DatasetSpec(Base):
    """A table with a known schema. Each materialisation is a snapshot, identified by its content."""

    source: Source
    """Where the rows come from."""
    key: list[Identifier] = []
    """Columns that identify a row."""
    time: Time | None = None
    """Event and arrival time; needed by features and monitoring."""
    columns: dict[Identifier, Column] = {}
    """Known columns and their rules; other columns are kept as they come unless `strict`."""
    strict: Annotated[bool, Field()] = False
    """Whether `columns` is complete: any other column is an error."""
    checks: list[Check] = []
    """Checks over the table."""
    refresh: Refresh | None = None
    """When to read the source again without a change in git. A reading that takes longer than that is followed by one, not by
    one for each that was missed."""


def references(spec: DatasetSpec) -> Iterator[Ref]:
    """The Function that makes the rows."""
    yield from use_reference(spec.source.function, ("source", "function"))


def expressions(spec: DatasetSpec, catalog: Catalog) -> Iterator[RowSql]:
    """The SQL of the checks. The Dataset is the one that has the spec; an empty name means itself."""
    for index, check in enumerate(spec.checks):
        if check.sql is not None:
            yield RowSql(check.sql, ("spec", "checks", index, "sql"), "")


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """Times, columns, bounds, patterns, the schedule."""
    spec = cast(DatasetSpec, resource.spec)
    if spec.source.parameters and spec.source.function is None:
        path = ("spec", "source", "parameters")
        yield Problem("unused-field", "parameters need a function", path, "remove them", on_key=True)
    parameters = ("spec", "source", "parameters")
    yield from check_arguments(spec.source.function, spec.source.parameters, parameters, catalog)
    if spec.time is not None:
        yield from _check_time(spec, spec.time, resource.name)
    for index, name in enumerate(spec.key):
        yield from check_column(name, spec, resource.name, ("spec", "key", index), stated=True)
    for name, column in spec.columns.items():
        yield from _check_rules_of(column, ("spec", "columns", name))
    for index, rule in enumerate(spec.checks):
        yield from _check_rule(rule, spec, resource.name, ("spec", "checks", index))
    if spec.refresh is not None and spec.refresh.cron is not None:
        yield from rules.cron(spec.refresh.cron, ("spec", "refresh", "cron"))
    if spec.refresh is not None and spec.refresh.every is not None:
        yield from rules.interval(spec.refresh.every, ("spec", "refresh", "every"))


def _check_time(spec: DatasetSpec, time: Time, name: str) -> Iterator[Problem]:
    path = ("spec", "time")
    if time.known is not None and time.delay is not None:
        message = "known and delay exclude each other"
        yield Problem(
            "one-of", message, (*path, "delay"), "keep the one that says when rows are known", on_key=True
        )
    if time.timezone is not None:
        yield from rules.timezone(time.timezone, (*path, "timezone"))
    for field, column in (("event", time.event), ("known", time.known)):
        if column is None:
            continue
        yield from check_column(column, spec, name, (*path, field), stated=True)
        if column in spec.columns and spec.columns[column].type not in ("timestamp", "date"):
            message = f"{column} is a {spec.columns[column].type}, not a time"
            yield Problem("wrong-type", message, (*path, field), "its column needs type: timestamp")


def _check_rules_of(column: Column, path: Path) -> Iterator[Problem]:
    yield from rules.ordered(column.min, column.max, "min", "max", path)
    for field, value in (("min", column.min), ("max", column.max)):
        if value is not None and column.type in ("string", "boolean", "date", "timestamp"):
            yield Problem(
                "unused-field",
                f"{field} is for numbers, not for {column.type}",
                (*path, field),
                on_key=True,
            )
    if column.pattern is not None and column.type != "string":
        message = f"pattern is for strings, not for {column.type}"
        yield Problem("unused-field", message, (*path, "pattern"), on_key=True)
    elif column.pattern is not None:
        try:
            re.compile(column.pattern)
        except re.error as error:
            yield Problem(
                "invalid-pattern", f"not a regular expression: {error}", (*path, "pattern"), "RE2 syntax"
            )


def _check_rule(rule: Check, spec: DatasetSpec, name: str, path: Path) -> Iterator[Problem]:
    if rule.rows is not None:
        yield from rules.ordered(rule.rows.min, rule.rows.max, "min", "max", (*path, "rows"))
    for index, column in enumerate(rule.unique or ()):
        yield from check_column(column, spec, name, (*path, "unique", index))
    if rule.freshness is not None and spec.time is None:
        hint = "add time: {event: COLUMN} to the dataset"
        yield Problem(
            "missing-time", "freshness needs an event time", (*path, "freshness"), hint, on_key=True
        )


def check_column(
    name: str, dataset: DatasetSpec, of: str, path: Path, stated: bool = False
) -> Iterator[Problem]:
    """A column that must exist: an error if the Dataset lists all its columns, a warning on a likely misspelling.

    `stated`: the name stands in the Dataset's own key or time, which do not vouch for themselves.
    """
    if name in dataset.columns or not dataset.columns:
        return
    message = f'{of} has no column "{name}"'
    if dataset.strict:
        hint = listed(dataset.columns)
        yield Problem("unknown-column", message + did_you_mean(name, dataset.columns), path, hint)
        return
    times = [dataset.time.event, dataset.time.known] if dataset.time else []
    known = {*dataset.columns} if stated else {*dataset.columns, *dataset.key, *(one for one in times if one)}
    if name not in known and (close := get_close_matches(name, known, 1, 0.86)):
        message = f'{of} lists no column "{name}", but "{close[0]}"'
        yield Problem("unknown-column", message, path, "correct it, or list the column", severity="warning")


def code(spec: DatasetSpec) -> Iterable[CodeUse]:
    """The loading function, when it is written in place."""
    return inline(spec.source.function)


def lower(resource: Resource, context: Context) -> Lowered:
    """One run that reads the source, checks it, and writes a snapshot; dependants use the snapshot by its content.

    Readings never overlap: one that is under way is waited for, whatever has come due since, and then the newest request is
    the one that counts. Meanwhile dependants keep the snapshot before, so that a source whose reading takes longer than its
    interval holds nobody up.
    """
    spec = cast(DatasetSpec, resource.spec)
    if spec.source.choice in ("sql", "kafka"):
        return Lowered(unsupported=f"the source {spec.source.choice} cannot be read yet")
    function = bind(spec.source.function, resource, context) if spec.source.function else None
    files = context.facts.files.get(resource.id)
    document = spec.document()
    parts: dict[str, Any] = {
        "definition": {name: value for name, value in document.items() if name != "refresh"},
        "code": function.identity if function else None,
        "files": files.digest if files else None,
    }
    # What changes with the world is read again, and until then the snapshot before is not out of date.
    said = digest(parts if files is None or files.versioned else {**parts, "files": None})[:16]
    asked = _asked(resource, said, context)
    refresh = next((one for one in context.facts.requests if one.id == asked), None)
    name, digests = identify(f"data-{resource.name}", {**parts, "refresh": asked or None})
    step = Step(
        name="dataset",
        subject="dataset",
        document={
            "dataset": resource.name,
            "spec": document,
            "code": function.document if function else None,
            "parameters": dict(spec.source.parameters),
            "files": list(files.paths) if files else None,
        },
        requirements=function.requirements if function else (),
        image=function.image if function else None,
    )
    made = Made(resource.id, said, asked)
    run = Run(name, (step,), f"read {resource.name}", digests, made=made)
    fact, current = context.facts.run(name), context.facts.newest(resource.id, said)
    if fact is not None and fact.phase == "succeeded":
        current = current or (name, fact)
        read = Lowered(workloads=(run,))
    else:
        read = Lowered(
            workloads=(run,),
            waits=(name,),
            failed=fact.message if fact and fact.phase == "failed" else "",
            because=f"{refresh.reason or 'refresh asked for'}, at {refresh.at}" if refresh else "",
            reading=refresh.made if refresh and not (fact and fact.phase == "failed") else None,
        )
    recipe = _recipe(spec, function, files)
    if current is None:
        return replace(read, recipe=recipe)
    result = current[1].results["dataset"]
    return replace(
        read,
        version=result["snapshot"],
        output={
            "path": result["path"],
            "spec": document,
            "types": {column["name"]: column["type"] for column in result.get("columns", [])},
            **({"newest": result["newest"]} if result.get("newest") else {}),
        },
        note=f"{result['rows']:,} rows, snapshot {result['snapshot'][:8]}",
        recipe=recipe,
    )


def _asked(resource: Resource, said: str, context: Context) -> str:
    """Id of the refresh for which the source is read, or was read last; empty for the first reading of a recipe. A reading
    that is under way goes on, and what began after a refresh was asked for covers it."""
    for fact in context.facts.runs_of(resource.id).values():
        if fact.phase in ("pending", "running") and fact.made.made_for == said:
            return fact.made.request
    refresh, current = _refresh(resource, said, context), context.facts.newest(resource.id, said)
    if current is not None and (refresh is None or refresh.made <= current[1].created):
        return current[1].made.request
    return refresh.id if refresh else ""


def _recipe(spec: DatasetSpec, function: Bound | None, files: Files | None) -> str:
    """What git says about the rows: not its checks, not when it is read, and no file that git does not version."""
    document = {name: value for name, value in spec.document().items() if name not in ("checks", "refresh")}
    versioned = files.digest if files and files.versioned else None
    return digest([document, function.identity if function else None, versioned])[:16]


def _refresh(resource: Resource, said: str, context: Context) -> Request | None:
    """The newest request to read this recipe again; one that nobody asks for any more does not count, what was read for it
    does."""
    facts = context.facts
    mine = cast(DatasetSpec, resource.spec).refresh is not None
    found = [
        one
        for one in facts.asked("refresh", resource.name)
        if not one.withdrawn
        and one.made_for in ("", said)
        and (one.asker == PERSON or (one.asker == resource.id and mine))
        and (one.expires is None or facts.now - one.made < one.expires)
    ]
    return max(found, key=lambda one: one.order, default=None)
