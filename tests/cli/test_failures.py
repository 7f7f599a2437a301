"""A failure names the line in git that asked for it, and the command that shows more."""

from __future__ import annotations

import re
from pathlib import Path

from cli.shell import mlspec

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: numbers}
spec:
  source: {function: "load.py:rows"}
"""
LOAD = "def rows():\n    raise ValueError('no file today')\n"


def test_a_failed_run_points_back_into_the_specs(tmp_path: Path) -> None:
    """Whoever is woken by it did not write the spec."""
    (tmp_path / "data.yaml").write_text(f"# The numbers.\n{SPEC}")
    (tmp_path / "load.py").write_text(LOAD)
    try:
        applied = mlspec(tmp_path, "apply", "--yes")
        assert applied.returncode == 1, applied.stderr
        assert re.search(
            r"failed: .*load\.py:2: ValueError: no file today.*\n +data\.yaml:2; next: mlspec logs data-numbers-\w{8}\n",
            applied.stdout,
        ), applied.stdout
        assert "data.yaml:2; next: mlspec logs Dataset/numbers" in mlspec(tmp_path, "status").stdout
    finally:
        mlspec(tmp_path, "destroy", "--yes", "--purge")
