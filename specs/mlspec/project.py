"""Texts become one linked project, or every diagnostic of all files: the step that `mlspec validate` stops after.

`mlspec_reconciler.load` finds the files and calls `build`. Linking resolves references by name, runs the checks of the kinds,
puts SQL into its normal form, and orders resources so that each comes after what it refers to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

from mlspec import rules, source
from mlspec.diagnostics import Diagnostic, Mark, Problem, did_you_mean, listed
from mlspec.kind import Catalog
from mlspec.kind_table import KINDS
from mlspec.kinds.dataset import DatasetSpec, check_column
from mlspec.kinds.project import ProjectSpec
from mlspec.manifest import digest
from mlspec.parse import is_ours, parse
from mlspec.resource import Path, Ref, Resource, replaced
from mlspec.source import Document
from mlspec.sql import Analyse, analyse

Id = tuple[str, str]


@dataclass(frozen=True)
class Project:
    """Linked resources. `order` holds all but the Project itself, each after everything it refers to."""

    name: str
    settings: ProjectSpec
    catalog: Catalog
    order: tuple[Resource, ...]
    warnings: tuple[Diagnostic, ...] = ()
    documents: Mapping[str, Document] = field(default_factory=dict, repr=False)
    """By resource id."""
    source: Mapping[str, str] = field(default_factory=dict)
    """The `repository` and its `revision` that the specs are of; empty outside of git."""

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of each resource's document by resource id; comments (of SQL too) and the order of keys do not count."""
        return {one.id: digest(self._normal(one)) for one in self.catalog.resources.values()}

    def _normal(self, resource: Resource) -> Any:
        data = self.documents[resource.id].data
        for use in KINDS[resource.kind].expressions(resource.spec, self.catalog):
            data = replaced(data, use.path, use.text)
        return data

    def locate(self, resource: Resource, path: Path = (), on_key: bool = False) -> Mark:
        """The place of a field of a resource in its file; `path` starts at the root: `("spec", "function")`."""
        return source.locate(self.documents[resource.id], path, on_key)

    def place(self, resource: Resource, problem: Problem) -> Diagnostic:
        """A problem of a resource, found after linking, with its place in its file."""
        return source.place(self.documents[resource.id], problem)


@dataclass(frozen=True, slots=True)
class Built:
    """A project, or the errors that forbid it; `diagnostics` are sorted and hold the warnings too."""

    project: Project | None
    diagnostics: tuple[Diagnostic, ...]
    resources: int = 0
    foreign: int = 0
    """Documents that belong to other tools (plain Kubernetes manifests, kustomizations) and were left alone."""


def build(texts: Mapping[str, str], name: str = "project", sql: Analyse = analyse) -> Built:
    """Read, type and link all files. `name` is the project's name when no Project resource says it.

    `sql` judges the SQL expressions; `mlspec_reconciler.cache` has one that remembers.
    """
    found: list[Diagnostic] = []
    resources: list[Resource] = []
    documents: dict[Id, Document] = {}
    declared: set[Id] = set()
    foreign = 0
    for path, text in texts.items():
        read = source.parse_text(text, path)
        if read.errors and not is_ours(text):
            foreign += 1  # a template of another tool is often no YAML at all
        else:
            found += read.errors
        declared.update((one.kind, one.name) for one in read.unreadable)
        for document in read.documents:
            parsed = parse(document)
            if parsed.foreign:
                foreign += 1
                continue
            found += document.misread
            misread = {(one.mark.line, one.mark.column) for one in document.misread}
            placed = (source.place(document, problem) for problem in parsed.problems)
            found += (one for one in placed if (one.mark.line, one.mark.column) not in misread)
            if parsed.declares is not None:
                declared.add(parsed.declares)
            if parsed.resource is None:
                continue
            first = documents.setdefault((parsed.resource.kind, parsed.resource.name), document)
            if first is document:
                resources.append(parsed.resource)
            else:
                found.append(_duplicate(parsed.resource, document, first))
    linked = _link(resources, documents, declared, sql)
    diagnostics = tuple(sorted({*found, *linked.diagnostics}, key=_position))
    if any(one.severity == "error" for one in diagnostics):
        return Built(None, diagnostics, len(resources), foreign)
    settings = next((resource for resource in resources if resource.kind == "Project"), None)
    project = Project(
        name=settings.name if settings else name,
        settings=cast(ProjectSpec, settings.spec) if settings else ProjectSpec(),
        catalog=linked.catalog,
        order=linked.order,
        warnings=diagnostics,
        documents={f"{kind}/{name}": document for (kind, name), document in documents.items()},
    )
    return Built(project, diagnostics, len(resources), foreign)


def _position(one: Diagnostic) -> tuple[Mark, str, str]:
    return one.mark, one.code, one.message


def _duplicate(resource: Resource, document: Document, first: Document) -> Diagnostic:
    place = f"{first.path}:{first.line}"
    problem = Problem(
        "duplicate-name",
        f"{resource.id} is defined twice; first in {place}",
        ("metadata", "name"),
        "rename one of them",
    )
    return source.place(document, problem)


# Linking


@dataclass(frozen=True, slots=True)
class _Linked:
    catalog: Catalog
    order: tuple[Resource, ...]
    diagnostics: tuple[Diagnostic, ...]


