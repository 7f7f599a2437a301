"""`mlspec schema`: the JSON Schemas, CRDs and the reference that are generated from the models."""

from __future__ import annotations

from pathlib import Path

import click

from mlspec import reference, schema
from mlspec.diagnostics import did_you_mean
from mlspec.kind_table import KINDS
from mlspec.source import yaml_text

REFERENCE = Path("docs/reference")
EXAMPLES = ("examples/flights/*.yaml", "examples/*/*.yaml", "tests/specs/valid/*.yaml")
"""Where the reference of this repository takes the example of a kind from, best first."""


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
    files = {folder / name: text for name, text in schema.files().items()}
    folders = [folder / "crds", folder / "jsonschema"]
    if (_text(REFERENCE / "README.md") or "").startswith(
        reference.HEADER
    ):  # other repositories have their own
        files |= {REFERENCE / name: text for name, text in reference.pages(_examples()).items()}
        folders.append(REFERENCE)
    stale = [path for path, text in files.items() if _text(path) != text]
    extra = [path for one in folders for path in sorted(one.glob("*")) if path not in files]
    if check:
        if stale or extra:
            names = ", ".join(map(str, [*stale, *extra]))
            raise click.ClickException(f"not as the models say: {names}; run: mlspec schema --write")
        click.echo(f"{len(files)} files agree with the models.")
        return
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    for path in extra:
        path.unlink()
    click.echo(f"{len(stale)} files written, {len(files) - len(stale)} unchanged, {len(extra)} removed.")


def _examples() -> list[tuple[str, str]]:
    return [
        (path.as_posix(), _text(path) or "") for pattern in EXAMPLES for path in sorted(Path().glob(pattern))
    ]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
