"""The objects of the examples on Kubernetes, whole: what a user gets who leaves mlspec with `mlspec render`.

Record anew with MLSPEC_RECORD=1. Hashes are masked, so that only the form of the objects is compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mlspec_reconciler.commands.render import command

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "render"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
LONGEST = {"CronWorkflow": 52}


def targets() -> Iterator[tuple[str, str]]:
    """Example and its Kubernetes target."""
    for folder in sorted((ROOT / "examples").iterdir()):
        for file in sorted(folder.glob("*.yaml")):
            for document in yaml.safe_load_all(file.read_text()):
                if isinstance(document, Mapping) and document.get("kind") == "Project":
                    found = document["spec"].get("targets", {})
                    yield from ((folder.name, name) for name, one in found.items() if "kubernetes" in one)


def render(example: str, target: str, form: str) -> str:
    """Standard output of `mlspec render`."""
    arguments = [str(ROOT / "examples" / example), "--target", target, "--output", form]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert done.return_value == 0, done.output
    return done.stdout


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below, with its path."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from walk(one, f"{path}.{key}")


def check(body: Mapping[str, Any]) -> None:
    """What the API server would refuse, or what would silently mean something else."""
    longest = LONGEST.get(body["kind"], 63)
    name = body["metadata"]["name"]
    assert NAME.fullmatch(name), name
    assert len(name) <= longest, name
    for path, value in walk(body):
        assert value is not None, f"{name}{path} is null"
        if path.endswith(("labels", "matchLabels")):
            assert all(isinstance(one, str) and LABEL.fullmatch(one) for one in value.values()), (path, value)
        if path.endswith((".requests", ".limits")):
            assert all(isinstance(one, str) and QUANTITY.fullmatch(one) for one in value.values()), (
                path,
                value,
            )
        if path.endswith((".annotations", ".data")) and isinstance(value, dict):
            assert all(isinstance(one, str) for one in value.values()), (path, value)
        if path.endswith("containers"):
            assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in value)


@pytest.mark.parametrize(("example", "target"), targets())
def test_an_example_renders_as_recorded(example: str, target: str) -> None:
    """A change of what runs on people's clusters is read by a person first."""
    found = re.sub(r"(?<![0-9a-z])[0-9a-f]{8,64}(?![0-9a-z])", "HASH", render(example, target, "yaml"))
    golden = GOLDEN / f"{example}-{target}.yaml"
    if os.environ.get("MLSPEC_RECORD"):
        golden.write_text(found)
    assert found == golden.read_text()


@pytest.mark.parametrize(("example", "target"), targets())
def test_objects_are_valid_for_every_reader(example: str, target: str) -> None:
    """Names, labels, quantities as Kubernetes wants them; YAML 1.1 and JSON readers see the same data."""
    bodies = list(yaml.safe_load_all(render(example, target, "yaml")))
    assert bodies == yaml.safe_load(render(example, target, "json"))
    assert {"Workflow", "ConfigMap", "Deployment", "Service"} <= {one["kind"] for one in bodies}
    keys = [(one["kind"], one["metadata"]["name"]) for one in bodies]
    assert len(keys) == len(set(keys)), "two objects of one name"
    for body in bodies:
        check(body)
