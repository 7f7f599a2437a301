"""What the models say about themselves: their fields, the types in words, and the docstrings below the fields.

`mlspec.parse` uses it for messages, `mlspec.explain` and `mlspec.schema` for everything that is generated from the models.
Docstrings are read from the source with `ast` on demand, so that a valid spec never pays for them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from mlspec import resource
from mlspec.kinds.function import FunctionUse
from mlspec.resource import Base

_NAMED: tuple[tuple[Any, str], ...] = (
    (resource.Name, "a name"),
    (resource.Identifier, "an identifier"),
    (resource.Duration, "a duration"),
    (resource.Interval, "a duration"),
    (resource.Quantity, "a quantity"),
    (resource.Moment, "a time"),
    (resource.Share, "a share"),
    (resource.Sql, "a SQL expression"),
    (resource.CodeRef, "`file.py:function`"),
    (FunctionUse, "`file.py:function`, the name of a Function or {code: ...}"),
)
_WORDS: dict[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Any: "any value",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field as it is written in YAML. `type` is its annotation with its constraints; None is stripped."""

    name: str
    attribute: str
    type: Any
    required: bool
    nullable: bool
    default: Any
    """Plain data; None when there is none."""
    doc: str


@functools.cache
def fields(model: type[Base]) -> dict[str, Field]:
    """The fields of a model by their YAML names, in their order."""
    hints = get_type_hints(model, include_extras=True)
    documentation = docs(model)
    found = {}
    for attribute, info in model.model_fields.items():
        name = info.alias or attribute
        hint = hints[attribute]
        nullable = types.NoneType in alternatives(hint)
        kept = functools.reduce(
            operator.or_, [one for one in alternatives(hint) if one is not types.NoneType]
        )
        if constraints := [one for one in info.metadata if one not in split(kept)[1]]:
            kept = Annotated[(kept, *constraints)]
        found[name] = Field(
            name,
            attribute,
            kept,
            info.is_required(),
            nullable,
            _default(info),
            documentation.get(attribute, ""),
        )
    return found


def _default(info: FieldInfo) -> Any:
    if info.is_required():
        return None
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Base):
        return value.document()
    if isinstance(value, dict):
        return {key: item.document() if isinstance(item, Base) else item for key, item in value.items()}
    return value


def split(type_: Any) -> tuple[Any, list[Any]]:
    """A type without `Annotated`, and its constraints."""
    constraints: list[Any] = []
    while get_origin(type_) is Annotated:
        inner, *extras = get_args(type_)
        for extra in extras:
            constraints += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        type_ = inner
    return type_, constraints


def alternatives(type_: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    bare, _ = split(type_)
    if get_origin(bare) in (Union, types.UnionType):
        return [member for one in get_args(bare) for member in alternatives(one)]
    return [type_]


def model_of(type_: Any) -> type[Base] | None:
    """The model of a type, also inside a union, a list or the values of a mapping."""
    for one in alternatives(type_):
        bare, _ = split(one)
        if isinstance(bare, type) and issubclass(bare, Base):
            return bare
        if get_origin(bare) in (list, dict) and (inner := model_of(get_args(bare)[-1])):
            return inner
    return None


def described(type_: Any) -> str:
    """The type in words: `a whole number`, `a list of names`, `"mean" or "median"`."""
    for named, words in _NAMED:
        if type_ == named:
            return words
    bare, _ = split(type_)
    members = [one for one in alternatives(type_) if one is not types.NoneType]
    if len(members) > 1:
        functions = alternatives(FunctionUse)
        known: list[str] = []
        if all(one in members for one in functions):
            members = [one for one in members if one not in functions]
            known.append(described(FunctionUse))
        known += [described(one) for one in members]
        return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"
    if members and members[0] is not type_:
        return described(members[0])
    if get_origin(bare) is Literal:
        choices = [f'"{one}"' if isinstance(one, str) else str(one).lower() for one in get_args(bare)]
        return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    if get_origin(bare) is list:
        return f"a list of {_plural(described(get_args(bare)[0]))}"
    if get_origin(bare) is dict:
        return "a mapping"
    if isinstance(bare, type) and issubclass(bare, Base):
        return "a mapping"
    for annotated, words_ in _NAMED:
        if split(annotated)[0] is bare and split(annotated)[1] == split(type_)[1]:
            return words_
    return _WORDS.get(bare, "a value")


def _plural(words: str) -> str:
    if words == "a mapping":
        return "mappings"
    article, _, noun = words.partition(" ")
    return f"{noun}s" if article in ("a", "an") else words


@functools.cache
def docs(model: type[Base]) -> dict[str, str]:
    """The docstrings below the fields of a model, by attribute."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base.__module__.startswith("mlspec."):
            found |= _module_docs(base.__module__).get(base.__name__, {})
    return found


@functools.cache
def _module_docs(module: str) -> dict[str, dict[str, str]]:
    path = sys.modules[module].__file__
    assert path is not None
    tree = ast.parse(FilePath(path).read_text(encoding="utf-8"))
    return {node.name: dict(_class_docs(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _class_docs(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield field.target.id, " ".join(inspect.cleandoc(below.value.value).split())
