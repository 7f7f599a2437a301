"""What a person typed around an expression (comments, line breaks, a semicolon) changes neither its meaning nor an identity, and
breaks nothing, wherever the expression runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.test_expressions import ALLOWED
from features.worlds import SOURCE
from mlspec.expressions import Expression, parse
from mlspec.kind_table import KINDS
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec.project import Project, build
from mlspec_runtime import dataset, frames
from mlspec_runtime.features import join, materialise
from mlspec_runtime.features.online import ViewReader
from mlspec_runtime.monitor.evaluate import evaluate
from monitor.log_writer import TRUTH, World, wall

TYPED = {
    "delay > 15 -- late": "delay > 15",
    'delay > 15 -- it\'s "late"; or /* is it?': "delay > 15",
    "/* minutes */ delay > 15": "delay > 15",
    "delay /* a /* nested */ one; */ > 15": "delay > 15",
    "delay > 15;": "delay > 15",
    "delay > 15 ; -- copied from a prompt": "delay > 15",
    "delay\n  > 15\n": "delay > 15",
    "\r\n\tdelay >\r\n15": "delay > 15",
    "delay -- of\n> -- more than\n15": "delay > 15",
    "delay > - -- minus\n-15": "delay > - -15",
    "note = '-- no comment'": "note = '-- no comment'",
    "note = '/* none */' -- one": "note = '/* none */'",
    "note = 'a;  b' ;": "note = 'a;  b'",
    "note = 'it''s -- one text' /* and this is none */": "note = 'it''s -- one text'",
    "note = 'two\nlines'": "note = 'two\nlines'",
    '"a -- b" > 1 -- c': '"a -- b" > 1',
    "stadt = 'Zürich – 東京' -- größer 🙂": "stadt = 'Zürich – 東京'",
    "größe\u00a0> 1": "größe > 1",
}
"""What is typed -> its normal form."""

AROUND = {
    "comment": "{} -- late; isn't it?",
    "comment before": "-- why\n{}",
    "block comment": "/* 'why */ {} /* ; -- */",
    "semicolon": "{};",
    "semicolon and comment": "{} ; -- copied",
    "lines": "\n{}\r\n",
    "unicode": "{} -- größer als – 東京 🙂",
}
"""Ways to type the same expression."""


@pytest.mark.parametrize("text", TYPED)
def test_the_normal_form_is_the_text_without_comments(text: str) -> None:
    """It stands in messages and identities, so people must know it again, and a text stays a text."""
    found = parse(text)
    assert found.problem is None
    assert found.normal == TYPED[text]
    assert parse(found.normal) == Expression(found.normal, found.columns, found.sql, found.normal)


@pytest.mark.parametrize(
    ("text", "problem", "offset"),
    [
        ("-- delay > 15", "empty", 0),
        ("/* delay */ ;", "empty", 0),
        ("a; b;", "semicolon", 1),
        ("a -- x\n; b", "semicolon", 7),
        ("a /* x", "not closed", 0),
    ],
)
def test_a_comment_hides_no_second_statement(text: str, problem: str, offset: int) -> None:
    """What is left when comments are gone must still be one expression."""
    found = parse(text)
    assert found.problem is not None
    assert problem in found.problem
    assert (found.offset, found.sql, found.normal) == (offset, "", "")


GAPS = re.compile(r"""('[^']*'|"[^"]*")| """)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(text for text in ALLOWED if "--" not in text)),
    st.lists(st.sampled_from([" ", "\n", "\t ", " -- '\n", " /* ; \" */", " /* a\nb */ "]), min_size=40, max_size=40),
    st.sampled_from(["", ";", " ;\n", " -- end", "\n/* end */"]),
)  # fmt: skip
def test_layout_and_comments_never_change_the_normal_form(text: str, gaps: list[str], end: str) -> None:
    """Any of them in any place: otherwise a comment trains a model."""
    between = iter(gaps)
    typed = GAPS.sub(lambda match: match[1] or next(between), text) + end
    assert (parse(typed).normal, parse(typed).sql) == (parse(text).normal, parse(text).sql)


