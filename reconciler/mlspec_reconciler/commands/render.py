"""`mlspec render`: the plain objects of a target, for those who want to leave or to look."""

from __future__ import annotations

import json
from pathlib import Path

import click
import yaml

from mlspec.compile import compile
from mlspec.workload import Facts
from mlspec_reconciler import terminal
from mlspec_reconciler.expected import foreseen


@click.command()
@terminal.project_options
@click.option("--output", "-o", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def command(path: Path, target: str | None, output: str) -> int:
    """Print the objects that the project becomes on a target, as if every run had succeeded.

    They need nothing of mlspec but its runtime image. Names of runs are those of this working tree; names that depend
    on the content of data are computed with placeholders.

    \b
    mlspec render --target prod | kubectl apply --dry-run=server -f -
    """
    _, wanted = terminal.opened(path, target)
    facts = Facts(
        code={key: one.digest for key, one in wanted.code.items()},
        bundles={one.digest: one.files for one in wanted.code.values()},
        files=wanted.files,
    )
    compiled = foreseen(lambda known: compile(wanted.project, wanted.target, known), facts)
    bodies = [manifest.body for manifest in compiled.manifests]
    if output == "json":
        click.echo(json.dumps(bodies, indent=2))
    else:
        click.echo(
            "---\n".join(yaml.safe_dump(body, sort_keys=False, width=110) for body in bodies), nl=False
        )
    for name, reason in compiled.unsupported.items():
        click.echo(f"! {name}: {reason}", err=True)
    return 0
