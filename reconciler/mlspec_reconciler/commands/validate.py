"""`mlspec validate`: every mistake of all specs with its line and a way out.

Imports no client and no data library; when the verdict is cached, not even the models.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import click

from mlspec import report, source
from mlspec.diagnostics import Diagnostic
from mlspec_reconciler import cache, files


@click.command("validate")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")
@click.option(
    "-o", "--output", type=click.Choice(list(report.FORMATS)), default="text", help="Form of the report."
)
@click.option("--strict", is_flag=True, help="Warnings are errors.")
@click.option("--fix", is_flag=True, help="Rewrite scalars that YAML tools read differently; all else stays.")
@click.option("--no-cache", is_flag=True, help="Do not use the result of an earlier run.")
@click.pass_context
def command(
    context: click.Context, paths: tuple[Path, ...], output: str, strict: bool, fix: bool, no_cache: bool
) -> int:
    """Check specs: files, folders (this one by default) or - for stdin.

    \b
    mlspec validate
    mlspec validate training/ --output github
    kustomize build . | mlspec validate -

    Ends with 0 without errors, with 1 otherwise.
    """
    root = Path.cwd()
    texts, unreadable = files.read(paths or [root], root)
    fixed = _fix(texts, root) if fix else 0
    verdict = _verdict(texts, root, no_cache)
    diagnostics = [*unreadable, *verdict.diagnostics]
    if strict:
        diagnostics = [replace(one, severity="error") for one in diagnostics]
    form = cast(report.Format, output)
    if form == "text":
        _print_text(diagnostics, texts, verdict, fixed)
    elif printed := report.FORMATS[form](diagnostics, texts):
        click.echo(printed)
    code = int(any(one.severity == "error" for one in diagnostics))
    context.exit(code)


def _verdict(texts: Mapping[str, str], root: Path, no_cache: bool) -> cache.Verdict:
    identity = cache.key(texts)
    if not no_cache and (known := cache.get(identity)):
        return known
    load = importlib.import_module(
        "mlspec_reconciler.load"
    )  # the models: three quarters of the command's time
    gc.disable()  # no cycles are made, and looking for them takes a third of the time
    try:
        loaded = load.build(texts, (), root)
    finally:
        gc.enable()
    verdict = cache.Verdict(tuple(loaded.diagnostics), loaded.resources, loaded.foreign)
    if not no_cache:
        cache.put(identity, verdict)
    return verdict


def _fix(texts: dict[str, str], root: Path) -> int:
    """Rewrite ambiguous scalars in the files; returns how many files have changed."""
    changed = 0
    for name, text in texts.items():
        better = source.fixed(text)
        if better != text and name != "stdin":
            (root / name).write_bytes(better.encode("utf-8"))
            texts[name] = better
            changed += 1
    return changed


def _print_text(
    diagnostics: list[Diagnostic], texts: Mapping[str, str], verdict: cache.Verdict, fixed: int
) -> None:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if diagnostics:
        click.echo(report.text(diagnostics, texts, colour))
    if fixed:
        click.echo(f"{fixed} file{'s' if fixed > 1 else ''} rewritten.")
    if any(one.severity == "error" for one in diagnostics):
        click.echo(report.summary(diagnostics, len(texts)))
        return
    warnings = f"{report.summary(diagnostics, len(texts))} " if diagnostics else ""
    ours = f"{verdict.resources:,} resource{'' if verdict.resources == 1 else 's'}"
    others = f"; {verdict.foreign} of other tools left alone" if verdict.foreign else ""
    click.echo(f"{warnings}{ours} valid{others}. Next: mlspec plan")
