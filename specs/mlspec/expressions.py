"""SQL row expressions: which SQL a spec may contain, and which columns an expression reads.

`mlspec validate` calls `parse` on every `Sql` field. What a person typed (comments, line breaks, a semicolon at the end) goes
no further than that: linking puts `Expression.normal` into the specs, so it is what identities and task documents hold,
and the runtime parses that again and gives `Expression.sql` to DuckDB. What is allowed is the table below: values of one
row, deterministic, nothing of the machine. SQLGlot parses and prints; it does not decide what an expression means.
Importing this module costs about 0.3 s of CPU (SQLGlot), so import it only where there are expressions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import ParseError, TokenError

from mlspec.resource import SQL_LENGTH

MAX_TOKENS = 1500
MAX_DEPTH = 120
"""Far above what a person writes, far below what exhausts the stack of a recursive parser."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One row expression. If `problem` is set, `sql` and `normal` are empty and `offset` is the character where it stands."""

    text: str
    columns: frozenset[str]
    sql: str
    """What DuckDB evaluates: without comments, every name in quotes."""
    normal: str = ""
    """What a person typed, without comments, line breaks and a semicolon at the end. Not printed from the tree, so that a newer
    parser does not change the identity of a run."""
    problem: str | None = None
    offset: int = 0
    hint: str = ""
    tree: exp.Expr | None = field(default=None, compare=False, repr=False)
    """SQLGlot's tree, for evaluation without a SQL engine."""


ALLOWED: frozenset[type[exp.Expr]] = frozenset(
    {
        # values
        exp.Column, exp.Identifier, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.Var, exp.DataType, exp.DataTypeParam,
        # arithmetic, comparison, logic
        exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Neg, exp.Pow,
        exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ,
        exp.And, exp.Or, exp.Not, exp.In, exp.Between, exp.Is, exp.Case, exp.If, exp.Coalesce, exp.Nullif,
        exp.Cast, exp.TryCast,
        # time
        exp.Interval, exp.Extract, exp.TimestampTrunc, exp.DateTrunc, exp.DateDiff, exp.TimeToUnix, exp.AtTimeZone,
        exp.Year, exp.Month, exp.Day, exp.Hour, exp.Minute, exp.Second, exp.Week, exp.Quarter, exp.DayOfWeek,
        exp.DayOfWeekIso, exp.DayOfYear, exp.DateAdd, exp.DateSub,
        # mathematics
        exp.Abs, exp.Floor, exp.Ceil, exp.Round, exp.Ln, exp.Log, exp.Exp, exp.Sqrt, exp.Cbrt, exp.Sin, exp.Cos, exp.Tan,
        exp.Asin, exp.Acos, exp.Atan, exp.Atan2, exp.Sign, exp.Greatest, exp.Least, exp.Pi, exp.Radians, exp.Degrees,
        exp.IsNan, exp.IsInf,
        # text
        exp.Lower, exp.Upper, exp.Length, exp.Substring, exp.Concat, exp.DPipe, exp.Like, exp.ILike, exp.Trim,
        exp.StartsWith, exp.EndsWith, exp.Contains, exp.Left, exp.Right, exp.Replace, exp.Escape,
    }
)  # fmt: skip
"""Node types of an allowed expression."""

FUNCTIONS = frozenset(
    {"hash", "date_part", "weekday", "epoch_us", "isfinite", "ends_with", "suffix", "prefix"}
)
"""Allowed functions that SQLGlot has no node type for."""

VOLATILE = frozenset(
    [
        "now",
        "today",
        "random",
        "rand",
        "uuid",
        "gen_random_uuid",
        "setseed",
        "nextval",
        "currval",
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "transaction_timestamp",
        "get_current_timestamp",
        "get_current_time",
        "version",
        "getenv",
    ]
)

TYPES = frozenset(
    {
        exp.DType.BOOLEAN, exp.DType.TINYINT, exp.DType.SMALLINT, exp.DType.INT, exp.DType.BIGINT, exp.DType.FLOAT,
        exp.DType.DOUBLE, exp.DType.DECIMAL, exp.DType.TEXT, exp.DType.VARCHAR, exp.DType.CHAR, exp.DType.DATE,
        exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ, exp.DType.TIMESTAMPTZ,
    }
)  # fmt: skip
"""Types that an expression may cast to."""

PARTS = frozenset(
    [
        "year",
        "month",
        "day",
        "hour",
        "minute",
        "second",
        "millisecond",
        "microsecond",
        "week",
        "quarter",
        "dow",
        "dayofweek",
        "isodow",
        "doy",
        "dayofyear",
        "epoch",
        "isoyear",
    ]
)
"""Parts that `extract` takes, and units of `date_trunc`, `date_diff` and INTERVAL."""

