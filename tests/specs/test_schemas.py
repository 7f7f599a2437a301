"""The generated schemas agree with the models, with the examples, and with what Kubernetes demands of a CRD."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from mlspec import schema, source
from mlspec.kind_table import KINDS
from mlspec.parse import parse

ROOT = Path(__file__).parents[2]
VALID = sorted([*(ROOT / "examples").rglob("*.yaml"), *(ROOT / "tests/specs/valid").glob("*.yaml")])
VALID = [path for path in VALID if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def test_generated_files_are_committed() -> None:
    """Editors and clusters read the files, not the models."""
    for name, text in schema.files().items():
        assert (ROOT / "schemas" / name).read_text() == text, f"{name}: run mlspec schema --write"
    present = {path.relative_to(ROOT / "schemas").as_posix() for path in (ROOT / "schemas").rglob("*.*")}
    assert present == set(schema.files())


def test_the_root_kustomization_installs_every_crd() -> None:
    """`kubectl apply -k .` is the installation."""
    resources = yaml.safe_load((ROOT / "kustomization.yaml").read_text())["resources"]
    crds = {f"schemas/{name}" for name in schema.files() if name.startswith("crds/")}
    assert crds <= set(resources)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_valid_specs_satisfy_schema_and_crd(path: Path) -> None:
    """An editor or the API server must not refuse what mlspec accepts."""
    for document in source.parse_text(path.read_text(), path.name).documents:
        if parse(document).foreign:
            continue
        kind = document.data["kind"]
        errors = [*Draft7Validator(schema.json_schema(kind)).iter_errors(document.data)]
        assert not errors, errors[0].message
        structural = schema.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        errors = [*Draft7Validator(_without_boolean_bounds(structural)).iter_errors(document.data)]
        assert not errors, errors[0].message


def test_every_kind_has_a_valid_spec_here() -> None:
    """Otherwise the test above proves nothing for that kind."""
    documents = [one for path in VALID for one in source.parse_text(path.read_text(), path.name).documents]
    assert {one.data["kind"] for one in documents} >= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_refuse_what_the_models_refuse(kind: str) -> None:
    """A schema that accepts everything would pass all other tests."""
    document = {
        "apiVersion": "mlspec.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": {"nonsense": 1},
    }
    assert not Draft7Validator(schema.json_schema(kind)).is_valid(document)


@pytest.mark.parametrize("kind", KINDS)
def test_crds_are_structural(kind: str) -> None:
    """The API server refuses a CRD that is not: one type per node, no references, no types inside of oneOf."""
    crd = schema.crd(kind)
    version = crd["spec"]["versions"][0]
    assert crd["metadata"]["name"] == f"{crd['spec']['names']['plural']}.{crd['spec']['group']}"
    assert version["subresources"] == {"status": {}}
    assert list(_faults(version["schema"]["openAPIV3Schema"], kind)) == []


VALUE_KEYS = {
    "required",
    "oneOf",
    "anyOf",
    "allOf",
    "not",
    "properties",
    "minimum",
    "maximum",
    "pattern",
    "enum",
}


def _faults(node: Any, path: str) -> Iterator[str]:
    if "$ref" in node or "const" in node or "propertyNames" in node or "default" in node:
        yield f"{path}: a keyword that CRDs do not have"
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-int-or-string")
    if "type" not in node and not is_open:
        yield f"{path}: no type"
    if isinstance(node.get("type"), list):
        yield f"{path}: several types"
    if "properties" in node and "additionalProperties" in node:
        yield f"{path}: properties exclude additionalProperties"
    if node.get("additionalProperties") in (True, False):
        yield f"{path}: additionalProperties must be a schema"
    if node.get("type") == "array" and "items" not in node:
        yield f"{path}: no items"
    if not isinstance(node.get("exclusiveMinimum", False), bool):
        yield f"{path}: exclusiveMinimum is a boolean in OpenAPI 3.0"
    for keyword in ("oneOf", "anyOf", "allOf"):
        for choice in node.get(keyword, ()):
            if set(choice) - VALUE_KEYS or any(
                name not in node["properties"] for name in choice.get("required", ())
            ):
                yield f"{path}: {keyword} says more than values"
    for rule in node.get("x-kubernetes-validations", ()):
        if not rule["rule"] or not rule["message"]:
            yield f"{path}: a rule without a message"
        for name in _used(rule["rule"]):
            if name not in node["properties"] or "type" not in node["properties"][name]:
                yield f"{path}: the rule uses {name}, which CEL does not see"
    for name in node.get("required", ()):
        if name not in node.get("properties", {}):
            yield f"{path}: required {name} is no property"
    for name, child in node.get("properties", {}).items():
        yield from _faults(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(node.get(keyword), dict):
            yield from _faults(node[keyword], f"{path}.{keyword}")


def _used(rule: str) -> set[str]:
    words = rule.replace("(", " ").replace(")", " ").replace(",", " ").replace("]", " ").split()
    names = {word.removeprefix("self.").split(".")[0] for word in words if word.startswith("self.")}
    return {name.strip("_") if name.startswith("__") else name for name in names}


def test_the_structural_checker_finds_faults() -> None:
    """The checker above is a proof only if it can fail."""
    assert list(_faults({"anyOf": [{"type": "string"}]}, "x"))
    assert list(_faults({"type": "object", "properties": {"a": {}}}, "x"))
    assert list(_faults({"type": "object", "additionalProperties": False}, "x"))
    rule = {"rule": "has(self.a)", "message": "m"}
    assert list(_faults({"type": "object", "properties": {}, "x-kubernetes-validations": [rule]}, "x"))


def _without_boolean_bounds(node: Any) -> Any:
    """OpenAPI 3.0's exclusiveMinimum is a boolean; JSON Schema's is the bound."""
    if isinstance(node, dict):
        changed = {key: _without_boolean_bounds(value) for key, value in node.items()}
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if changed.get(exclusive) is True:
                changed[exclusive] = changed.pop(bound)
        return changed
    return [_without_boolean_bounds(one) for one in node] if isinstance(node, list) else node


def test_every_field_is_documented() -> None:
    """Descriptions are the reference; a field without one is a hole in the manual."""
    for kind in KINDS:
        assert (
            list(_undocumented(json.loads(json.dumps(schema.json_schema(kind)["properties"]["spec"])), kind))
            == []
        )


def _undocumented(node: Any, path: str) -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        if not child.get("description"):
            yield f"{path}.{name}"
        yield from _undocumented(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(node.get(keyword), dict):
            yield from _undocumented(node[keyword], f"{path}.{keyword}")
    for choice in node.get("anyOf", ()):
        yield from _undocumented(choice, path)
