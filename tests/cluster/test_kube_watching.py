"""Watches through everything that goes wrong: nothing is missed, nothing is told twice, and nobody is hammered."""

import itertools
import threading
import time

import pytest

from cluster import faults
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.kube import watching
from mlspec_reconciler.clusters.kube.transport import Transport

MAPS = "/api/v1/namespaces/ml/configmaps"


class Collection:
    """A collection with the list and watch of an API server; `compact` forgets its history."""

    def __init__(self):
        self.objects, self.history, self.oldest = {}, [], 0
        self.version = itertools.count(1)
        self.now = 0
        self.changed = threading.Condition()
        self.bookmarks = False

    def write(self, name, uid="u", deleted=False):
        with self.changed:
            self.now = next(self.version)
            metadata = {"name": name, "namespace": "ml", "uid": uid, "resourceVersion": str(self.now)}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
            change = "DELETED" if deleted else "MODIFIED" if name in self.objects else "ADDED"
            self.objects.pop(name, None) if deleted else self.objects.update({name: body})
            self.history.append({"type": change, "object": body})
            self.changed.notify_all()

    def compact(self):
        with self.changed:
            self.oldest = self.now = next(self.version)
            self.history.clear()

    def __call__(self, verb, path, body):
        if verb == "LIST":
            items = [*self.objects.values()]
            metadata = {"resourceVersion": str(self.now)}
            return faults.Reply(
                {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}
            )
        since = int(path.partition("resourceVersion=")[2].partition("&")[0])
        if since < self.oldest:
            return faults.Reply({"kind": "Status", "reason": "Expired", "message": "old", "code": 410}, 410)
        return faults.Reply(self.events(since))

    def events(self, since):
        for _ in range(400):
            with self.changed:
                fresh = [e for e in self.history if int(e["object"]["metadata"]["resourceVersion"]) > since]
                if not fresh:
                    self.changed.wait(0.05)
            for event in fresh:
                since = int(event["object"]["metadata"]["resourceVersion"])
                yield event
            if self.bookmarks and not fresh:
                yield {
                    "type": "BOOKMARK",
                    "object": {"kind": "ConfigMap", "metadata": {"resourceVersion": str(self.now)}},
                }


@pytest.fixture
def maps():
    return Collection()


@pytest.fixture
def proxy(maps):
    with faults.Proxy(maps) as proxy:
        yield proxy


@pytest.fixture
def follow(proxy, tmp_path):
    opened = []

    def follow(*targets):
        transport = Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path))
        opened.append(watching.Watching(transport, targets or [(MAPS, "")]))
        return opened[-1]

    yield follow
    for each in opened:
        each.close()


def take(changes, count):
    return sorted(key.name for key in itertools.islice(changes, count))


def test_only_what_changes_after_the_call_is_told(maps, follow):
    """Watch, then list, then wait: what the list shows needs no event."""
    maps.write("a")
    changes = follow().changes(3)
    maps.write("b")
    maps.write("a")
    maps.write("b", deleted=True)
    assert take(changes, 2) == ["a", "b"]
    start = time.monotonic()
    assert [*follow().changes(0.3)] == []
    assert time.monotonic() - start < 1.5


def test_the_timeout_counts_from_the_last_change(maps, follow):
    """A loop that waits for quiet."""
    changes = follow().changes(0.8)
    for delay in (0.4, 0.9, 1.4):
        threading.Timer(delay, maps.write, ("a",)).start()
    start = time.monotonic()
    assert len([*changes]) == 3
    assert 1.9 < time.monotonic() - start < 3.5


BROKEN = [
    faults.Events(stop=1, by="cut"),
    faults.Events(stop=1, by="end"),
    faults.Events(stop=1, by="gone"),
    faults.Events(garbage=True),
    faults.Cut(),
    faults.Answer(500),
    faults.Answer(429, retry_after=1),
    faults.Answer(410),
    faults.Answer(200, body=b"<html>"),
]


@pytest.mark.parametrize("fault", BROKEN, ids=str)
def test_a_watch_that_breaks_resumes_without_a_gap(maps, proxy, follow, fault, monkeypatch):
    """Changes while nobody listened are told after it, once."""
    monkeypatch.setattr(watching, "_PAUSE", 0.1)
    maps.write("old")
    proxy.add(fault, verb="WATCH", times=2)
    changes = follow().changes(6)
    for name in ("a", "b", "c"):
        maps.write(name)
    maps.write("old", deleted=True)
    assert take(changes, 4) == ["a", "b", "c", "old"]
    assert proxy.count("LIST") <= 3


def test_what_vanished_while_history_was_lost_is_told(maps, proxy, follow):
    """After 410 only a comparison of the lists can tell of a deletion, and of an object that was made anew."""
    for name in ("gone", "kept", "again", "edited"):
        maps.write(name)
    watch = follow()
    changes = watch.changes(8)
    with maps.changed:
        rule = proxy.add(faults.Answer(503, retry_after=0), verb="WATCH")
        proxy.cut()
        maps.write("gone", deleted=True)
        maps.write("again", deleted=True)
        maps.write("again", uid="other")
        maps.write("edited")
        maps.write("new")
        maps.compact()
        rule.left = 0
    assert take(changes, 4) == ["again", "edited", "gone", "new"]


