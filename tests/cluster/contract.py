"""The contract of a cluster, as cases over any implementation. A test file subclasses `Contract` and gives `cluster`.

What differs between clusters is how an object is written (`body`), how a live one is compared with what was written
(`holds`: a server adds defaults), and whether it must be announced before it is listed (`announce`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from mlspec.manifest import Key
from mlspec_reconciler.cluster import Cluster, Conflict, Object, key_of
from mlspec_reconciler.state import Session, Table

API = "local.mlspec.dev/v1"


def record(name: str, **data: Any) -> dict[str, Any]:
    """The simplest object."""
    return {"apiVersion": API, "kind": "Record", "metadata": {"name": name}, "spec": {"data": data}}


def key(name: str, kind: str = "Record") -> Key:
    """Its key."""
    return Key(API, kind, "", name)


DIGEST, OTHER = {"mlspec.dev/digest": "d1"}, {"mlspec.dev/digest": "d2"}


class Contract:
    """What every cluster keeps."""

    def body(self, cluster: Any, name: str, **data: Any) -> dict[str, Any]:
        """The simplest object of this cluster."""
        return record(name, **data)

    def run(self, cluster: Any, name: str, **data: Any) -> dict[str, Any]:
        """A run: it is created once and never changed."""
        spec = {"title": name, "steps": [], **data}
        return {"apiVersion": API, "kind": "Run", "metadata": {"name": name}, "spec": spec}

    def key(self, cluster: Any, name: str) -> Key:
        """Key of the simplest object."""
        return key_of(self.body(cluster, name))

    def holds(self, live: Object | None, body: Mapping[str, Any]) -> bool:
        """Whether a live object is what was written."""
        return live is not None and live.body == body

    def announce(self, cluster: Cluster, *keys: Key) -> None:
        """Enter objects into the inventory, as an apply does before it writes."""

    def test_what_is_created_is_found(self, cluster: Cluster) -> None:
        """Plan compares with what get and list say, so they say exactly what was written."""
        body, key = self.body(cluster, "a", x="1"), self.key(cluster, "a")
        self.announce(cluster, key)
        made = cluster.create(body, DIGEST)
        assert made.key == key
        assert made.uid
        assert made.version
        assert cluster.get(key) == made
        assert list(cluster.list()) == [made]
        assert self.holds(made, body)
        assert made.annotations == DIGEST
        assert not made.deleting

    def test_nothing_is_found_where_nothing_is(self, cluster: Cluster) -> None:
        """Absent is None, never an error."""
        assert cluster.get(self.key(cluster, "a")) is None
        assert list(cluster.list()) == []

    def test_create_refuses_an_existing_object(self, cluster: Cluster) -> None:
        """Two people who apply at the same time must not both start a run."""
        for body, other in (
            (self.body(cluster, "a", x="1"), self.body(cluster, "a", x="2")),
            (self.run(cluster, "r", x="1"), self.run(cluster, "r", x="2")),
        ):
            made = cluster.create(body, DIGEST)
            with pytest.raises(Conflict, match=f"{made.key.kind} {made.key.name} exists"):
                cluster.create(other, DIGEST)
            assert cluster.get(made.key) == made

    def test_only_one_of_many_creates(self, cluster: Cluster) -> None:
        """The refusal holds in a race."""
        won: list[Object] = []

        def create(number: int) -> None:
            try:
                won.append(cluster.create(self.run(cluster, "a", by=str(number)), DIGEST))
            except Conflict:
                return

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [cluster.get(won[0].key)] == won

    def test_apply_creates_and_replaces(self, cluster: Cluster) -> None:
        """An update keeps the identity and moves the version."""
        first = cluster.apply(self.body(cluster, "a", x="1"), {})
        changed = self.body(cluster, "a", x="2")
        second = cluster.apply(changed, OTHER)
        assert second.uid == first.uid
        assert second.version != first.version
        assert cluster.get(first.key) == second
        assert self.holds(second, changed)
        assert second.annotations == OTHER

    def test_apply_of_the_same_changes_nothing(self, cluster: Cluster) -> None:
        """A repeated apply must not wake anything."""
        first = cluster.apply(self.body(cluster, "a", x="1"), DIGEST)
        assert cluster.apply(self.body(cluster, "a", x="1"), DIGEST).version == first.version

    def test_apply_of_a_version_refuses_what_moved(self, cluster: Cluster) -> None:
        """A saved plan must not overrun what happened since."""
        first = cluster.create(self.body(cluster, "a", x="1"), {})
        self.announce(cluster, first.key)
        list(cluster.list())
        second = cluster.apply(self.body(cluster, "a", x="2"), {}, first.version)
        changed = self.body(cluster, "a", x="3")
        with pytest.raises(Conflict, match="has changed"):
            cluster.apply(changed, {}, first.version)
        assert self.holds(cluster.apply(changed, {}, second.version), changed)

    def test_apply_of_a_version_refuses_what_is_gone(self, cluster: Cluster) -> None:
        """A plan to update must not create."""
        with pytest.raises(Conflict):
            cluster.apply(self.body(cluster, "a", x="1"), {}, "1")
        assert cluster.get(self.key(cluster, "a")) is None

    def test_delete_takes_only_the_object_it_was_asked_for(self, cluster: Cluster) -> None:
        """An object that was made again under the same name is another one."""
        body, key = self.body(cluster, "a"), self.key(cluster, "a")
        old = cluster.create(body, {})
        cluster.delete(key, old.uid)
        assert cluster.get(key) is None
        new = cluster.create(body, {})
        assert new.uid != old.uid
        cluster.delete(key, old.uid)
        assert cluster.get(key) == new

    def test_delete_of_nothing_is_nothing(self, cluster: Cluster) -> None:
        """Deletes are repeated after a crash."""
        cluster.delete(self.key(cluster, "a"), "no-such-uid")

    def test_watch_tells_what_changes(self, cluster: Cluster) -> None:
        """Created, changed and deleted objects wake the controller, others do not."""
        self.announce(cluster, *(self.key(cluster, name) for name in ("quiet", "gone", "new")))
        quiet = cluster.create(self.body(cluster, "quiet"), {})
        gone = cluster.create(self.body(cluster, "gone"), {})
        changes = cluster.watch(0.5)
        new = cluster.create(self.body(cluster, "new"), {})
        cluster.apply(self.body(cluster, "quiet"), {})
        cluster.delete(gone.key, gone.uid)
        assert set(changes) == {new.key, gone.key}
        assert cluster.get(quiet.key) == quiet

    def test_watch_waits_for_changes(self, cluster: Cluster) -> None:
        """A change that comes while somebody waits is told soon."""
        late = self.body(cluster, "late")
        self.announce(cluster, key_of(late))
        changes = cluster.watch(5.0)
        timer = threading.Timer(0.1, cluster.create, (late, {}))
        timer.start()
        started = time.monotonic()
        assert next(iter(changes)) == key_of(late)
        assert time.monotonic() - started < 2.0
        timer.join()

    def test_watch_ends_when_nothing_happens(self, cluster: Cluster) -> None:
        """The controller's periodic look depends on it, and counts from its wait, not from the call."""
        changes = cluster.watch(0.1)
        started = time.monotonic()
        assert list(changes) == []
        assert 0.05 < time.monotonic() - started < 2.0

    def test_a_run_is_remembered(self, cluster: Cluster) -> None:
        """Facts about runs outlive their objects, or a finished training would run again after a clean-up."""
        body = self.run(cluster, "r-1")
        made = cluster.create(body, {})
        assert cluster.runs()["r-1"].phase == "pending"
        cluster.delete(made.key, made.uid)
        assert cluster.get(made.key) is None
        assert cluster.runs()["r-1"].phase == "failed"
        cluster.create(body, {})
        assert cluster.runs()["r-1"].phase == "pending"

    def test_state_is_kept_beside_the_objects(self, cluster: Any) -> None:
        """It is never taken for an object, so neither drift nor `destroy` touches it."""
        Session.open(cluster.state, "me").put([(Table.RUNS, "r", {"phase": "succeeded"})])
        assert [*cluster.list()] == []
        assert Session.open(cluster.state, "other").rows(Table.RUNS) == {"r": {"phase": "succeeded"}}

    def test_identity_is_stable(self, cluster: Cluster) -> None:
        """Saved plans are bound to it."""
        assert cluster.identity
        assert cluster.identity == cluster.identity
