"""A project, a target and time, as a story tells them: commits, alerts, ends of runs, crashes. Beside it the oracle hears the same.

A world drives the real `step` on a cluster where a test plays the engine, and after each settling compares everything with what
the rules say: what was started and on which data, what serves, where each candidate stands, what was accepted. It also
holds the plan to its word: it foretold the trainings that the first step then started, and looking wrote nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from lifecycle import oracle as rules
from lifecycle.oracle import Candidate, Git, Oracle, Run
from mlspec.kind import Lowered
from mlspec.lifecycle import PERSON, Request
from mlspec.manifest import Key, digest
from mlspec.workload import code_key
from mlspec_reconciler import load, remembered
from mlspec_reconciler.bundle import Bundle
from mlspec_reconciler.cluster import Cluster, Object
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.plan import Action, Verb
from mlspec_reconciler.remembered import ENDED
from mlspec_reconciler.state import MemoryState, Put, Session, StateStore, Table, Tables
from mlspec_reconciler.step import Consent, DesiredState, Memory, Observation, observe_and_plan, step

START = datetime(2023, 11, 15, tzinfo=UTC).timestamp()
"""When every story begins; its datasets hold rows of 2023."""
HOUR, DAY = 3600, 86400
ROUNDS = 40

Range = tuple[str, str] | tuple[str, str, str]
RANGES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "spring": {
        "train": {"from": "2023-01-01", "to": "2023-04-01"},
        "test": {"from": "2023-04-01", "to": "2023-05-01"},
    },
    "summer": {
        "train": {"from": "2023-05-01", "to": "2023-08-01"},
        "test": {"from": "2023-08-01", "to": "2023-09-01"},
    },
    "last 90d": {"train": {"last": "60d", "skip": "30d"}, "test": {"last": "30d"}},
    "last 60d": {"train": {"last": "45d", "skip": "15d"}, "test": {"last": "15d"}},
    "all": {"train": {}, "test": {}},
}
"""What a job reads. Of `all` there are no dates to move: train and test are told apart by share."""
SHARES = {"train": [0, 0.7], "test": [0.7, 1]}


@dataclass(frozen=True)
class Revision:
    """What is committed. Fields above `gates` are what git says about the run of the job (rule 1), those below are not."""

    code: str = "b"
    requirements: tuple[str, ...] = ("scikit-learn",)
    depth: int = 1
    seed: int = 0
    metrics: tuple[str, ...] = ()
    engine: str = "workflow"
    data: str = "spring"
    schedule: tuple[int, str] | None = None
    """Hour of the day and window."""
    year: int = 2010
    loader: str = "a"
    label: int = 1
    feature_window: str = "1h"

    gates: tuple[tuple[str, float], ...] = (("min", 0.6),)
    new_data: bool = False
    policy: bool = True
    refresh: int | None = None
    """Hours."""
    pin: Run | None = None
    model: bool = False
    """Whether the graph serves a Model, not the job itself."""
    suspend: bool = False
    memory: str = "2Gi"
    retries: int = 1
    comment: int = 0
    neighbour: int = 0
    threshold: int = 1
    """Of the policy's alert."""


RUN_FIELDS = tuple(one.name for one in fields(Revision)).index("gates")


class Killed(BaseException):
    """The process dies here."""


class Fuse:
    """Counts writes, and kills the process at one of them; it stays dead until it is started again."""

    def __init__(self) -> None:
        self.left = 10**9

    def burn(self) -> None:
        """One write is about to be made."""
        self.left -= 1
        if self.left < 0:
            raise Killed


