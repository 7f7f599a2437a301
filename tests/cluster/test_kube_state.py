"""The contract of a StateStore in ConfigMaps of a real API server, and what only such a server can break."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import faults, rights
from cluster.bed.api import document
from cluster.bed.controlplane import ControlPlane
from mlspec_reconciler.cluster import Conflict, Refused, Unavailable
from mlspec_reconciler.clusters.kube import state as kube_state
from mlspec_reconciler.clusters.kube.state import KubeState
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.state import FORMAT, Fenced, Put, Session, StateStore, Table
from state import releases
from state.contract import Again, Contract

QUICK = {"budget": 20.0, "retry_rate": 1000.0, "retry_burst": 1000.0}
"""A transport that does not wait until a server has had its rest."""
HEAD = "mlspec-shop-head"
FULL, LARGEST = 40_000, 90_000
"""A tenth of what documents may have, for tests in which they fill up."""


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_state, "FULL", FULL)
    monkeypatch.setattr(kube_state, "LARGEST", LARGEST)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    return control_plane.namespace("state")


def connect(plane: ControlPlane, namespace: str, project: str = "shop") -> KubeState:
    """As another process connects."""
    return KubeState(Transport.open(None, kubeconfig=plane.kubeconfig), namespace, project)


def through(
    proxy: faults.Proxy, plane: ControlPlane, folder: Path, namespace: str, **options: Any
) -> KubeState:
    """As another process connects, through a proxy."""
    kubeconfig = proxy.kubeconfig(folder, plane.admin_token)
    return KubeState(Transport.open(None, kubeconfig=kubeconfig, **{**QUICK, **options}), namespace, "shop")


def documents(plane: ControlPlane, namespace: str, project: str = "shop") -> dict[str, dict[str, Any]]:
    """What stands in the ConfigMaps of a project, by name."""
    selector = f"mlspec.dev/ledger={project}"
    bodies = plane.api.list("v1", "ConfigMap", namespace, labelSelector=selector)
    return {one["metadata"]["name"]: unpacked(one["binaryData"]["document"]) for one in bodies}


def unpacked(packed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def packed(content: Mapping[str, Any]) -> str:
    return base64.b64encode(zlib.compress(json.dumps(content).encode())).decode()


def places(plane: ControlPlane, namespace: str) -> dict[tuple[str, str], list[str]]:
    """(table, key) -> the shards that hold the row."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, content in documents(plane, namespace).items():
        for key in content["rows"] if name != HEAD else ():
            found.setdefault((content["table"], key), []).append(name)
    return found


