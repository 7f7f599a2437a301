"""`mlspec retrain`: train a job again on newer data, as a policy would."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from mlspec import ranges
from mlspec.kinds.training_job import TrainingJobSpec
from mlspec.resource import moment, seconds
from mlspec_reconciler import asking


@click.command()
@click.argument("job")
@click.option("--at", metavar="TIME", help="Where the data end (ISO 8601); by default after the newest row.")
@click.option(
    "--window", metavar="DURATION", help="Length of the data in all, such as 90d; by default as in git."
)
@asking.options
def command(job: str, at: str | None, window: str | None, reason: str, path: Path, target: str | None) -> int:
    """Ask for a retraining of JOB: its data are moved to end at `--at`. The result serves if its gates pass. The request
    ends when git changes what is trained.

    \b
    mlspec retrain late-arrival
    mlspec retrain late-arrival --window 90d --reason "new tariff"
    """
    for name, value, read in (("--at", at, moment), ("--window", window, seconds)):
        try:
            _ = read(value) if value else None
        except ValueError:
            hint = "such as 2013-06-01" if name == "--at" else "such as 90d"
            click.echo(f"error[bad-option]: {name} {value} is not understood; {hint}", err=True)
            return 1
    asked = asking.opened(path, target)
    name = asking.applied(asked, "TrainingJob", job)
    lowered = asked.seen.compiled.lowered[f"TrainingJob/{name}"]
    resource = asked.found.wanted.project.catalog.find("TrainingJob", name)
    uses = cast(TrainingJobSpec, resource.spec).data if resource else {}
    end = at or _newest(asked, uses)
    one = asking.request(asked, "retrain", name, lowered.recipe, reason, at=end, window=window)
    if empty := ranges.empty(ranges.shifted(uses, one.at, window)):
        words = f"--window {window} is too short: no time is left for {', '.join(empty)}"
        click.echo(f"error[bad-option]: {words}", err=True)
        return 1
    asking.remember(asked, one)
    if why := asking.held_back(asked, one):
        click.echo(f"It does not train now: {why}.")
    return 0


def _newest(asked: asking.Asked, uses: ranges.Uses) -> str:
    """After the newest row of what the job reads; empty where that is not known."""
    ends = []
    for use in uses.values():
        source = f"FeatureView/{use.view}" if use.view else f"Dataset/{use.dataset}"
        output = asked.seen.compiled.lowered[source].output or {}
        newest = (output.get("dataset", {}) if use.view else output).get("newest")
        if newest:
            ends.append(ranges.end_of(newest))
    return min(ends, key=moment, default="")