ROOT = Path(__file__).parents[2]


@cache
def written() -> tuple[str, ...]:
    """Every expression of the examples and of the tests' specs, as it was typed."""
    files = [*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("tests/specs/valid/*.yaml")]
    files += ROOT.glob("tests/plan/cases/*/after.yaml")
    folders: dict[Path, dict[str, str]] = {}
    for file in files:
        folders.setdefault(file.parent, {})[file.name] = file.read_text()
    found = {text for texts in folders.values() for text in _texts(build(texts).project)}
    return tuple(sorted(found | set(ALLOWED)))


def _texts(project: Project | None) -> Iterator[str]:
    for resource in project.order if project else ():
        for use in KINDS[resource.kind].expressions(resource.spec, project.catalog):  # type: ignore[union-attr]
            data: Any = project.documents[resource.id].data  # type: ignore[union-attr]
            for step in use.path:
                data = data[step]
            yield data.strip().removesuffix(";")  # which DuckDB takes for the end of the query


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "DOUBLE": st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 15.0, float("nan"), float("inf")]),
    "VARCHAR": st.text("aAbB19 -';%é東", max_size=6) | st.sampled_from(["AA", "12.5", "XX"]),
    "TIMESTAMPTZ": st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC)),
    "BIGINT": st.integers(-(2**31), 2**31),
    "BOOLEAN": st.booleans(),
    "DATE": st.dates(date(1950, 1, 1), date(2050, 1, 1)),
}


def types_for(session: duckdb.DuckDBPyConnection, text: str, columns: list[str]) -> tuple[str, ...]:
    """Types of the columns with which the typed text can be computed."""
    for types in itertools.product(VALUES, repeat=len(columns)):
        nothing = [f'NULL::{kind} AS "{name}"' for name, kind in zip(columns, types, strict=True)]
        try:
            session.sql(f"SELECT (\n{text}\n) FROM (SELECT {', '.join([*nothing, '1 AS one'])})")
        except duckdb.Error:
            continue
        return types
    raise AssertionError(f"nothing fits {text}")