class FragileState(MemoryState):
    """Dies between any two rows, as a store may that has no transactions."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse
        self._copy: Tables | None = None

    def read(self) -> Tables:
        """All rows, copied once for each state of the store."""
        if self._copy is None:
            self._copy = super().read()
        return {table: dict(rows) for table, rows in self._copy.items()}

    def commit(self, token: int, writes: Sequence[Put]) -> None:
        """Row by row."""
        for put in writes:
            self._fuse.burn()
            self._copy = None
            super().commit(token, [put])


class Stage(Protocol):
    """A target whose engine is the test."""

    cluster: Cluster
    state: StateStore
    fuse: Fuse
    made: list[str]
    """Names of the runs that were made, in order."""

    def succeed(self, run: str, results: Mapping[str, Any]) -> None:
        """A run ends well."""

    def fail(self, run: str) -> None:
        """A run ends badly."""

    def settle(self, key: Key, status: Mapping[str, Any]) -> None:
        """A service or schedule has this status."""

    def forget(self, runs: Sequence[str]) -> None:
        """The objects and the history of these runs are lost."""


class MemoryStage(MemoryCluster):
    """In dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse = Fuse()
        self.state: MemoryState = FragileState(self.fuse)
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

    def forget(self, runs: Sequence[str]) -> None:
        """The objects and the history of these runs are lost."""
        for name in runs:
            self._runs.pop(name, None)
            for key in [key for key in self._objects if key.kind == "Run" and key.name == name]:
                del self._objects[key]


