"""Where a target keeps its data changes where its pods look, and nothing of what they compute."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlspec.compile import compile
from mlspec.kinds.project import Target
from mlspec.workload import Facts
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_runtime import inputs
from plan import playing

EXAMPLES = Path(__file__).parents[2] / "examples"
PLACES = re.compile(r"(code|datasets|features|runs)/[^ ]+")


@pytest.mark.parametrize("example", ["flights", "minimal", "ensemble"])
def test_the_identity_of_a_run_is_that_of_every_storage(example: str) -> None:
    """A project that moves from a claim to a bucket trains nothing again."""
    wanted = playing.wanted(EXAMPLES / example)
    code = {key: one.digest for key, one in wanted.code.items()}
    bundles = {one.digest: one.files for one in wanted.code.values()}
    names = []
    for storage in ("pvc://claim", "s3://ml-bucket", "s3://ml-bucket/team"):
        target = Target.model_validate({"kubernetes": {"namespace": "ml"}, "storage": storage})
        compiled = compile(wanted.project, target, Facts(code=code, bundles=bundles))
        assert not compiled.unsupported
        runs = [one for one in compiled.manifests if one.key.kind == "Workflow"]
        names.append([one.key.name for one in runs])
        assert all(("emptyDir" in json.dumps(dict(one.body))) for one in runs)
    assert names[0]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("example", ["flights", "minimal", "ensemble"])
def test_every_path_of_a_document_is_an_input(example: str) -> None:
    """A kind that names a new path in its documents must say so in `inputs`, else a pod would miss it in a bucket only."""
    cluster = MemoryCluster()
    project = playing.wanted(EXAMPLES / example)
    titles = [f"train {one.name}" for one in project.project.order if one.kind == "TrainingJob"]
    good = {"auc": 0.99, "accuracy": 0.99}
    playing.settle(project, cluster, playing.Script(metrics=dict.fromkeys(titles, good)))
    seen = set()
    for live in cluster.list():
        spec = live.body.get("spec") or {}
        for step in [*spec.get("steps", ()), *([spec["step"]] if "step" in spec else [])]:
            document = step["document"]
            seen.add(document["subject"])
            if document["subject"] == "monitor":
                continue  # reads by need
            assert set(places(document)) <= set(inputs.of(document)), document["subject"]
    assert {"dataset", "frames", "train", "serve"} <= seen


def places(value: Any) -> Iterator[str]:
    """Paths of the layout, but for what users write."""
    match value:
        case str() if PLACES.fullmatch(value):
            yield value
        case dict():
            for key, one in value.items():
                if key not in ("spec", "parameters"):
                    yield from places(one)
        case list() | tuple():
            for one in value:
                yield from places(one)
