"""`mlspec refresh`: read a dataset again now."""

from __future__ import annotations

from pathlib import Path

import click

from mlspec_reconciler import asking


@click.command()
@click.argument("dataset")
@asking.options
def command(dataset: str, reason: str, path: Path, target: str | None) -> int:
    """Ask for DATASET to be read again. Features follow the new rows; a job is trained on them only where it says
    `retrain: {newData: true}`.

    \b
    mlspec refresh flights
    """
    asked = asking.opened(path, target)
    name = asking.applied(asked, "Dataset", dataset)
    asking.remember(asked, asking.request(asked, "refresh", name, "", reason))
    return 0
