"""What a reviewer reads: each folder of `cases/` is a spec before and after a change, and the plan in words.

`runs.json` says how runs end (see `playing.Script`). Record anew with MLSPEC_RECORD=1, and read what you recorded.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plan.playing import told

CASES = sorted(path for path in (Path(__file__).parent / "cases").iterdir() if path.is_dir())


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_a_plan_reads_as_recorded(case: Path, tmp_path: Path) -> None:
    """The plan is the product: a change of its words or of what follows must be seen by a person."""
    found = told(case, tmp_path)
    expected = case / "expected.txt"
    if os.environ.get("MLSPEC_RECORD"):
        expected.write_text(found)
    assert found == expected.read_text()
