"""The local cluster with the real runtime: what `mlspec apply` starts."""

from __future__ import annotations

import time
from pathlib import Path

from cluster.harness import body, run_of
from mlspec.manifest import Key
from mlspec_reconciler.clusters.local.cluster import API_VERSION, LocalCluster


def dataset(run: str, csv: Path, columns: dict[str, object]) -> dict[str, object]:
    """The step that takes a snapshot of a CSV file."""
    spec = {"source": {"csv": str(csv)}, "columns": columns}
    document = {"dataset": "birds", "spec": spec, "code": None, "parameters": {}, "files": [str(csv)]}
    step = {
        "name": "dataset",
        "subject": "dataset",
        "after": [],
        "requirements": [],
        "timeout": 60.0,
        "retries": 1,
    }
    return {**step, "document": {"name": run, "step": "dataset", **document}}


def test_real_steps_end_with_their_results_and_reasons(tmp_path: Path) -> None:
    """Supervisor and runtime agree about task files, results and error reports."""
    csv = tmp_path / "birds.csv"
    csv.write_text("name,weight\nwren,9\neagle,4000\n")
    columns = {"name": {"type": "string"}, "weight": {"type": "double"}}
    cluster = LocalCluster(tmp_path / "home")
    try:
        cluster.wake()
        cluster.create(run_of("birds-1", dataset("birds-1", csv, columns)), {})
        cluster.create(
            run_of("birds-2", dataset("birds-2", csv, {**columns, "song": {"type": "string"}})), {}
        )
        cluster.create(body("Record", "r", data={"run": "birds-1"}), {})
        until = time.monotonic() + 40
        while time.monotonic() < until:
            phases = {name: fact.phase for name, fact in cluster.runs().items()}
            if set(phases.values()) <= {"succeeded", "failed"}:
                break
            time.sleep(0.05)
        assert phases == {"birds-1": "succeeded", "birds-2": "failed"}
        assert cluster.runs()["birds-1"].results["dataset"]["rows"] == 2
        assert "song" in cluster.runs()["birds-2"].message
        one = cluster.get(Key(API_VERSION, "Run", "", "birds-2"))
        assert one is not None
        assert one.status["steps"]["dataset"]["attempts"] == 1
        assert (cluster.root / "runs/birds-1/dataset/result.json").exists()
    finally:
        cluster.stop()
        cluster.close()