def noise(size: int, seed: int = 1) -> str:
    """Text that hardly compresses: about `size` bytes of a packed document."""
    return base64.b85encode(random.Random(seed).randbytes(size * 7 // 10)).decode()


class TestKubeState(Contract):
    """In a namespace of a real API server."""

    @pytest.fixture
    def store(self, control_plane: ControlPlane, namespace: str) -> StateStore:
        return connect(control_plane, namespace)

    @pytest.fixture
    def again(self, control_plane: ControlPlane, namespace: str) -> Again:
        return lambda: connect(control_plane, namespace)


TROUBLE = {
    "cut after it was done": (("POST", "PUT"), faults.Lost()),
    "409": (("PUT",), faults.Answer(409)),
    "500": (("POST", "PUT", "DELETE"), faults.Answer(500)),
    "504 after it was done": (("POST", "PUT"), faults.Lost(504)),
    "cut in the answer": (("PUT", "GET", "LIST"), faults.Cut(within=True)),
    "429": (("POST", "PUT", "LIST"), faults.Answer(429, retry_after=0)),
}
"""Verbs and what happens to them; by default the first three, with MLSPEC_LONG=1 all."""


@pytest.mark.parametrize("trouble", [*TROUBLE][: None if os.environ.get("MLSPEC_LONG") else 3])
class TestKubeStateInTrouble(Contract):
    """The same, while every other request of a verb meets a fault."""

    @pytest.fixture
    def proxy(self, control_plane: ControlPlane, trouble: str) -> Iterator[faults.Proxy]:
        verbs, fault = TROUBLE[trouble]
        with faults.Proxy(control_plane.url) as proxy:
            for verb in verbs:
                for number in range(6):
                    proxy.add(fault, verb=verb, path="configmaps", skip=number, times=1)
            yield proxy
            assert any(one.fault is not None for one in proxy.seen) == any(
                one.verb in verbs for one in proxy.seen
            )

    @pytest.fixture
    def again(
        self, proxy: faults.Proxy, control_plane: ControlPlane, tmp_path: Path, namespace: str
    ) -> Again:
        return lambda: through(proxy, control_plane, tmp_path, namespace)

    @pytest.fixture
    def store(self, again: Again) -> StateStore:
        return again()

    test_many_rows_fit = None  # it takes its time, and meets no other requests


def test_looking_writes_nothing_and_a_commit_is_two_writes(
    control_plane: ControlPlane, namespace: str
) -> None:
    """A quiet controller costs one list for each look; objects are entered before they are made, so commits are many."""
    transport = Transport.open(None, kubeconfig=control_plane.kubeconfig)
    state = KubeState(transport, namespace, "shop")
    session = Session.open(state, "a")
    assert transport.calls == Counter(LIST=1)
    session.put([(Table.RUNS, f"r-{number}", {"n": number}) for number in range(50)])
    assert Session.open(connect(control_plane, namespace), "a").rows(Table.RUNS)["r-49"] == {"n": 49}
    transport.calls.clear()
    session.put([(Table.RUNS, "r-7", {"n": 70})])
    assert transport.calls == Counter(PUT=2)
    transport.calls.clear()
    quiet = Session.open(state, "a")
    quiet.put([(Table.RUNS, "r-7", {"n": 70})])
    assert transport.calls == Counter(LIST=1)
    quiet.put([(Table.RUNS, "r-7", {"n": 71})])
    assert transport.calls == Counter(LIST=1, GET=1, PUT=2)


@pytest.mark.usefixtures("little_room")
def test_two_writers_lose_no_row(control_plane: ControlPlane, namespace: str) -> None:
    """Two people apply at once, and shards fill up meanwhile; each looks again after a conflict."""

    def work(name: str) -> int:
        state, conflicts = connect(control_plane, namespace), 0
        for number in range(100):
            while True:
                session = Session.open(state, "the same project")
                total = (session.get(Table.MARKS, "sum") or {"n": 0})["n"]
                row = {"n": number, "pad": noise(1000, number)}
                try:
                    session.put(
                        [(Table.MARKS, "sum", {"n": total + 1}), (Table.RUNS, f"{name}-{number}", row)]
                    )
                    break
                except Fenced:
                    raise
                except Conflict:
                    conflicts += 1
        return conflicts

    with ThreadPoolExecutor(2) as threads:
        conflicts = sum(threads.map(work, ("a", "b")))
    assert conflicts > 0, "they did not meet"
    found = Session.open(connect(control_plane, namespace), "reader")
    assert found.get(Table.MARKS, "sum") == {"n": 200}
    assert {key: row["n"] for key, row in found.rows(Table.RUNS).items()} == {
        f"{name}-{number}": number for name in ("a", "b") for number in range(100)
    }
    assert {len(shards) for shards in places(control_plane, namespace).values()} == {1}
    assert len(documents(control_plane, namespace)) > 4, "no shard was full"


def test_writers_of_different_rows_do_not_wait_for_each_other(
    control_plane: ControlPlane, namespace: str
) -> None:
    """The ends of runs are written while somebody applies; nobody sees a conflict for what is not his."""

    def work(name: str) -> None:
        state = connect(control_plane, namespace)
        session = Session.open(state, "the same project")
        for number in range(25):
            session.put([(Table.RUNS, f"{name}-{number}", {"n": number})])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, "abcd"))
    found = Session.open(connect(control_plane, namespace), "reader")
    assert len(found.rows(Table.RUNS)) == 100


