"""Function: a plain Python function with its requirements; the code imports nothing of mlspec."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mlspec.resource import Base, CodeRef, Identifier, Name


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
