"""The DuckDB session of a step: in memory, UTC, Arrow tables by name, nothing of the machine in reach of an expression."""

from __future__ import annotations

import duckdb
import pyarrow as pa


def connect(**tables: pa.Table) -> duckdb.DuckDBPyConnection:
    """A session in which `tables` can be queried by name, and no file or network can be read."""
    session = duckdb.connect()
    session.execute("SET TimeZone = 'UTC'")
    session.execute("SET enable_external_access = false")
    for name, table in tables.items():
        session.register(name, table)
    return session


def quote(name: str) -> str:
    """A column name as SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def message(error: duckdb.Error) -> str:
    """The first line of DuckDB's message without its class prefix and its picture of the query."""
    line = str(error).strip().splitlines()[0]
    return line.partition("Error: ")[2] or line
