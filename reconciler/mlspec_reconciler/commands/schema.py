"""`mlspec schema`: the JSON Schemas and CRDs that are generated from the models."""

from __future__ import annotations

from pathlib import Path

import click

from mlspec import schema
from mlspec.diagnostics import did_you_mean
from mlspec.kind_table import KINDS
from mlspec.source import yaml_text


@click.command("schema")
@click.argument("kind", required=False)
@click.option("--crd", is_flag=True, help="Print the CRD instead of the JSON Schema.")
@click.option("--write", is_flag=True, help="Write all files into the folder.")
@click.option("--check", is_flag=True, help="Fail if a file in the folder differs.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("schemas"), show_default=True)
def command(kind: str | None, crd: bool, write: bool, check: bool, folder: Path) -> None:
    """Print the JSON Schema or CRD of a kind, or write and check all of them.

    \b
    mlspec schema TrainingJob
    mlspec schema TrainingJob --crd | kubectl apply -f -
    mlspec schema --write
    """
    if kind is not None:
        if kind not in KINDS:
            raise click.ClickException(f'kind "{kind}" is unknown{did_you_mean(kind, KINDS)}')
        printed = yaml_text(schema.crd(kind)) if crd else schema.files()[f"jsonschema/{kind.lower()}.json"]
        click.echo(printed, nl=False)
        return
    if write == check:
        raise click.UsageError("name a KIND, or say --write or --check")
    files = schema.files()
    stale = [name for name, text in files.items() if _text(folder / name) != text]
    extra = [
        path
        for part in ("crds", "jsonschema")
        for path in sorted((folder / part).glob("*"))
        if f"{part}/{path.name}" not in files
    ]
    if check:
        if stale or extra:
            names = ", ".join([*stale, *map(str, extra)])
            raise click.ClickException(
                f"{folder} differs from the models: {names}; run: mlspec schema --write"
            )
        click.echo(f"{len(files)} files in {folder} agree with the models.")
        return
    for name in stale:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(files[name], encoding="utf-8")
    for path in extra:
        path.unlink()
    click.echo(
        f"{len(stale)} files written, {len(files) - len(stale)} unchanged, {len(extra)} removed in {folder}."
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
