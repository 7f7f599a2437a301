"""Linking: order, digests, places after linking, and that errors of one resource do not spread."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from mlspec.diagnostics import Problem
from mlspec.kind_table import KINDS
from mlspec.project import Project, build, topological
from mlspec.resource import replaced

VALID = (Path(__file__).parent / "valid/everything.yaml").read_text()


def linked(text: str = VALID) -> Project:
    project = build({"a.yaml": text}).project
    assert project is not None
    return project


def test_every_resource_comes_after_what_it_refers_to() -> None:
    """Plans and applies follow this order; a job before its view would wait for ever."""
    order = [one.id for one in linked().order]
    assert "Project/flights" not in order
    for before, after in (
        ("Function/load", "Dataset/flights"),
        ("Dataset/flights", "FeatureSet/carrier-delay"),
        ("FeatureSet/carrier-delay", "FeatureView/departure"),
        ("FeatureView/departure", "TrainingJob/late-arrival"),
        ("TrainingJob/late-arrival", "Model/champion"),
        ("Model/champion", "ServingGraph/late-arrival"),
        ("ServingGraph/late-arrival", "MonitoringPolicy/late-arrival"),
    ):
        assert order.index(before) < order.index(after)


def test_order_does_not_depend_on_files() -> None:
    """The same specs in other files are the same project."""
    documents = VALID.split("---\n")
    texts = {f"{index:02}.yaml": text for index, text in enumerate(reversed(documents))}
    project = build(texts).project
    assert project is not None
    assert {one.id for one in project.order} == {one.id for one in linked().order}
    assert project.digests == linked().digests


def test_comments_and_key_order_do_not_change_a_digest() -> None:
    """Otherwise a comment would retrain a model."""
    text = "apiVersion: mlspec.dev/v1alpha1\nkind: Dataset\nmetadata: {name: a}\nspec: {source: {csv: a.csv}, key: [x]}\n"
    other = "# why\nkind: Dataset\napiVersion: mlspec.dev/v1alpha1\nspec:\n  key: [x]  # id\n  source:\n    csv: 'a.csv'\nmetadata: {name: a}\n"
    assert linked(text).digests == linked(other).digests
    assert linked(text).digests != linked(text.replace("[x]", "[z]")).digests


@pytest.mark.parametrize(
    "around", ["{} -- why", "/* why */ {}", "{};", "\n{}\n", "-- 'größer'\n{} ; -- end", "{} /* a\nb */"]
)
def test_comments_in_sql_change_neither_digests_nor_what_runs(around: str) -> None:
    """Every expression of every kind is put into its normal form once, here; otherwise a comment would retrain a model."""
    plain = linked()
    texts, places = {}, 0
    for resource in plain.catalog.resources.values():
        data = plain.documents[resource.id].data
        for use in KINDS[resource.kind].expressions(resource.spec, plain.catalog):
            data = replaced(data, use.path, around.format(use.text))
            places += 1
        texts[f"{resource.kind}-{resource.name}.json"] = json.dumps(data)
    typed = build(texts).project
    assert typed is not None
    assert places > 10
    assert typed.digests == plain.digests
    specs = {one.id: one.spec for one in typed.order}
    assert {id_: spec.document() for id_, spec in specs.items()} == {
        one.id: one.spec.document() for one in plain.order
    }
    assert specs == {one.id: one.spec for one in plain.order}
    other = build(texts | {"Dataset-flights.json": texts["Dataset-flights.json"].replace("'XX'", "'--'")})
    assert other.project is not None
    assert other.project.digests["Dataset/flights"] != plain.digests["Dataset/flights"]


def test_later_steps_can_point_into_the_text() -> None:
    """A missing code file is found after linking, and still has its line."""
    project = linked()
    job = next(one for one in project.order if one.id == "TrainingJob/late-arrival")
    mark = project.locate(job, ("spec", "function", "code"))
    assert VALID.splitlines()[mark.line - 1][mark.column - 1 :].startswith('"train.py:train"')
    found = project.place(
        job, Problem("missing-code", "train.py does not exist", ("spec", "function", "code"))
    )
    assert found.mark == mark


def test_a_project_has_a_name_and_a_target_without_saying_so() -> None:
    """The shortest repository is one document."""
    text = (
        "apiVersion: mlspec.dev/v1alpha1\nkind: Dataset\nmetadata: {name: a}\nspec: {source: {csv: a.csv}}\n"
    )
    project = build({"a.yaml": text}, "folder").project
    assert project is not None
    assert (project.name, list(project.settings.targets)) == ("folder", ["local"])
    assert (linked().name, list(linked().settings.targets)) == ("flights", ["laptop", "prod"])


def test_diagnostics_are_sorted_by_place() -> None:
    """The same mistakes print in the same order on every machine."""
    bad = "apiVersion: mlspec.dev/v1alpha1\nkind: Dataset\nmetadata: {name: a}\nspec: {sorce: 1, kex: 2, source: {}}\n"
    marks = [
        one.mark for one in build({"b.yaml": bad, "a.yaml": bad.replace("name: a", "name: b")}).diagnostics
    ]
    assert len(marks) == 6
    assert marks == sorted(marks)


def test_a_cycle_is_printed_as_a_path() -> None:
    """No two kinds of today can form one, but a new kind can."""
    a, b, c, d = ("X", "a"), ("X", "b"), ("X", "c"), ("X", "d")
    order, cycle = topological({a: [b], b: [c], c: [a], d: []})
    assert order == []
    assert cycle[0] == cycle[-1]
    assert set(cycle) == {a, b, c}
    assert all(after in {a: [b], b: [c], c: [a]}[before] for before, after in itertools.pairwise(cycle))
    assert topological({a: [b], b: [c], c: []}) == ([c, b, a], [])
