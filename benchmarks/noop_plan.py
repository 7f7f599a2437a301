"""A plan that finds nothing to do, over 10,000 objects: what the controller pays for every quiet round.

2,500 sets of Dataset, TrainingJob, ServingGraph and Receiver become 10,000 objects (data run, training run, record,
service) on the memory cluster. Goals on one core: 5 s cold (load, link, gather, compile, plan), 1 s warm (the project is
loaded already: compile and plan).
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

from mlspec_reconciler import bundle, load
from mlspec_reconciler.cli import spare_collections
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.state import Session
from mlspec_reconciler.step import APPLY_CONSENT, DesiredState, Memory, Observation, observe_and_plan, step

SETS = 2500
PER_FILE = 25
GOALS = {"cold": 5.0, "warm": 1.0}
SPEC = """\
---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows-N}
spec: {source: {function: "load.py:rows", parameters: {part: N}}, columns: {x: {type: double, min: 0}}}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: job-N}
spec:
  function: {code: "train.py:train", requirements: [scikit-learn]}
  data:
    train: {dataset: rows-N, label: x, share: [0, 0.8]}
    test: {dataset: rows-N, label: x, share: [0.8, 1]}
  gates:
    - {metric: rmse, max: 1}
---
apiVersion: mlspec.dev/v1alpha1
kind: ServingGraph
metadata: {name: graph-N}
spec: {steps: {model: {model: job-N}}}
---
apiVersion: mlspec.dev/v1alpha1
kind: Receiver
metadata: {name: oncall-N}
spec: {webhook: {url: {env: ONCALL_URL}}}
"""


def write(root: Path, sets: int) -> None:
    """A repository with `sets` sets of resources."""
    (root / "load.py").write_text("def rows(part):\n    return part\n")
    (root / "train.py").write_text("def train(train):\n    return train\n")
    for start in range(0, sets, PER_FILE):
        texts = [
            SPEC.replace("-N", f"-{n}").replace("part: N", f"part: {n}")
            for n in range(start, min(sets, start + PER_FILE))
        ]
        (root / f"team-{start // PER_FILE:04}.yaml").write_text("".join(texts))


def read(root: Path) -> DesiredState:
    """Load, link and gather the code."""
    loaded = load.load([root], root=root)
    assert loaded.project is not None, loaded.diagnostics[:3]
    code, problems = bundle.gather(loaded.project, root)
    assert not problems
    return DesiredState(loaded.project, loaded.project.settings.targets["local"], code)


def look(wanted: DesiredState, cluster: MemoryCluster) -> Observation:
    """As `mlspec plan` does."""
    return observe_and_plan(wanted, cluster, Session.open(cluster.state, "bench"), now=time.time())


def fill(wanted: DesiredState, cluster: MemoryCluster) -> None:
    """Apply until nothing is left to do; every run ends well."""
    memory = Memory()
    while True:
        done = step(wanted, cluster, cluster.state, APPLY_CONSENT, time.time(), memory)
        memory = done.memory
        if not done.outcomes and not done.stored:
            return
        for one in done.outcomes:
            if one.write.key.kind == "Run":
                name = one.write.key.name
                data = {"snapshot": name, "path": f"datasets/{name}", "rows": 1}
                cluster.succeed(name, {"dataset": data, "train": {"metrics": {"rmse": 0.5}, "inputs": []}})


def measure(sets: int) -> dict[str, float]:
    """Seconds of CPU by phase, and the number of objects."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, sets)
        cluster = MemoryCluster()
        started = time.process_time()
        wanted = read(root)
        loaded = time.process_time()
        fill(wanted, cluster)
        filled = time.process_time()
        seen = look(wanted, cluster)
        assert seen.plan.empty, seen.plan.changes[:3]
        warm = time.process_time() - filled
        return {
            "objects": len(seen.objects),
            "load": loaded - started,
            "fill": filled - loaded,
            "warm": warm,
            "cold": loaded - started + warm,
        }


def main() -> None:
    """Print the figures; with `--profile` also where the warm plan spends its time."""
    spare_collections()  # as the command does
    figures = measure(SETS)
    print(f"no-op plan over {figures['objects']:,.0f} objects (seconds of one core)")
    for phase in ("load", "fill", "warm", "cold"):
        goal = f"  goal {GOALS[phase]:g} s" if phase in GOALS else ""
        print(f"  {phase:<5} {figures[phase]:6.2f}{goal}")
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.runcall(measure, SETS // 10)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()
