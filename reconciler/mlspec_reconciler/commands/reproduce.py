"""`mlspec reproduce`: run a finished training again and compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from mlspec_reconciler import terminal, workspace


@click.command()
@click.argument("run")
@terminal.folder_option
def command(run: str, path: Path) -> int:
    """Run a finished training again with the same code, data and parameters, and compare model and metrics.

    \b
    mlspec runs TrainingJob/late-arrival
    mlspec reproduce late-arrival-7c1e9a02
    """
    place = workspace.find(path)
    fact = place.cluster().runs().get(run) if place.home.exists() else None
    if fact is None or fact.phase != "succeeded" or "train" not in fact.results:
        click.echo(
            f"error[unknown-run]: there is no finished training {run} here; list them with: mlspec runs",
            err=True,
        )
        return 1
    arguments = [run, "--root", str(place.storage)]
    return subprocess.run(
        [sys.executable, "-m", "mlspec_runtime.reproduce", *arguments], check=False
    ).returncode
