"""The revision that was applied last to this machine: the source of the local controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlspec_reconciler import workspace
from mlspec_reconciler.source import Revision
from mlspec_reconciler.workspace import Workspace


class Applied:
    """The staged copy of the specs and code in `.mlspec/revisions`, as `mlspec apply` recorded it."""

    def __init__(self, place: Workspace) -> None:
        self._place = place
        self._known: Mapping[str, Any] | None = None
        self._revision: Revision | None = None

    def newest(self) -> Revision | None:
        """The applied revision; it is compiled anew only when the record differs, also in the files that it pins."""
        record = workspace.applied_here(self._place)
        if record is None:
            return None
        if self._revision is None or record != self._known:
            desired = workspace.open_applied(self._place, record)
            problem = (
                "" if desired is not None else "it cannot be read any more; mlspec apply writes it again"
            )
            self._known, self._revision = (
                record,
                Revision(f"{record['revision']} {record['at']}", desired, problem),
            )
        return self._revision
