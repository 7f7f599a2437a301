"""A document becomes a typed resource, or the list of everything that is wrong with it. `mlspec.project` calls it.

pydantic finds the errors; this module says them in the words of the spec language, one message for each mistake.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from annotated_types import MaxLen, MinLen
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mlspec import API_VERSION, fields
from mlspec.diagnostics import Mark, Problem, did_you_mean, listed
from mlspec.kind_table import KINDS
from mlspec.kinds.function import FunctionUse
from mlspec.resource import (
    IDENTIFIER_PATTERN,
    NAME_PATTERN,
    Base,
    CodeRef,
    Identifier,
    Name,
    OneOf,
    Path,
    Resource,
)
from mlspec.source import Document

_GROUP = API_VERSION.partition("/")[0]
_NAME = re.compile(NAME_PATTERN)
_LABEL_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one document is: a resource, problems, or a `foreign` document that belongs to another tool."""

    resource: Resource | None = None
    problems: tuple[Problem, ...] = ()
    foreign: bool = False
    declares: tuple[str, str] | None = None
    """Kind and name that the document defines, even if its spec is wrong."""


def parse(document: Document) -> Parsed:
    """Type one document; never raises."""
    data = document.data
    if not isinstance(data, dict):
        if not is_ours(document.text):
            return Parsed(foreign=True)
        hint = "start it with apiVersion, kind, metadata and spec; separate several resources with ---"
        return Parsed(
            problems=(Problem("not-a-resource", f"expected a resource, found {found(data)}", (), hint),)
        )
    version = data.get("apiVersion")
    if not _is_ours(data):
        return Parsed(foreign=True)
    problems = list(_check_version(version, data)) + list(_check_metadata(data))
    problems += _unknown_fields(data, ("apiVersion", "kind", "metadata", "spec", "status"), ())
    kind, metadata = data.get("kind"), data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        problems.append(_unknown_kind(kind))
        return Parsed(problems=tuple(problems))
    declares = (kind, name) if isinstance(name, str) else None
    spec = None
    model = KINDS[kind].model
    try:
        spec = model.model_validate({} if data.get("spec") is None else data["spec"], strict=True)
    except ValidationError as error:
        spec_data = {} if data.get("spec") is None else data["spec"]
        told = list(mistakes(model, spec_data, ("spec",)))
        problems += told or [
            Problem("invalid-spec", line["msg"], ("spec",)) for line in error.errors(include_url=False)
        ]
    if problems or spec is None or declares is None:
        return Parsed(problems=tuple(problems), declares=declares)
    assert isinstance(metadata, dict)
    resource = Resource(
        kind=kind,
        name=declares[1],
        spec=spec,
        mark=Mark(document.path, document.line),
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        document=document.index,
    )
    return Parsed(resource, declares=declares)


def is_ours(text: str) -> bool:
    """Whether a text that is no resource was meant to be one; the YAML of other tools is none of our business."""
    return _GROUP in text or any(match[1] in KINDS for match in _KIND.finditer(text))


# The envelope

_KIND = re.compile(r"^kind:[ \t]*(\w+)", re.MULTILINE)


def _is_ours(data: Mapping[str, Any]) -> bool:
    """Everything but manifests of other groups and the files of other tools, which have no apiVersion and no kind of ours."""
    version, kind = data.get("apiVersion"), data.get("kind")
    if isinstance(version, str) and version:
        group, _, _ = version.partition("/")
        return group == _GROUP or ("/" in version and bool(did_you_mean(group, [_GROUP])))
    return "apiVersion" in data or kind in KINDS or ("kind" in data and "spec" in data)


def _check_version(version: object, data: Mapping[str, Any]) -> Iterator[Problem]:
    if version is None:
        yield Problem(
            "missing-field",
            "apiVersion is missing",
            ("apiVersion",),
            f"add apiVersion: {API_VERSION}",
            on_key=True,
        )
    elif version != API_VERSION:
        message = (
            f'apiVersion "{version}" is unknown' if isinstance(version, str) else "apiVersion is not a string"
        )
        yield Problem("unknown-version", message, ("apiVersion",), f"write {API_VERSION}")


