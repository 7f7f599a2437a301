"""Checks: what breaks is counted, shown and, in one error, told completely."""

from __future__ import annotations

from typing import Any

import pytest

from mlspec_runtime.task import TaskError

ROWS = "return {'id': [1, 2, 3, 3], 'x': [0.0, 5.0, -3.0, None], 'code': ['AB', 'ab', 'ABC', 'AB'], 'ok': [True, True, False, None]}"


def run(storage: Any, **spec: Any) -> dict[str, Any]:
    return storage.rows(ROWS, spec)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("spec", "title", "broken"),
    [
        ({"columns": {"x": {"type": "double"}}}, "x is not null", 1),
        ({"columns": {"x": {"type": "double", "nullable": True, "min": 0}}}, "x >= 0", 1),
        ({"columns": {"x": {"type": "double", "nullable": True, "max": -1}}}, "x <= -1", 2),
        ({"columns": {"code": {"type": "string", "values": ["AB", "ab"]}}}, "code in [AB, ab]", 1),
        ({"columns": {"code": {"type": "string", "pattern": "[A-Z]{2}"}}}, "code matches [A-Z]{2}", 2),
        ({"columns": {"id": {"type": "int64", "unique": True}}}, "id is unique", 1),
        ({"columns": {"id": {"type": "int64", "values": [1, 2]}}}, "id in [1, 2]", 2),
        ({"checks": [{"sql": "ok"}]}, "ok", 2),
        ({"checks": [{"sql": "x > -10"}]}, "x > -10", 1),
        ({"checks": [{"unique": ["id", "code"]}]}, "(id, code) is unique", 0),
    ],
)
def test_each_rule_counts_the_rows_that_break_it(
    storage: Any, spec: dict[str, Any], title: str, broken: int
) -> None:
    """The count is what a person judges by; NULL breaks nullability and SQL conditions, nothing else."""
    entries = [*spec.get("columns", {}).values(), *spec.get("checks", [])]
    for entry in entries:
        entry["severity"] = "warn"
    result = run(storage, **spec)
    found = {check["check"]: check for check in result["checks"]}
    assert found[title]["broken"] == broken
    assert found[title]["passed"] == (broken == 0)


def test_all_failed_checks_come_in_one_error_with_examples(storage: Any) -> None:
    """Whoever mends the data wants the whole list and a row to look at."""
    columns = {"x": {"type": "double", "min": 0}, "code": {"type": "string", "pattern": "[A-Z]+"}}
    with pytest.raises(TaskError) as caught:
        run(storage, columns=columns, key=["id"], checks=[{"rows": {"min": 10}}])
    message = caught.value.message
    assert message.startswith("4 of 6 checks of dataset d fail")
    assert "x >= 0: broken in 1 of 4 rows (25%), for example id=3, x=-3.0" in message
    assert "code matches [A-Z]+: broken in 1 of 4 rows (25%), for example id=2, code=ab" in message
    assert "rows from 10: there are 4" in message
    assert not (storage.root / "datasets").exists()


@pytest.mark.parametrize(("tolerate", "passes"), [(0.25, True), ("25%", True), (0.24, False)])
def test_a_tolerated_share_passes(storage: Any, tolerate: object, passes: bool) -> None:
    """Real data has a few odd rows; the share is the bound, inclusive."""
    checks = [{"sql": "id < 3 OR code = 'AB'", "tolerate": tolerate, "severity": "warn"}]
    assert run(storage, checks=checks)["checks"][-1]["passed"] == passes


def test_warnings_stand_in_the_result_and_stop_nothing(storage: Any) -> None:
    """`severity: warn` is for what a person should hear of."""
    result = run(storage, checks=[{"sql": "x >= 0", "severity": "warn"}], key=["id"])
    assert [warning.split(":")[0] for warning in result["warnings"]] == ["key (id) is unique", "x >= 0"]


@pytest.mark.parametrize("expression", ["y > 0", "x +", "id = 'a'"])
def test_a_check_that_cannot_be_computed_is_named(storage: Any, expression: str) -> None:
    """DuckDB's picture of a 3,000 character query helps nobody."""
    with pytest.raises(TaskError) as caught:
        run(storage, checks=[{"sql": expression}, {"sql": "id > 0"}])
    assert f"`{expression}`" in caught.value.message
    assert "\n" not in caught.value.message


def test_an_expression_reaches_no_file(storage: Any, tmp_path: Any) -> None:
    """A check is a condition over the row, not a program."""
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(TaskError, match="a query is not allowed"):
        run(storage, checks=[{"sql": f"(SELECT count(*) FROM read_csv('{tmp_path}/secret.csv')) > 0"}])


def test_freshness_is_the_age_of_the_newest_event(storage: Any) -> None:
    """A source that quietly stops delivering is the commonest outage of all."""
    spec = {"time": {"event": "at"}, "checks": [{"freshness": {"maxAge": "90d"}, "severity": "warn"}]}
    old = storage.rows("return {'at': ['2013-01-01T00:00:00Z']}", spec)
    assert old["warnings"][0].startswith("newest row at most 90d old: it is of 2013-01-01T00:00:00+00:00, ")
    body = "import datetime as d; return {'at': [d.datetime.now(d.UTC)]}"
    assert storage.rows(body, spec)["warnings"] == []