Write = Callable[[KubeState, int], None]


def small(state: KubeState, token: int) -> None:
    """Rows of three tables, of which one is new; one row goes."""
    writes = [
        Put(Table.INVENTORY, "a", {"n": 2}, 1),
        Put(Table.RUNS, "r", {"n": 2}, 0),
        Put(Table.REQUESTS, "q", {"n": 2}, 1),
        Put(Table.INVENTORY, "b", None, 1),
    ]
    state.commit(token, writes)


def large(state: KubeState, token: int) -> None:
    """More than one document holds."""
    pad = noise(15_000)
    state.commit(token, [Put(Table.RUNS, f"r-{number}", {"n": number, "pad": pad}, 0) for number in range(7)])


def take_over(state: KubeState, token: int) -> None:
    """Another holder, and its first row."""
    state.commit(state.take("another"), [Put(Table.INVENTORY, "a", {"n": 2}, 1)])


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("write", [small, large, take_over])
def test_a_kill_between_two_requests_leaves_a_beginning(
    control_plane: ControlPlane, tmp_path: Path, write: Write
) -> None:
    """Nothing but a kill can stop us in the middle; what is there then is readable, ends with a whole row, and goes on."""
    results = []
    for number in range(40):
        namespace = control_plane.namespace("killed")
        before = connect(control_plane, namespace)
        first = [
            (Table.INVENTORY, "a", {"n": 1}),
            (Table.INVENTORY, "b", {"n": 1}),
            (Table.REQUESTS, "q", {"n": 1}),
        ]
        Session.open(before, "me").put(first)
        with faults.Proxy(control_plane.url) as proxy:
            state = through(proxy, control_plane, tmp_path, namespace, budget=0.0)
            token = state.take("me")
            proxy.add(faults.Cut(), skip=number)
            told = True
            try:
                write(state, token)
            except Unavailable:
                told = False
            complete = proxy.rules[0].skip > 0
        found = releases.remembered(connect(control_plane, namespace))
        results.append((found, told))
        later = connect(control_plane, namespace)
        later.commit(later.take("next"), [Put(Table.MARKS, "m", {"n": 3}, 0)])
        assert releases.remembered(connect(control_plane, namespace)) == {**found, "marks": {"m": {"n": 3}}}
        assert {len(shards) for shards in places(control_plane, namespace).values()} == {1}, (
            "a half copy was left"
        )
        if complete:
            break
    assert complete, "it never came to an end"
    old = {"inventory": {"a": {"n": 1}, "b": {"n": 1}}, "requests": {"q": {"n": 1}}}
    match write.__name__:
        case "small":
            beginnings = [
                old,
                {"inventory": {"a": {"n": 2}}, "requests": {"q": {"n": 2}}, "runs": {"r": {"n": 2}}},
            ]
        case "take_over":
            beginnings = [old, {**old, "inventory": {"a": {"n": 2}, "b": {"n": 1}}}]
        case _:
            rows = {f"r-{number}": {"n": number, "pad": noise(15_000)} for number in range(7)}
            beginnings = [
                {**old, **({"runs": dict([*rows.items()][:count])} if count else {})} for count in range(8)
            ]
    steps = [beginnings.index(dict(found)) for found, _ in results]
    assert steps == sorted(steps), "more requests, fewer rows"
    assert steps[0] == 0
    assert {step for step, (_, told) in zip(steps, results, strict=True) if told} == {len(beginnings) - 1}
    assert len(set(steps)) > (2 if write is large else 1)


