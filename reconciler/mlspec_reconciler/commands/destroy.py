"""`mlspec destroy`: remove what the inventory holds, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mlspec_reconciler import guards, inventory, observe, terminal, workspace
from mlspec_reconciler.cluster import Cluster, Object, Unavailable
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.drivers.lock import exclusive
from mlspec_reconciler.remembered import Change
from mlspec_reconciler.state import Session, Table


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
    help="Also forget what ran and was accepted, and delete data, models and logs (the folder .mlspec).",
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
    for refusal in guards.other_cluster(place, found.target_name, cluster):
        click.echo(str(refusal), err=True)
        return 1
    session = found.reached.session()
    held = inventory.read(session, cluster.identity)
    alive = [] if orphan else inventory.alive(cluster, held)
    for one in alive:
        click.echo(f"  - {one.key}")
    if alive or purge or orphan:
        what = f"Remove {len(alive)} objects" + (f" and {_purged(cluster)}" if purge else "")
        terminal.consent("Forget all objects?" if orphan else f"{what}?", yes)
    with exclusive(place.lock):
        workspace.forget(place, found.target_name)
        session = found.reached.session()
        ended = list(_ended(found, session))
        for one in alive:
            cluster.delete(one.key, one.uid)
        _await_gone(cluster, alive)
        if isinstance(cluster, LocalCluster):
            cluster.stop()
        # What ran and what was accepted is remembered: a later apply trains nothing again.
        gone = inventory.changes(held, inventory.Inventory(), cluster.identity)
        session.put([*ended, *gone, (Table.APPLIED, found.target_name, None)])
        if purge:
            found.reached.state.clear()
    if purge and isinstance(cluster, LocalCluster):
        cluster.close()
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


def _ended(found: workspace.Connected, session: Session) -> Iterator[Change]:
    """The ends of runs that nobody has remembered yet: their objects go now."""
    wanted = found.wanted
    objects = list(found.cluster.list())
    observed = observe.facts(
        found.cluster, objects, session, wanted.target, wanted.code, wanted.files, {}, time.time()
    )
    yield from (one for one in observed.learned if one[0] is Table.RUNS)


def _purged(cluster: Cluster) -> str:
    if isinstance(cluster, LocalCluster):
        return "all data in .mlspec"
    return "what is remembered of its runs and models"


def _left(cluster: Cluster, purge: bool) -> str:
    if not isinstance(cluster, LocalCluster):
        kept = (
            "" if purge else "; what ran and was accepted is remembered in the namespace, --purge forgets it"
        )
        return f"Data and models stay in the target's storage{kept}."
    return "" if purge else "Data, models and the history stay in .mlspec; --purge deletes them."