def test_events_that_come_twice_or_late_are_dropped(maps, proxy, follow):
    """A stale ADDED after a DELETED would bring a dead object back to life."""
    proxy.add(faults.Events(duplicate=True, stale=True), verb="WATCH")
    watch = follow()
    changes = watch.changes(0.5)
    for _ in range(2):
        maps.write("a")
    maps.write("a", deleted=True)
    maps.write("b", uid="v")
    told = [key.name for key in changes]
    assert set(told) == {"a", "b"}
    assert len(told) <= 4  # writes; twelve events were sent
    (reflector,) = watch._reflectors.values()
    assert [key.name for key in reflector._known] == ["b"]


@pytest.mark.parametrize(
    "fault",
    [*BROKEN[1:6], faults.Answer(410), faults.Answer(404), faults.Stall(), faults.Events(stop=0, by="stall")],
    ids=str,
)
def test_a_server_that_always_fails_is_not_hammered(maps, proxy, follow, fault):
    """The clients that we measured asked up to 1,800 times in four seconds."""
    proxy.add(fault)
    watch = follow()
    maps.write("a")
    time.sleep(1.5)
    assert proxy.count() <= 5
    start = time.monotonic()
    watch.close()
    assert time.monotonic() - start < 1.6


def test_a_silent_watch_is_given_up_and_bookmarks_keep_a_quiet_one(maps, proxy, follow, monkeypatch):
    """Half-open connections hang for ever in every Python client that we measured."""
    monkeypatch.setattr(watching, "_IDLE", 0.5)
    proxy.add(faults.Events(stop=0, by="stall"), verb="WATCH", times=1)
    maps.bookmarks = True
    changes = follow().changes(5)
    maps.write("a")
    assert take(changes, 1) == ["a"]
    time.sleep(1.5)
    assert proxy.count("WATCH") == 2


def test_retry_after_is_honoured(maps, proxy, follow):
    """API priority and fairness tells watchers when to come back."""
    proxy.add(faults.Answer(429, retry_after=2), verb="WATCH", times=1)
    changes = follow().changes(5)
    maps.write("a")
    assert take(changes, 1) == ["a"]
    first, second = (seen.time for seen in proxy.seen if seen.verb == "WATCH")
    assert second - first >= 2


def test_a_collection_that_may_not_be_read_is_an_error(proxy, follow):
    """Waiting for ever on what cannot come would look like a quiet cluster."""
    proxy.add(faults.Answer(403, message='configmaps is forbidden: User "x" cannot watch'))
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r'configmaps cannot be watched: .*User "x" cannot watch'):
        follow().changes(5)
    assert time.monotonic() - start < 3


def test_collections_come_and_go(maps, proxy, follow):
    """Which kinds a project has changes with its specs."""
    watch = follow((MAPS, ""), (MAPS, "a=b"))
    watch.changes(1)
    watch.follow([(MAPS, "a=b")])
    changes = watch.changes(3)
    assert proxy.count("LIST", "labelSelector=a%3Db") == 1
    maps.write("a")
    assert take(changes, 1) == ["a"]
    watch.follow([])
    assert [*watch.changes(0.1)] == []


def test_two_who_watch_both_hear_and_who_forgets_costs_nothing(maps, follow):
    """The reconciler and a command may watch one cluster."""
    watch = follow()
    one, two = watch.changes(3), watch.changes(3)
    maps.write("a")
    assert take(one, 1) == take(two, 1) == ["a"]
    del one, two
    assert len(watch._listeners) == 0


def test_a_real_server_loses_no_change_through_cuts(control_plane, tmp_path, monkeypatch):
    """The whole of it against kube-apiserver: 60 writes while connections are cut all the time."""
    monkeypatch.setattr(watching, "_PAUSE", 0.1)
    namespace = control_plane.namespace("watch")
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    with faults.Proxy(control_plane.url) as proxy:
        proxy.add(faults.Events(duplicate=True, stale=True, stop=7, by="cut"), verb="WATCH")
        transport = Transport.open(None, kubeconfig=proxy.kubeconfig(tmp_path, control_plane.admin_token))
        watch = watching.Watching(transport, [(path, ""), (f"/api/v1/namespaces/{namespace}/pods", "")])
        changes = watch.changes(6)
        direct = Transport.open(None, kubeconfig=control_plane.kubeconfig)
        for number in range(60):
            metadata = {"name": f"m{number % 20}", "namespace": namespace}
            if number < 20:
                direct.request("POST", path, body={"metadata": metadata})
            elif number < 40:
                body = {"data": {"n": str(number)}}
                direct.request(
                    "PATCH", f"{path}/m{number % 20}", body=body, content_type="application/merge-patch+json"
                )
            elif number % 2:
                direct.request("DELETE", f"{path}/m{number % 20}")
        wanted = {f"m{number}" for number in range(20)}
        seen = set()
        for key in changes:
            seen.add(key.name)
            if (
                {f"m{n}" for n in range(20)} <= seen
                and len(watch._reflectors)
                and _settled(watch, direct, path)
            ):
                break
        assert wanted <= seen
        assert _settled(watch, direct, path)
        start = time.monotonic()
        watch.close()
        assert time.monotonic() - start < 2
        assert not [thread for thread in threading.enumerate() if thread.name == f"mlspec-watch {path}"]


def _settled(watch, direct, path):
    items, _ = direct.list(path)
    live = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in items}
    reflector = watch._reflectors[(path, "")]
    return live == {key.name: version for key, (_, version) in reflector._known.items()}
