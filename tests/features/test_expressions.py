"""Row expressions: what is allowed, what is refused and where, and that the normalised text means what was written."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlspec.expressions import parse

ALLOWED = {
    "arr_delay > 15": {"arr_delay"},
    "scheduled - INTERVAL 2 HOUR": {"scheduled"},
    "scheduled - INTERVAL '90 minutes'": {"scheduled"},
    "extract(hour FROM scheduled)": {"scheduled"},
    "hour(scheduled) + isodow(scheduled) * 24": {"scheduled"},
    "date_trunc('day', scheduled)": {"scheduled"},
    "date_diff('minute', scheduled, actual)": {"scheduled", "actual"},
    "extract(hour FROM scheduled AT TIME ZONE 'America/New_York')": {"scheduled"},
    "CASE WHEN a IS NULL THEN 0 WHEN a BETWEEN 1 AND 2 THEN 1 ELSE b END": {"a", "b"},
    "CASE carrier WHEN 'AA' THEN 1 END": {"carrier"},
    "coalesce(nullif(a, 0), b, 1.5)": {"a", "b"},
    "TRY_CAST(carrier AS DOUBLE)": {"carrier"},
    "a::DOUBLE / b": {"a", "b"},
    "a // 2 + a % 3 - -b ** 2": {"a", "b"},
    "-a * (b - a) / 2": {"a", "b"},
    "NOT a > 1 AND b < 2 OR a IS NOT NULL": {"a", "b"},
    "a NOT IN (1, 2, b)": {"a", "b"},
    "a IS DISTINCT FROM b": {"a", "b"},
    "ln(abs(b) + 1) + log10(2) + exp(0) + sqrt(4) + round(b, 1) + floor(b) + ceil(b)": {"b"},
    "sin(b) + cos(b) + greatest(a, b) + least(a, b) + mod(a, 2) + sign(b) + pi()": {"a", "b"},
    "lower(carrier) || upper(carrier) || substring(carrier, 1, 1) || concat(carrier, 'x')": {"carrier"},
    "carrier LIKE 'A%' AND length(trim(carrier)) = 2": {"carrier"},
    'hash("carrier", a)': {"carrier", "a"},
    "scheduled > TIMESTAMPTZ '2013-01-01 00:00:00+00'": {"scheduled"},
    "CAST(scheduled AS DATE) = DATE '2013-01-02'": {"scheduled"},
    "a -- the delay": {"a"},
    '"order"': {"order"},
}

REFUSED = {
    "": ("empty", 0),
    "a >": ("missing after '>'", 2),
    "a ! b": ("at '!'", 2),
    "a b": ("side by side", 2),
    "'abc": ("not closed", 0),
    "a; b": ("semicolon", 1),
    "*": ("no column", 0),
    "a + count(b)": ("several rows", 4),
    "sum(a) OVER (ORDER BY b)": ("several rows", 0),
    "a > (SELECT 1)": ("query", 12),
    "a IN (SELECT b FROM t)": ("query", 13),
    "EXISTS (SELECT 1)": ("query", 15),
    "SELECT a": ("query", 7),
    "a + random()": ("another value at each call", 4),
    "now() - a": ("another value at each call", 0),
    "current_date": ("another value at each call", 0),
    "t.a + 1": ("names a table", 0),
    "1 + read_text('/etc/passwd')": ("read_text is not allowed", 4),
    "getenv('HOME')": ("another value", 0),
    "a = $1": ("parameters", 0),
    "DROP TABLE a": ("not allowed", 11),
    "[a, b]": ("array is not allowed", 1),
    "extract(moonphase FROM a)": ("moonphase is no part of a time", 23),
    "CAST(a AS STRUCT(x INT))": ("type", 17),
    "a IN b": ("list of values", 0),
    "(" * 1400: ("nested", 120),
    "1" + "+1" * 1999: ("tokens", 0),
    "a\0b": ("control character", 1),
}


@pytest.mark.parametrize("text", ALLOWED)
def test_allowed_expressions_say_which_columns_they_read(text: str) -> None:
    """The columns decide what is read from a snapshot and what a request must bring."""
    found = parse(text)
    assert found.problem is None
    assert found.columns == ALLOWED[text]


@pytest.mark.parametrize("text", REFUSED)
def test_refused_expressions_say_why_and_where(text: str) -> None:
    """The caret of a diagnostic stands at the offset."""
    found = parse(text)
    message, offset = REFUSED[text]
    assert found.problem is not None
    assert message in found.problem
    assert (found.offset, found.sql) == (offset, "")
    assert found.hint


@pytest.mark.parametrize("text", ALLOWED)
def test_the_normalised_text_means_what_was_written(text: str) -> None:
    """The engine sees only the normalised text; a parser that reads precedence otherwise would change the model."""
    session = duckdb.connect()
    session.execute("SET TimeZone = 'UTC'")
    session.execute(
        "CREATE TABLE t AS SELECT * FROM (VALUES (1, 2.5::DOUBLE, 'AA', TIMESTAMPTZ '2013-01-02 03:04:05+00', 7),"
        " (NULL, -3.25, ' b ', '2013-03-10 07:30:00+00', 8), (4, NULL, NULL, '1969-12-31 23:59:59+00', 9))"
        ' AS rows(a, b, carrier, scheduled, "order")'
    )
    session.execute(
        "ALTER TABLE t ADD COLUMN actual TIMESTAMPTZ DEFAULT TIMESTAMPTZ '2013-01-02 05:00:00+00'"
    )
    session.execute("ALTER TABLE t ADD COLUMN arr_delay DOUBLE DEFAULT 16")
    written: pa.Table = session.sql(f"SELECT (\n{text}\n) AS x FROM t").to_arrow_table()
    normalised: pa.Table = session.sql(f"SELECT ({parse(text).sql}) AS x FROM t").to_arrow_table()
    assert written.equals(normalised)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from([*"()[]{}*+-,.;'\"$?:@!|&<>=\\\n ", "a", "1", "CASE", "WHEN", "END", "IN", "SELECT", "NOT", "AS",
                         "INTERVAL", "CAST", "extract(", "/*", "--", "IS", "LIKE", "0x", "1e", "lambda"]),
        max_size=20,
    ).map(" ".join)
)  # fmt: skip
def test_any_text_is_an_expression_or_a_problem(text: str) -> None:
    """`mlspec validate` never shows a traceback; what passes is printable SQL that parses to itself."""
    found = parse(text)
    if found.problem is None:
        assert parse(found.sql).sql == found.sql
    else:
        assert 0 <= found.offset <= max(len(text) - 1, 0)
