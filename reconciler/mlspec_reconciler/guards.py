"""Guards: what an apply must not do without a person who says so.

A broken checkout, another cluster or a slip of the keyboard looks just like a wish to delete. Each guard says why it stops,
and which option lets it pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlspec_reconciler import checkout
from mlspec_reconciler.cluster import Cluster, is_same
from mlspec_reconciler.plan import Action, Verb
from mlspec_reconciler.step import DesiredState, Observation
from mlspec_reconciler.workspace import Opened, Workspace, applied

DELETES, CLUSTER = "--allow-deletes", "--allow-other-cluster"
SUSPENDED = "suspended"
NAMED = 3
"""Files that a refusal names; the rest it counts."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an apply stops before it begins."""

    code: str
    sentence: str
    allow: str = ""
    """The option of `mlspec apply` that lets it pass; empty when nothing does."""

    def __str__(self) -> str:
        way = f"\n  if this is meant: mlspec apply {self.allow}" if self.allow else ""
        return f"error[{self.code}]: {self.sentence}{way}"


def refusals(project: Opened, seen: Observation, cluster: Cluster) -> list[Refusal]:
    """All reasons to stop."""
    assert project.wanted is not None
    found = [
        *suspended(project.wanted, seen),
        *other_cluster(project.workspace, project.target_name, cluster),
    ]
    if seen.plan.of(Action.DELETE):
        found += [*_missing_files(project), *_too_many(project, seen)]
    return found + list(forbidden(seen, cluster))


def suspended(wanted: DesiredState, seen: Observation) -> Iterator[Refusal]:
    """The Project forbids every write."""
    if wanted.project.settings.suspend and any(change.writes for change in seen.plan.changes):
        yield Refusal(SUSPENDED, "the Project says suspend: true; nothing is written until it does not")


def other_cluster(workspace: Workspace, target: str, cluster: Cluster) -> Iterator[Refusal]:
    """The target was another cluster when it was applied last from here."""
    before = (applied(workspace, target) or {}).get("cluster")
    if before is not None and not is_same(before, cluster.identity):
        yield Refusal(
            "other-cluster",
            f"target {target} was applied to the cluster {before} the last time, "
            f"this is {cluster.identity}: is the kubeconfig context the right one?",
            CLUSTER,
        )


def _missing_files(project: Opened) -> Iterator[Refusal]:
    """The working tree lacks what the commit has: a sparse or broken checkout looks just like a wish to delete."""
    try:
        missing = checkout.missing(project.workspace.root, project.texts)
    except checkout.Unknown as error:
        yield Refusal("partial-checkout", f"whether the checkout is complete is not known: {error}", DELETES)
        return
    for reason in dict.fromkeys((file.why, file.way_out) for file in missing):
        files = [file for file in missing if (file.why, file.way_out) == reason]
        names = ", ".join(file.path for file in files[:NAMED])
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        yield Refusal(
            "partial-checkout",
            f"{names}{more} {'is' if len(files) == 1 else 'are'} in the commit, but {files[0].why}, so a deletion may "
            f"not be meant; for a complete checkout: {files[0].command() if len(files) == 1 else files[0].way_out}",
            DELETES,
        )


def _too_many(project: Opened, seen: Observation) -> Iterator[Refusal]:
    assert project.wanted is not None
    share = project.wanted.project.settings.prune.max_share
    deletes, known = len(seen.plan.of(Action.DELETE)), len(seen.plan.inventory.entries)
    if deletes > max(1, share * known):
        yield Refusal(
            "many-deletes",
            f"this would delete {deletes} of {known} resources, more than prune.maxShare {share:.0%} allows",
            DELETES,
        )


def forbidden(seen: Observation, cluster: Cluster) -> Iterator[Refusal]:
    """Permissions that the plan needs and we do not have: told before, not in the middle."""
    kinds = {
        (write.key.api_version, write.key.kind)
        for change in seen.plan.changes
        for write in change.writes
        if write.verb in (Verb.CREATE, Verb.APPLY, Verb.ADOPT, Verb.REPLACE, Verb.RESTART, Verb.DELETE)
    }
    for sentence in cluster.forbidden(kinds) if kinds else ():
        yield Refusal("forbidden", sentence)
