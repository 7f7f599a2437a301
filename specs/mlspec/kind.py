"""The contract of a kind: its model, what it refers to, what is checked at link time, and what it becomes.

`mlspec.kinds` has one file per kind that provides these; `mlspec.kind_table` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlspec.diagnostics import Problem
from mlspec.lifecycle import Request, State
from mlspec.resource import Base, Path, Ref, Resource
from mlspec.workload import JSON, Facts, Workload


@dataclass(frozen=True, slots=True)
class Catalog:
    """All resources of a project by kind and name."""

    resources: Mapping[tuple[str, str], Resource] = field(default_factory=dict)

    def find(self, kinds: str | tuple[str, ...], name: str) -> Resource | None:
        """The first resource of these kinds with this name."""
        for kind in (kinds,) if isinstance(kinds, str) else kinds:
            if found := self.resources.get((kind, name)):
                return found
        return None

    def __contains__(self, resource: object) -> bool:
        """Whether there is a resource with this id (`Kind/name`)."""
        kind, _, name = str(resource).partition("/")
        return (kind, name) in self.resources

    def names(self, kinds: str | tuple[str, ...]) -> list[str]:
        """Names of all resources of these kinds, sorted."""
        wanted = (kinds,) if isinstance(kinds, str) else kinds
        return sorted(name for kind, name in self.resources if kind in wanted)

    def of(self, kind: str) -> list[Resource]:
        """All resources of one kind, by name."""
        return [self.resources[kind, name] for name in self.names(kind)]


@dataclass(frozen=True, slots=True)
class Lowered:
    """What one resource becomes, given the facts of this moment.

    `version` identifies what the resource provides to others, `output` says where it is; both are None while a run has
    to finish first. `waits` says in words for what. Objects of a waiting resource that exist already are left alone.
    """

    version: str | None = None
    output: JSON | None = None
    workloads: tuple[Workload, ...] = ()
    waits: tuple[str, ...] = ()
    failed: str = ""
    """Why it will not become ready by itself: a failed run, failed gates."""
    unsupported: str = ""
    """Why no target can run it yet."""
    note: str = ""
    """One sentence for `status`."""
    warning: str = ""
    """What somebody should know, although everything is as git says."""
    because: str = ""
    """Who asked for the run when it was not a change of the specs."""
    engine: str = ""
    """Engine of the runs to come, so that a target that lacks it says so before they are known."""
    recipe: str = ""
    """Digest of what git alone says about it: the `S` of a job."""
    life: State | None = None
    """Of a TrainingJob: where its model stands."""
    asks: tuple[Request, ...] = ()
    """Requests that it makes by itself, to be remembered."""
    steady: bool = False
    """New inputs alone do not make it run."""
    reading: float | None = None
    """While its source is read anew, when that was asked for (wall clock, seconds), 0 while features are computed from what was
    read; the output is that of the reading before."""
    data: str = ""
    """Which range of data what serves was trained on, who decided it and why."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a kind may know when it becomes workloads: the project, the facts, and what came before it in the DAG."""

    catalog: Catalog
    facts: Facts
    lowered: Mapping[tuple[str, str], Lowered]
    used_by: Mapping[tuple[str, str], tuple[Resource, ...]] = field(default_factory=dict)
    """(kind, name) -> the resources that refer to it."""

    def users(self, kind: str, name: str, of: str) -> list[Resource]:
        """The resources of kind `of` that refer to a resource."""
        return [one for one in self.used_by.get((kind, name), ()) if one.kind == of]

    def of(self, kinds: str | tuple[str, ...], name: str) -> Lowered:
        """What the resource that a reference names has become."""
        resource = self.catalog.find(kinds, name)
        assert resource is not None, f"unlinked reference {kinds} {name}"
        return self.lowered[resource.kind, resource.name]


@dataclass(frozen=True, slots=True)
class CodeUse:
    """A function that a spec names in place: its entry and further files, relative to the folder of the spec, and the
    packages that are installed for it."""

    entry: str
    include: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowSql:
    """A SQL expression of a spec and the Dataset over whose rows it is computed; `path` starts at the root."""

    text: str
    path: Path
    dataset: str


def no_expressions(spec: Any, catalog: Catalog) -> Iterable[RowSql]:
    """For kinds without SQL."""
    return ()


def no_code(spec: Any) -> Iterable[CodeUse]:
    """For kinds without functions."""
    return ()


def no_references(spec: Any) -> Iterable[Ref]:
    """For kinds that refer to nothing."""
    return ()


def no_checks(resource: Resource, catalog: Catalog) -> Iterable[Problem]:
    """For kinds without link-time checks."""
    return ()


def nothing(resource: Resource, context: Context) -> Lowered:
    """For kinds that only others read."""
    return Lowered(version="", output={})


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of the spec language."""

    model: type[Base]
    references: Callable[[Any], Iterable[Ref]] = no_references
    check: Callable[[Resource, Catalog], Iterable[Problem]] = no_checks
    lower: Callable[[Resource, Context], Lowered] = nothing
    code: Callable[[Any], Iterable[CodeUse]] = no_code
    expressions: Callable[[Any, Catalog], Iterable[RowSql]] = no_expressions
    columns: tuple[tuple[str, str], ...] = ()
    """Printer columns of the CRD: title and JSON path."""
