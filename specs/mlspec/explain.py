"""`mlspec explain KIND[.field]`: the documentation of a field, from the docstring below it in the model."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from mlspec import fields
from mlspec.diagnostics import did_you_mean, listed
from mlspec.kind_table import KINDS
from mlspec.resource import Base, OneOf
from mlspec.schema import model_doc

_WIDTH = 100


def explain(path: str) -> tuple[str, str]:
    """Text about `Kind.field.field`, and an error with a way out; one of them is empty. Lists and mappings are passed through."""
    kind, *steps = [step for step in path.replace("/", ".").split(".") if step] or [""]
    name = next((one for one in KINDS if one.lower() == kind.lower()), None)
    if name is None:
        return "", f'kind "{kind}" is unknown{did_you_mean(kind, KINDS)} ({listed(KINDS)})'
    model: type[Base] | None = KINDS[name].model
    if steps[:1] == ["spec"]:
        steps = steps[1:]
    shown, field = name, None
    for step in steps:
        known = fields.fields(model) if model is not None else {}
        if step not in known:
            hint = f" ({listed(known)})" if known else "; it has no fields"
            return "", f'{shown} has no field "{step}"{did_you_mean(step, known)}{hint}'
        field = known[step]
        shown = f"{shown}.{step}"
        model = fields.model_of(field.type)
    head = f"{shown}\n\n" if field is None else f"{shown}: {facts(field)}\n\n{_wrapped(field.doc, '  ')}\n\n"
    body = f"{_wrapped(model_doc(model), '  ')}\n\n{_children(model)}" if model is not None else ""
    return (head + body).rstrip() + "\n", ""


def facts(field: fields.Field) -> str:
    """Type, and whether it is required or what its default is."""
    words = fields.described(field.type)
    if field.required:
        return f"{words}, required"
    return words if field.default in (None, [], {}, "") else f"{words}, default {_plain(field.default)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _children(model: type[Base]) -> str:
    known = fields.fields(model)
    choices = model.CHOICES if issubclass(model, OneOf) else ()
    chosen = [field for field in known.values() if field.attribute in choices]
    others = [field for field in known.values() if field.attribute not in choices]
    parts = []
    if chosen:
        parts.append("Exactly one of\n" + "\n".join(map(_child, chosen)))
    if others:
        parts.append("Fields\n" + "\n".join(map(_child, others)))
    return "\n\n".join(parts)


def _child(field: fields.Field) -> str:
    return f"  {field.name}: {facts(field)}\n{_wrapped(field.doc, '      ')}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
