"""An apply against an API server in trouble: create, update and prune go through a proxy that breaks one verb in one way.

While the fault lasts, requests are few and nothing is destroyed; when it is over, the namespace holds what it would hold
without it, and nothing was made twice. MLSPEC_LONG=1 takes every verb by every fault, and longer ones.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import faults
from cluster.bed.controlplane import ControlPlane
from cluster.shop import Shop, with_runs
from mlspec_reconciler import apply
from mlspec_reconciler.cluster import Refused, Unavailable
from mlspec_reconciler.drivers.once import reconcile
from mlspec_reconciler.step import PATIENCE, Consent, Observation

LONG = bool(os.environ.get("MLSPEC_LONG"))
LASTS = 6.0 if LONG else 1.2
"""Seconds of a fault, from the first request of a phase on."""
READS = ("GET", "LIST", "WATCH")
VERBS = ("GET", "LIST", "PATCH", "POST", "PUT", "DELETE", "WATCH")
FAULTS: dict[str, faults.Fault] = {
    "409": faults.Answer(409),
    "410": faults.Answer(410),
    "422": faults.Answer(422),
    "429": faults.Answer(429, retry_after=1),
    "500": faults.Answer(500),
    "504": faults.Answer(504),
    "504 after it was done": faults.Lost(504),
    "cut": faults.Cut(),
    "cut after it was done": faults.Lost(),
    "cut in the answer": faults.Cut(within=True),
    "stall": faults.Stall(),
}
EACH = {
    f"{name}, once each": FAULTS[name] for name in ("504 after it was done", "cut after it was done", "500")
}
"""Met by each path once: also by what waits for others."""
EVENTS: dict[str, faults.Fault] = {
    "duplicate and stale events": faults.Events(duplicate=True, stale=True),
    "events that end in 410": faults.Events(stop=1, by="gone"),
    "events that are cut": faults.Events(stop=1, by="cut"),
    "events that stall": faults.Events(stop=1, by="stall"),
    "broken events": faults.Events(garbage=True),
}
MATRIX = [
    *((verb, name) for verb in VERBS for name in FAULTS),
    *((verb, name) for verb in ("", *VERBS) for name in EACH),
    *(("WATCH", name) for name in EVENTS),
    *(("", name) for name in FAULTS),  # every verb at once
]
REFUSALS = ("409", "410", "422")
"""What the server means when it says so; all others pass, and are never shown as a failure."""
QUICK = [
    *(("PATCH", name) for name in ("409", "422", "500", "504 after it was done")),
    *(("POST", name) for name in ("409", "429", "cut after it was done")),
    *(("PUT", name) for name in ("409", "410", "cut after it was done")),
    *(("DELETE", name) for name in ("409", "422", "504 after it was done")),
    *(("GET", name) for name in ("410", "500", "stall")),
    *(("LIST", name) for name in ("410", "cut in the answer")),
    *(("WATCH", name) for name in ("410", "duplicate and stale events", "events that are cut")),
    *(("", name) for name in ("429", "500", "cut", "stall")),
    *((verb, name) for verb in ("PATCH", "") for name in EACH),
]
AT_ONCE = 8
"""Cells that run side by side, each in a namespace and with a proxy of its own: they mostly wait."""
TRANSPORT = {"timeout": 1.0, "budget": 3.0, "concurrency": 4, "rate": 100.0, "burst": 100.0}
RETRIES = {"retry_rate": 5.0, "retry_burst": 10.0}


Expected = Mapping[str, Set[tuple[str, str]]]
"""Phase -> kind and name of all objects after it."""


def phases(shop: Shop) -> Iterator[str]:
    """Write one revision after the other; their names."""
    shop.write()
    yield "create"
    shop.sizes = {"front": 4}
    shop.write()
    yield "update"
    shop.graphs, shop.datasets = ("front",), ()
    shop.write()
    yield "prune"


class Settled(Exception):
    """The fault is over and a round found nothing to write."""


class Cell:
    """One verb and one fault, through the three phases of a repository."""

    def __init__(self, plane: ControlPlane, folder: Path, expected: Expected, verb: str, fault: str) -> None:
        self.verb, self.fault = verb, fault
        self.expected = expected
        self.lasts = LASTS * (2 if fault in EACH or fault in REFUSALS else 1)
        self.folder = folder
        self.shop = Shop(folder / "repository", plane, plane.namespace("fault"))
        self.wrong: list[str] = []

    def run(self) -> Cell:
        """All phases; what is wrong stands in `wrong`."""
        shop = self.shop
        with faults.Proxy(shop.plane.url) as proxy:
            kubeconfig = proxy.kubeconfig(self.folder, shop.plane.admin_token)
            for phase in phases(shop):
                self._phase(phase, proxy, kubeconfig, ("back", "data-rows") if phase == "prune" else ())
            made = Counter(_created(proxy))
            twice = {name: count for name, count in made.items() if count > 1}
            self._expect(not twice, "create", f"made more than once: {twice}")
        return self

    def _phase(self, phase: str, proxy: faults.Proxy, kubeconfig: Path, gone: Sequence[str]) -> None:
        shop = self.shop
        before = shop.uids()
        proxy.seen.clear()
        deleted = len([one for one in proxy.done if one[0] == "DELETE"])
        fault = {**FAULTS, **EACH, **EVENTS}[self.fault]
        proxy.add(fault, verb=self.verb or None, each=self.fault in EACH)
        over = threading.Timer(self.lasts, proxy.clear)
        over.start()
        begun = time.monotonic()
        until = begun + self.lasts + 30.0
        commands = 0
        while time.monotonic() < until:
            commands += bool(proxy.rules)
            try:
                self._apply(kubeconfig, proxy)
            except Settled:
                break
            except (Unavailable, Refused):
                pass
            time.sleep(1.0)  # a person, or a script, tries again
        else:
            self.wrong.append(f"{phase}: has not settled after {until - begun:.0f} s")
        over.join()
        proxy.cut()  # what stalls
        self._judge(phase, proxy, begun, commands)
        after = shop.uids()
        for name, uid in before.items():
            wanted_gone = any(name[1] == one or name[1].startswith(f"{one}-") for one in gone)
            self._expect(
                wanted_gone == (name not in after), phase, f"{name} is {'there' if name in after else 'lost'}"
            )
            self._expect(after.get(name, uid) == uid, phase, f"{name} was made again")
        deletes = [one for one in proxy.done if one[0] == "DELETE"][deleted:]
        for _, path, *_ in deletes:
            name = path.rpartition("/")[2].partition("?")[0]
            planned = any(name == one or name.startswith(f"{one}-") for one in gone)
            self._expect(planned, phase, f"DELETE {path} was not planned")
        expected = self.expected[phase]
        self._expect(
            after.keys() == expected, phase, f"{after.keys() ^ expected} is not as without the fault"
        )
        held = {(key.kind, key.name) for entry in shop.held().entries.values() for key in entry.objects}
        self._expect(
            held == after.keys(), phase, f"the inventory differs from what is there: {held ^ after.keys()}"
        )

    def _apply(self, kubeconfig: Path, proxy: faults.Proxy) -> None:
        """As the command does, with short patience: look, then reconcile until nothing is left to write."""
        shop = self.shop
        cluster = shop.cluster(kubeconfig, self.folder / "cache", **TRANSPORT, **RETRIES)
        project, wanted = shop.opened()
        quiet = 0

        def report(seen: Observation, outcomes: list[apply.Outcome]) -> None:
            nonlocal quiet
            if self.fault not in REFUSALS:
                self.wrong += [
                    f"{one.write.verb} failed: {one.error}"
                    for one in outcomes
                    if one.error and not one.retryable
                ]
            quiet = 0 if outcomes or proxy.rules else quiet + 1
            if quiet >= (2 if self.verb == "WATCH" else 1):
                raise Settled

        try:
            reconcile(
                wanted,
                cluster,
                cluster.state,
                project.workspace.lock,
                report,
                Consent(),
                deadline=time.monotonic() + self.lasts + 15,
            )
        finally:
            cluster.close()

    def _judge(self, phase: str, proxy: faults.Proxy, begun: float, commands: int) -> None:
        """The bound on requests. What went through is the work itself; what met the fault is what a server in trouble sees."""
        hit = [
            one for one in proxy.seen if one.fault is not None and not isinstance(one.fault, faults.Events)
        ]
        lasted = self.lasts + 1.0
        fresh = TRANSPORT["concurrency"] * 2 + 4
        allowed = commands * (RETRIES["retry_burst"] + fresh) + lasted * (RETRIES["retry_rate"] + fresh)
        self._expect(
            len(hit) <= allowed, phase, f"{len(hit)} requests met the fault, allowed are {allowed:.0f}"
        )
        total = len([one for one in proxy.seen if one.time < begun + self.lasts])
        most = TRANSPORT["burst"] + TRANSPORT["rate"] * self.lasts
        self._expect(total <= most, phase, f"{total} requests in {self.lasts} s")
        writes = Counter((one.verb, one.path) for one in hit if one.verb not in READS)
        retried = (
            2 if self.fault in REFUSALS else 2 * self.lasts
        )  # by the transport, beside one in each round
        often = {what: count for what, count in writes.items() if count > commands * (PATIENCE + 1) + retried}
        self._expect(not often, phase, f"asked again and again: {often}")
        busiest = max(
            (sum(start <= one.time < start + 1.0 for one in hit) for start in [one.time for one in hit]),
            default=0,
        )
        self.busiest = max(getattr(self, "busiest", 0), busiest)
        self.most = max(getattr(self, "most", 0), len(hit))
        self._expect(busiest <= 45, phase, f"{busiest} requests met the fault within a second")

    def _expect(self, right: bool, phase: str, words: str) -> None:
        if not right:
            self.wrong.append(f"{phase}: {words}")


def _created(proxy: faults.Proxy) -> list[str]:
    """Every object that the server made."""
    made = []
    for verb, path, status, body in proxy.done:
        if (
            status == 201
            and "dryRun" not in path
            and verb in ("PATCH", "POST")
            and "authorization" not in path
        ):
            made.append(
                f"{path.partition('?')[0].split('/')[-1 if verb == 'POST' else -2]}/{json.loads(body)['metadata']['name']}"
            )
    return made


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> ControlPlane:
    return with_runs(control_plane)


def test_no_fault_of_the_server_destroys_or_repeats_anything(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst time for a wrong guess is when the API server is in trouble."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quiet = Shop(tmp_path / "quiet", plane, plane.namespace("fault"))
    expected = {phase: quiet.applied() or quiet.objects().keys() for phase in phases(quiet)}
    cells = []
    for number, (verb, fault) in enumerate(MATRIX if LONG else QUICK):
        folder = tmp_path / str(number)
        folder.mkdir()
        cells.append(Cell(plane, folder, expected, verb, fault))
    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [*pool.map(Cell.run, cells)]
    wrong = {f"{one.verb or 'all'} {one.fault}": one.wrong for one in done if one.wrong}
    print(
        f"{len(done)} cells in {time.monotonic() - begun:.0f} s; busiest second {max(one.busiest for one in done)}, "
    )
    print(f"most requests that met a fault in a phase: {max(one.most for one in done)}")
    assert wrong == {}
