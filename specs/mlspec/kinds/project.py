"""Project: the settings of one spec repository and the targets that it can be applied to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field

from mlspec import rules
from mlspec.diagnostics import Problem
from mlspec.kind import Catalog
from mlspec.resource import Base, Name, OneOf, Path, Resource, Share

ADDRESS = re.compile(r"https?://[^/@\s?#]+(/[^\s?#]*)?")
"""Of a server; whoever it lets in stands elsewhere."""

STORAGE = "write pvc://CLAIM or s3://BUCKET/PREFIX"
CLAIM = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
BUCKET = r"[a-z0-9][-.a-z0-9]{1,61}[a-z0-9]"
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html"""
SEGMENT = r"(?!\.{1,2}$)[A-Za-z0-9!_.*'()-]+"
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html"""


class LocalTarget(Base):
    """This machine: processes, DuckDB and Parquet, SQLite, MLflow on SQLite. Nothing to install."""


class FieldRule(Base):
    """Who decides about one field, where mlspec and another manager (an autoscaler, a person) both could."""

    kind: Annotated[str, Field(min_length=1)]
    """Kind of the objects, such as `Deployment`."""
    name: str | None = None
    """One object; all of the kind when unset."""
    field: Annotated[str, Field(min_length=1)]
    """Path of the field as conflicts show it, such as `spec.replicas` or `spec.template.spec.containers[name="main"].image`;
    the rule holds for all that is below it."""
    owner: Literal["other", "mlspec"]
    """`other`: mlspec leaves the field out; `mlspec`: mlspec takes it, whoever had it."""


class GatewayUse(Base):
    """An existing Gateway."""

    name: Name
    """Name of the Gateway."""
    namespace: Name | None = None
    """Namespace of the Gateway; that of the target when unset."""
    host: (
        Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")]
        | None
    ) = None
    """Services answer at `http://SERVICE.HOST/`; without it at the path `/SERVICE/` of every host of the Gateway."""


class ArgoServerUse(Base):
    """An existing Argo Server, which remembers more of a run than the cluster does."""

    server: Annotated[str, Field(min_length=1)]
    """Its address, such as `https://argo.example:2746`. It gets the token of the kubeconfig, or that of `ARGO_TOKEN`."""


class KubernetesTarget(Base):
    """A namespace of a Kubernetes cluster."""

    context: Annotated[str, Field(min_length=1)] | None = None
    """Name of the kubeconfig context; the current context when unset."""
    namespace: Name
    """Namespace that holds every object of the project."""
    image: str = "mlspec-runtime:latest"
    """Runtime image of the pods, best by digest; it needs `mlspec_runtime` and the requirements of the functions."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When nodes pull the image; by default Kubernetes pulls `:latest` always and other tags once."""
    service_account: Name | None = None
    """Service account of the pods, which exists already. When unset, `PROJECT-runtime` is made, with the one right that
    Argo Workflows needs."""
    gateway: GatewayUse | None = None
    """Gateway (Gateway API) that makes services reachable from outside, by an HTTPRoute for each."""
    argo: ArgoServerUse | None = None
    """Argo Server for `mlspec stop`, `retry` and `logs`: logs of pods that are gone, and runs that go on from the step that
    failed."""
    fields: list[FieldRule] = Field(default_factory=list)
    """Who decides about fields that others also write. Without a rule a conflict is shown, and nothing is overrun."""


class Target(OneOf):
    """Where the project runs: `local` or `kubernetes`."""

    CHOICES: ClassVar[tuple[str, ...]] = ("local", "kubernetes")

    local: LocalTarget | None = None
    """This machine."""
    kubernetes: KubernetesTarget | None = None
    """A Kubernetes namespace."""
    storage: str | None = None
    """Where data, models and logs live on Kubernetes: `pvc://CLAIM`, or `s3://BUCKET/PREFIX` in S3 or what speaks its protocol.
    Endpoint, region and credentials are no part of it: they are the environment of the pods (the Secret `PROJECT-env`:
    `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`), or the identity of their service account.
    The local target keeps them in `.mlspec/store`."""
    tracking: str | None = None
    """MLflow tracking URI. Local default: an SQLite database under `.mlspec`."""


class Prune(Base):
    """The circuit breaker of deletions."""

    max_share: Share = 0.5
    """Largest share of the inventory that one apply deletes without `--allow-deletes`."""


class ProjectSpec(Base):
    """Settings of the repository. A repository without a Project has one target, `local`."""

    targets: dict[Name, Target] = Field(
        default_factory=lambda: {"local": Target.model_validate({"local": {}})}
    )
    """Targets by name."""
    default: Name | None = None
    """Target of commands without `--target`; by default the first one."""
    prune: Prune = Prune()
    """When deletions need consent."""
    suspend: bool = False
    """Write nothing to any target until this is taken away; plans are still made."""


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """There is a target, the default is one of them, nothing is set that a local target would ignore, and images stay."""
    spec = cast(ProjectSpec, resource.spec)
    if not spec.targets:
        yield Problem(
            "too-short",
            "a project needs a target",
            ("spec", "targets"),
            "such as {local: {local: {}}}",
            on_key=True,
        )
    elif spec.default is not None:
        yield from rules.member(
            spec.default, spec.targets, "no target is called", "unknown-target", ("spec", "default")
        )
    for name, target in spec.targets.items():
        if target.local is not None and target.storage is not None:
            yield Problem(
                "local-storage",
                "a local target keeps its data in .mlspec/store",
                ("spec", "targets", name, "storage"),
                "remove storage",
                on_key=True,
            )
        elif target.storage is not None and (words := _bad_storage(target.storage)):
            yield Problem("bad-storage", words, ("spec", "targets", name, "storage"), STORAGE)
        if target.kubernetes is not None:
            yield from _cluster(target.kubernetes, ("spec", "targets", name, "kubernetes"))


def _cluster(target: KubernetesTarget, path: Path) -> Iterator[Problem]:
    if "image" in target.model_fields_set:
        yield from rules.image(target.image, (*path, "image"))
    if target.argo is not None and not ADDRESS.fullmatch(target.argo.server):
        words = f'"{target.argo.server}" is no address of a server'
        yield Problem("bad-address", words, (*path, "argo", "server"), "write https://HOST:PORT")


def _bad_storage(storage: str) -> str:
    """Why a storage cannot be meant; empty when it can."""
    scheme, _, rest = storage.partition("://")
    place, _, prefix = rest.partition("/")
    match scheme:
        case "pvc" if not re.fullmatch(CLAIM, rest):
            return f'"{rest}" is no name of a PersistentVolumeClaim'
        case "s3" if not re.fullmatch(BUCKET, place) or ".." in place or re.fullmatch(r"[\d.]+", place):
            return f'"{place}" is no name of a bucket: 3 to 63 small letters, digits, dots and hyphens'
        case "s3" if not all(
            re.fullmatch(SEGMENT, one) for one in prefix.removesuffix("/").split("/") if prefix
        ):
            return (
                f'"{prefix}" is no prefix: folders of letters, digits and !_.*()\'-, one slash between them'
            )
        case "pvc" | "s3":
            return ""
        case _:
            return f'"{storage}" is no storage'
