"""The two halves of a step by hand: tests that change the world between a plan and its writes use them."""

from __future__ import annotations

import time
from typing import Protocol

from mlspec_reconciler import apply
from mlspec_reconciler.cluster import Cluster
from mlspec_reconciler.state import Session, StateStore
from mlspec_reconciler.step import (
    APPLY_CONSENT,
    Consent,
    DesiredState,
    Observation,
    making,
    observe_and_plan,
)


class Kept(Cluster, Protocol):
    """A cluster that also keeps its state, as all of ours do."""

    state: StateStore


def look(
    desired: DesiredState, cluster: Kept, consent: Consent = APPLY_CONSENT, *, ask: bool = False
) -> Observation:
    """What a plan finds."""
    session = Session.open(cluster.state, "test")
    return observe_and_plan(desired, cluster, session, consent, time.time(), ask=ask)


def perform(desired: DesiredState, cluster: Kept, seen: Observation) -> list[apply.Outcome]:
    """Remember what was learned, and make the writes of a plan."""
    session = Session.open(cluster.state, "test")
    session.put(seen.learned)
    return apply.perform(
        seen.plan, desired.project, cluster, session, making=making(seen.compiled), now=time.time()
    )