def _unknown_kind(kind: object) -> Problem:
    if kind is None:
        return Problem("missing-field", "kind is missing", ("kind",), f"one of {listed(KINDS)}", on_key=True)
    if not isinstance(kind, str):
        return Problem(
            "unknown-kind", f"expected a kind, found {found(kind)}", ("kind",), f"one of {listed(KINDS)}"
        )
    hint = did_you_mean(kind, KINDS)
    return Problem("unknown-kind", f'kind "{kind}" is unknown{hint}', ("kind",), f"one of {listed(KINDS)}")


def _check_metadata(data: Mapping[str, Any]) -> Iterator[Problem]:
    metadata = data.get("metadata")
    if metadata is None:
        yield Problem(
            "missing-field", "metadata is missing", ("metadata",), "add metadata: {name: ...}", on_key=True
        )
        return
    if not isinstance(metadata, dict):
        yield Problem(
            "wrong-type",
            f"expected a mapping, found {found(metadata)}",
            ("metadata",),
            "metadata: {name: ...}",
        )
        return
    name = metadata.get("name")
    if name is None:
        yield Problem(
            "missing-field", "metadata.name is missing", ("metadata", "name"), "add name: ...", on_key=True
        )
    elif not isinstance(name, str):
        hint = f'write "{name}" in quotes' if isinstance(name, int) and not isinstance(name, bool) else ""
        yield Problem("wrong-type", f"expected a name, found {found(name)}", ("metadata", "name"), hint)
    elif not _NAME.fullmatch(name):
        yield Problem(
            "invalid-name",
            f'"{name}" is not a name: {_PATTERNS[NAME_PATTERN]}',
            ("metadata", "name"),
            _suggestion(Name, name),
        )
    elif len(name) > 63:
        yield Problem(
            "invalid-name", f"the name has {len(name)} characters; 63 are allowed", ("metadata", "name")
        )
    if "namespace" in metadata:
        hint = "remove it; the target of the Project says the namespace, so that one spec fits every target"
        yield Problem(
            "namespace", "metadata.namespace is not allowed", ("metadata", "namespace"), hint, on_key=True
        )
    for field in ("labels", "annotations"):
        yield from _check_labels(field, metadata.get(field))
    known = ("name", "labels", "annotations", "namespace")
    yield from _unknown_fields(metadata, known, ("metadata",), shown=known[:3])


def _check_labels(field: str, value: object) -> Iterator[Problem]:
    if value is None:
        return
    if not isinstance(value, dict):
        yield Problem("wrong-type", f"expected a mapping, found {found(value)}", ("metadata", field))
        return
    for key, text in value.items():
        path = ("metadata", field, key)
        if not _LABEL_KEY.fullmatch(key):
            hint = "letters, digits, - _ and . (at most 63), after an optional prefix such as example.com/"
            yield Problem("invalid-label", f'"{key}" is not a key of {field}', path, hint, on_key=True)
        if not isinstance(text, str):
            hint = f"write {_quoted(text)} in quotes" if isinstance(text, int | float) else ""
            yield Problem("wrong-type", f"expected a string, found {found(text)}", path, hint)
        elif field == "labels" and not _LABEL_VALUE.fullmatch(text):
            hint = "at most 63 letters, digits, - _ and ., or move it to annotations"
            yield Problem("invalid-label", f'"{text}" is not a label value', path, hint)


def _unknown_fields(
    data: Mapping[str, Any], known: Iterable[str], path: Path, shown: Iterable[str] | None = None
) -> list[Problem]:
    names = list(known)
    return [
        Problem(
            "unknown-field",
            f'unknown field "{key}"{did_you_mean(key, names)}',
            (*path, key),
            listed(shown or names),
            on_key=True,
        )
        for key in data
        if key not in names
    ]


# The spec

_PATTERNS = {
    NAME_PATTERN: "lower-case letters, digits and dashes, with a letter or digit at both ends",
    IDENTIFIER_PATTERN: "letters, digits and _, not starting with a digit",
    r"^[a-z][a-z0-9_-]*$": "lower-case letters, digits, _ and -, starting with a letter",
    r"^[A-Za-z_]?[A-Za-z0-9_]*$": "letters, digits and _, not starting with a digit",
}
_CODE = "write `file.py:function` (relative to this file) or `package.module:function`"


