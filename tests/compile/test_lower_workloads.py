"""Each workload on each engine, one small golden file each: the contract between kinds and clusters.

Record anew with MLSPEC_RECORD=1.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from mlspec.compile import ENGINES, lower
from mlspec.diagnostics import Mark
from mlspec.engine import Settings
from mlspec.engines import argo, deployment, job, kueue, local
from mlspec.kinds.project import Target
from mlspec.manifest import Origin
from mlspec.workload import Needs, Pool, Record, Run, Schedule, Service, Step, Workload

GOLDEN = Path(__file__).parents[1] / "golden" / "compile"
SETTINGS = Settings("demo", "ml", "registry.example/runtime:1", "runner", "pvc://claim", "http://mlflow:5000")
ORIGIN = Origin("TrainingJob/churn", Mark("specs.yaml", 7, 1))
PREPARE = Step("frames", "frames", {"data": {}}, Needs(cpu=0.5, memory=512 * 2.0**20))
TRAIN = Step(
    "train", "train", {"job": "churn", "gates": []}, Needs(2, 4 * 2.0**30), after=("frames",), timeout=3600
)
GPU = Step("train", "train", {}, Needs(8, 2.0**36, 2, "NVIDIA-H100", "gpus", "urgent"))
SERVE = Step("serve", "serve", {"models": {}})
POOL = {
    "cohort": "company",
    "flavors": [
        {
            "name": "a100",
            "nodeLabels": {"gpu": "a100"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "quota": {"nvidia.com/gpu": {"nominal": "8", "borrow": "4"}, "cpu": {"nominal": "64"}},
        },
        {"name": "cpu", "quota": {"cpu": {"nominal": "100", "lend": "50"}}},
    ],
    "priorities": {"urgent": 1000},
}
CASES: dict[str, tuple[str, Workload]] = {
    "workflow_of_two_steps": ("kubernetes", Run("churn-1", (PREPARE, TRAIN), "train churn")),
    "job_runs_earlier_steps_as_init_containers": (
        "kubernetes",
        Run("churn-1", (PREPARE, TRAIN), "train churn", engine="job"),
    ),
    "workflow_on_gpus_of_a_pool": ("kubernetes", Run("deep-1", (GPU,), "train deep")),
    "job_on_gpus_of_a_pool": ("kubernetes", Run("deep-1", (GPU,), "train deep", engine="job")),
    "service_of_one_replica": ("kubernetes", Service("churn", SERVE)),
    "service_that_scales": ("kubernetes", Service("churn", SERVE, replicas=(2, 8))),
    "service_on_a_gpu_does_not_surge": (
        "kubernetes",
        Service("churn", Step("serve", "serve", {}, Needs(gpu=1))),
    ),
    "schedule_every_five_minutes": (
        "kubernetes",
        Schedule("churn-monitor", Step("monitor", "monitor", {}), every=300),
    ),
    "record_is_a_config_map": ("kubernetes", Record("model-churn", {"run": "churn-1"})),
    "pool_is_kueue": ("kubernetes", Pool("gpus", POOL)),
    "local_run": ("local", Run("churn-1", (PREPARE, TRAIN), "train churn", {"code": "1"})),
    "local_service": ("local", Service("churn", SERVE, port=8123)),
    "local_schedule": ("local", Schedule("churn-monitor", Step("monitor", "monitor", {}), cron="0 3 * * *")),
    "local_record": ("local", Record("model-churn", {"run": "churn-1"})),
}


def target(choice: str) -> Target:
    """A target of this sort."""
    return Target.model_validate({choice: {"namespace": "ml"} if choice == "kubernetes" else {}})


@pytest.mark.parametrize("name", CASES)
def test_a_workload_becomes_these_objects(name: str) -> None:
    """A field that appears, moves or vanishes on a cluster must be seen in a review."""
    choice, workload = CASES[name]
    made = lower(workload, target(choice), SETTINGS, ORIGIN)
    assert not isinstance(made, str)
    found = "---\n".join(yaml.safe_dump(dict(one.body), sort_keys=False, width=110) for one in made)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("MLSPEC_RECORD"):
        golden.write_text(found)
    assert found == golden.read_text()
    assert all(one.create_only == isinstance(workload, Run) for one in made), "only runs are create-only"


@pytest.mark.parametrize("choice", ENGINES)
@pytest.mark.parametrize("engine", ["torch", "mpi", "dask", "spark", "ray"])
def test_a_distributed_engine_is_refused_by_name(choice: str, engine: str) -> None:
    """Silence would be a training on one process that was meant for many."""
    made = lower(Run("churn-1", (TRAIN,), "train churn", engine=engine), target(choice), SETTINGS, ORIGIN)
    assert isinstance(made, str)
    assert engine in made


@pytest.mark.parametrize(
    "workload",
    [
        Run("a-1", (Step("train", "train", {}, Needs(gpu=0.5)),), "train a"),
        Run("a-1", (Step("train", "train", {}, Needs(gpu=0.5)),), "train a", engine="job"),
        Service("a", Step("serve", "serve", {}, Needs(gpu=0.5))),
    ],
)
def test_a_share_of_a_gpu_is_refused(workload: Workload) -> None:
    """Without a device plugin that shares, the pod would quietly run without any GPU."""
    made = lower(workload, target("kubernetes"), SETTINGS, ORIGIN)
    assert isinstance(made, str)
    assert "gpuShare" in made


def test_a_pool_is_refused_by_name_on_this_machine() -> None:
    """A quota that nobody holds must not look like one."""
    made = lower(Pool("gpus", POOL), target("local"), SETTINGS, ORIGIN)
    assert isinstance(made, str)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (5, "*/1 * * * *"),
        (60, "*/1 * * * *"),
        (420, "*/7 * * * *"),
        (5400, "0 */1 * * *"),
        (90000, "0 0 * * *"),
    ],
)
def test_a_period_becomes_a_cron_expression_that_is_not_slower(seconds: float, expected: str) -> None:
    """A policy that promises to look every hour must not look every two."""
    assert argo.cron(seconds) == expected


def test_every_kind_of_object_has_one_judge() -> None:
    """An object without a health function would be `unknown` for ever."""
    for name, (choice, workload) in CASES.items():
        made = lower(workload, target(choice), SETTINGS, ORIGIN)
        assert not isinstance(made, str)
        known = {kind for engine in (argo, deployment, job, kueue, local) for kind in engine.ENGINE.reads}
        assert {one.key.kind for one in made} <= known, name


def test_storage_in_s3_is_refused_by_name() -> None:
    """The runtime reads and writes files; objects that could not run must not be made."""
    settings = Settings("demo", "ml", "image", "runner", "s3://bucket/prefix")
    refused = lower(Run("a-1", (TRAIN,), "train a"), target("kubernetes"), settings, ORIGIN)
    assert isinstance(refused, str)
    assert "pvc://NAME" in refused