def test_a_killed_process_leaves_whole_commits(control_plane: ControlPlane, namespace: str) -> None:
    """`kill -9` at any moment: rows that were decided together are there together, and nothing that was told is lost."""
    script = (
        "import pathlib, sys\n"
        "from mlspec_reconciler.clusters.kube.state import KubeState\n"
        "from mlspec_reconciler.clusters.kube.transport import Transport\n"
        "from mlspec_reconciler.state import Session, Table\n"
        "transport = Transport.open(None, kubeconfig=pathlib.Path(sys.argv[1]))\n"
        "session = Session.open(KubeState(transport, sys.argv[2], 'shop'), 'me')\n"
        "number = (session.get(Table.MARKS, 'm') or {'n': 0})['n']\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    number += 1\n"
        "    rows = [(Table.RUNS, f'r-{row}', {'n': number}) for row in range(5)]\n"
        "    session.put([*rows, (Table.MARKS, 'm', {'n': number}), (Table.REQUESTS, f'q-{number}', {})])\n"
        "    print(number, flush=True)\n"
    )
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    for _ in range(6):
        argv = [sys.executable, "-c", script, str(control_plane.kubeconfig), namespace]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(moments.random() * 0.4)
            writer.send_signal(signal.SIGKILL)
            told = [int(line) for line in writer.stdout if line.endswith("\n")]
        found = Session.open(connect(control_plane, namespace), "b")
        number = (found.get(Table.MARKS, "m") or {"n": 0})["n"]
        assert {row["n"] for row in found.rows(Table.RUNS).values()} <= {number}, (
            f"seed {seed}: half a commit"
        )
        assert set(found.rows(Table.REQUESTS)) == {f"q-{n}" for n in range(1, number + 1)}
        assert not told or told[-1] in (number, number - 1), (
            f"seed {seed}: {told[-1]} was told, {number} is there"
        )


def paused(
    plane: ControlPlane, folder: Path, namespace: str, path: str, meanwhile: Callable[[], None]
) -> Exception | None:
    """Commit row r = 2 as the old driver, which stops for as long as `meanwhile` takes when it has sent its write of `path`."""
    with faults.Proxy(plane.url) as proxy:
        old = through(proxy, plane, folder, namespace)
        Session.open(old, "old").put([(Table.RUNS, "r", {"n": 1}), (Table.RUNS, "other", {"n": 1})])
        token = old.take("old")
        stop = proxy.add(faults.Slow(60.0), verb="PUT", path=path, times=1)
        raised: list[Exception] = []

        def commit() -> None:
            try:
                old.commit(token, [Put(Table.RUNS, "r", {"n": 2}, 1)])
            except Conflict as error:
                raised.append(error)

        thread = threading.Thread(target=commit)
        thread.start()
        until = time.monotonic() + 10
        while stop.left > 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert stop.left == 0
        meanwhile()
        proxy.closing.set()  # ends the pause; the request arrives now
        thread.join(30)
        assert not thread.is_alive()
        return raised[0] if raised else None


def test_a_driver_that_was_paused_before_its_write_writes_nothing(
    control_plane: ControlPlane, tmp_path: Path, namespace: str
) -> None:
    """Its request may lie in the network while its successor decides otherwise."""
    new = connect(control_plane, namespace)
    error = paused(control_plane, tmp_path, namespace, HEAD, lambda: print(new.take("new")))
    assert isinstance(error, Fenced)
    assert Session.open(new, "new").get(Table.RUNS, "r") == {"n": 1}


def test_a_driver_that_was_paused_while_it_copies_writes_over_nothing(
    control_plane: ControlPlane, tmp_path: Path, namespace: str
) -> None:
    """Its commit was made before its successor came, who saw it and went on from there."""

    def succeed() -> None:
        session = Session.open(connect(control_plane, namespace), "new")
        assert session.get(Table.RUNS, "r") == {"n": 2}
        session.put([(Table.RUNS, "r", {"n": 3}), (Table.RUNS, "fresh", {"n": 3})])

    error = paused(control_plane, tmp_path, namespace, "mlspec-shop-runs-1", succeed)
    assert error is None
    rows = {"r": {"n": 3}, "other": {"n": 1}, "fresh": {"n": 3}}
    assert Session.open(connect(control_plane, namespace), "reader").rows(Table.RUNS) == rows
    assert set(documents(control_plane, namespace)["mlspec-shop-runs-1"]["rows"]) == set(rows)
    assert len(rows) == 3