def mistakes(type_: Any, value: Any, path: Path = ()) -> Iterator[Problem]:
    """Everything that is wrong with a value that pydantic has refused, one problem for each mistake.

    pydantic still judges each scalar; the walk is ours because its reports on unions and unknown fields are not for users.
    """
    bare, constraints = fields.split(type_)
    members = [one for one in fields.alternatives(type_) if one is not types.NoneType]
    if value is None and types.NoneType in fields.alternatives(type_):
        return
    if len(members) > 1:
        fitting = [one for one in members if _fits(one, value)]
        if len(fitting) == 1:
            yield from mistakes(fitting[0], value, path)
        elif not any(not list(mistakes(one, value, path)) for one in fitting):
            yield _wrong(type_, value, path)
    elif members[0] is not type_ and not constraints:
        yield from mistakes(members[0], value, path)
    elif not _fits(type_, value):
        yield _wrong(type_, value, path)
    elif isinstance(bare, type) and issubclass(bare, Base):
        yield from _model_mistakes(bare, value, path)
    elif get_origin(bare) is list:
        yield from _size_mistakes(constraints, value, path, "item")
        for index, item in enumerate(value):
            yield from mistakes(get_args(bare)[0], item, (*path, index))
    elif get_origin(bare) is dict:
        yield from _size_mistakes(constraints, value, path, "entry")
        key_type, item_type = get_args(bare)
        for key, item in value.items():
            yield from (replace(problem, on_key=True) for problem in mistakes(key_type, key, (*path, key)))
            yield from mistakes(item_type, item, (*path, key))
    else:
        yield from _scalar_mistakes(type_, value, path)


def _model_mistakes(model: type[Base], value: dict[str, Any], path: Path) -> Iterator[Problem]:
    known = fields.fields(model)
    before = 0
    for problem in _unknown_fields(value, known, path):
        before += 1
        yield problem
    for name, field in known.items():
        if name in value:
            for problem in (
                mistakes(field.type, value[name], (*path, name)) if not _unset(field, value[name]) else ()
            ):
                before += 1
                yield problem
        elif field.required:
            before += 1
            yield Problem(
                "missing-field", f'field "{name}" is missing', (*path, name), field.doc, on_key=True
            )
    if not before and issubclass(model, OneOf):
        try:
            model.model_validate(value, strict=True)
        except ValidationError as error:
            yield from (
                _one_of(model, value, path, details)
                for details in error.errors()
                if details["type"] == "one_of"
            )


def _unset(field: fields.Field, value: Any) -> bool:
    return value is None and field.nullable


def _one_of(model: type[OneOf], value: dict[str, Any], path: Path, details: ErrorDetails) -> Problem:
    names = {known.attribute: name for name, known in fields.fields(model).items()}
    choices = [names[attribute] for attribute in model.CHOICES]
    given = [name for name in choices if value.get(name) is not None]
    empty = [name for name in choices if name in value and value[name] is None]
    if given:
        message = f"{' and '.join(given)} exclude each other"
        return Problem("one-of", message, (*path, given[1]), f"keep one of {listed(choices)}", on_key=True)
    if empty:
        return Problem(
            "one-of", f"{empty[0]} has no value", (*path, empty[0]), f"write {empty[0]}: {{}}", on_key=True
        )
    return Problem("one-of", f"one of {listed(choices)} is needed", path, on_key=True)


def _fits(type_: Any, value: Any) -> bool:
    """Whether a value has the JSON type that a type is written as."""
    bare, constraints = fields.split(type_)
    if (isinstance(bare, type) and issubclass(bare, Base)) or get_origin(bare) is dict:
        return isinstance(value, dict)
    if get_origin(bare) is list:
        return isinstance(value, list)
    if bare is Any:
        return True
    if isinstance(value, dict | list) or value is None:
        return False
    if any(isinstance(one, BeforeValidator) for one in constraints):
        return True
    if get_origin(bare) is Literal:
        return any(type(value) is type(choice) for choice in get_args(bare))
    if bare is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is bare


def _wrong(type_: Any, value: Any, path: Path) -> Problem:
    hint = ""
    if value is None:
        hint = "give it a value, or remove the line"
    elif isinstance(value, int | float) and any(
        fields.split(one)[0] is str for one in fields.alternatives(type_)
    ):
        hint = f"write {_quoted(value)}"
    elif fields.described(type_) == fields.described(FunctionUse):
        hint = _CODE
    elif (
        isinstance(value, str)
        and not isinstance(_unquoted(value), str)
        and any(_fits(one, _unquoted(value)) for one in fields.alternatives(type_))
    ):
        hint = f"write {value} without quotes"
    elif get_origin(fields.split(type_)[0]) is list and isinstance(value, str | int):
        hint = f"write [{value}]"
    elif model := fields.model_of(type_):
        hint = f"its fields: {listed(fields.fields(model))}"
    return Problem("wrong-type", f"expected {fields.described(type_)}, found {found(value)}", path, hint)


