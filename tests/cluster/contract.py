"""The contract of a cluster, as cases over any implementation. A test file subclasses `Contract` and gives `cluster`."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from mlspec.manifest import Key
from mlspec_reconciler.cluster import Cluster, Conflict

API = "local.mlspec.dev/v1"


def record(name: str, **data: Any) -> dict[str, Any]:
    """The simplest object."""
    return {"apiVersion": API, "kind": "Record", "metadata": {"name": name}, "spec": {"data": data}}


def key(name: str, kind: str = "Record") -> Key:
    """Its key."""
    return Key(API, kind, "", name)


class Contract:
    """What every cluster keeps."""

    def test_what_is_created_is_found(self, cluster: Cluster) -> None:
        """Plan compares with what get and list say, so they say exactly what was written."""
        made = cluster.create(record("a", x=1), {"digest": "d1"})
        assert made.key == key("a")
        assert made.uid
        assert made.version
        assert cluster.get(key("a")) == made
        assert list(cluster.list()) == [made]
        assert made.body == record("a", x=1)
        assert made.annotations == {"digest": "d1"}
        assert not made.deleting

    def test_nothing_is_found_where_nothing_is(self, cluster: Cluster) -> None:
        """Absent is None, never an error."""
        assert cluster.get(key("a")) is None
        assert list(cluster.list()) == []

    def test_create_refuses_an_existing_object(self, cluster: Cluster) -> None:
        """Two people who apply at the same time must not both start a run."""
        cluster.create(record("a", x=1), {})
        with pytest.raises(Conflict, match="Record a exists"):
            cluster.create(record("a", x=2), {})
        found = cluster.get(key("a"))
        assert found is not None
        assert found.body == record("a", x=1)

    def test_only_one_of_many_creates(self, cluster: Cluster) -> None:
        """The refusal holds in a race."""
        won: list[int] = []

        def create(number: int) -> None:
            try:
                cluster.create(record("a", by=number), {})
            except Conflict:
                return
            won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = cluster.get(key("a"))
        assert found is not None
        assert [found.body["spec"]["data"]["by"]] == won

    def test_apply_creates_and_replaces(self, cluster: Cluster) -> None:
        """An update keeps the identity and moves the version."""
        first = cluster.apply(record("a", x=1), {})
        second = cluster.apply(record("a", x=2), {"digest": "d2"})
        assert second.uid == first.uid
        assert second.version != first.version
        assert cluster.get(key("a")) == second
        assert second.body == record("a", x=2)

    def test_apply_of_the_same_changes_nothing(self, cluster: Cluster) -> None:
        """A repeated apply must not wake anything."""
        first = cluster.apply(record("a", x=1), {"digest": "d1"})
        assert cluster.apply(record("a", x=1), {"digest": "d1"}).version == first.version

    def test_apply_of_a_version_refuses_what_moved(self, cluster: Cluster) -> None:
        """A saved plan must not overrun what happened since."""
        first = cluster.create(record("a", x=1), {})
        second = cluster.apply(record("a", x=2), {}, first.version)
        with pytest.raises(Conflict, match="has changed"):
            cluster.apply(record("a", x=3), {}, first.version)
        assert cluster.apply(record("a", x=3), {}, second.version).body == record("a", x=3)

    def test_apply_of_a_version_refuses_what_is_gone(self, cluster: Cluster) -> None:
        """A plan to update must not create."""
        with pytest.raises(Conflict):
            cluster.apply(record("a", x=1), {}, "1")
        assert cluster.get(key("a")) is None

    def test_delete_takes_only_the_object_it_was_asked_for(self, cluster: Cluster) -> None:
        """An object that was made again under the same name is another one."""
        old = cluster.create(record("a"), {})
        cluster.delete(key("a"), old.uid)
        assert cluster.get(key("a")) is None
        new = cluster.create(record("a"), {})
        assert new.uid != old.uid
        cluster.delete(key("a"), old.uid)
        assert cluster.get(key("a")) == new

    def test_delete_of_nothing_is_nothing(self, cluster: Cluster) -> None:
        """Deletes are repeated after a crash."""
        cluster.delete(key("a"), "no-such-uid")

    def test_watch_tells_what_changes(self, cluster: Cluster) -> None:
        """Created, changed and deleted objects wake the controller, others do not."""
        quiet = cluster.create(record("quiet"), {})
        gone = cluster.create(record("gone"), {})
        changes = cluster.watch(0.3)
        cluster.create(record("new"), {})
        cluster.apply(record("quiet"), {})
        cluster.delete(gone.key, gone.uid)
        assert set(changes) == {key("new"), key("gone")}
        assert cluster.get(key("quiet")) == quiet

    def test_watch_waits_for_changes(self, cluster: Cluster) -> None:
        """A change that comes while somebody waits is told soon."""
        changes = cluster.watch(5.0)
        timer = threading.Timer(0.1, cluster.create, (record("late"), {}))
        timer.start()
        started = time.monotonic()
        assert next(iter(changes)) == key("late")
        assert time.monotonic() - started < 2.0
        timer.join()

    def test_watch_ends_when_nothing_happens(self, cluster: Cluster) -> None:
        """The controller's periodic look depends on it."""
        started = time.monotonic()
        assert list(cluster.watch(0.1)) == []
        assert 0.05 < time.monotonic() - started < 2.0

    def test_a_run_is_remembered(self, cluster: Cluster) -> None:
        """Facts about runs outlive their objects, or a finished training would run again after a clean-up."""
        body = {
            "apiVersion": API,
            "kind": "Run",
            "metadata": {"name": "r-1"},
            "spec": {"title": "r", "steps": []},
        }
        made = cluster.create(body, {})
        assert cluster.runs()["r-1"].phase == "pending"
        cluster.delete(made.key, made.uid)
        assert cluster.get(made.key) is None
        assert cluster.runs()["r-1"].phase == "failed"
        cluster.create(body, {})
        assert cluster.runs()["r-1"].phase == "pending"

    def test_notes_are_kept(self, cluster: Cluster) -> None:
        """The inventory is one of them."""
        assert cluster.note("inventory") is None
        cluster.set_note("inventory", {"entries": {"a": 1}})
        cluster.set_note("inventory", {"entries": {"b": 2}})
        assert cluster.note("inventory") == {"entries": {"b": 2}}

    def test_identity_is_stable(self, cluster: Cluster) -> None:
        """Saved plans are bound to it."""
        assert cluster.identity
        assert cluster.identity == cluster.identity