def computed(session: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Values and type of an expression over the table t, or that it cannot be computed."""
    try:
        found = session.sql(f"SELECT (\n{sql}\n) AS x FROM t").to_arrow_table()
    except duckdb.Error as error:
        return type(error).__name__
    return f"{found.schema.field(0).type} {found['x'].to_pylist()!r}"


@pytest.mark.parametrize("text", written())
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_what_runs_gives_what_was_typed(text: str, data: st.DataObject) -> None:
    """On random rows with NULLs: the parser stands between people and DuckDB and must not move a value."""
    parsed = parse(text)
    assert parsed.problem is None
    columns = sorted(parsed.columns)
    session = duckdb.connect()
    session.execute("SET TimeZone = 'UTC'")
    types = types_for(session, text, columns)
    rows = data.draw(
        st.lists(st.tuples(*(VALUES[kind] | st.none() for kind in types)), min_size=1, max_size=12)
    )
    declared = ["one INT", *(f'"{name}" {kind}' for name, kind in zip(columns, types, strict=True))]
    session.execute(f"CREATE TABLE t ({', '.join(declared)})")
    places = ", ".join("?" * len(declared))
    session.executemany(f"INSERT INTO t VALUES ({places})", [[1, *row] for row in rows])
    expected = computed(session, text)
    assert computed(session, parsed.sql) == expected
    assert computed(session, parse(parsed.normal).sql) == expected


# --- where expressions run ---------------------------------------------------------------------------------------------

N = 400
ROWS = pa.table(
    {
        "id": pa.array(range(N), pa.int64()),
        "delay": pa.array([float(i % 40) for i in range(N)]),
        "note": pa.array(["-- no" if i % 3 else "é" for i in range(N)]),
        "at": pa.array([(i + 1) * 3_600_000_000 for i in range(N)], pa.timestamp("us", "UTC")),
    }
)
DATA: dict[str, Any] = {"source": SOURCE, "key": ["id"], "time": {"event": "at", "delay": "0s"}}


def stored(root: Path) -> Path:
    """A storage root with one snapshot."""
    folder = root / "datasets/d/s1"
    folder.mkdir(parents=True)
    pq.write_table(ROWS, folder / "data.parquet")
    return root


def checked(root: Path, around: str) -> Any:
    """The counts of a dataset's SQL check."""
    spec = {"source": {"parquet": "data.parquet"}, "checks": [{"sql": around.format("delay > 15"), "severity": "warn"}]}  # fmt: skip
    files = [str(root / "datasets/d/s1/data.parquet")]
    document = {
        "name": "d-1",
        "step": "dataset",
        "dataset": "d",
        "spec": spec,
        "code": None,
        "parameters": {},
    }
    found = dataset.run(document | {"files": files}, root / "checked")
    return [(one["broken"], one["rows"]) for one in found["checks"]]


def framed(root: Path, around: str) -> Any:
    """A frame of a dataset with a label and a condition."""
    use = {"dataset": "d", "label": around.format("delay > 15"), "where": around.format("note = '-- no'")}
    entry = {"use": use, "dataset": {"path": "datasets/d/s1", "spec": DATA}, "view": None}
    return frames.build("train", entry, root).table


def viewed(root: Path, around: str) -> Any:
    """A view in every one of its expressions, over a set with a condition, asked offline and online."""
    features = {
        "mean_1d": {"mean": around.format("delay * 2"), "window": "1d"},
        "newest": around.format("delay"),
    }
    one = {"dataset": "d", "key": ["note"], "where": around.format("delay > 3"), "features": features}
    made = materialise.run(
        {"set": "s", "version": "v1", "spec": one, "dataset": {"path": "datasets/d/s1", "spec": DATA}}, root
    )
    groups = [
        {"set": "s", "key": {"note": around.format("note")}},
        {"row": {"hour": around.format("hour(at)")}},
    ]
    view = {
        "ask": {"dataset": "d", "at": around.format("at - INTERVAL 2 HOUR")},
        "label": around.format("delay > 15"),
        "features": groups,
    }
    sets = {"s": (FeatureSetSpec.model_validate(one), root / made["path"])}
    where = around.format("note <> 'é'")
    spec, asking = FeatureViewSpec.model_validate(view), DatasetSpec.model_validate(DATA)
    offline = join.join(root / "datasets/d/s1/data.parquet", asking, spec, sets, where=where)
    reader = ViewReader(spec, asking, sets)
    asked = {name: ROWS[name].to_pylist()[-9:] for name in ("note", "at")}
    online, moments = reader.read(asked, 9)
    reader.close()
    return offline, {name: repr(column) for name, column in online.items()}, repr(moments)


def judged(root: Path, around: str) -> Any:
    """The performance that a policy measures by its label."""
    world = World(root / "judged")
    for day in range(3):
        world.day(day)
    spec = {
        "truth": TRUTH | {"label": around.format("arr_delay > 15")},
        "alerts": {"accuracy": {"metric": "auc", "below": 0.7}},
    }
    found = evaluate(world.task(spec), world.root, wall(3))["performance"]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("runs", [checked, framed, viewed, judged], ids=lambda one: one.__name__)
@pytest.mark.parametrize("around", AROUND)
def test_it_runs_wherever_it_stands(tmp_path: Path, around: str, runs: Any) -> None:
    """`label: delay > 15 -- late` was valid, and every evaluation of its policy failed."""
    assert runs(stored(tmp_path / "typed"), AROUND[around]) == runs(stored(tmp_path / "plain"), "{}")