def _size_mistakes(
    constraints: list[Any], value: list[Any] | dict[str, Any], path: Path, what: str
) -> Iterator[Problem]:
    many = {"item": "items", "entry": "entries"}[what]
    for one in constraints:
        if isinstance(one, MinLen) and len(value) < one.min_length:
            words = f"at least {one.min_length} {what if one.min_length == 1 else many}"
            yield Problem("too-short", f"{words} needed, found {len(value)}", path, on_key=not value)
        if isinstance(one, MaxLen) and len(value) > one.max_length:
            yield Problem("too-long", f"at most {one.max_length} {many} allowed, found {len(value)}", path)


def _scalar_mistakes(type_: Any, value: Any, path: Path) -> Iterator[Problem]:
    try:
        _adapter(type_).validate_python(value, strict=True)
    except ValidationError as error:
        yield _say(error.errors(include_url=False)[0], type_, value, path)


_ADAPTERS: dict[str, TypeAdapter[Any]] = {}


def _adapter(type_: Any) -> TypeAdapter[Any]:
    return _ADAPTERS.setdefault(repr(type_), TypeAdapter(type_))


def _say(details: ErrorDetails, type_: Any, value: Any, path: Path) -> Problem:
    context = details.get("ctx", {})
    match details["type"]:
        case "string_pattern_mismatch" if type_ == CodeRef:
            return Problem("invalid-code", f'"{value}" names no function', path, _CODE)
        case "string_pattern_mismatch":
            what = fields.described(type_) if type_ in (Name, Identifier) else "allowed here"
            words = _PATTERNS.get(context["pattern"], f"it must match {context['pattern']}")
            return Problem(
                "invalid-name", f'"{value}" is not {what}: {words}', path, _suggestion(type_, value)
            )
        case "literal_error":
            choices = [str(one) for one in get_args(fields.split(type_)[0])]
            return Problem(
                "unknown-value",
                f'"{value}" is not allowed{did_you_mean(str(value), choices)}',
                path,
                f"one of {listed(choices)}" if len(choices) > 1 else f"write {choices[0]}",
            )
        case "string_too_long":
            return Problem(
                "too-long", f"{len(value)} characters; at most {context['max_length']} are allowed", path
            )
        case "string_too_short":
            return Problem(
                "too-short", "an empty text is not allowed", path, "write a value, or remove the line"
            )
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than" as bound:
            limit = f"{_BOUNDS[bound]} {next(iter(context.values())):g}"
            return Problem("out-of-range", f"{value} is not allowed; it must be {limit}", path)
        case "empty_range":
            return Problem(
                "empty-range",
                f"{value} is no time at all; it must be greater than zero",
                path,
                details["msg"],
            )
        case "duration" | "quantity" | "time" | "share" as code:
            return Problem(
                f"invalid-{code}",
                f"{_quoted(value) if isinstance(value, str) else value} is not {_ARTICLE[code]}",
                path,
                details["msg"],
            )
        case _:
            return Problem("invalid-value", details["msg"], path)


_BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "greater than",
    "less_than_equal": "at most",
    "less_than": "less than",
}
_ARTICLE = {"duration": "a duration", "quantity": "a quantity", "time": "a time", "share": "a share"}


def found(value: Any) -> str:
    """The JSON type of a value in words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int():
            return f"the whole number {value}" if abs(value) < 10**9 else "a whole number"
        case float():
            return f"the number {value:g}"
        case str():
            return f'the string "{value}"' if len(value) <= 40 and "\n" not in value else "a string"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _quoted(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}"'


def _unquoted(text: str) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def _suggestion(type_: Any, value: str) -> str:
    """A valid spelling of a wrong name."""
    if type_ == Identifier:
        better = re.sub(r"[^A-Za-z0-9_]+", "_", value).strip("_")
    else:
        better = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63]
    return f"write {better}" if better and not better[0].isdigit() and better != value else ""
