"""What earlier releases have kept in the database of the local cluster, as the rows of this one.

Format 1 had one document for the whole inventory, one for all requests and one for all timers, in the table `notes`.
`tests/state/releases/` holds a database of each format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlspec_reconciler.state import Table

JSON = Mapping[str, Any]


def rows_of_notes(notes: Mapping[str, JSON]) -> Iterator[tuple[Table, str, JSON]]:
    """The documents of format 1, row by row."""
    inventory = notes.get("inventory", {})
    if "cluster" in inventory:
        yield Table.TARGET, "cluster", {"identity": inventory["cluster"]}
    for resource, entry in inventory.get("entries", {}).items():
        yield Table.INVENTORY, resource, entry
    for name, request in notes.get("triggers", {}).get("triggers", {}).items():
        yield Table.REQUESTS, name, request
    for resource, at in notes.get("clock", {}).items():
        yield Table.MARKS, f"timer {resource}", {"at": at}
