"""`mlspec destroy`: remove what the inventory holds, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import click

from mlspec_reconciler import guards, inventory, terminal, workspace
from mlspec_reconciler.cluster import Cluster, Object, Unavailable
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.reconcile import exclusive


@click.command()
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--target", "-t", metavar="NAME", help="Target of the Project; by default the one applied last."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--orphan", is_flag=True, help="Leave every object as it is; mlspec only forgets that it made them."
)
@click.option(
    "--purge",
    is_flag=True,
    help="Also delete data, models, logs and the history of runs (the folder .mlspec).",
)
def command(path: Path, target: str | None, yes: bool, orphan: bool, purge: bool) -> int:
    """Stop and remove everything that apply has made. Snapshots, models and the history of runs stay, so that a later
    apply trains nothing again; `--purge` deletes them too.

    \b
    mlspec destroy
    """
    found = workspace.connect(path, target)
    if found is None and purge:  # what is left of an earlier destroy
        place = workspace.find(path)
        if place.home.exists():
            terminal.consent("Remove all data in .mlspec?", yes)
            shutil.rmtree(place.home)
            click.echo("Removed.")
            return 0
    if found is None:
        click.echo("Nothing was applied here.")
        return 0
    place, cluster = found.workspace, found.cluster
    if purge and not isinstance(cluster, LocalCluster):
        words = (
            "data of a Kubernetes target is in its storage, which only pods reach; delete its folders there"
        )
        click.echo(f"error[not-here]: {words}, and leave out --purge", err=True)
        return 1
    for refusal in guards.other_cluster(place, found.target_name, cluster):
        click.echo(str(refusal), err=True)
        return 1
    alive = [] if orphan else inventory.alive(cluster)
    for one in alive:
        click.echo(f"  - {one.key}")
    if alive or purge or orphan:
        what = f"Remove {len(alive)} objects" + (" and all data in .mlspec" if purge else "")
        terminal.consent("Forget all objects?" if orphan else f"{what}?", yes)
    with exclusive(place.lock):
        workspace.forget(place, found.target_name)
        for one in alive:
            cluster.delete(one.key, one.uid)
        _await_gone(cluster, alive)
        if isinstance(cluster, LocalCluster):
            cluster.stop()
        cluster.forget()
    if purge:
        shutil.rmtree(place.home, ignore_errors=True)
    if orphan:
        click.echo("Forgotten. The objects go on without mlspec.")
    else:
        click.echo(f"Removed {len(alive)} objects. {_left(cluster, purge)}".rstrip())
    return 0


def _await_gone(cluster: Cluster, alive: Sequence[Object], patience: float = 120.0) -> None:
    """Finalizers may take a while; what mlspec has forgotten nobody would look after."""
    if isinstance(cluster, LocalCluster):
        return
    until = time.monotonic() + patience
    left = [one for one in alive if (live := cluster.get(one.key)) is not None and live.uid == one.uid]
    while left and time.monotonic() < until:
        time.sleep(0.5)
        left = [one for one in left if (live := cluster.get(one.key)) is not None and live.uid == one.uid]
    if left:
        names = ", ".join(str(one.key) for one in left)
        raise Unavailable(f"still there after {patience:.0f} s: {names}; run mlspec destroy again")


def _left(cluster: Cluster, purge: bool) -> str:
    if not isinstance(cluster, LocalCluster):
        return "Data and models stay in the target's storage."
    return "" if purge else "Data, models and the history stay in .mlspec; --purge deletes them."
