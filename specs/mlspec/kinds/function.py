"""Function: a plain Python function with its requirements; the code imports nothing of mlspec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, CodeUse, Context
from mlspec.resource import Base, CodeRef, Identifier, Name, Path, Ref, Resource
from mlspec.workload import JSON, code_key, code_path


class InlineFunction(Base):
    """A function written where it is used."""

    code: CodeRef
    """`file.py:function`, relative to the file of the spec, or `package.module:function`."""
    requirements: list[str] = []
    """PEP 508 requirements, installed into a cached environment: `scikit-learn==1.7.*`."""
    include: list[str] = []
    """More files of the code bundle (globs); imported local modules are found without it."""


FunctionUse = CodeRef | Name | InlineFunction
"""`file.py:function`, the name of a Function, or a function written in place."""


class FunctionSpec(Base):
    """Code that several resources share."""

    code: CodeRef
    """`file.py:function`, relative to the file of the spec, or `package.module:function`."""
    requirements: list[str] = []
    """PEP 508 requirements, installed into a cached environment."""
    include: list[str] = []
    """More files of the code bundle (globs)."""
    image: str | None = None
    """Container image on Kubernetes instead of the target's image; best by digest."""
    parameters: dict[Identifier, dict[str, Any]] = Field(default_factory=dict)
    """JSON Schema of each parameter; the users' `parameters` are checked against it."""


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """The parameters are JSON Schemas, and the image stays the same."""
    spec = cast(FunctionSpec, resource.spec)
    if spec.image is not None:
        yield from rules.image(spec.image, ("spec", "image"))
    for name, schema in spec.parameters.items():
        yield from rules.schema(schema, ("spec", "parameters", name))


def check_arguments(
    use: str | InlineFunction | None, given: Mapping[str, Any], path: Path, catalog: Catalog
) -> Iterator[Problem]:
    """Arguments for a function: those of a shared one are checked against its JSON Schemas."""
    if isinstance(use, str) and (function := catalog.find("Function", use)):
        yield from rules.parameters(given, cast(FunctionSpec, function.spec).parameters, use, path)


def use_reference(use: str | InlineFunction | None, path: Path) -> Iterator[Ref]:
    """The Function that a use names; nothing when the code stands in place."""
    if isinstance(use, str) and ":" not in use:
        yield Ref(("Function",), use, path)


@dataclass(frozen=True, slots=True)
class Bound:
    """A function as a run needs it: where the runtime finds it, and what identifies it."""

    document: JSON
    """`{path, entry}` for the runtime; `path` is relative to the storage root."""
    identity: JSON
    """What changes when the function does."""
    requirements: tuple[str, ...]
    image: str | None = None


def code(spec: FunctionSpec) -> Iterable[CodeUse]:
    """The code of a Function."""
    return inline(InlineFunction(code=spec.code, requirements=spec.requirements, include=spec.include))


def inline(use: str | InlineFunction | None) -> Iterable[CodeUse]:
    """The code that a use names in place; nothing when it names a Function."""
    match use:
        case InlineFunction():
            yield CodeUse(use.code, tuple(use.include), tuple(use.requirements))
        case str() if ":" in use:
            yield CodeUse(use)


def bind(use: str | InlineFunction, user: Resource, context: Context) -> Bound:
    """Resolve a use of a function by `user` against the facts."""
    if isinstance(use, str) and ":" not in use:
        shared = context.catalog.find("Function", use)
        assert shared is not None, f"unlinked function {use}"
        spec = cast(FunctionSpec, shared.spec)
        return _bound(shared, spec.code, tuple(spec.include), tuple(spec.requirements), spec.image, context)
    if isinstance(use, str):
        return _bound(user, use, (), (), None, context)
    return _bound(user, use.code, tuple(use.include), tuple(use.requirements), None, context)


def _bound(
    owner: Resource,
    entry: str,
    include: tuple[str, ...],
    requirements: tuple[str, ...],
    image: str | None,
    context: Context,
) -> Bound:
    bundle = context.facts.code.get(code_key(owner.mark.path, entry, include, requirements), "")
    return Bound(
        document={"path": code_path(bundle), "entry": entry},
        identity={"bundle": bundle, "entry": entry, "requirements": sorted(requirements), "image": image},
        requirements=requirements,
        image=image,
    )