ALLOWED_HINT = (
    "an expression sees one row: columns, literals, arithmetic, comparisons, AND/OR/NOT, IN, BETWEEN, CASE, CAST, "
    "COALESCE, dates and times, common mathematics and text functions"
)


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Parse and check one row expression in DuckDB's SQL. Never raises: a fault is `problem`, its place `offset`."""
    try:
        return _parse(text)
    except _Refused as refused:
        return _bad(text, refused.problem, refused.offset, refused.hint)
    except RecursionError:
        return _bad(text, "the expression is too deeply nested", 0, "compute it in the dataset's function")
    except Exception as error:
        # the parser of a foreign library over any text: whatever it raises, the text is not an expression
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return _bad(text, f"not a SQL expression: {reason}", 0, ALLOWED_HINT)


def identifier(name: str) -> str:
    """A column name as quoted SQL."""
    return '"' + name.replace('"', '""') + '"'


class _Refused(Exception):
    def __init__(self, problem: str, offset: int, hint: str = ALLOWED_HINT) -> None:
        super().__init__(problem)
        self.problem, self.offset, self.hint = problem, offset, hint


def _bad(text: str, problem: str, offset: int, hint: str) -> Expression:
    place = max(0, min(offset, max(len(text) - 1, 0)))
    return Expression(text, frozenset(), "", problem=problem, offset=place, hint=hint)


def _parse(text: str) -> Expression:
    if not text.strip():
        raise _Refused("the expression is empty", 0)
    control = next(
        (place for place, letter in enumerate(text) if ord(letter) < 32 and letter not in "\n\r\t"), None
    )
    if control is not None:
        raise _Refused("the expression has a control character", control)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Refused("the expression has a character that is not Unicode text", error.start) from None
    tree = _tree(text)
    columns = set()
    for node in tree.walk():
        _check(node, text)
        if isinstance(node, exp.Column):
            columns.add(node.name)
    sql = _print(tree)
    if (
        _print(_tree(sql)) != sql
    ):  # it repairs some texts, such as a lone @; what is run must be what was read
        raise _Refused("not a SQL expression", 0)
    normal = _plain(text)
    if normal != text and not _means(normal, sql):
        normal = sql
    if len(normal) > SQL_LENGTH:
        raise _Refused(f"the expression is too long; at most {SQL_LENGTH} characters are read", 0)
    return Expression(text, frozenset(columns), sql, normal, tree=tree)


def _plain(text: str) -> str:
    """The words of a text, with one space where they stand apart."""
    words: list[str] = []
    end = 0
    for token in _tokens(text):
        words += [" "] if words and token.start > end else []
        words.append(text[token.start : token.end + 1])
        end = token.end + 1
    return "".join(words)


def _print(tree: exp.Expr) -> str:
    return tree.sql(dialect="duckdb", identify=True, comments=False)


def _means(text: str, sql: str) -> bool:
    """Whether a text is read as the expression that prints as `sql`."""
    try:
        return _print(_tree(text)) == sql
    except _Refused:
        return False


def _tree(text: str) -> exp.Expr:
    """SQLGlot's tree of the one expression that the text is."""
    logger = logging.getLogger("sqlglot")
    quiet, logger.disabled = logger.disabled, True  # it warns about statements, which are refused below
    try:
        tokens = _tokens(text)
        if len(tokens) > MAX_TOKENS:
            raise _Refused(f"the expression has {len(tokens)} tokens; at most {MAX_TOKENS} are read", 0)
        depth = 0
        for token in tokens:
            depth += (token.text in "([{") - (token.text in ")]}") if len(token.text) == 1 else 0
            if depth > MAX_DEPTH:
                raise _Refused("the expression is too deeply nested", token.start)
        semicolon = next((token.start for token in tokens if token.token_type.name == "SEMICOLON"), None)
        if semicolon is not None:
            raise _Refused("one expression is allowed, without a semicolon", semicolon)
        trees = DuckDB().parser().parse(tokens, text)
    except TokenError:
        quote = max(text.rfind("'"), text.rfind('"'), 0)
        raise _Refused("a quote or comment is not closed", quote, "close it") from None
    except ParseError as error:
        raise _Refused(*_syntax(text, error)) from None
    finally:
        logger.disabled = quiet
    if len(trees) != 1 or trees[0] is None:
        raise _Refused("the expression is empty", 0)
    return trees[0]


def _tokens(text: str) -> list[Any]:
    """The tokens without comments, and without the semicolon that closes what was copied from a SQL prompt."""
    tokens = DuckDB().tokenize(text)
    while tokens and tokens[-1].token_type.name == "SEMICOLON":
        tokens.pop()
    return tokens


def _syntax(text: str, error: ParseError) -> tuple[str, int]:
    """Message and offset of a syntax error. SQLGlot counts columns up to the end of the token."""
    first = error.errors[0] if error.errors else {}
    line, column, shown = first.get("line") or 1, first.get("col") or 1, str(first.get("highlight") or "")
    start = sum(len(one) + 1 for one in text.split("\n")[: int(line) - 1])
    offset = start + max(0, int(column) - max(1, len(shown)))
    if "Required keyword" in str(first.get("description")):
        return f"something is missing after {shown!r}", offset
    return f"not a SQL expression at {shown!r}" if shown else "not a SQL expression", offset


