"""The controller: the CLI in a loop. It keeps the target equal to the revision that was applied last.

The local supervisor starts it (`python -m mlspec_reconciler.controller --home DIR`); it acts when a run ends, when a
monitoring policy asks for a retraining, and when somebody stopped what should run.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mlspec_reconciler import apply, clock, workspace
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.plan import Action
from mlspec_reconciler.reconcile import NONE, Round, Wanted, exclusive, look

PAUSE = 0.2
IDLE = 5.0


def main() -> int:
    """Run until the process is told to stop."""
    parser = argparse.ArgumentParser(
        prog="mlspec_reconciler.controller", description="Keep a local target as applied."
    )
    parser.add_argument("--home", required=True, type=Path, help="the .mlspec folder of the project")
    home = parser.parse_args().home.absolute()
    return run(workspace.Workspace(home.parent, home))


def run(place: workspace.Workspace) -> int:
    """One round after each change of the cluster, and one every few seconds."""
    cluster = place.local
    known: object = None
    wanted: Wanted | None = None
    while True:
        document = workspace.applied_here(place)
        if document is None:
            return 0
        if document != known:  # the revision, or only the content of the files that it names
            known, wanted = document, workspace.open_applied(place, document)
        changes = cluster.watch(
            timeout=IDLE
        )  # counts from here: what changes during the round wakes us at once
        if wanted is not None:
            try:
                _round(wanted, place)
            except Unavailable as error:
                print(f"the cluster does not answer: {error}", file=sys.stderr, flush=True)
        next(iter(changes), None)
        time.sleep(PAUSE)


def _round(wanted: Wanted, place: workspace.Workspace) -> None:
    cluster = place.local
    with exclusive(place.lock):
        if (document := workspace.applied_here(place)) is None:
            return
        clock.tick(wanted.project, cluster, time.time())
        seen: Round = look(wanted, cluster, NONE)
        if not any(change.writes for change in seen.plan.changes) and not seen.plan.of(Action.DELETE):
            return
        if document != workspace.applied_here(place):
            return
        for outcome in apply.perform(seen.plan, wanted.project, cluster):
            what = f"{outcome.write.verb} {outcome.write.key}"
            print(
                f"{what} for {outcome.change.resource}: {outcome.error or outcome.change.reason}", flush=True
            )


if __name__ == "__main__":
    raise SystemExit(main())
