"""`mlspec withdraw`: take a request back."""

from __future__ import annotations

from pathlib import Path

import click

from mlspec_reconciler import asking, remembered, terminal


@click.command()
@click.argument("request")
@terminal.folder_option
def command(request: str, path: Path, target: str | None) -> int:
    """Take REQUEST back, whoever made it: what it moved or switched is again as git and the other requests say. A run that it
    has started goes on; its result does not serve.

    \b
    mlspec requests
    mlspec withdraw 3f9c2a7be011
    """
    asked = asking.opened(path, target)
    known = remembered.requests(asked.session) | {one.id: one for one in asked.seen.facts.requests}
    found = [one for key, one in known.items() if key.startswith(request)]
    if len(found) != 1:
        words = (
            "is not a request here" if not found else f"stands for {len(found)} requests; write more of it"
        )
        click.echo(f"error[unknown-request]: {request} {words}; see: mlspec requests", err=True)
        return 1
    if found[0].withdrawn:
        click.echo(f"{found[0].id} was withdrawn by {found[0].withdrawn} already.")
        return 0
    asking.withdraw(asked, found[0])
    click.echo(f"Withdrew {found[0].id}: {found[0].action} {found[0].subject}. Look with: mlspec status")
    return 0
