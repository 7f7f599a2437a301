"""Speed of `mlspec validate` on 10,000 documents in 1,000 files: cold, cached, and against PyYAML's C loader alone.

    python benchmarks/validate.py

Writes 200 valid, linked projects' worth of specs (names are made unique, so that they are one repository) into a temporary folder and
runs the command in fresh processes. CPU seconds of one core; the last line is JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

PROJECTS = 200
SETS = 35
HEAD = "apiVersion: mlspec.dev/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\n  labels: {{team: team-{n}}}\nspec:\n"
DATASET = """\
  source: {{parquet: "data/{name}/*.parquet"}}
  key: [flight]
  time: {{event: scheduled_departure, known: actual_arrival}}
  columns:
    carrier: {{type: string}}
    arr_delay: {{type: double, nullable: true, min: -120, max: 1500}}
  checks:
    - {{rows: {{min: 300000}}}}
"""
SET = """\
  dataset: flights-{n}
  key: [carrier]
  features:
    delay_3h_{m}: {{mean: arr_delay, window: 3h}}
    late_1d_{m}: {{mean: "arr_delay > 15", window: 1d}}
    rows_1d_{m}: {{count: "*", window: 1d}}
"""
VIEW = """\
  ask: {{dataset: flights-{n}, at: "scheduled_departure - INTERVAL 2 HOUR"}}
  label: "arr_delay > 15"
  features:
    - {{set: carrier-{n}-{m}, maxAge: 1d}}
    - {{row: {{hour: "extract(hour FROM scheduled_departure)"}}}}
"""
JOB = """\
  function: {{code: "train.py:train", requirements: ["scikit-learn==1.7.*"]}}
  data:
    train: {{view: departure-{n}-{m}, from: "2013-01-01", to: "2013-03-25"}}
    test: {{view: departure-{n}-{m}, from: "2013-03-25", to: "2013-04-01"}}
  parameters: {{learning_rate: 3e-4}}
  resources: {{cpu: 2, memory: 4Gi}}
  gates:
    - {{metric: auc, min: 0.70}}
"""
GRAPH = """\
  steps:
    features: {{view: departure-{n}-{m}}}
    model: {{model: late-{n}-{m}, after: [features]}}
  scale: {{min: 1, max: 8, concurrency: 20}}
"""
POLICY = """\
  graph: graph-{n}-{m}
  truth: {{dataset: flights-{n}, key: [flight], label: "arr_delay > 15"}}
  alerts:
    accuracy: {{metric: auc, below: 0.70, for: 3}}
    drift: {{drift: {{features: all}}}}
  actions:
    - {{when: accuracy, retrain: {{job: late-{n}-{m}, window: 90d}}}}
"""


def documents(n: int) -> Iterator[str]:
    """The 50 documents of one project: 1 dataset, 35 feature sets, and views, jobs, graphs and policies over them."""

    def one(kind: str, name: str, body: str, m: int = 0) -> str:
        return (HEAD + body).format(kind=kind, name=name, n=n, m=m)

    yield one("Dataset", f"flights-{n}", DATASET)
    for m in range(SETS):
        yield one("FeatureSet", f"carrier-{n}-{m}", SET, m)
    for m in range(4):
        yield one("FeatureView", f"departure-{n}-{m}", VIEW, m)
        yield one("TrainingJob", f"late-{n}-{m}", JOB, m)
    for m in range(3):
        yield one("ServingGraph", f"graph-{n}-{m}", GRAPH, m)
        yield one("MonitoringPolicy", f"policy-{n}-{m}", POLICY, m)


def write(folder: Path) -> tuple[int, int]:
    """Write all specs, ten documents a file; the number of documents and lines."""
    texts = [text for n in range(PROJECTS) for text in documents(n)]
    for start in range(0, len(texts), 10):
        folder.joinpath(f"specs-{start // 10:04}.yaml").write_text("---\n".join(texts[start : start + 10]))
    return len(texts), sum(text.count("\n") for text in texts)


def cpu(command: Sequence[str], folder: Path, cache: Path) -> tuple[float, str]:
    """CPU seconds (user and system) of a command, and its last line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, done.stdout.splitlines()[-1]


def main() -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary, "specs"), Path(temporary, "cache")
        folder.mkdir()
        count, lines = write(folder)
        validate = [sys.executable, "-m", "mlspec_reconciler.cli", "validate"]
        start, _ = cpu([*validate, "--help"], folder, cache)
        cold, verdict = cpu(validate, folder, cache)
        cached, again = cpu(validate, folder, cache)
        assert verdict == again
        assert verdict.startswith(f"{count:,} resources valid"), verdict
        edited = folder / "specs-0000.yaml"
        edited.write_text(edited.read_text() + "# edited\n")
        warm, _ = cpu(validate, folder, cache)
        began = time.process_time()
        for path in sorted(folder.glob("*.yaml")):
            list(yaml.load_all(path.read_bytes(), yaml.CSafeLoader))
        loader = time.process_time() - began
    print(f"{count:,} documents, {lines:,} lines, {-(-count // 10):,} files; CPU seconds of one core")
    print(f"  mlspec validate --help        {start:6.2f}")
    print(f"  PyYAML CSafeLoader, load only {loader:6.2f}")
    print(f"  mlspec validate, cold         {cold:6.2f}   {cold / loader:.2f} x the bare load; goal 3 s")
    print(f"  mlspec validate, one edit     {warm:6.2f}   expressions known")
    print(
        f"  mlspec validate, cached       {cached:6.2f}   {cached / loader:.2f} x the bare load; goal 0.5 s"
    )
    figures = {
        "documents": count,
        "help": start,
        "loader": loader,
        "cold": cold,
        "one_edit": warm,
        "cached": cached,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
