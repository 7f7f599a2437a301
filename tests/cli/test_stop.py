"""`mlspec stop` on this machine: a run that takes too long is ended by hand, and started again by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cli.shell import mlspec

SPECS = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: slow}
spec: {source: {function: "load.py:rows"}}
"""
SLOW = "import time\n\ndef rows():\n    time.sleep(600)\n"


def test_a_run_is_stopped_and_counts_as_failed(tmp_path: Path) -> None:
    """Whoever sees a mistake in a training that takes hours must be able to end it, and nothing may bring it back by itself."""
    (tmp_path / "slow.yaml").write_text(SPECS)
    (tmp_path / "load.py").write_text(SLOW)
    try:
        late = mlspec(tmp_path, "apply", "--yes", "--timeout", "1")
        assert late.returncode == 1, late.stdout + late.stderr
        assert "Not done after" in late.stderr
        runs = json.loads(mlspec(tmp_path, "runs", "--output", "json").stdout)["runs"]
        [name] = [one["run"] for one in runs]

        unknown = mlspec(tmp_path, "stop", "no-such-run", "--yes")
        assert unknown.returncode == 1
        assert name in unknown.stderr

        stopped = mlspec(tmp_path, "stop", name, "--yes")
        assert stopped.returncode == 0, stopped.stderr
        until = time.monotonic() + 30
        phases = ["running"]
        while phases != ["failed"] and time.monotonic() < until:
            listed = json.loads(mlspec(tmp_path, "runs", "--output", "json").stdout)["runs"]
            phases = [one["phase"] for one in listed]
        assert phases == ["failed"]
        assert "slow.yaml:1; next: mlspec logs Dataset/slow" in mlspec(tmp_path, "status").stdout
        assert mlspec(tmp_path, "stop", name, "--yes").returncode == 1  # it is not under way any more

        unknown = mlspec(tmp_path, "retry", "no-such-run", "--yes")
        assert unknown.returncode == 1
        assert f"these have: {name}" in unknown.stderr
        again = mlspec(tmp_path, "retry", name, "--yes")
        assert (again.returncode, again.stderr) == (0, ""), again.stderr
        [row] = json.loads(mlspec(tmp_path, "runs", "--output", "json").stdout)["runs"]
        assert row["phase"] in ("pending", "running")
        assert mlspec(tmp_path, "retry", name, "--yes").returncode == 1  # it is under way
    finally:
        mlspec(tmp_path, "destroy", "--yes", "--purge")
