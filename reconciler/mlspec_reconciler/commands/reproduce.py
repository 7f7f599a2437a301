"""`mlspec reproduce`: run a finished training again and compare."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mlspec_reconciler import remembered, terminal, workspace
from mlspec_reconciler.clusters.local import processes


@click.command()
@click.argument("run")
@terminal.folder_option
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(run: str, path: Path, target: str | None, output: str) -> int:
    """Run a finished training again with the same code, data and parameters, and compare model and metrics.

    Exits with 2 when something differs.

    \b
    mlspec runs TrainingJob/late-arrival
    mlspec reproduce late-arrival-7c1e9a02
    """
    place = workspace.find(path)
    connected = workspace.connect(path, target)
    if connected is not None and connected.wanted.target.kubernetes is not None:
        words = (
            "models of a Kubernetes target are in its storage; reproduce runs where the storage is mounted"
        )
        click.echo(f"error[not-here]: {words}", err=True)
        return 1
    fact = remembered.runs(connected.reached.session()).get(run) if connected is not None else None
    if fact is None or fact.phase != "succeeded" or "train" not in fact.results:
        click.echo(
            f"error[unknown-run]: there is no finished training {run} here; list them with: mlspec runs",
            err=True,
        )
        return 1
    arguments = [sys.executable, "-P", "-m", "mlspec_runtime.reproduce", run, "--root", str(place.storage)]
    # As a step of a run is started: no code that the run could not have had.
    environment = processes.inherited()
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode not in (0, 2):  # the runtime has said why
        return 1
    report = json.loads(done.stdout)
    click.echo(done.stdout if output == "json" else _sentence(report))
    return 0 if report["equal"] else 2


def _sentence(report: Mapping[str, Any]) -> str:
    model = "the same model to the byte" if report["model"]["equal"] else "another model"
    moved = [
        f"{name} {pair['old']:.6g} -> {pair['new']:.6g}"
        for name, pair in report["metrics"].items()
        if not pair["equal"]
    ]
    return f"{model}, {'other metrics: ' + ', '.join(moved) if moved else 'the same metrics'}"
