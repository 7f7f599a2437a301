"""Sources: the same rows arrive whatever brings them, and what cannot be read says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlspec_runtime.task import TaskError

TABLE = pa.table(
    {"id": [1, 2, 3], "zip": ["01234", "9", None], "x": [0.5, None, 2.0], "flag": [True, False, None]}
)


def read(storage: Any, result: dict[str, Any]) -> pa.Table:
    return pq.read_table(storage.root / result["path"] / "data.parquet")


def test_parquet_csv_json_and_function_give_the_same_snapshot(storage: Any, tmp_path: Path) -> None:
    """Changing the format of a source must not retrain anything: the identity is the content."""
    pq.write_table(TABLE, tmp_path / "a.parquet")
    TABLE.to_pandas().to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row) for row in TABLE.to_pylist()))
    columns = {
        "id": {"type": "int64"}, "zip": {"type": "string", "nullable": True}, "x": {"type": "double", "nullable": True},
        "flag": {"type": "boolean", "nullable": True},
    }  # fmt: skip
    found = {
        kind: storage.dataset(
            {"source": {kind: f"a.{kind}"}, "columns": columns}, files=[tmp_path / f"a.{kind}"]
        )
        for kind in ("parquet", "csv", "json")
    }
    body = f"import pandas; return pandas.DataFrame({TABLE.to_pydict()!r})"
    found["function"] = storage.rows(body, {"columns": columns})
    assert {result["snapshot"] for result in found.values()} == {found["csv"]["snapshot"]}
    assert read(storage, found["csv"]).to_pydict() == TABLE.to_pydict()


@pytest.mark.parametrize(
    "body",
    [
        "import pyarrow; return pyarrow.table({'a': [1, 2]})",
        "import pandas; return pandas.DataFrame({'a': [1, 2]})",
        "return [{'a': 1}, {'a': 2}]",
        "return {'a': [1, 2]}",
    ],
)
def test_every_kind_of_table_is_taken(storage: Any, body: str) -> None:
    """A team keeps the function that it has, whatever it returns."""
    assert read(storage, storage.rows(body)).to_pydict() == {"a": [1, 2]}


def test_a_named_index_becomes_a_column(storage: Any) -> None:
    """pandas code often has its key in the index; losing it silently would lose the key."""
    result = storage.rows(
        "import pandas; return pandas.DataFrame({'a': [1]}, index=pandas.Index([7], name='id'))"
    )
    assert [column["name"] for column in result["columns"]] == ["id", "a"]


def test_a_function_reads_its_own_files_and_takes_parameters(storage: Any) -> None:
    """Relative paths are those of the code bundle, as in the repository, wherever the process was started."""
    code = "import pandas\ndef rows(path, factor=1):\n    return pandas.read_csv(path) * factor\n"
    (storage.root / storage.bundle(load=code) / "rows.csv").write_text("a\n1\n2\n")
    before = Path.cwd()
    result = storage.dataset({"source": {"function": "load.py:rows"}}, code, path="rows.csv", factor=10)
    assert read(storage, result).to_pydict() == {"a": [10, 20]}
    assert Path.cwd() == before


def test_csv_keeps_leading_zeros_of_declared_text(storage: Any, tmp_path: Path) -> None:
    """A zip code is not a number; a reader's guess must not eat its zeros."""
    (tmp_path / "z.csv").write_text("zip,n\n01234,1\n98765,2\n")
    spec = {"source": {"csv": "z.csv"}, "columns": {"zip": {"type": "string"}}}
    assert read(storage, storage.dataset(spec, files=[tmp_path / "z.csv"]))["zip"].to_pylist() == [
        "01234",
        "98765",
    ]


def test_a_late_odd_value_of_an_undeclared_csv_column_makes_it_text(storage: Any, tmp_path: Path) -> None:
    """The reader looks at a sample first; a value after it must not fail the run."""
    (tmp_path / "late.csv").write_text("a\n" + "1\n" * 60_000 + "none\n")
    result = storage.dataset({"source": {"csv": "late.csv"}}, files=[tmp_path / "late.csv"])
    assert result["columns"] == [{"name": "a", "type": "string"}]
    assert result["rows"] == 60_001


def test_files_are_read_in_the_order_of_their_names(storage: Any, tmp_path: Path) -> None:
    """Row order is content, so it must not depend on how a directory lists."""
    for name in ("b", "a"):
        pd.DataFrame({"v": [name]}).to_csv(tmp_path / f"{name}.csv", index=False)
    result = storage.dataset({"source": {"csv": "*.csv"}}, files=[tmp_path / "b.csv", tmp_path / "a.csv"])
    assert read(storage, result)["v"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "load.py:rows returned int, not a table"),
        ("raise KeyError('x')", "load.py:2: KeyError: 'x'"),
        ("import pandas; return pandas.DataFrame({'a': [1, 'b']})", "column a"),
        ("import no_such_thing", "load.py:2: the module no_such_thing is not installed"),
    ],
)
def test_a_function_that_fails_is_named_with_its_line(storage: Any, body: str, message: str) -> None:
    """The user looks at their own file, not at ours."""
    with pytest.raises(TaskError) as caught:
        storage.rows(body)
    assert message in caught.value.message
    assert caught.value.hint


def test_sources_that_this_target_lacks_are_refused(storage: Any) -> None:
    """Never silently nothing."""
    spec = {"source": {"sql": {"connection": "sqlite:///x", "query": "SELECT 1"}}}
    with pytest.raises(TaskError, match="sql of dataset d is not supported"):
        storage.dataset(spec)


def test_a_broken_file_is_an_error_in_one_sentence(storage: Any, tmp_path: Path) -> None:
    """A truncated download is an everyday fault."""
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(TaskError, match="the source of dataset d cannot be read"):
        storage.dataset({"source": {"parquet": "broken.parquet"}}, files=[tmp_path / "broken.parquet"])
