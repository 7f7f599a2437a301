"""For ever: the controller. It keeps a target equal to the newest revision of a source, with the same `step` as `mlspec apply`.

The local supervisor starts it for the revision that was applied last (`python -m mlspec_reconciler.drivers.forever --home
DIR`). It acts when a run ends, when a policy or a clock asks for something, and when somebody changed what should be.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mlspec_reconciler.cluster import Cluster, Conflict, Unavailable
from mlspec_reconciler.drivers.lock import driven, exclusive
from mlspec_reconciler.source import Revision, Source
from mlspec_reconciler.sources import applied
from mlspec_reconciler.state import StateStore
from mlspec_reconciler.step import CONTROLLER_CONSENT, Memory, Stepped, step
from mlspec_reconciler.workspace import Workspace

PAUSE = 0.2
"""Seconds between two steps at least."""
IDLE = 5.0
"""Seconds after which it looks although nothing was seen to change."""
OUTAGE = (1.0, 60.0)
"""Seconds between two tries of a target that does not answer: the first pause, doubled each time, and the longest."""


def drive(source: Source, cluster: Cluster, store: StateStore, lock: Path, holder: str) -> None:
    """Step for ever; returns when the source has no revision any more."""
    memory, known = Memory(), Revision("", None)
    due, silent = 0.0, 0
    while True:
        newest = source.newest()
        if newest is None:
            return
        if newest.name != known.name:
            if newest.problem:
                _say(f"revision {newest.name} is not driven: {newest.problem}")
            known = newest
        try:
            # Counts from here: what changes during the step wakes us at once.
            changes = cluster.watch(timeout=min(IDLE, max(PAUSE, due - time.time())))
            done = _step(known, source, cluster, store, lock, memory, holder)
            silent, due = 0, time.time() + IDLE
            if done is not None:
                memory, due = done.memory, done.due
            if done is None or not (done.outcomes or done.stored):
                next(iter(changes), None)
        except Conflict as error:
            _say(f"another driver is at work: {error}")
        except Unavailable as error:
            silent += 1
            pause = min(OUTAGE[0] * 2.0 ** (silent - 1), OUTAGE[1])
            _say(f"the target does not answer: {error}; looking again in {pause:.0f} s")
            time.sleep(pause)
        time.sleep(PAUSE)


def _step(
    revision: Revision,
    source: Source,
    cluster: Cluster,
    store: StateStore,
    lock: Path,
    memory: Memory,
    holder: str,
) -> Stepped | None:
    """One step of a revision that is still the newest when the lock is held; None when there is nothing to drive."""
    if revision.desired is None:
        return None
    with exclusive(lock):
        newest = source.newest()
        if newest is None or newest.name != revision.name or driven(lock):
            return None
        done = step(revision.desired, cluster, store, CONTROLLER_CONSENT, time.time(), memory, holder)
    for outcome in done.outcomes:
        what = f"{outcome.write.verb} {outcome.write.key}"
        _say(f"{what} for {outcome.change.resource}: {outcome.error or outcome.change.reason}")
    return done


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def main() -> int:
    """Drive the applied revision of a local home until the process is told to stop."""
    parser = argparse.ArgumentParser(
        prog="mlspec_reconciler.drivers.forever", description="Keep a local target as applied."
    )
    parser.add_argument("--home", required=True, type=Path, help="the .mlspec folder of the project")
    home = parser.parse_args().home.absolute()
    place = Workspace(home.parent, home)
    cluster = place.local
    drive(applied.Applied(place), cluster, cluster.state, place.lock, f"controller {place.root}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
