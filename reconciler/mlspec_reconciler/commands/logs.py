"""`mlspec logs`: what the processes of a resource have printed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click

from mlspec_reconciler import inventory, terminal, workspace
from mlspec_reconciler.clusters.local.store import CONTROLLER

_OURS = {"supervisor": "*.log", CONTROLLER: f"supervisor/{CONTROLLER}/*.log"}
"""What is no resource, and its files below `logs`."""


@click.command()
@click.argument("what")
@terminal.folder_option
@click.option("--lines", "-n", default=200, show_default=True, help="Last lines of each file.")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines come.")
def command(what: str, path: Path, target: str | None, lines: int, follow: bool) -> int:
    """Print the logs of a resource (`TrainingJob/NAME`), of one run (its name), or of the `supervisor` or the `controller`
    of this machine.

    \b
    mlspec logs TrainingJob/late-arrival
    mlspec logs late-arrival-7c1e9a02 --follow
    """
    found = workspace.connect(path, target) if what not in _OURS else None
    if found is not None and found.wanted.target.kubernetes is not None:
        return _of_pods(found, what, lines, follow)
    place = workspace.find(path)
    files = list(_files(place, what))
    if not files:
        known = sorted(inventory.read(place.session(), place.local.identity).entries)
        click.echo(
            f"error[no-logs]: there are no logs of {what}; resources with logs are among: {', '.join(known)}",
            err=True,
        )
        return 1
    positions: dict[Path, int] = {}
    for file in files:
        click.echo(f"==> {file.relative_to(place.root)}")
        content = file.read_text(errors="replace")
        positions[file] = file.stat().st_size
        click.echo("\n".join(content.splitlines()[-lines:]))
    while follow:
        time.sleep(0.3)
        for file in _files(place, what):
            with file.open(errors="replace") as stream:
                stream.seek(positions.get(file, 0))
                if text := stream.read():
                    click.echo(text, nl=False)
                positions[file] = stream.tell()
    return 0


def _of_pods(found: workspace.Connected, what: str, lines: int, follow: bool) -> int:
    """Logs of a Kubernetes target, from its pods; those of finished runs as long as their pods are there."""
    shown: dict[str, str] = {}
    while True:
        for one in found.cluster.list():
            if what not in (one.annotations.get("mlspec.dev/resource"), one.key.name):
                continue
            for title, text in found.cluster.printed(one, lines).items():
                before = shown.get(title)
                if before is None:
                    click.echo(f"==> {title}\n{text}", nl=False)
                elif text != before:
                    click.echo(text.removeprefix(before), nl=False)
                shown[title] = text
        if not shown:
            held = inventory.read(found.reached.session(), found.cluster.identity)
            known = ", ".join(sorted(held.entries))
            words = f"error[no-logs]: there are no pods of {what}; resources are: {known}"
            click.echo(f"{words}\n  {_archive(found)}", err=True)
            return 1
        if not follow:
            return 0
        time.sleep(1.0)


def _archive(found: workspace.Connected) -> str:
    """What to do for logs that outlive their pods."""
    kubernetes = found.wanted.target.kubernetes
    if kubernetes is None or kubernetes.argo is None:
        return "logs that outlive their pods are read from Argo's archive, when the target says argo: {server: URL}"
    return "Argo has archived none: archiveLogs of its artifact repository does"


def _files(place: workspace.Workspace, what: str) -> Iterator[Path]:
    logs = place.home / "logs"
    if what in _OURS:
        yield from sorted(logs.glob(_OURS[what]))
        return
    if not place.home.exists():
        return
    if "/" in what:
        entry = inventory.read(place.session(), place.local.identity).entries.get(what)
        names = (
            [key.name for key in entry.objects if key.kind != "Run" or key.name == entry.run] if entry else []
        )
    else:
        names = [what]
    for name in names:
        yield from sorted(logs.glob(f"*/{name}/*.log"))