def _link(
    resources: list[Resource], documents: Mapping[Id, Document], declared: set[Id], sql: Analyse
) -> _Linked:
    catalog = Catalog({(one.kind, one.name): one for one in resources})
    found: list[Diagnostic] = []
    edges: dict[Id, list[tuple[Id, Ref]]] = {}
    on_kubernetes = any(
        target.kubernetes
        for one in resources
        if isinstance(one.spec, ProjectSpec)
        for target in one.spec.targets.values()
    )
    for resource in resources:
        found += _check_expressions(resource, documents[resource.kind, resource.name], catalog, sql)
    resources = [_normalised(one, catalog, sql) for one in resources]
    catalog = Catalog({(one.kind, one.name): one for one in resources})
    for resource in resources:
        id_ = (resource.kind, resource.name)
        problems, edges[id_] = _resolve(resource, catalog, declared)
        problems += KINDS[resource.kind].check(resource, catalog)
        problems += rules.name_length(resource, on_kubernetes)
        found += (source.place(documents[id_], problem) for problem in problems)
    found += (source.place(documents[id_], problem) for id_, problem in _one_project(resources))
    ordered, cycle = topological({id_: [target for target, _ in targets] for id_, targets in edges.items()})
    if cycle:
        path = next(ref.path for target, ref in edges[cycle[0]] if target == cycle[1])
        words = " -> ".join(f"{kind}/{name}" for kind, name in cycle)
        problem = Problem(
            "cycle",
            f"resources refer to each other in a circle: {words}",
            ("spec", *path),
            "remove one of these references",
        )
        found.append(source.place(documents[cycle[0]], problem))
    order = tuple(catalog.resources[id_] for id_ in ordered if id_[0] != "Project")
    return _Linked(catalog, order, tuple(found))


def _resolve(
    resource: Resource, catalog: Catalog, declared: set[Id]
) -> tuple[list[Problem], list[tuple[Id, Ref]]]:
    problems: list[Problem] = []
    edges: list[tuple[Id, Ref]] = []
    for ref in KINDS[resource.kind].references(resource.spec):
        target = catalog.find(ref.kinds, ref.name)
        if target is not None:
            edges.append(((target.kind, target.name), ref))
        elif not any((kind, ref.name) in declared for kind in ref.kinds):
            problems.append(_unknown_reference(ref, catalog, declared))
    return problems, edges


def _unknown_reference(ref: Ref, catalog: Catalog, declared: set[Id]) -> Problem:
    path = ("spec", *ref.path)
    wanted = " or ".join(ref.kinds)
    names = {name for kind, name in (*catalog.resources, *declared) if kind in ref.kinds}
    hint = listed(names) if names else f"the project has no {wanted} yet"
    others = sorted(kind for kind, name in catalog.resources if name == ref.name)
    if others:
        return Problem("wrong-kind", f"{ref.name} is a {others[0]}, not a {wanted}", path, hint)
    likely = names if len(names) < 500 else {name for name in names if name[:1] == ref.name[:1]}
    message = f'{wanted} "{ref.name}" is unknown{did_you_mean(ref.name, likely)}'
    return Problem("unknown-reference", message, path, hint)


def _check_expressions(
    resource: Resource, document: Document, catalog: Catalog, sql: Analyse
) -> Iterator[Diagnostic]:
    """The SQL of a resource: allowed, and over columns that exist. The caret stands inside the expression."""
    for use in KINDS[resource.kind].expressions(resource.spec, catalog):
        fact = sql(use.text)
        if fact.problem is not None:
            mark = source.locate_in(document, use.path, fact.offset)
            yield Diagnostic("error", "invalid-sql", fact.problem, mark, fact.hint)
            continue
        dataset = resource if resource.kind == "Dataset" else catalog.find("Dataset", use.dataset)
        if dataset is None:
            continue
        for column in fact.columns:
            for problem in check_column(column, cast(DatasetSpec, dataset.spec), dataset.name, use.path):
                word = re.search(rf"(?<!\w){re.escape(column)}(?!\w)", use.text, re.IGNORECASE)
                mark = source.locate_in(document, use.path, word.start() if word else 0, len(column))
                yield Diagnostic(problem.severity, problem.code, problem.message, mark, problem.hint)


def _normalised(resource: Resource, catalog: Catalog, sql: Analyse) -> Resource:
    """The resource with its SQL as it is read, without comments: what identities and tasks are made of."""
    spec = resource.spec
    for use in KINDS[resource.kind].expressions(spec, catalog):
        fact = sql(use.text)
        if fact.problem is None and fact.normal != use.text:
            spec = replaced(spec, use.path[1:], fact.normal)
    return resource if spec is resource.spec else replace(resource, spec=spec)


def _one_project(resources: Iterable[Resource]) -> Iterator[tuple[Id, Problem]]:
    projects = [one for one in resources if one.kind == "Project"]
    for other in projects[1:]:
        message = f"a repository has one Project; {projects[0].name} is already defined in {projects[0].mark}"
        yield (other.kind, other.name), Problem("duplicate-project", message, ("kind",), "remove one of them")


def topological(edges: Mapping[Id, Iterable[Id]]) -> tuple[list[Id], list[Id]]:
    """Nodes, each after those that its edges lead to; or nothing and one cycle as a path that ends where it starts."""
    try:
        return list(TopologicalSorter(edges).static_order()), []
    except CycleError as error:
        cycle: list[Id] = list(reversed(error.args[1]))
        return [], cycle
