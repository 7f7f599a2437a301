"""Workload: what a resource needs to have running, without a word about the engine that runs it.

Kinds make workloads, engines lower them. So a new kind works on every engine and a new engine runs every kind.
`docs/design/workload.md` says why these four shapes are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

JSON = Mapping[str, Any]


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
class Run:
    """Runs to completion, once. `name` ends in the hash of everything that can change the result."""

    name: str
    steps: tuple[Step, ...]
    title: str
    """What a person calls it: `train late-arrival`."""
    engine: str = "workflow"


@dataclass(frozen=True, slots=True)
class Service:
    """Answers requests on one port until it is deleted.

    `document` may change while it runs (the process follows); `step.requirements`, `image` and `needs` replace it.
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


Workload = Run | Service | Schedule | Record
Phase = Literal["pending", "running", "succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class RunFact:
    """What is known about a run, remembered after its objects are gone. `results` maps step name to its result."""

    phase: Phase
    results: Mapping[str, JSON] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True, slots=True)
class Trigger:
    """A request to act, made by a monitoring policy or a schedule, with an id that never changes."""

    id: str
    action: Literal["retrain", "switch", "refresh"]
    subject: str
    """The job, graph or dataset."""
    at: str
    """Data time of the request, ISO 8601."""
    window: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """One code bundle: its content digest and the requirements that were found with it."""

    digest: str
    entry: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything outside of the specs that compiling depends on, gathered before (`mlspec_reconciler.observe`)."""

    code: Mapping[str, Code] = field(default_factory=dict)
    """By `file of the spec`-relative entry, as `Resource.mark.path + "|" + entry`; see `code_key`."""
    files: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Dataset name -> (digest of its source files, their paths)."""
    runs: Mapping[str, RunFact] = field(default_factory=dict)
    records: Mapping[str, JSON] = field(default_factory=dict)
    """Live records by name."""
    triggers: tuple[Trigger, ...] = ()


def code_key(path: str, entry: str) -> str:
    """Key of a code bundle: entries are relative to the file of the spec that names them."""
    folder = path.rsplit("/", 1)[0] if "/" in path else "."
    return f"{folder}|{entry}"