@pytest.mark.usefixtures("little_room")
def test_rows_that_grow_find_room(control_plane: ControlPlane, namespace: str) -> None:
    """A model's life is one row that gets longer for years; its neighbours must not make it too large for their ConfigMap."""
    session = Session.open(connect(control_plane, namespace), "me")
    for size in (800, 2_000, 6_000, 9_000):
        for number in range(0, 30, 6):
            rows = {f"job-{n}": {"size": size, "life": noise(size, n)} for n in range(number, number + 6)}
            session.put([(Table.MODELS, key, row) for key, row in rows.items()])
        found = Session.open(connect(control_plane, namespace), "reader").rows(Table.MODELS)
        assert found == {f"job-{n}": {"size": size, "life": noise(size, n)} for n in range(30)}
        held = places(control_plane, namespace)
        assert (len(held), {len(shards) for shards in held.values()}) == (30, {1})
    bodies = control_plane.api.list("v1", "ConfigMap", namespace, labelSelector="mlspec.dev/ledger=shop")
    assert all(len(one["binaryData"]["document"]) < LARGEST * 1.01 for one in bodies)
    one = {"life": noise(LARGEST - 5_000)}
    for number in range(2):
        session.put([(Table.MODELS, "job-0", {**one, "n": number})])
    assert Session.open(connect(control_plane, namespace), "reader").get(Table.MODELS, "job-0") == {
        **one,
        "n": 1,
    }
    session.put([(Table.MODELS, key, None) for key in [*session.rows(Table.MODELS)]])
    assert Session.open(connect(control_plane, namespace), "reader").rows(Table.MODELS) == {}


def test_a_row_that_no_configmap_holds_is_refused(control_plane: ControlPlane, namespace: str) -> None:
    """By its name, before anything is written."""
    state = connect(control_plane, namespace)
    session = Session.open(state, "me")
    with pytest.raises(
        Refused, match=r"models TrainingJob/a takes 1,\d\d\d,\d\d\d bytes, a ConfigMap holds 900,000: split"
    ):
        session.put(
            [(Table.RUNS, "r", {"n": 1}), (Table.MODELS, "TrainingJob/a", {"life": noise(1_100_000)})]
        )
    assert Session.open(state, "me").tables == {}


def test_a_quota_is_met_before_anything_is_written(control_plane: ControlPlane, namespace: str) -> None:
    """A namespace may count its ConfigMaps. What has room is written still; a commit that needs another one is refused whole."""
    state = connect(control_plane, namespace)
    session = Session.open(state, "me")
    session.put([(Table.RUNS, "r", {"n": 1})])
    count = len(control_plane.api.list("v1", "ConfigMap", namespace))
    quota = document("v1", "ResourceQuota", "few", namespace, spec={"hard": {"configmaps": str(count)}})
    control_plane.api.apply([quota])
    until = time.monotonic() + 30
    while (
        control_plane.api.get("v1", "ResourceQuota", "few", namespace).get("status", {}).get("used") is None
    ):
        assert time.monotonic() < until
        time.sleep(0.1)
    changes = [(Table.RUNS, "r", {"n": 2}), (Table.MODELS, "m", {"n": 2})]
    with pytest.raises(
        Refused, match=rf"keeps its state in ConfigMaps of {namespace}: .*exceeded quota: few"
    ):
        session.put(changes)
    assert releases.remembered(connect(control_plane, namespace)) == {"runs": {"r": {"n": 1}}}
    session.put(changes[:1])
    assert releases.remembered(connect(control_plane, namespace)) == {"runs": {"r": {"n": 2}}}


