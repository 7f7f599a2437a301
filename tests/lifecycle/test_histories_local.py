"""The histories of `test_histories.py` over what is kept on this machine: objects, statuses and state in SQLite, without a process.

Fewer and shorter, as each write is a transaction on the disk. MLSPEC_LONG=1 plays 2,000.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from lifecycle.test_histories import Histories, histories
from lifecycle.world import Fuse, Stage
from mlspec.manifest import Key
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.clusters.local.state import LocalState
from mlspec_reconciler.state import Put

HISTORIES = 2_000 if os.environ.get("MLSPEC_LONG") else 100
LENGTH = 8


class FragileLocalState(LocalState):
    """Dies before a transaction: half of one there never is."""

    fuse: Fuse

    def commit(self, token: int, writes: Sequence[Put]) -> None:
        """All rows, unless the process dies before."""
        self.fuse.burn()
        super().commit(token, writes)


class LocalStage(LocalCluster):
    """A home without a supervisor: statuses are what the test says."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.fuse = Fuse()
        self.state = state = FragileLocalState(self.store)
        state.fuse = self.fuse
        self.cluster = self
        self.made: list[str] = []

    def create(self, body: Mapping[str, Any], annotations: Mapping[str, str]) -> Object:
        """Create, unless the process dies before."""
        self.fuse.burn()
        created = super().create(body, annotations)
        if created.key.kind == "Run":
            self.made.append(created.key.name)
        return created

    def apply(
        self, body: Mapping[str, Any], annotations: Mapping[str, str], version: str | None = None
    ) -> Object:
        """Replace, unless the process dies before."""
        self.fuse.burn()
        return super().apply(body, annotations, version)

    def delete(self, key: Key, uid: str) -> None:
        """Delete, unless the process dies before."""
        self.fuse.burn()
        super().delete(key, uid)

    def settle(self, key: Key, status: Mapping[str, Any]) -> None:
        """As the supervisor would set a status."""
        live = self.store.get(key)
        assert live is not None
        self.store.set_status(live.uid, status)

    def succeed(self, run: str, results: Mapping[str, Any]) -> None:
        """A run ends well."""
        self._end(run, {"phase": "succeeded", "results": results, "message": ""})

    def fail(self, run: str) -> None:
        """A run ends badly."""
        self._end(run, {"phase": "failed", "results": {}, "message": "failed"})

    def forget(self, runs: Sequence[str]) -> None:
        """The objects and the history of these runs are lost."""
        with self.store.write():
            for name in runs:
                self.store.query("DELETE FROM objects WHERE kind = 'Run' AND name = ?", (name,))
                self.store.query("DELETE FROM runs WHERE name = ?", (name,))

    def _end(self, run: str, status: dict[str, Any]) -> None:
        key = Key("local.mlspec.dev/v1", "Run", "", run)
        live = self.store.get(key)
        assert live is not None
        self.store.record_run(live.uid, status["phase"], status["message"], status["results"], time.time())
        self.settle(key, status)


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Callable[[], Stage]]:
    """Makes a new home for each history."""
    count, made = itertools.count(), []

    def stage() -> Stage:
        for earlier in made:
            earlier.close()
        made[:] = [LocalStage(tmp_path / str(next(count)))]
        return made[0]

    yield stage
    for one in made:
        one.close()


def test_whatever_happens_this_machine_does_what_the_rules_say(stages: Callable[[], Stage]) -> None:
    """What is kept in SQLite is read as it was written, by the next step and after a kill between any two transactions."""

    class LocalHistories(Histories):
        def stage(self) -> Stage:
            return stages()

    run_state_machine_as_test(LocalHistories, settings=histories(HISTORIES, LENGTH))
