"""Apply: perform the writes of a plan, in the order of the DAG, and report every failure.

The inventory is written first: what is about to exist is known before it exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlspec.project import Project
from mlspec_reconciler import inventory as inventories
from mlspec_reconciler.cluster import Cluster, Conflict, Unavailable
from mlspec_reconciler.inventory import DIGEST, Inventory
from mlspec_reconciler.plan import ORIGIN, Action, Change, Plan, Verb, Write


@dataclass(frozen=True, slots=True)
class Outcome:
    """One performed write, or why it failed."""

    change: Change
    write: Write
    error: str = ""


def perform(plan: Plan, project: Project, cluster: Cluster) -> list[Outcome]:
    """Write everything that the plan says; failures of one object do not stop the others."""
    inventory = _intend(plan, project)
    if inventory != plan.inventory:
        inventories.write(cluster, inventory)
    outcomes = [
        Outcome(change, write, _write(write, cluster)) for change in plan.changes for write in change.writes
    ]
    cleaned = _forget(plan, inventory, cluster)
    if cleaned != inventory:
        inventories.write(cluster, cleaned)
    return outcomes


def _intend(plan: Plan, project: Project) -> Inventory:
    entries = dict(plan.inventory.entries)
    resources = {resource.id: resource for resource in project.order}
    for change in plan.changes:
        resource = resources.get(change.resource)
        if resource is None or change.action in (Action.FOLLOW, Action.CONTINUE):
            continue
        keys = [write.key for write in change.writes if write.verb is not Verb.DELETE]
        parts: dict[str, str] = {}
        if (
            change.run
            and (write := next((one for one in change.writes if one.manifest), None))
            and write.manifest
        ):
            parts = dict(write.manifest.body["spec"].get("parts", {}))
        entries[resource.id] = Inventory(entries).having(resource, keys, change.run, parts)
    return Inventory(entries)


def _write(write: Write, cluster: Cluster) -> str:
    try:
        match write.verb, write.manifest:
            case Verb.DELETE, _:
                cluster.delete(write.key, write.uid)
            case Verb.RESTART, manifest if manifest is not None:
                cluster.delete(write.key, write.uid)
                cluster.create(manifest.body, _annotations(write))
            case Verb.CREATE, manifest if manifest is not None:
                cluster.create(manifest.body, _annotations(write))
            case Verb.APPLY, manifest if manifest is not None:
                cluster.apply(manifest.body, _annotations(write), write.version)
    except Conflict as error:
        # Somebody else wrote in between: the next round of the loop looks again and decides anew.
        live = cluster.get(write.key)
        if live is not None and not inventories.is_ours(live):
            return f"{write.key} exists already, and mlspec did not make it; rename yours or delete it"
        return "" if write.verb is Verb.CREATE else f"{write.key} changed meanwhile: {error}"
    except Unavailable as error:
        return f"{write.key}: the cluster does not answer: {error}"
    return ""


def _annotations(write: Write) -> dict[str, str]:
    assert write.manifest is not None
    origin = write.manifest.origin
    return {
        DIGEST: write.manifest.digest,
        ORIGIN: f"{origin.mark.path}:{origin.mark.line}",
        "mlspec.dev/resource": origin.resource,
    }


def _forget(plan: Plan, inventory: Inventory, cluster: Cluster) -> Inventory:
    """Entries of removed resources go when the cluster says that their objects are gone, not before."""
    for change in plan.of(Action.DELETE):
        entry = inventory.entries[change.resource]
        found = {key: cluster.get(key) for key in entry.objects}
        gone = [key for key, live in found.items() if live is None or not inventories.is_ours(live)]
        inventory = inventory.without(change.resource, gone)
        if not inventory.entries[change.resource].objects:
            inventory = inventory.forgetting(change.resource)
    return inventory