class World:
    """One history, on one target, with the oracle beside it."""

    def __init__(self, stage: Stage, view: bool = False, **first: Any) -> None:
        self.stage, self.view = stage, view
        self.now = START
        self.revision = Revision(**first)
        self.commits = [self.revision]
        self.rows, self.newest = 1000, START - 1800.5
        self.alerts: list[dict[str, Any]] = []
        """All that the policy ever asked for."""
        self.epoch = 0
        self.asked = 0
        self.names: dict[str, Run] = {}
        """What each run of the target is to the oracle."""
        self.said: dict[str, Any] = {}
        """The target's `S` -> the oracle's."""
        self.requests: dict[str, str] = {}
        """The target's ids of requests that it makes by itself -> the oracle's."""
        self.versions: dict[Any, str] = {}
        self.oracle = Oracle(self.git(), self.rows, self.newest)
        self.revisions = {self.oracle.s: self.revision}
        """The last that said it, by the oracle's `S`."""
        self.seen: Observation | None = None

    # ---- what happens -------------------------------------------------------------------------------------------

    def commit(self, **changes: Any) -> Revision:
        """Git says something else."""
        self.revision = replace(self.revision, **changes)
        self.commits.append(self.revision)
        self.oracle.commit(self.git())
        self.revisions[self.oracle.s] = self.revision
        return self.revision

    def revert(self, to: int) -> Revision:
        """Git says again what commit number `to` said."""
        return self.commit(**{one.name: getattr(self.commits[to], one.name) for one in fields(Revision)})

    def alert(
        self, action: str = "retrain", *, ago: float = 60, window: str | None = None, expires: float = 7 * DAY
    ) -> str:
        """The policy fires, if it runs: it asks for what it was compiled for, beside all that it asked for before."""
        live = self._schedule()
        if live is None:
            return ""
        name = f"p/{self.epoch}/{len(self.alerts):03}"
        said = live.body["spec"]["step"]["document"]["made_for"]["j"]
        about = self.serves
        self.alerts.append(
            {
                "id": name,
                "seq": len(self.alerts) + 1,
                "action": action,
                "job" if action == "retrain" else "graph": "j" if action == "retrain" else "g",
                "at": iso(self.now - ago),
                "made": self.now,
                "made_for": said,
                "window": window,
                "run": about,
                "reason": "auc 0.62 is below 0.70",
                "expires": expires,
            }
        )
        self._report()
        self._tell(name, rules.POLICY, action, self.now - ago, said, window, about, expires)
        return name

    def forget_alerts(self) -> None:
        """The policy loses its own state, and begins to count anew."""
        self.alerts, self.epoch = [], self.epoch + 1
        self.oracle.forget_reported()
        self._report()

    def person(
        self,
        action: str = "retrain",
        *,
        ago: float = 30,
        window: str | None = None,
        expires: float | None = 7 * DAY,
    ) -> str:
        """A person asks, for what git says now."""
        said = self._said()
        self.asked += 1
        name, about = f"ann-{self.asked:03}", self.serves
        subject = "j" if action == "retrain" else "g"
        row = Request(
            name, action, subject, PERSON, iso(self.now - ago), self.now, said,
            window=window, run=about or None, expires=expires,
        )  # fmt: skip
        Session.open(self.stage.state, "ann").put([remembered.request_row(row)])
        self._tell(name, rules.PERSON, action, self.now - ago, said, window, about, expires)
        return name

    def withdraw(self, name: str) -> None:
        """A person takes a request back; `name` is the oracle's."""
        session = Session.open(self.stage.state, "ann")
        known = {
            self._request(key, row.made_for, row): row for key, row in remembered.requests(session).items()
        }
        session.put([remembered.request_row(replace(known[name], withdrawn="ann"))])
        self.oracle.withdraw(name)

    @property
    def withdrawable(self) -> list[str]:
        """Requests that are remembered and stand, by the oracle's names."""
        rows = remembered.requests(Session.open(self.stage.state, "test"))
        names = {self._request(key, row.made_for, row) for key, row in rows.items() if not row.withdrawn}
        return sorted(
            name for name in names if name in self.oracle.requests and not name.startswith("refresh")
        )

    def later(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    def new_rows(self) -> None:
        """The world has other rows; whoever reads the dataset again finds them."""
        self.rows += 1
        self.newest = self.now - 1800.5
        self.oracle.rows, self.oracle.newest = self.rows, self.newest

    def slow(self, slow: bool) -> None:
        """Whether readings take longer than a settling from now on."""
        self.oracle.slow = slow
        if not slow:
            self.oracle.read()
            self._end_readings()

    def ends(self, run: str = "", auc: float = 0.75, baseline: float = 0.7) -> None:
        """A training ends well: the newest of those under way, unless it is named."""
        run = run or self.training[-1]
        live = self._run(run)
        steps = {one["name"]: one for one in live.body["spec"]["steps"]}
        compared = steps["train"]["document"]["baseline"]
        results = {
            "frames": {},
            "train": {
                "metrics": {"auc": auc},
                "inputs": [],
                "baseline": {"run": compared["run"], "metrics": {"auc": baseline}} if compared else None,
            },
        }
        self.stage.succeed(run, results)
        self.oracle.end(self.names[run], auc, baseline if compared else None)

    def fails(self, run: str = "") -> None:
        """A training ends badly."""
        run = run or self.training[-1]
        self.stage.fail(run)
        self.oracle.fail(self.names[run])

    def trains(self, auc: float = 0.8, baseline: float = 0.75) -> str:
        """The one training that is under way ends well, and the controller acts on it. Gives its name."""
        [run] = self.training
        self.ends(run, auc, baseline)
        self.later(1)
        self.settle()
        self.later(1)
        return run

    def lose_history(self) -> None:
        """The target forgets the runs whose end is remembered elsewhere."""
        kept = remembered.runs(Session.open(self.stage.state, "test"))
        self.stage.forget([name for name, fact in kept.items() if fact.phase in ENDED])

    # ---- the product acts ---------------------------------------------------------------------------------------

    def settle(self, retry: bool = False, kill_at: int | None = None) -> list[str]:
        """Look, then step until nothing moves, and compare with the rules. Gives the trainings that were started.

        `retry`: a person applies, who wants failed runs again. `kill_at`: the process dies at that write, and is started again.
        """
        foretold = self._foretold(retry)
        before = len(self.stage.made)
        expected = self.oracle.settle(self.now, retry)
        if kill_at is not None:
            self.stage.fuse.left = kill_at
            with suppress(Killed):
                self._steps(retry, None)
            self.stage.fuse.left = 10**9
            self._steps(retry, None)
        else:
            self._steps(retry, foretold)
        started = [name for name in self.stage.made[before:] if name.startswith("j-")]
        self._compare(started, expected)
        return started

    def apply(self, kill_at: int | None = None) -> list[str]:
        """`mlspec apply`: a person is there."""
        return self.settle(True, kill_at)

    @property
    def desired(self) -> DesiredState:
        """The revision, with pins by the names of the target's runs."""
        pin = next(
            (name for name, run in self.names.items() if run == self.revision.pin and self._succeeded(name)),
            "",
        )
        return project(replace(self.revision, pin=None), pin, self.view)

    @property
    def serves(self) -> str:
        """The run that answers requests; empty when none does."""
        live = self.stage.cluster.get(Key("local.mlspec.dev/v1", "Service", "", "g"))
        if live is None:
            return ""
        return str(next(iter(live.body["spec"]["step"]["document"]["models"].values()))["run"])

    @property
    def training(self) -> list[str]:
        """The trainings that are under way, in the order of their names."""
        return sorted(name for name, run in self.names.items() if self._under_way(name, run))

    def stage_of(self, request: str = "") -> str:
        """Where a candidate stands: git's own, or that of a request (by the oracle's name)."""
        return self._stages()[self.oracle.s, request]

    def plan(self, retry: bool = False) -> Observation:
        """What a plan finds now."""
        return self._look(retry)

    def lowered(self, resource: str) -> Lowered:
        """What a resource becomes now: what `plan` and `status` say about it."""
        return self._look(False).compiled.lowered[resource]

    def span_of(self, run: str) -> str:
        """The days that a run reads, all entries together: `2023-01-01 to 2023-05-01`."""
        dates = [one for pair in self.data_of(run).values() for one in pair if one is not None]
        days = [datetime.fromtimestamp(one, UTC).strftime("%Y-%m-%d") for one in (min(dates), max(dates))]
        return " to ".join(days)

    def data_of(self, run: str) -> dict[str, tuple[float | None, float | None]]:
        """First and last moment of what a run reads, by entry."""
        frames = self._run(run).body["spec"]["steps"][0]["document"]["data"]
        return {
            name: (moment(one["use"].get("from")), moment(one["use"].get("to")))
            for name, one in frames.items()
        }

    # ---- how it is played ---------------------------------------------------------------------------------------

    def _steps(self, retry: bool, foretold: set[str] | None) -> None:
        memory = Memory()
        for _ in range(ROUNDS):
            before = len(self.stage.made)
            done = step(
                self.desired, self.stage.cluster, self.stage.state, Consent(retry=retry), self.now, memory
            )
            memory, self.seen = done.memory, done.seen
            assert not [one.error for one in done.outcomes if one.error]
            if foretold is not None:
                started = {name for name in self.stage.made[before:] if name.startswith("j-")}
                assert started == foretold, (
                    f"the plan foretold {foretold or 'nothing'}, the step started {started}"
                )
                foretold = None
            moved = self._play()
            if not done.outcomes and not done.stored and not moved:
                return
        raise AssertionError("does not settle")

    def _foretold(self, retry: bool) -> set[str]:
        rows, objects = self.stage.state.read(), list(self.stage.cluster.list())
        plan = self._look(retry).plan
        assert (rows, objects) == (self.stage.state.read(), list(self.stage.cluster.list())), (
            "looking has written"
        )
        if self.revision.suspend:
            return set()
        starts = (Verb.CREATE, Verb.RESTART)
        return {
            change.run
            for change in plan.of(Action.RUN)
            if change.resource == "TrainingJob/j" and any(write.verb in starts for write in change.writes)
        }

    def _look(self, retry: bool) -> Observation:
        session = Session.open(self.stage.state, "look")
        return observe_and_plan(self.desired, self.stage.cluster, session, Consent(retry=retry), self.now)

    def _play(self) -> bool:
        """What does not train ends at once: readings (unless they are slow), features; services and schedules are ready."""
        moved = False
        for live in list(self.stage.cluster.list()):
            if live.key.kind == "Service" and not live.status:
                self.stage.settle(live.key, {"phase": "ready", "url": "http://127.0.0.1:1"})
                moved = True
            if live.key.kind == "Schedule" and not live.status:
                self._report()
                moved = True
            if live.key.kind == "Run" and live.status.get("phase", "pending") == "pending":
                name = live.key.name
                if name.startswith("features-") or (name.startswith("data-") and not self.oracle.slow):
                    self._end_preparation(live)
                    moved = True
        return moved

    def _end_readings(self) -> None:
        for live in list(self.stage.cluster.list()):
            if live.key.name.startswith("data-") and live.status.get("phase", "pending") == "pending":
                self._end_preparation(live)

    def _end_preparation(self, live: Object) -> None:
        [work] = live.body["spec"]["steps"]
        document = work["document"]
        if work["subject"] == "features":
            path = f"features/{document['set']}/{document['version']}"
            self.stage.succeed(live.key.name, {"features": {"path": path, "rows": 10, "keys": 2}})
            return
        snapshot = digest([document["spec"]["source"], document["code"], self.rows])[:16]
        result = {
            "snapshot": snapshot,
            "path": f"datasets/{document['dataset']}/{snapshot}",
            "rows": self.rows,
            "newest": iso(self.newest),
        }
        self.stage.succeed(live.key.name, {"dataset": result})

    def _report(self) -> None:
        live = self._schedule()
        if live is not None:
            result = {"summary": "drift", "epoch": str(self.epoch), "triggers": self.alerts}
            self.stage.settle(live.key, {"phase": "ready", "lastResult": json.loads(json.dumps(result))})

    def _schedule(self) -> Object | None:
        return self.stage.cluster.get(Key("local.mlspec.dev/v1", "Schedule", "", "p-monitor"))

    def _run(self, name: str) -> Object:
        live = self.stage.cluster.get(Key("local.mlspec.dev/v1", "Run", "", name))
        assert live is not None, f"run {name} is gone"
        return live

    def _under_way(self, name: str, run: Run) -> bool:
        live = self.stage.cluster.get(Key("local.mlspec.dev/v1", "Run", "", name))
        return (
            live is not None
            and live.status.get("phase", "pending") == "pending"
            and self.oracle.runs[run]["state"] == "training"
        )

    def _succeeded(self, name: str) -> bool:
        row = self.stage.state.read().get(Table.RUNS, {}).get(name)
        return row is not None and row.value.get("phase") == "succeeded"

    def _said(self) -> str:
        lowered = self._look(False).compiled.lowered["TrainingJob/j"]
        return self._same(lowered.recipe)

    def _same(self, said: str) -> str:
        """Rule 1: the target's `S` and the oracle's are the same thing."""
        ours = self.oracle.s
        assert self.said.setdefault(said, ours) == ours, "two states of git have the same S"
        assert sum(one == ours for one in self.said.values()) == 1, "one state of git has two S"
        return said

    def _tell(
        self,
        name: str,
        asker: str,
        action: str,
        at: float,
        said: str,
        window: str | None,
        about: str,
        expires: float | None,
    ) -> None:
        request = {
            "asker": asker,
            "action": action,
            "at": at,
            "made": self.now,
            "made_for": self.said[said],
            "window": days(window),
            "run": self.names.get(about),
            "expires": expires,
        }
        self.oracle.ask(name, request)

    # ---- what the rules are told, and held against --------------------------------------------------------------

    def git(self) -> Git:
        """The revision as plain facts."""
        now = self.revision
        data = {
            entry: {
                key: days(value) if key in ("last", "skip") else moment(value) for key, value in use.items()
            }
            for entry, use in RANGES[now.data].items()
        }
        reads = {"label": now.label, **({"window": now.feature_window} if self.view else {})}
        return {
            "code": now.code,
            "requirements": now.requirements,
            "parameters": {"depth": now.depth, "seed": now.seed},
            "evaluation": now.metrics,
            "engine": now.engine,
            "data": data,
            "schedule": {"hour": now.schedule[0], "window": days(now.schedule[1])} if now.schedule else None,
            "reads": reads,
            "recipe": (now.year, now.loader),
            "gates": [{kind: value} for kind, value in now.gates],
            "new_data": now.new_data,
            "policy": now.policy,
            "refresh": now.refresh * HOUR if now.refresh else None,
            "pin": now.pin if now.model else None,
            "suspend": now.suspend,
        }

    def _request(self, name: str, made_for: str, row: Request) -> str:
        """What the oracle calls a request."""
        if row.action == "refresh":
            return f"refresh-{moment(row.at):.0f}"
        if row.schedule:
            return f"schedule-{moment(row.at):.0f}"
        if row.asker == "TrainingJob/j":
            return self.requests.setdefault(name, f"new-data-{len(self.requests) + 1}")
        return name

    def _candidate(self, made_for: str, request: str, rows: Mapping[str, Request]) -> Candidate:
        assert made_for in self.said, "a run was made for a state of git that never was"
        row = rows.get(request)
        return self.said[made_for], self._request(request, made_for, row) if row is not None else request

    def _compare(self, started: Sequence[str], expected: Sequence[Run]) -> None:
        """Everything that the rules say, against everything that the target holds."""
        session = Session.open(self.stage.state, "compare")
        rows, runs = remembered.requests(session), remembered.runs(session)
        if self.seen is not None and not self.revision.suspend:
            self._same(self.seen.compiled.lowered["TrainingJob/j"].recipe)
        asked = {self._request(name, row.made_for, row) for name, row in rows.items()}
        assert asked == set(self.oracle.requests), "requests"
        found = []
        for name in started:
            made = runs[name].made
            run = self._candidate(made.made_for, made.request, rows)
            self.names[name] = run
            found.append(run)
        assert sorted(found, key=repr) == sorted(expected, key=repr), "what was started"
        for name in started:
            run = self.oracle.runs[self.names[name]]
            assert self.data_of(name) == run["data"], f"the data of {name}"
            key = run["version"], self.names[name][0]
            version = json.dumps(dict(runs[name].made.versions))
            assert self.versions.setdefault(key, version) == version, f"the inputs of {name}"
            baseline = self._run(name).body["spec"]["steps"][1]["document"]["baseline"]
            assert self.names.get(baseline["run"] if baseline else "") == run["baseline"], (
                f"the baseline of {name}"
            )
        readings = len([name for name in self.stage.made if name.startswith("data-")])
        assert readings == self.oracle.readings, "readings of the dataset"
        assert self.names.get(self.serves) == self.oracle.served, "what serves"
        self._compare_definitions()
        self._compare_accepted(session, rows)
        if not self.revision.suspend:
            assert self._stages() == self.oracle.stages(self.now), "stages"

    def _compare_definitions(self) -> None:
        """Rule 11, and what holds for every model: it is served with its own requirements and views."""
        live = self.stage.cluster.get(Key("local.mlspec.dev/v1", "Service", "", "g"))
        if live is None:
            return
        work = live.body["spec"]["step"]
        trained = self.revisions[self.names[self.serves][0]]
        assert work["requirements"] == sorted(trained.requirements), "the requirements of what serves"
        if self.view:
            view = work["document"]["views"]["v"]
            window = view["sets"]["s"]["spec"]["features"]["mean"]["window"]
            served = view["spec"]["label"], window
            assert served == (f"x > {trained.label}", trained.feature_window), "the view of what serves"

    def _compare_accepted(self, session: Session, rows: Mapping[str, Request]) -> None:
        found = {}
        for one in remembered.memories(session).get("TrainingJob/j", _NOTHING).accepted.values():
            candidate = self._candidate(one.made_for, one.request, rows)
            found[candidate] = {"run": self.names[one.run], "previous": self.names.get(one.previous)}
        assert found == self.oracle.accepted, "what was accepted"

    def _stages(self) -> dict[Candidate, str]:
        assert self.seen is not None
        life = self.seen.compiled.lowered["TrainingJob/j"].life
        assert life is not None
        found = {}
        for one in life.candidates:
            request = self._request(one.id, "", one.request) if one.request else ""
            found[self.oracle.s, request] = str(one.stage)
        return found


_NOTHING = remembered.Memory()
NEVER_RUN = b"# never runs\n"


@lru_cache(maxsize=4096)
def project(revision: Revision, pin: str, view: bool) -> DesiredState:
    """The linked project of a revision, from the text that a person would have committed."""
    loaded = load.build({"specs.yaml": text(revision, pin, view)}, (), Path("/story"))
    assert loaded.project is not None, loaded.diagnostics
    keys = {
        code_key("specs.yaml", "load.py:rows"): Bundle(revision.loader * 64, {"load.py": NEVER_RUN}),
        code_key("specs.yaml", "train.py:train", (), revision.requirements): Bundle(
            revision.code * 64, {"train.py": NEVER_RUN}
        ),
    }
    return DesiredState(loaded.project, loaded.project.settings.targets["here"], keys)


def text(revision: Revision, pin: str = "", view: bool = False) -> str:
    """The file. JSON is YAML too; a comment and the order of the keys change nothing."""
    documents = []
    for kind, name, spec in resources(revision, pin, view):
        head = {"apiVersion": "mlspec.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        documents.append(dict(reversed(head.items())) if revision.comment % 2 else head)
    comment = f"# edit {revision.comment}\n"
    return comment + "\n---\n".join(json.dumps(one) for one in documents) + "\n"


def resources(now: Revision, pin: str, view: bool) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, name and spec of each resource."""
    source = {"function": "load.py:rows", "parameters": {"year": now.year}}
    dataset: dict[str, Any] = {"source": source, "key": ["id"], "time": {"event": "at", "delay": "0s"}}
    if now.refresh:
        dataset["refresh"] = {"every": f"{now.refresh}h"}
    use = {"view": "v"} if view else {"dataset": "d", "label": f"x > {now.label}"}
    data = {
        entry: {**use, **dates, **({} if dates else {"share": SHARES[entry]})}
        for entry, dates in RANGES[now.data].items()
    }
    job: dict[str, Any] = {
        "function": {"code": "train.py:train", "requirements": list(now.requirements)},
        "data": data,
        "parameters": {"depth": now.depth},
        "seed": now.seed,
        "engine": {now.engine: {}},
        "gates": [
            {"metric": "auc", "min": value}
            if kind == "min"
            else {"metric": "auc", "against": "serving", "tolerance": value}
            for kind, value in now.gates
        ],
        "resources": {"memory": now.memory},
        "retries": now.retries,
        "retrain": {"newData": now.new_data},
    }
    if now.metrics:
        job["metrics"] = list(now.metrics)
    if now.schedule:
        job["schedule"] = {"cron": f"0 {now.schedule[0]} * * *", "window": now.schedule[1]}
    steps: dict[str, Any] = {"model": {"model": "m" if now.model else "j"}}
    if view:
        steps = {"features": {"view": "v"}, "model": {**steps["model"], "after": ["features"]}}
    found: list[tuple[str, str, dict[str, Any]]] = [
        ("Project", "story", {"targets": {"here": {"local": {}}}, "suspend": now.suspend}),
        ("Dataset", "d", dataset),
        ("TrainingJob", "j", job),
        ("ServingGraph", "g", {"steps": steps}),
    ]
    if view:
        feature = {"mean": {"mean": "x", "window": now.feature_window}}
        found.append(("FeatureSet", "s", {"dataset": "d", "key": ["id"], "features": feature}))
        spec = {
            "ask": {"dataset": "d", "at": "at"},
            "label": f"x > {now.label}",
            "features": [{"set": "s", "prefix": "s_"}],
        }
        found.append(("FeatureView", "v", spec))
    if now.model or pin:
        found.append(("Model", "m", {"job": "j", **({"run": pin, "promotion": "pinned"} if pin else {})}))
    if now.policy:
        policy = {
            "graph": "g",
            "alerts": {"drift": {"drift": {"minEffect": now.threshold / 20}}},
            "actions": [
                {"when": "drift", "retrain": {"job": "j"}},
                {"when": "drift", "switch": {"to": "previous"}},
            ],
        }
        found.append(("MonitoringPolicy", "p", policy))
    if now.neighbour:
        found.append(("Receiver", "r", {"webhook": {"url": f"http://localhost/{now.neighbour}"}}))
    return found[::-1] if now.comment % 2 else found


def iso(when: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.fromtimestamp(when, UTC).isoformat()


def moment(text: str | None) -> float | None:
    """Seconds since the epoch of a date or a time, UTC where it says nothing."""
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def days(text: str | None) -> float | None:
    """Seconds of `90d`."""
    return float(text.removesuffix("d")) * DAY if text else None