def test_missing_rights_are_told(control_plane: ControlPlane, namespace: str) -> None:
    """The sentence says what is kept where, and what the server said."""
    here = {"apiGroups": [""], "resources": ["configmaps"]}
    for name, verbs, use, error, words in (
        ("blind", ["create"], lambda state: state.read(), Unavailable, "which cannot be read"),
        ("blind", ["create"], lambda state: state.take("a"), Unavailable, "which cannot be read"),
        ("reader", ["get", "list"], lambda state: state.take("a"), Refused, "cannot create"),
    ):
        token = control_plane.service_account(namespace, name, [{**here, "verbs": verbs}])
        kubeconfig = control_plane.kubeconfig_for(token, namespace)
        state = KubeState(Transport.open(None, kubeconfig=kubeconfig), namespace, "shop")
        with pytest.raises(error, match=rf"mlspec keeps its state in ConfigMaps of {namespace}.*{words}"):
            use(state)
    assert documents(control_plane, namespace) == {}


def test_the_role_of_the_guide_is_enough(control_plane: ControlPlane, namespace: str) -> None:
    """Whoever follows the page about Kubernetes can keep state."""
    token = control_plane.service_account(namespace, "robot", rights.rules("Role", "kubernetes.md"))
    transport = Transport.open(None, kubeconfig=control_plane.kubeconfig_for(token, namespace))
    state = KubeState(transport, namespace, "shop")
    Session.open(state, "me").put([(Table.RUNS, "r", {"n": 1})])
    Session.open(state, "other").put([(Table.RUNS, "r", {"n": 2})])
    assert releases.remembered(state) == {"runs": {"r": {"n": 2}}}
    state.clear()
    assert documents(control_plane, namespace) == {}


def test_projects_of_a_namespace_do_not_see_each_other(control_plane: ControlPlane, namespace: str) -> None:
    """Also not when one is called like the other with a table, or as long as a name may be."""
    names = ("shop", "shop-runs", "shop-runs-1", "s" * 63)
    states = {name: connect(control_plane, namespace, name) for name in names}
    for name, state in states.items():
        Session.open(state, "me").put([(table, "key", {"of": name}) for table in Table])
    for name, state in states.items():
        assert releases.remembered(state) == {str(table): {"key": {"of": name}} for table in Table}
    states["shop"].clear()
    assert {name: bool(releases.remembered(state)) for name, state in states.items()} == {
        name: name != "shop" for name in names
    }


@pytest.mark.parametrize("name", [HEAD, "mlspec-shop-runs-1"])
def test_a_configmap_of_somebody_else_is_left_alone(
    control_plane: ControlPlane, namespace: str, name: str
) -> None:
    """No list of ours shows it, so a write could try for ever."""
    theirs = document("v1", "ConfigMap", name, namespace, data={"theirs": "1"})
    control_plane.api.apply([theirs])
    with pytest.raises(Refused, match=rf"ConfigMap {name} of {namespace}, which is not its own"):
        Session.open(connect(control_plane, namespace), "me").put([(Table.RUNS, "r", {"n": 1})])
    assert control_plane.api.get("v1", "ConfigMap", name, namespace)["data"] == {"theirs": "1"}


def change(plane: ControlPlane, namespace: str, name: str, content: str | None) -> None:
    """Put another document in the place of one."""
    patch = {"binaryData": {"document": content}}
    path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
    plane.api.request("PATCH", path, patch, content_type="application/merge-patch+json")


@pytest.mark.parametrize("name", [HEAD, "mlspec-shop-runs-1"])
def test_a_later_format_is_refused(control_plane: ControlPlane, namespace: str, name: str) -> None:
    """What an older mlspec does not understand it neither shows as nothing nor writes over."""
    state = connect(control_plane, namespace)
    session = Session.open(state, "me")
    session.put([(Table.RUNS, "r", {"n": 1})])
    later = packed({**documents(control_plane, namespace)[name], "format": FORMAT + 1})
    change(control_plane, namespace, name, later)
    words = rf"ConfigMap {name} of {namespace} was written by a newer mlspec \(format {FORMAT + 1}\); upgrade mlspec"
    for use in (
        lambda: connect(control_plane, namespace).read(),
        lambda: connect(control_plane, namespace).take("other"),
        lambda: session.put([(Table.RUNS, "r", {"n": 2})]),
    ):
        if name == HEAD or use.__code__.co_freevars != ("session",):
            with pytest.raises(Unavailable, match=words):
                use()
    body = control_plane.api.get("v1", "ConfigMap", name, namespace)
    assert body["binaryData"]["document"] == later


