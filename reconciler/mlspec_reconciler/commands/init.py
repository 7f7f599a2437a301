"""`mlspec init`: a working project to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

TEMPLATES = Path(__file__).parent.parent / "templates"


@click.command()
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--template", type=click.Choice(["minimal"]), default="minimal", show_default=True)
def command(folder: Path, template: str) -> int:
    """Write a project that trains and serves a model on data that ships with scikit-learn.

    Files that exist already are kept: then nothing is written.

    \b
    mlspec init tumours && cd tumours && mlspec apply
    """
    files = sorted(
        path for path in (TEMPLATES / template).iterdir() if path.suffix in (".yaml", ".py", ".json")
    )
    if taken := [path.name for path in files if (folder / path.name).exists()]:
        click.echo(
            f"error[exists]: {folder} has {', '.join(taken)} already; choose an empty folder", err=True
        )
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
        click.echo(f"  + {folder / path.name}")
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text(".mlspec/\n__pycache__/\n")
        click.echo(f"  + {ignore}")
    here = "" if folder == Path() else f"cd {folder} && "
    click.echo(f"Next: {here}mlspec plan, then mlspec apply")
    return 0