def _check(node: exp.Expr, text: str) -> None:
    """Raise `_Refused` unless this node, apart from its children, is allowed."""
    match node:
        case exp.Query() | exp.Subquery() | exp.Exists() | exp.Table():
            problem = "a query is not allowed in a row expression"
            raise _Refused(problem, _offset(node, text), "join the tables in the dataset's source")
        case exp.Window() | exp.AggFunc():
            name = (
                (node.this if isinstance(node, exp.Window) else node).sql_name().lower()
                if _named(node)
                else "it"
            )
            raise _Refused(
                f"{name} looks at several rows; an expression sees one row",
                _offset(node, text),
                "aggregates are features of a FeatureSet: {mean: column, window: 3h}",
            )
        case exp.Star():
            problem = "* stands for no column here"
            raise _Refused(problem, max(text.find("*"), 0), 'rows are counted by {count: "*", window: ...}')
        case exp.Alias():
            raise _Refused(
                "not a SQL expression; it reads like two expressions side by side",
                _offset(node.args["alias"], text),
            )
        case exp.Placeholder() | exp.Parameter():
            raise _Refused("parameters are not allowed", _offset(node, text))
        case exp.Anonymous():
            name = node.name.lower()
            if name in FUNCTIONS:
                _part(node.expressions[0] if name == "date_part" and node.expressions else None, node, text)
                return
            raise _function(name, node, text)
        case exp.Column():
            if node.table or not isinstance(node.this, exp.Identifier):
                problem = f"{node.sql(dialect='duckdb')} names a table; columns stand alone"
                raise _Refused(problem, _offset(node, text), f"write {node.name}")
        case exp.In():
            if node.args.get("query"):
                _check(node.args["query"], text)
            if node.args.get("unnest") or node.args.get("field"):
                problem = "IN takes a list of values in parentheses"
                raise _Refused(problem, _offset(node, text), "such as carrier IN ('AA', 'UA')")
        case exp.DataType():
            if node.this not in TYPES or any(
                not isinstance(one, exp.DataTypeParam) for one in node.expressions
            ):
                name = node.sql(dialect="duckdb")
                hint = "BOOLEAN, INTEGER, BIGINT, FLOAT, DOUBLE, DECIMAL, VARCHAR, DATE, TIMESTAMP"
                raise _Refused(f"the type {name} is not allowed in a cast", _offset(node, text), hint)
        case exp.Extract() | exp.TimestampTrunc() | exp.DateTrunc() | exp.DateDiff() | exp.Interval():
            unit = node.args.get("unit") if not isinstance(node, exp.Extract) else node.this
            _part(unit, node, text)
        case exp.AtTimeZone():
            if not (isinstance(node.args.get("zone"), exp.Literal)):
                problem = "the time zone must be a literal"
                raise _Refused(problem, _offset(node, text), "AT TIME ZONE 'America/New_York'")
        case exp.Literal():
            if node.args.get("is_string") is False and len(node.name) > 40:
                raise _Refused("the number is too long", _offset(node, text))
        case _:
            pass
    if type(node) not in ALLOWED:
        if isinstance(node, exp.Func):
            raise _function(node.sql_name().lower(), node, text)
        problem = f"{type(node).__name__.upper()} is not allowed in a row expression"
        raise _Refused(problem, _offset(node, text))


def _named(node: exp.Expr) -> bool:
    return isinstance(node.this if isinstance(node, exp.Window) else node, exp.Func)


def _part(unit: exp.Expr | None, node: exp.Expr, text: str) -> None:
    if unit is None and isinstance(node, exp.Anonymous):
        return
    name = unit.name.lower().rstrip("s") if isinstance(unit, exp.Literal | exp.Var) else ""
    if name not in PARTS:
        shown = name or "an expression"
        raise _Refused(f"{shown} is no part of a time", _offset(node, text), ", ".join(sorted(PARTS)))


def _function(name: str, node: exp.Expr, text: str) -> _Refused:
    if name in VOLATILE:
        return _Refused(
            f"{name} gives another value at each call; expressions must be repeatable",
            _offset(node, text),
            "take the moment from a column of the row",
        )
    return _Refused(f"the function {name} is not allowed", _offset(node, text))


def _offset(node: exp.Expr, text: str) -> int:
    """The first character of a node: SQLGlot knows it for names, literals and most functions."""
    starts = [int(one.meta["start"]) for one in node.walk() if "start" in one.meta]
    if starts:
        return min(starts)
    name = node.sql_name().lower() if isinstance(node, exp.Func) else ""
    return max(text.lower().find(name), 0) if name else 0