@pytest.mark.parametrize(
    "content", [None, "", packed({"format": FORMAT}), packed({"format": "x"}), "bm9uc2Vuc2U="]
)
@pytest.mark.parametrize("name", [HEAD, "mlspec-shop-runs-1"])
def test_a_damaged_document_is_told_with_its_name(
    control_plane: ControlPlane, namespace: str, name: str, content: str | None
) -> None:
    """It is never taken for an empty one, and the sentence says what to do."""
    state = connect(control_plane, namespace)
    Session.open(state, "me").put([(Table.RUNS, "r", {"n": 1})])
    change(control_plane, namespace, name, content)
    with pytest.raises(
        Unavailable, match=rf"ConfigMap {name} of {namespace} is damaged .*: restore it .* or delete it"
    ):
        connect(control_plane, namespace).read()


def test_a_shard_that_somebody_deleted_is_made_again(control_plane: ControlPlane, namespace: str) -> None:
    """Its rows are lost, as they said; what is written later is kept, also by who has not heard of it."""
    session = Session.open(connect(control_plane, namespace), "me")
    session.put([(Table.RUNS, "r", {"n": 1}), (Table.MARKS, "m", {"n": 1})])
    session.put([(Table.MARKS, "m", {"n": 2})])
    control_plane.api.delete("v1", "ConfigMap", "mlspec-shop-runs-1", namespace)
    assert Session.open(connect(control_plane, namespace), "me").rows(Table.RUNS) == {}
    session.put([(Table.RUNS, "s", {"n": 3})])
    rows = {"runs": {"s": {"n": 3}}, "marks": {"m": {"n": 2}}}
    assert releases.remembered(connect(control_plane, namespace)) == rows
    session.put([(Table.MARKS, "m", {"n": 4})])
    assert releases.remembered(connect(control_plane, namespace)) == {**rows, "marks": {"m": {"n": 4}}}
    assert set(places(control_plane, namespace)) == {("runs", "s"), ("marks", "m")}


@pytest.mark.usefixtures("little_room")
def test_a_conflict_far_behind_holds_back_all(control_plane: ControlPlane, namespace: str) -> None:
    """A commit of several documents is looked through before the first of them is written."""
    state = connect(control_plane, namespace)
    Session.open(state, "me").put([(Table.RUNS, "r-6", {"by": "them"})])
    with pytest.raises(Conflict, match="runs r-6 was written by somebody else"):
        large(state, state.take("me"))
    assert releases.remembered(connect(control_plane, namespace)) == {"runs": {"r-6": {"by": "them"}}}


def test_a_purge_that_was_killed_has_ended_every_token(
    control_plane: ControlPlane, tmp_path: Path, namespace: str
) -> None:
    """Nobody goes on with half a memory; the next purge removes the rest."""
    old = connect(control_plane, namespace)
    session = Session.open(old, "me")
    session.put([(table, "key", {"n": 1}) for table in Table])
    with faults.Proxy(control_plane.url) as proxy:
        proxy.add(faults.Cut(), verb="DELETE", skip=2)
        with pytest.raises(Unavailable):
            through(proxy, control_plane, tmp_path, namespace, budget=0.0).clear()
    assert len(documents(control_plane, namespace)) == len(Table) - 1
    with pytest.raises(Fenced, match=f"the state of shop in {namespace} was cleared"):
        session.put([(Table.MARKS, "key", {"n": 2})])
    connect(control_plane, namespace).clear()
    assert documents(control_plane, namespace) == {}


