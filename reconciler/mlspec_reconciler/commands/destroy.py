"""`mlspec destroy`: remove what the inventory holds, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mlspec_reconciler import inventory, terminal, workspace
from mlspec_reconciler.reconcile import exclusive


@click.command()
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--purge",
    is_flag=True,
    help="Also delete data, models, logs and the history of runs (the folder .mlspec).",
)
def command(path: Path, yes: bool, purge: bool) -> int:
    """Stop and remove everything that apply has made. Snapshots, models and the history of runs stay, so that a later
    apply trains nothing again; `--purge` deletes them too.

    \b
    mlspec destroy
    """
    place = workspace.find(path)
    if not place.home.exists():
        click.echo("Nothing was applied here.")
        return 0
    cluster = place.cluster()
    alive = inventory.alive(cluster)
    for one in alive:
        click.echo(f"  - {one.key}")
    if alive or purge:
        what = f"Remove {len(alive)} objects" + (" and all data in .mlspec" if purge else "")
        terminal.consent(f"{what}?", yes)
    with exclusive(place.lock):
        (place.home / workspace.APPLIED).unlink(missing_ok=True)
        for one in alive:
            cluster.delete(one.key, one.uid)
        cluster.stop()
        inventory.write(cluster, inventory.Inventory())
    if purge:
        shutil.rmtree(place.home)
    click.echo(
        f"Removed {len(alive)} objects."
        + ("" if purge else " Data, models and the history stay in .mlspec; --purge deletes them.")
    )
    return 0
