"""Each folder holds one mistake (`bad.yaml`) and what `mlspec validate` prints for it (`expected.txt`).

`MLSPEC_RECORD=1 pytest tests/kinds` writes the expected files again; read every difference before you commit it. The first
line of a bad.yaml says which text the caret must stand under; that is written by hand and never recorded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mlspec import report
from mlspec.project import build

FOLDER = Path(__file__).parent
CASES = sorted(path.parent for path in FOLDER.glob("*/*/bad.yaml"))
CARET = "# Caret under: "


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_the_report_says_what_is_wrong_where_and_what_to_do(case: Path) -> None:
    """Messages are the product: line, column, caret and hint are compared to the letter."""
    texts = {"bad.yaml": (case / "bad.yaml").read_text()}
    diagnostics = build(texts).diagnostics
    printed = report.text(diagnostics, texts) + "\n" + report.summary(diagnostics, 1) + "\n"
    expected = case / "expected.txt"
    if os.environ.get("MLSPEC_RECORD"):
        expected.write_text(printed)
    assert printed == expected.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_one_mistake_gives_one_diagnostic_under_the_text_that_is_wrong(case: Path) -> None:
    """A caret beside the mistake, or a second message for the same mistake, sends people to the wrong line."""
    text = (case / "bad.yaml").read_text()
    diagnostics = build({"bad.yaml": text}).diagnostics
    if case.parent.name == "several":
        assert len(diagnostics) > 1
        return
    assert len(diagnostics) == 1
    first = text.partition("\n")[0]
    if not first.startswith(CARET):
        return
    mark = diagnostics[0].mark
    under = text.splitlines()[mark.line - 1][mark.column - 1 :][: mark.length]
    assert under == first.removeprefix(CARET)


def test_there_are_enough_cases() -> None:
    """Every kind has bad specs, so that a new kind without them is noticed."""
    names = {path.parent.name for path in CASES}
    modules = {path.stem for path in (FOLDER.parents[1] / "specs/mlspec/kinds").glob("[a-z]*.py")}
    assert modules <= names
    assert all(re.fullmatch(r"[a-z0-9_]+", path.name) for path in CASES)
