"""JSON Schemas for editors and CRDs for clusters, generated from the models of the kinds.

`mlspec schema --write` puts them into `schemas/`, a test fails when they drift. A CRD must be structural
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema):
every node has one type, so a field that takes a text or a mapping is left open there, and `mlspec validate` checks it.
"""

from __future__ import annotations

import inspect
import json
import types
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import AfterValidator, BeforeValidator

from mlspec import API_VERSION, fields, rules
from mlspec.kind_table import KINDS
from mlspec.kinds.dataset import Time
from mlspec.kinds.model import ModelSpec
from mlspec.kinds.resource_pool import Resources
from mlspec.kinds.serving_graph import Scale
from mlspec.resource import NAME_PATTERN, Base, Duration, Interval, Moment, OneOf, Quantity, Share
from mlspec.source import yaml_text

Form = Literal["json", "crd"]
Schema = dict[str, Any]

GROUP, VERSION = API_VERSION.split("/")
_OPEN: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SPECIAL: tuple[tuple[Any, Schema, Schema], ...] = (
    (Duration, {"type": "string", "pattern": r"^\d+(ms|s|m|h|d|w)$"}, {"type": "string", "pattern": r"^\d+(ms|s|m|h|d|w)$"}),
    (Interval, {"type": "string", "pattern": r"^0*[1-9]\d*(ms|s|m|h|d|w)$"}, {"type": "string", "pattern": r"^0*[1-9]\d*(ms|s|m|h|d|w)$"}),
    (
        Quantity,
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}]},
        _OPEN,
    ),
    (Moment, {"type": "string"}, {"type": "string"}),
    (
        Share,
        {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": r"^\d+(\.\d+)?%$"}]},
        _OPEN,
    ),
)  # fmt: skip
"""Types with a validator of their own: as JSON Schema and in a CRD."""

CEL: dict[type[Base], tuple[tuple[str, str], ...]] = {
    Resources: (("!(has(self.gpu) && has(self.gpuShare))", "gpu and gpuShare exclude each other"),),
    Time: (("!(has(self.known) && has(self.delay))", "known and delay exclude each other"),),
    Scale: (
        ("!has(self.min) || !has(self.max) || self.min <= self.max", "min must not be greater than max"),
    ),
    ModelSpec: (
        ("has(self.run) == (has(self.promotion) && self.promotion == 'pinned')", "run and promotion: pinned go together"),
    ),
}  # fmt: skip
"""Rules of models that stand outside of lists and mappings, where the cost of CEL is bounded."""

_RESERVED = frozenset(
    [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
    ]
)


def files() -> dict[str, str]:
    """All generated files by their path below `schemas/`."""
    found = {f"jsonschema/{kind.lower()}.json": _json(json_schema(kind)) for kind in KINDS}
    found["jsonschema/all.json"] = _json(_any_kind())
    for kind in KINDS:
        found[f"crds/{plural(kind)}.{GROUP}.yaml"] = _HEADER + yaml_text(crd(kind))
    return found


_HEADER = "# Generated from the models by: mlspec schema --write\n"


def _json(value: Schema) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def plural(kind: str) -> str:
    """`monitoringpolicies` for MonitoringPolicy."""
    lower = kind.lower()
    return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"


# JSON Schema


def json_schema(kind: str) -> Schema:
    """The JSON Schema (draft 7, which every editor knows) of one kind's documents."""
    model = KINDS[kind].model
    strings = {"type": "object", "additionalProperties": {"type": "string"}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": kind,
        "description": model_doc(model),
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"] + (["spec"] if _must(model) else []),
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "pattern": NAME_PATTERN, "maxLength": 63},
                    "labels": strings,
                    "annotations": strings,
                },
            },
            "spec": model_schema(model, "json"),
            "status": {"type": "object"},
        },
    }


def _must(model: type[Base]) -> bool:
    return issubclass(model, OneOf) or any(field.required for field in fields.fields(model).values())


def _any_kind() -> Schema:
    choices = [
        {
            "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": {"$ref": f"{kind.lower()}.json"},
        }
        for kind in KINDS
    ]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mlspec",
        "description": "Any resource of mlspec.",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {"apiVersion": {"const": API_VERSION}, "kind": {"enum": list(KINDS)}},
        "allOf": choices,
    }


def model_schema(model: type[Base], form: Form, repeated: bool = False) -> Schema:
    """The schema of a model; `repeated` inside lists and mappings, where CEL rules would be too costly."""
    known = fields.fields(model)
    properties: Schema = {}
    for name, field in known.items():
        schema = type_schema(field.type, form, repeated)
        properties[name] = {"description": field.doc, **schema} if field.doc else schema
        if form == "json" and not field.required and field.default not in (None, [], {}, ""):
            properties[name]["default"] = field.default
    result: Schema = {"type": "object", "properties": properties}
    if required := [name for name, field in known.items() if field.required]:
        result["required"] = required
    if form == "json":
        result["additionalProperties"] = False
    if issubclass(model, OneOf):
        choices = [
            next(name for name, field in known.items() if field.attribute == one) for one in model.CHOICES
        ]
        result["oneOf"] = [{"required": [name]} for name in choices]
    if form == "crd" and not repeated and (found := _validations(model, properties)):
        result["x-kubernetes-validations"] = found
    return result