def test_what_was_cleared_is_not_finished(
    control_plane: ControlPlane, tmp_path: Path, namespace: str
) -> None:
    """A driver that has seen an interrupted commit, and sleeps until after the purge, must not copy it."""
    with faults.Proxy(control_plane.url) as proxy:
        state = through(proxy, control_plane, tmp_path, namespace, budget=0.0)
        proxy.add(faults.Cut(), verb="PUT", path="runs-1")
        Session.open(state, "me").put([(Table.RUNS, "r", {"n": 1})])
    control_plane.api.delete("v1", "ConfigMap", "mlspec-shop-runs-1", namespace)
    late = Session.open(connect(control_plane, namespace), "me")
    assert late.rows(Table.RUNS) == {"r": {"n": 1}}
    late.token = late.store.take("me")
    connect(control_plane, namespace).clear()
    with pytest.raises(Fenced):
        late.put([(Table.RUNS, "s", {"n": 2})])
    assert documents(control_plane, namespace) == {}


def test_what_a_release_has_kept_is_read(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """An upgrade of mlspec forgets nothing, also not a commit that was interrupted. MLSPEC_RECORD=1 records a new format."""
    rows = releases.expected("1")
    path = releases.FOLDER / "1" / "configmaps.json"
    if os.environ.get("MLSPEC_RECORD") and not path.exists():
        record(control_plane, tmp_path, path, rows)
    for one in json.loads(path.read_text()):
        body = document("v1", "ConfigMap", one["metadata"]["name"], namespace, metadata=one["metadata"])
        content = {"binaryData": {"document": packed(one["document"])}}
        control_plane.api.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", {**body, **content})
    assert releases.remembered(connect(control_plane, namespace)) == rows
    Session.open(connect(control_plane, namespace), "new").put([(Table.RUNS, "later", {"n": 1})])
    after = {**rows, "runs": {**rows["runs"], "later": {"n": 1}}}
    assert releases.remembered(connect(control_plane, namespace)) == after


def record(plane: ControlPlane, folder: Path, path: Path, rows: releases.Rows) -> None:
    """Write all rows as this code does, but for the copy of the last commit."""
    namespace = plane.namespace("record")
    with faults.Proxy(plane.url) as proxy:
        state = through(proxy, plane, folder, namespace, budget=0.0)
        releases.remember(state, {table: values for table, values in rows.items() if table != "applied"})
        proxy.add(faults.Cut(), verb="PUT", path="applied-1")
        releases.remember(state, {"applied": rows["applied"]})
    bodies = plane.api.list("v1", "ConfigMap", namespace, labelSelector="mlspec.dev/ledger=shop")
    found = [
        {
            "metadata": {"name": one["metadata"]["name"], "labels": one["metadata"]["labels"]},
            "document": unpacked(one["binaryData"]["document"]),
        }
        for one in bodies
    ]
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.usefixtures("little_room")
def test_a_full_shard_takes_no_new_row(control_plane: ControlPlane, namespace: str) -> None:
    """Documents stay far below what an API server takes, so that their rows can grow."""
    session = Session.open(connect(control_plane, namespace), "me")
    for number in range(12):
        session.put([(Table.RUNS, f"r-{number}", {"pad": noise(10_000, number)})])
    bodies = control_plane.api.list("v1", "ConfigMap", namespace, labelSelector="mlspec.dev/ledger=shop")
    sizes = {one["metadata"]["name"]: len(one["binaryData"]["document"]) for one in bodies}
    assert set(sizes) == {HEAD, *(f"mlspec-shop-runs-{number}" for number in (1, 2, 3))}
    assert max(sizes.values()) <= FULL
    session.put([(Table.RUNS, "r-0", {"pad": noise(12_000)})])
    assert places(control_plane, namespace)["runs", "r-0"] == ["mlspec-shop-runs-1"]
