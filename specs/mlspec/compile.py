"""Compile: a linked project and the facts of this moment become the objects that a target should hold.

The step between `mlspec.project` and the plan. Pure: the same project and facts give the same objects, so a plan can
be trusted and a crash can be repeated. What depends on a run that has not finished is simply not there yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from mlspec.engine import Engine, Gateway, Reading, Settings
from mlspec.engines import account, argo, deployment, job, kueue, local, pod
from mlspec.kind import Context, Lowered
from mlspec.kind_table import KINDS
from mlspec.kinds.project import ProjectSpec, Target
from mlspec.kinds.resource_pool import Resources
from mlspec.manifest import Manifest, Origin
from mlspec.project import Project
from mlspec.resource import Resource
from mlspec.workload import Facts, Pool, Record, Run, Schedule, Service, Step, Workload, code_path

LOCAL: Mapping[type, Mapping[str, Engine]] = {
    Run: dict.fromkeys(("workflow", "job"), local.ENGINE),
    Service: {"": local.ENGINE},
    Schedule: {"": local.ENGINE},
    Record: {"": local.ENGINE},
    Pool: {"": local.ENGINE},
}
KUBERNETES: Mapping[type, Mapping[str, Engine]] = {
    Run: {"workflow": argo.ENGINE, "job": job.ENGINE},
    Service: {"": deployment.ENGINE},
    Schedule: {"": argo.ENGINE},
    Record: {"": deployment.ENGINE},
    Pool: {"": kueue.ENGINE},
}
ENGINES: Mapping[str, Mapping[type, Mapping[str, Engine]]] = {"local": LOCAL, "kubernetes": KUBERNETES}
"""Target -> sort of workload -> engine that the user named -> engine."""

ON_THIS_MACHINE = "its files are on this machine, where pods cannot read them; read them by a function from where pods reach them"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a project becomes on one target at one moment."""

    lowered: Mapping[str, Lowered]
    """By resource id, in the order of the DAG."""
    manifests: tuple[Manifest, ...]
    unsupported: Mapping[str, str]
    """Resource id -> why this target cannot run it."""


@cache
def readings(choice: str) -> Mapping[str, Reading]:
    """How live objects of a target are understood, by their kind."""
    return {
        kind: reading
        for engines in ENGINES[choice].values()
        for engine in engines.values()
        for kind, reading in engine.reads.items()
    }


def choose_target(spec: ProjectSpec, name: str | None) -> tuple[str, Target] | str:
    """The target that a command means, or a sentence why there is none."""
    chosen = name or spec.default or next(iter(spec.targets))
    if chosen in spec.targets:
        return chosen, spec.targets[chosen]
    return f"the project has no target {chosen}; it has {', '.join(sorted(spec.targets))}"


def settings(project: Project, target: Target, bundles: Mapping[str, Mapping[str, bytes]]) -> Settings:
    """What engines may know about a target; `bundles` as in `Facts`."""
    if (cluster := target.kubernetes) is None:
        return Settings(project=project.name, storage=target.storage or "", tracking=target.tracking or "")
    gateway = cluster.gateway
    return Settings(
        project=project.name,
        namespace=cluster.namespace,
        image=cluster.image,
        service_account=cluster.service_account or account.name(project.name),
        storage=target.storage or "pvc://mlspec",
        tracking=target.tracking or "",
        image_pull_policy=cluster.image_pull_policy or "",
        gateway=Gateway(gateway.name, gateway.namespace or "", gateway.host or "") if gateway else None,
        bundles={code_path(digest): files for digest, files in bundles.items() if files},
    )


def uploads(target: Target, bundles: Mapping[str, Mapping[str, bytes]]) -> Mapping[str, Mapping[str, bytes]]:
    """Code that pods will pull from the bucket: `code/...` -> its files. All of a project's or none, because a workload takes
    all of its code from one place."""
    if target.kubernetes is None or not (target.storage or "").startswith("s3://"):
        return {}
    found = {code_path(digest): files for digest, files in bundles.items() if files}
    return found if any(not pod.in_config_map(path, files) for path, files in found.items()) else {}


def compile(project: Project, target: Target, facts: Facts) -> Compiled:
    """Lower every resource in the order of its references, and every workload by the engine of the target."""
    chosen = settings(project, target, facts.bundles)
    lowered: dict[tuple[str, str], Lowered] = {}
    manifests: list[Manifest] = []
    unsupported: dict[str, str] = {}
    context = Context(project.catalog, facts, lowered, _users(project))

    def refuse(resource: str, words: str) -> None:
        known = unsupported.get(resource, "")
        unsupported[resource] = f"{known}; {words}" if known and words not in known else words

    for resource in project.order:
        result = KINDS[resource.kind].lower(resource, context)
        lowered[resource.kind, resource.name] = result
        if result.unsupported:
            refuse(resource.id, result.unsupported)
        resources = getattr(resource.spec, "resources", None)
        if isinstance(resources, Resources) and resources.gpu_share is not None:
            refuse(resource.id, pod.NO_SHARES)
        if target.kubernetes is not None and resource.id in facts.files:
            unsupported[resource.id] = ON_THIS_MACHINE
            continue
        if result.engine:
            probe = Run("probe", (Step("probe", "probe", {}),), "probe", engine=result.engine)
            if isinstance(made := lower(probe, target, chosen, Origin(resource.id, resource.mark)), str):
                refuse(resource.id, made)
        for workload in result.workloads:
            made = lower(workload, target, chosen, Origin(resource.id, resource.mark))
            if isinstance(made, str):
                refuse(resource.id, made)
            else:
                after = workload.after if isinstance(workload, Run) else ""
                manifests.extend(replace(one, after=after) if after and one.title else one for one in made)
    pools = [one for result in lowered.values() for one in result.workloads if isinstance(one, Pool)]
    return Compiled(
        {f"{kind}/{name}": one for (kind, name), one in lowered.items()},
        (*_common(project, target, chosen, pools), *manifests),
        unsupported,
    )


def _users(project: Project) -> Mapping[tuple[str, str], tuple[Resource, ...]]:
    """Who refers to whom, the other way round."""
    found: dict[tuple[str, str], list[Resource]] = {}
    for resource in project.order:
        for reference in KINDS[resource.kind].references(resource.spec):
            target = project.catalog.find(reference.kinds, reference.name)
            if target is None:
                continue
            users = found.setdefault((target.kind, target.name), [])
            if not users or users[-1] is not resource:
                users.append(resource)
    return {key: tuple(users) for key, users in found.items()}


def _common(project: Project, target: Target, settings: Settings, pools: Sequence[Pool]) -> list[Manifest]:
    """What belongs to the Project: what its pools share, and the account of the pods unless its target names one that
    somebody else has made."""
    if target.kubernetes is None:
        return []
    own = target.kubernetes.service_account is None
    found: list[Manifest] = []
    for resource in project.catalog.of("Project"):
        origin = Origin(resource.id, resource.mark)
        found += account.objects(settings, origin) if own else []
        found += kueue.shared(pools, settings, origin)
    return found


def lower(workload: Workload, target: Target, settings: Settings, origin: Origin) -> list[Manifest] | str:
    """Lower one workload by the engine that the target has for it."""
    engines = ENGINES[target.choice][type(workload)]
    wanted = workload.engine if isinstance(workload, Run) else ""
    engine = engines.get(wanted)
    if engine is None:
        return (
            f"engine {wanted} is not supported on this target yet; choose one of {', '.join(sorted(engines))}"
        )
    return engine.lower(workload, settings, origin)
