"""Workload: what a resource needs to have running, without a word about the engine that runs it.

Kinds make workloads, engines lower them. So a new kind works on every engine and a new engine runs every kind.
`docs/design/workload.md` says why these four shapes are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlspec.lifecycle import JSON as JSON
from mlspec.lifecycle import Memory, Request
from mlspec.lifecycle import Phase as Phase
from mlspec.manifest import digest


@dataclass(frozen=True, slots=True)
class Needs:
    """Resources of one process: cores, bytes, whole GPUs or a share of one, and the pool that admits it."""

    cpu: float = 1.0
    memory: float = 2 * 2.0**30
    gpu: float = 0.0
    gpu_type: str | None = None
    pool: str | None = None
    priority: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One process of the runtime: `python -m mlspec_runtime SUBJECT --task DOCUMENT`.

    `document` is all that the process is told; paths in it are relative to the storage root. `requirements` asks for
    an environment with these packages, `image` for another container image.
    """

    name: str
    subject: str
    document: JSON
    needs: Needs = Needs()
    requirements: tuple[str, ...] = ()
    image: str | None = None
    timeout: float = 6 * 3600.0
    retries: int = 1
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a run was made for: remembered with it, because git says something else later."""

    resource: str = ""
    """Resource id."""
    made_for: str = ""
    """`S` of the job (digest of the recipe, for a dataset) that asked for it."""
    request: str = ""
    """Id of the request; empty for git's own run."""
    data: str = ""
    """Which range of data it reads, who decided it and why, in one sentence; empty where there are no dates."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the inputs that it reads."""
    record: JSON = field(default_factory=dict)
    """What serving needs of it beside its result: definitions of its views, requirements."""


@dataclass(frozen=True, slots=True)
class Run:
    """Runs to completion, once. `name` ends in the hash of everything that can change the result."""

    name: str
    steps: tuple[Step, ...]
    title: str
    """What a person calls it: `train late-arrival`."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """What the name is made of, by part (`code`, `parameters`, `data flights`, ...): digests. A plan compares them with
    those of the run before to say why it runs."""
    engine: str = "workflow"
    """Which runtime the user asked for, as in `TrainingJob.spec.engine`."""
    made: Made = Made()
    after: str = ""
    """The run with the same purpose that has failed: this one is made only when a person retries."""


@dataclass(frozen=True, slots=True)
class Service:
    """Answers requests on one port until it is deleted.

    On this machine `document` may change while it runs (the process follows); `step.requirements`, `image` and `needs`
    replace it. Kubernetes replaces it for any change, one replica after the other.
    """

    name: str
    step: Step
    port: int | None = None
    replicas: tuple[int, int] = (1, 1)
    concurrency: int = 20
    ready_path: str = "/v2/health/ready"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Starts one step again and again: every `every` seconds, or by a cron expression in UTC."""

    name: str
    step: Step
    every: float | None = None
    cron: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A declared fact that outlives its maker, such as which run of a model serves."""

    name: str
    data: JSON


@dataclass(frozen=True, slots=True)
class Pool:
    """A quota that runs share. `data` is the ResourcePool's spec: only queueing engines can hold it."""

    name: str
    data: JSON


Workload = Run | Service | Schedule | Record | Pool


@dataclass(frozen=True, slots=True)
class RunFact:
    """What is known about a run, remembered after its objects are gone. `results` maps step name to its result."""

    phase: Phase
    results: Mapping[str, JSON] = field(default_factory=dict)
    message: str = ""
    made: Made = Made()
    created: float = 0.0
    """Wall clock, seconds since the epoch."""
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Files:
    """Files that a spec names, by content."""

    digest: str
    paths: tuple[str, ...]
    versioned: bool = True
    """Whether git decides what is in them. What git ignores, or what lies outside of the repository, changes with the world."""


@dataclass(frozen=True)
class Facts:
    """Everything outside of the specs that compiling depends on, gathered before (`mlspec_reconciler.observe`)."""

    code: Mapping[str, str] = field(default_factory=dict)
    """`code_key` -> content digest of the code bundle."""
    bundles: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Content digest of a code bundle -> its files by path: for targets where code travels with the objects."""
    files: Mapping[str, Files] = field(default_factory=dict)
    """Resource id -> the files that its spec names (sources of a Dataset, the directory of a Model)."""
    runs: Mapping[str, RunFact] = field(default_factory=dict)
    """By run name; runs that nobody started are absent."""
    requests: tuple[Request, ...] = ()
    """All requests that are remembered, valid or not, in the order of their data times."""
    memories: Mapping[str, Memory] = field(default_factory=dict)
    """TrainingJob id -> the life of its model so far."""
    now: float = 0.0
    """Wall clock, seconds since the epoch: requests expire."""

    def run(self, name: str) -> RunFact | None:
        """What is known about a run."""
        return self.runs.get(name)

    @cached_property
    def _runs_by_resource(self) -> Mapping[str, Mapping[str, RunFact]]:
        found: dict[str, dict[str, RunFact]] = {}
        for name, fact in self.runs.items():
            if fact.made.resource:
                found.setdefault(fact.made.resource, {})[name] = fact
        return found

    def runs_of(self, resource: str) -> Mapping[str, RunFact]:
        """The runs that were made for a resource, by name."""
        return self._runs_by_resource.get(resource, {})

    def newest(self, resource: str, made_for: str) -> tuple[str, RunFact] | None:
        """The newest run of a resource that has succeeded for what git says."""
        found = [
            (name, fact)
            for name, fact in self.runs_of(resource).items()
            if fact.phase == "succeeded" and fact.made.made_for == made_for
        ]
        return max(found, key=lambda one: (one[1].created, one[0]), default=None)

    def asked(self, action: str, subject: str) -> list[Request]:
        """The requests of one kind for one subject."""
        return [one for one in self.requests if one.action == action and one.subject == subject]


def code_key(
    spec_path: str, entry: str, include: Sequence[str] = (), requirements: Sequence[str] = ()
) -> str:
    """Key of a code bundle in `Facts.code`: entries are relative to the folder of the spec that names them. A module that is
    among the requirements is not taken from the project, so they count."""
    folder = spec_path.rsplit("/", 1)[0] if "/" in spec_path else "."
    return "|".join([folder, entry, *sorted(include), *(f"={one}" for one in sorted(requirements))])


def code_path(bundle: str) -> str:
    """Folder of a code bundle, relative to the storage root."""
    return f"code/{bundle[:16]}"


def identify(stem: str, parts: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Name of a run and the digests of its parts: `late-arrival-7c1e9a02` for the stem `late-arrival`."""
    digests = {name: digest(value)[:12] for name, value in parts.items()}
    return f"{stem}-{digest(digests)[:8]}", digests
