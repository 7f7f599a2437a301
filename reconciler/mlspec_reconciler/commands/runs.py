"""`mlspec runs`: every run that was made here, with its result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from mlspec.workload import RunFact
from mlspec_reconciler import inventory, terminal, workspace
from mlspec_reconciler.show.plan import duration


@click.command()
@click.argument("resource", required=False)
@terminal.folder_option
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(resource: str | None, path: Path, target: str | None, output: str) -> int:
    """List the runs that were made here, newest last; also those whose objects are gone.

    \b
    mlspec runs
    mlspec runs TrainingJob/late-arrival
    """
    connected, place = workspace.connect(path, target), workspace.find(path)
    cluster = connected.cluster if connected is not None else place.local  # the history outlives a destroy
    names = None
    if resource is not None:
        entry = inventory.read(cluster).entries.get(resource)
        names = {key.name for key in entry.objects} if entry else set()
    found = [(name, fact) for name, fact in cluster.runs().items() if names is None or name in names]
    found.sort(key=lambda item: _started(item[1]))
    if output == "json":
        rows = [
            {"run": name, "phase": fact.phase, "message": fact.message, "results": fact.results}
            for name, fact in found
        ]
        click.echo(json.dumps({"version": 1, "runs": rows}, indent=2, default=str))
        return 0
    for name, fact in found:
        click.echo(_row(name, fact))
    if not found:
        untouched = connected is None and not place.home.exists()
        click.echo("Nothing was applied here." if untouched else "No runs yet.")
    return 0


def _started(fact: RunFact) -> float:
    return min((float(one.get("started", 0)) for one in fact.results.values()), default=float("inf"))


def _row(name: str, fact: RunFact) -> str:
    at, took, words = "", "", fact.message
    if fact.results:
        start = _started(fact)
        end = max(float(one.get("finished", 0)) for one in fact.results.values())
        at, took = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start)), duration(end - start)
    if fact.phase == "succeeded":
        words = _words(fact.results)
    return f"{name:<36} {fact.phase:<10} {at:<19} {took:>8}  {words}".rstrip()


def _words(results: Any) -> str:
    if metrics := results.get("train", {}).get("metrics"):
        return ", ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)
        )
    for step in ("dataset", "features"):
        if step in results:
            return f"{results[step].get('rows', 0):,} rows"
    return ""
