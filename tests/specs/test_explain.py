"""`mlspec explain` and the words for types that messages use."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mlspec.explain import explain
from mlspec.fields import described, fields
from mlspec.kind_table import KINDS
from mlspec.kinds.dataset import Column, DatasetSpec, Source
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.monitoring_policy import Drift
from mlspec.kinds.training_job import TrainingJobSpec
from mlspec_reconciler.commands.explain import command


def test_a_field_is_explained_with_type_default_and_doc() -> None:
    """The reference is where the question arises: in the terminal."""
    text, error = explain("TrainingJob.resources.gpuShare")
    assert error == ""
    assert text == (
        "TrainingJob.resources.gpuShare: a number\n\n  Part of one GPU (time slicing, MPS or MIG); not together with `gpu`.\n"
    )
    assert "evaluate: an identifier, default test" in explain("TrainingJob")[0]
    assert "required" in explain("trainingjob.spec.function")[0]


def test_lists_and_mappings_are_passed_through() -> None:
    """`steps` is a mapping of steps: the next word is a field of a step."""
    text, _ = explain("ServingGraph.steps.split.arms.weight")
    assert text.startswith("ServingGraph.steps.split.arms.weight: a number, required")
    assert "Exactly one of" in explain("ServingGraph.steps")[0]


def test_misspellings_have_a_way_out() -> None:
    """The command is typed by hand."""
    assert 'did you mean "TrainingJob"?' in explain("TraningJob")[1]
    assert 'did you mean "gates"?' in explain("TrainingJob.gate")[1]
    assert "it has no fields" in explain("TrainingJob.seed.x")[1]
    assert CliRunner().invoke(command, ["Nothing"]).exit_code == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed_and_explained(kind: str) -> None:
    """A new kind is explained without another line."""
    assert kind in CliRunner().invoke(command, []).output
    assert explain(kind)[0].startswith(f"{kind}\n")


@pytest.mark.parametrize(
    ("model", "field", "words"),
    [
        (DatasetSpec, "key", "a list of identifiers"),
        (DatasetSpec, "strict", "true or false"),
        (Source, "function", "`file.py:function`, the name of a Function or {code: ...}"),
        (Column, "tolerate", "a share"),
        (Column, "severity", '"error" or "warn"'),
        (Column, "min", "a number"),
        (FeatureSetSpec, "dataset", "a name"),
        (FeatureSetSpec, "features", "a mapping"),
        (Drift, "features", '"all" or a list of identifiers'),
        (TrainingJobSpec, "seed", "a whole number"),
        (TrainingJobSpec, "timeout", "a duration"),
    ],
)
def test_types_have_words(model: type, field: str, words: str) -> None:
    """`constrained-str` means nothing to the author of a spec."""
    assert described(fields(model)[field].type) == words
