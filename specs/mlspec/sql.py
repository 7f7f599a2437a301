"""What is to be known about a SQL expression, without importing a SQL parser until there is one to judge."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SqlFact:
    """What `mlspec.expressions` says about one expression: the columns that it reads, its normal form and what DuckDB
    evaluates; or what is wrong with it and where."""

    columns: tuple[str, ...]
    normal: str = ""
    sql: str = ""
    problem: str | None = None
    offset: int = 0
    hint: str = ""


Analyse = Callable[[str], SqlFact]


def analyse(text: str) -> SqlFact:
    """Parse one SQL expression; the first call imports SQLGlot (0.2 s)."""
    parsed = importlib.import_module("mlspec.expressions").parse(text)
    return SqlFact(
        tuple(sorted(parsed.columns)), parsed.normal, parsed.sql, parsed.problem, parsed.offset, parsed.hint
    )