def type_schema(type_: Any, form: Form, repeated: bool = False) -> Schema:
    """The schema of a field's type."""
    for special, as_json, as_crd in _SPECIAL:
        if _validator(special) is not None and _validator(special) == _validator(type_):
            return dict(as_json if form == "json" else as_crd)
    members = [one for one in fields.alternatives(type_) if one is not types.NoneType]
    if len(members) > 1:
        schemas = [type_schema(one, form, repeated) for one in members]
        if form == "json":
            return {"anyOf": schemas}
        same = {schema.get("type") for schema in schemas}
        return {"type": "string"} if same == {"string"} else dict(_OPEN)
    bare, constraints = fields.split(members[0])
    constraints += fields.split(type_)[1] if members[0] is not type_ else []
    if bare is Any:
        return {} if form == "json" else dict(_OPEN)
    if isinstance(bare, type) and issubclass(bare, Base):
        return {"description": model_doc(bare), **model_schema(bare, form, repeated)}
    if get_origin(bare) is Literal:
        values = list(get_args(bare))
        return {"type": _SCALARS[type(values[0])], "enum": values}
    if get_origin(bare) is list:
        return {
            "type": "array",
            "items": type_schema(get_args(bare)[0], form, True),
            **_limits(constraints, form, "Items"),
        }
    if get_origin(bare) is dict:
        key_type, item_type = get_args(bare)
        if form == "crd" and item_type is Any:
            return {"type": "object", **_OPEN}
        result = {"type": "object", "additionalProperties": type_schema(item_type, form, True)}
        result |= _limits(constraints, form, "Properties")
        if form == "json" and (keys := type_schema(key_type, form)) != {"type": "string"}:
            result["propertyNames"] = keys
        return result
    result = {"type": _SCALARS[bare], **_limits(constraints, form, "Length")}
    if form == "crd" and bare is int:
        result["format"] = "int64"
    return result


def _validator(type_: Any) -> Any:
    for one in fields.split(type_)[1]:
        if isinstance(one, AfterValidator | BeforeValidator):
            return one.func
    inner = [one for one in fields.alternatives(type_) if one is not types.NoneType]
    return _validator(inner[0]) if len(inner) == 1 and inner[0] is not type_ else None


def _limits(constraints: list[Any], form: Form, size: str) -> Schema:
    found: Schema = {}
    for one in constraints:
        match one:
            case MinLen(least):
                found[f"min{size}"] = least
            case MaxLen(most):
                found[f"max{size}"] = most
            case Ge(low):
                found["minimum"] = low
            case Le(high):
                found["maximum"] = high
            case Gt(low):
                found |= (
                    {"exclusiveMinimum": low}
                    if form == "json"
                    else {"minimum": low, "exclusiveMinimum": True}
                )
            case Lt(high):
                found |= (
                    {"exclusiveMaximum": high}
                    if form == "json"
                    else {"maximum": high, "exclusiveMaximum": True}
                )
            case _ if getattr(one, "pattern", None):
                found["pattern"] = one.pattern
    return found


def model_doc(model: type[Base]) -> str:
    """The docstring of a model as one line."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split())


# CRDs


def crd(kind: str) -> Schema:
    """The CustomResourceDefinition of one kind."""
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural(kind),
        "singular": kind.lower(),
        "categories": ["mlspec"],
    }
    ready = '.status.conditions[?(@.type=="Ready")]'
    columns = [*KINDS[kind].columns, ("Ready", f"{ready}.status"), ("Message", f"{ready}.message")]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _crd_schema(kind)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            *({"name": name, "type": "string", "jsonPath": path} for name, path in columns),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural(kind)}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _crd_schema(kind: str) -> Schema:
    model = KINDS[kind].model
    limit = rules.longest_name(kind)
    schema: Schema = {
        "type": "object",
        "description": model_doc(model),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": model_schema(model, "crd"),
            "status": _STATUS,
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {limit}",
                "message": f"the name may have {limit} characters",
            }
        ],
    }
    if _must(model):
        schema["required"] = ["spec"]
    return schema


def _validations(model: type[Base], properties: Schema) -> list[dict[str, str]]:
    """CEL rules, which give better messages than `oneOf`. CEL does not see fields that are left open."""
    found = [{"rule": rule, "message": message} for rule, message in CEL.get(model, ())]
    if issubclass(model, OneOf):
        known = {field.attribute: name for name, field in fields.fields(model).items()}
        names = [known[attribute] for attribute in model.CHOICES]
        if not all("type" in properties[name] for name in names):
            return found
        given = ", ".join(f"has(self.{_cel_name(name)})" for name in names)
        message = f"exactly one of {', '.join(names)} is needed"
        found.append({"rule": f"[{given}].filter(given, given).size() == 1", "message": message})
    return found


def _cel_name(name: str) -> str:
    """CEL's own words are escaped: https://kubernetes.io/docs/reference/using-api/cel/#escaping"""
    return f"__{name}__" if name in _RESERVED else name


_STATUS: Schema = {
    "type": "object",
    "description": "What the reconciler has seen.",
    "properties": {
        "observedGeneration": {"type": "integer", "format": "int64", "description": "Generation of the spec that it is about."},
        "version": {"type": "string", "description": "What the resource provides to others: a snapshot, a run."},
        "conditions": {
            "type": "array",
            "description": "Ready, and why not.",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                "properties": {
                    "type": {"type": "string", "maxLength": 316},
                    "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                    "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                    "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                    "message": {"type": "string", "maxLength": 32768},
                },
            },
        },
    },
}  # fmt: skip
