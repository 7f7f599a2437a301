"""`mlspec explain`: the documentation of a kind or field."""

from __future__ import annotations

import click

from mlspec import explain, schema
from mlspec.kind_table import KINDS


@click.command("explain")
@click.argument("path", required=False, metavar="[KIND[.FIELD]...]")
def command(path: str | None) -> None:
    """Print the documentation of a kind or field, with types, defaults and choices.

    \b
    mlspec explain
    mlspec explain TrainingJob
    mlspec explain TrainingJob.data.share
    """
    if path is None:
        for kind, entry in KINDS.items():
            click.echo(f"{kind:<18}{schema.model_doc(entry.model)}")
        click.echo("\nNext: mlspec explain TrainingJob")
        return
    text, error = explain.explain(path)
    if error:
        raise click.ClickException(error)
    click.echo(text, nl=False)
