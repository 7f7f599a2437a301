"""What the rules say: a model of the life of one job, written from the rules of the issue and from nothing else.

It imports nothing of the code that it judges. The test tells it facts as plain data (what was committed, who asked for what,
which run ended how, what time it is), calls `settle` where the product steps until nothing moves, and compares.

A state of git is a dict:

    code, requirements, parameters, evaluation, engine   what the training is
    data         entry -> {"from", "to"} in seconds of data time, or {"last", "skip"} in seconds
    schedule     None, or {"hour", "window"}: every day at that hour, UTC
    reads        definitions that the job reads, any plain value; `recipe` is the part that says how the dataset is read
    gates        [{"min"} or {"tolerance"}]: auc not below that, or not further below the serving model
    new_data, policy, suspend                            switches
    refresh      None, or the seconds between two readings of the dataset
    pin          None, or the run to which the model is pinned that the graph serves

A candidate is known by what it is for: (S, id of the request or "" for git's own). A run has the name of the candidate for
which it was first started.

Where the rules leave room, this is what a user would expect:

* Rule 1: a seed is a parameter; a timeout and a number of retries belong to the resources.
* Rule 1: another `S` whose own run would compute the same from the same inputs (a schedule came, say) trains nothing: the run that
  is there counts for it too, and goes on to count, whatever happens to the inputs later.
* Rule 2: "the asker is still in git" means that a resource of this kind and name is; a job asks for itself as long as it says
  `newData`. A person always is.
* Rule 2: a request that a job makes for itself does not expire, as it stands for the rows that are there now.
* Rule 3: whether a candidate is refused is asked of the gates of now. A person who retries starts the newest failed candidate
  again, when it is newer than what is accepted and than what is to be trained; what is to be trained goes its own way.
* Rule 4: what served goes on serving, whoever chose it: gates, a switch or a pin.
* Rule 5: the job asks for new data when nothing is to be trained, and the run of its newest candidate has other inputs than
  there are now; so it waits for a run that is under way. Once for each newest candidate and version: to take the request back
  is not to be asked again. Its time is that of the day, its range that of the newest candidate (or a window that a schedule has
  moved would fall back to git's old dates); a relative range ends at the newest data.
* Rule 5: a request that was made when the dataset was being refreshed already waits for that reading; git's own run does not.
* Rule 9: the newest request of a schedule is the newest of those that are otherwise valid.
* Rule 10: a switch is about the run that the gates let serve. One about the run that a switch led to does nothing: the next that
  could serve is the one that was left.
* Rule 10: a run that is accepted again, for another state of git, while it serves has what it had before it.
* Rule 13: the newest data is known once the dataset was read for the recipe that git says.
* Clocks: a timer starts to count when it is first seen, and belongs to the resource: it remembers when it came due last, also
  while git has no use for it. What was missed collapses into the newest moment.
* Reading: a dataset is read once for each recipe, and again where a refresh came due after its last reading began; readings never
  overlap.
* Stages: what serves is `serving` (or `pinned`), whatever its gates say; a candidate that a pin holds is `held`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Git = Mapping[str, Any]
S = str
"""A state of git as far as it matters to the run of the job: S1, S2, ... in the order in which they came."""
Candidate = tuple[S, str]
"""A state of git, and the id of a request, or "" for git's own run."""
Run = Candidate
"""A run by the candidate for which it was started first."""
Range = dict[str, tuple[float | None, float | None]]

DAY = 86400
WEEK = 7 * DAY
PERSON, JOB, CLOCK, POLICY = "person", "job", "clock", "policy"


class Oracle:
    """The rules, played over one history."""

    def __init__(self, git: Git, rows: int, newest: float) -> None:
        self.states: dict[Any, S] = {}
        self.commit(git)
        self.rows, self.newest = rows, newest
        """The world: which rows a reading finds, and the event time of the newest of them."""
        self.slow = False
        """Whether readings take longer than a settling."""

        self.requests: dict[str, dict[str, Any]] = {}
        self.reported: dict[str, dict[str, Any]] = {}
        """What a policy asks for, and nobody has collected yet."""
        self.runs: dict[Run, dict[str, Any]] = {}
        """Every run: state, range of data, version of the inputs, metrics, baseline."""
        self.run_of: dict[Candidate, Run] = {}
        self.accepted: dict[Candidate, dict[str, Any]] = {}
        """Candidate -> its run, and the run that served before."""
        self.served: Run | None = None
        """What really serves."""
        self.first_seen: dict[S, float] = {}
        """Where relative ranges end."""
        self.snapshots: dict[Any, dict[str, Any]] = {}
        """Recipe -> what its newest reading found: version, newest."""
        self.reading: dict[Any, float | None] = {}
        """Recipe that is being read -> when the refresh was made that asked for it."""
        self.read_at: dict[Any, float] = {}
        """Recipe -> when its last reading began."""
        self.readings = 0
        self.timers: dict[str, float] = {}
        self.told: set[tuple[Candidate, Any]] = set()
        """For what new data was asked: newest candidate, version."""

    # ---- what happens -------------------------------------------------------------------------------------------

    def commit(self, git: Git) -> None:
        """Git says this now."""
        self.git = git
        said = frozen({**self.training(), "schedule": git["schedule"]})
        self.s = self.states.setdefault(said, f"S{len(self.states) + 1}")  # rule 1

    def ask(self, name: str, request: Mapping[str, Any]) -> None:
        """Somebody asks: asker, action, at, made, made_for, and window, run, expires where they have them."""
        if name not in self.requests:
            where = self.requests if request["asker"] == PERSON else self.reported
            where[name] = {"withdrawn": False, "window": None, "expires": None, "end": None, **request}

    def forget_reported(self) -> None:
        """The policy has lost its state, and with it what nobody has collected."""
        self.reported = {}

    def withdraw(self, name: str) -> None:
        """A person takes a request back."""
        self.requests[name]["withdrawn"] = True

    def end(self, run: Run, auc: float, baseline_auc: float | None) -> None:
        """A training has ended well, with these metrics for itself and for what it was compared with."""
        self.runs[run] |= {"state": "ended", "auc": auc, "baseline_auc": baseline_auc}

    def fail(self, run: Run) -> None:
        """A training has ended badly."""
        self.runs[run]["state"] = "failed"

    def read(self) -> None:
        """All readings that are under way end."""
        for recipe in self.reading:
            self.snapshots[recipe] = {"version": (recipe, self.rows), "newest": self.newest}
        self.reading = {}

    def settle(self, now: float, retry: bool) -> list[Run]:
        """Act, round by round, until nothing moves. Gives the trainings that start."""
        started: list[Run] = []
        if self.git["suspend"]:
            return started
        self.requests |= self.reported
        self.reported = {}
        self._clocks(now)
        while True:
            before = self.readings, len(started), len(self.requests), self.served
            self._read_what_must_be_read(now)
            self._remember_when_first_seen()
            self._accept(now)
            while self._run_again_counts(now):
                self._accept(now)
            self.served = self.serving(now)
            for candidate in self.to_start(now, retry):
                started.append(self._start(candidate))
            self._ask_for_new_data(now)
            retry = False
            if self.reading and not self.slow:
                self.read()
            elif before == (self.readings, len(started), len(self.requests), self.served):
                return started

    # ---- rule 1 -------------------------------------------------------------------------------------------------

    def training(self) -> dict[str, Any]:
        """What git says about the run of the job, without the schedule."""
        names = ("code", "requirements", "parameters", "evaluation", "engine", "data", "reads", "recipe")
        return {name: self.git[name] for name in names}

    def said_of_data(self) -> Any:
        """What the requests of a schedule are made for (rule 9)."""
        return frozen([self.git["data"], self.git["schedule"]])

    # ---- rules 2 and 9 ------------------------------------------------------------------------------------------

    def valid(self, name: str, now: float) -> bool:
        """Whether a request counts."""
        request = self.requests[name]
        if not self._meant(request):
            return False
        if (self.s, name) in self.accepted or request["expires"] is None or request["action"] == "switch":
            return True
        if request["asker"] == CLOCK and name == self._newest_of_schedule():
            return True
        return bool(now - request["made"] < request["expires"])

    def _meant(self, request: Mapping[str, Any]) -> bool:
        if request["withdrawn"]:
            return False
        if request["asker"] == POLICY and not self.git["policy"]:
            return False
        if request["asker"] == JOB and not self.git["new_data"]:
            return False
        if request["asker"] == CLOCK:
            return bool(request["made_for"] == self.said_of_data())
        return bool(request["made_for"] == self.s)

    def _newest_of_schedule(self) -> str:
        names = [
            name
            for name, request in self.requests.items()
            if request["action"] == "retrain" and request["asker"] == CLOCK and self._meant(request)
        ]
        return max(names, key=self._order, default="")

    def _order(self, name: str) -> tuple[float, str]:
        return self.requests[name]["at"], name

    # ---- rule 3 -------------------------------------------------------------------------------------------------

    def candidates(self, now: float) -> list[Candidate]:
        """Oldest first."""
        names = [
            name
            for name, request in self.requests.items()
            if request["action"] == "retrain" and self.valid(name, now)
        ]
        return [(self.s, ""), *((self.s, name) for name in sorted(names, key=self._order))]

    def state(self, candidate: Candidate) -> str:
        """Of its run: waiting, training, failed, passing, refused."""
        if candidate not in self.run_of:
            return "waiting"
        run = self.runs[self.run_of[candidate]]
        if run["state"] == "ended":
            return "passing" if self.passes(run) else "refused"
        return str(run["state"])

    # ---- gates, rule 7 ------------------------------------------------------------------------------------------

    def passes(self, run: Mapping[str, Any]) -> bool:
        """The gates of now over a run of then."""
        for gate in self.git["gates"]:
            if "min" in gate and run["auc"] < gate["min"]:
                return False
            compared = run["baseline_auc"] if "tolerance" in gate else None
            if compared is not None and run["auc"] < compared - gate["tolerance"]:
                return False
        return True

    def _accept(self, now: float) -> None:
        for candidate in self.candidates(now):
            if candidate not in self.accepted and self.state(candidate) == "passing":
                run, before = self.run_of[candidate], self.serving(now)
                if before == run:
                    before = self._served_before(run)
                self.accepted[candidate] = {"run": run, "previous": before}

    # ---- rules 4, 6, 10, 11 -------------------------------------------------------------------------------------

    def newest_accepted(self, now: float) -> Candidate | None:
        """Whom the gates let serve."""
        accepted = [candidate for candidate in self.candidates(now) if candidate in self.accepted]
        return accepted[-1] if accepted else None

    def serving(self, now: float) -> Run | None:
        """What serves through the graph."""
        if self.git["pin"] is not None:
            return self.git["pin"]
        run = self.let_serve(now)
        return self._served_before(run) if self.switched(now) else run

    def let_serve(self, now: float) -> Run | None:
        """The run of the newest accepted candidate, or what served (rule 4)."""
        newest = self.newest_accepted(now)
        return self.accepted[newest]["run"] if newest else self.served

    def switched(self, now: float) -> bool:
        """Whether a switch leads away from that one."""
        run = self.let_serve(now)
        switches = [
            name
            for name, request in self.requests.items()
            if request["action"] == "switch" and request["run"] == run and self.valid(name, now)
        ]
        return bool(switches) and self._served_before(run) is not None

    def _served_before(self, run: Run | None) -> Run | None:
        """What served when this run was accepted: for the state of git of now, or last."""
        previous = None
        for (s, _), accepted in self.accepted.items():
            if accepted["run"] == run:
                previous = accepted["previous"]
                if s == self.s:
                    break
        return previous

    # ---- rules 5 and 13 -----------------------------------------------------------------------------------------

    def to_train(self, now: float) -> Candidate | None:
        """The newest candidate that is not spent, if it is newer than the accepted one."""
        for candidate in reversed(self.candidates(now)):
            if candidate in self.accepted:
                return None
            if self.state(candidate) in ("waiting", "training") and not self.held(candidate):
                return candidate
        return None

    def to_retry(self, now: float) -> Candidate | None:
        """The newest failed candidate, if it is newer than both."""
        for candidate in reversed(self.candidates(now)):
            if candidate in self.accepted or candidate == self.to_train(now):
                return None
            if self.state(candidate) == "failed":
                return candidate
        return None

    def to_start(self, now: float, retry: bool) -> list[Candidate]:
        """The candidates whose runs start now."""
        train, again = self.to_train(now), self.to_retry(now) if retry else None
        waiting = train if train is not None and self.state(train) == "waiting" else None
        return [one for one in (waiting, again) if one is not None and self.has_inputs(one)]

    def held(self, candidate: Candidate) -> bool:
        """By the pin: requests that have no run yet."""
        return self.git["pin"] is not None and candidate[1] != "" and candidate not in self.run_of

    def has_inputs(self, candidate: Candidate) -> bool:
        """Whether the data is there, also what was asked for before this run was."""
        recipe = self.git["recipe"]
        if recipe not in self.snapshots:
            return False
        refresh = self.reading.get(recipe)
        return candidate[1] == "" or refresh is None or self.requests[candidate[1]]["made"] < refresh

    def _run_again_counts(self, now: float) -> bool:
        """Whether what is to be trained was computed before, for another state of git."""
        candidate = self.to_train(now)
        if candidate is None or self.state(candidate) != "waiting" or not self.has_inputs(candidate):
            return False
        for name, run in self.runs.items():
            if run["work"] == self._work(candidate):
                self.run_of[candidate] = name
                return True
        return False

    def _work(self, candidate: Candidate) -> Any:
        version = self.snapshots[self.git["recipe"]]["version"]
        return frozen(
            {**self.training(), "data": self.range_of(candidate[1]), "version": version, "for": candidate[1]}
        )

    def _start(self, candidate: Candidate) -> Run:
        run = self.run_of.setdefault(candidate, candidate)
        self.runs[run] = {
            "state": "training",
            "data": self.range_of(candidate[1]),
            "version": self.snapshots[self.git["recipe"]]["version"],
            "work": self._work(candidate),
            "baseline": self.served,
        }
        return run

    def range_of(self, name: str) -> Range:
        """Entry -> first and last moment of the data that a candidate reads."""
        if not name:
            return ranges(self.git["data"], self.first_seen.get(self.s))
        request = self.requests[name]
        end = request["at"] if request["end"] is None else request["end"]
        return moved(self.git["data"], end, request["window"])

    def _remember_when_first_seen(self) -> None:
        known = self.snapshots.get(self.git["recipe"])
        if known is not None:
            self.first_seen.setdefault(self.s, following_second(known["newest"]))

    def _ask_for_new_data(self, now: float) -> None:
        known, newest = self.snapshots.get(self.git["recipe"]), self.candidates(now)[-1]
        if not self.git["new_data"] or known is None or self.to_train(now) is not None:
            return
        if newest not in self.run_of or self.runs[self.run_of[newest]]["version"] == known["version"]:
            return
        if (newest, known["version"]) in self.told:
            return
        self.told.add((newest, known["version"]))
        before = self.requests.get(newest[1])
        end = latest(self.git["data"]) if before is None else before["end"] or before["at"]
        if any("last" in use for use in self.git["data"].values()):
            end = following_second(known["newest"])
        self.requests[f"new-data-{len(self.told)}"] = {
            "asker": JOB,
            "action": "retrain",
            "at": now,
            "made": now,
            "made_for": self.s,
            "window": before["window"] if before else None,
            "end": end,
            "expires": None,
            "withdrawn": False,
        }

    # ---- the stages, for people ---------------------------------------------------------------------------------

    def stages(self, now: float) -> dict[Candidate, str]:
        """Where each candidate stands."""
        return {candidate: self._stage(candidate, now) for candidate in self.candidates(now)}

    def _stage(self, candidate: Candidate, now: float) -> str:
        pinned = self.git["pin"] is not None
        if candidate in self.run_of and self.run_of[candidate] == self.serving(now):
            return "pinned" if pinned else "serving"
        if candidate in self.accepted:
            away = not pinned and self.switched(now) and candidate == self.newest_accepted(now)
            return "switched-away" if away else "accepted"
        return "held" if self.held(candidate) else self.state(candidate)

    # ---- clocks and readings ------------------------------------------------------------------------------------

    def _clocks(self, now: float) -> None:
        if self.git["refresh"] is not None:
            since = self.timers.setdefault("dataset", now)
            passed = (now - since) // self.git["refresh"]
            if passed:
                self.timers["dataset"] = at = since + passed * self.git["refresh"]
                self.requests[f"refresh-{at:.0f}"] = {
                    "asker": "dataset",
                    "action": "refresh",
                    "at": at,
                    "made": at,
                }
        if self.git["schedule"] is not None:
            since = self.timers.setdefault("job", now)
            hour = self.git["schedule"]["hour"] * 3600
            at = (now - hour) // DAY * DAY + hour
            if at > since:
                self.timers["job"] = at
                self.requests[f"schedule-{at:.0f}"] = {
                    "asker": CLOCK,
                    "action": "retrain",
                    "at": at,
                    "made": at,
                    "made_for": self.said_of_data(),
                    "window": self.git["schedule"]["window"],
                    "end": None,
                    "expires": WEEK,
                    "withdrawn": False,
                }

    def _read_what_must_be_read(self, now: float) -> None:
        recipe = self.git["recipe"]
        refreshes = [one["made"] for one in self.requests.values() if one["action"] == "refresh"]
        refresh = max(refreshes, default=None) if self.git["refresh"] is not None else None
        if recipe in self.reading:
            return
        if recipe not in self.read_at or (refresh is not None and refresh > self.read_at[recipe]):
            self.read_at[recipe] = now
            self.reading[recipe] = refresh
            self.readings += 1


def frozen(value: Any) -> Any:
    """A value that can be compared and looked up, whatever the order of its keys."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, frozen(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return value


def ranges(data: Mapping[str, Mapping[str, float]], end: float | None) -> Range:
    """Git's ranges; relative ones end at `end`."""
    result: Range = {}
    for entry, use in data.items():
        if "last" in use:
            assert end is not None
            to = end - use.get("skip", 0)
            result[entry] = (to - use["last"], to)
        else:
            result[entry] = (use.get("from"), use.get("to"))
    return result


def latest(data: Mapping[str, Mapping[str, float]]) -> float | None:
    """The newest moment that git names."""
    return max((use["to"] for use in data.values() if "to" in use), default=None)


def moved(data: Mapping[str, Mapping[str, float]], end: float | None, window: float | None) -> Range:
    """Git's ranges, moved so that the newest of them ends at `end`, and all of them together are `window` long."""
    before = ranges(data, end)
    ends = [to for _, to in before.values() if to is not None]
    if not ends or end is None:
        return before
    shift = end - max(ends)
    first = min((start for start, _ in before.values() if start is not None), default=None)
    after: Range = {}
    for entry, (start, to) in before.items():
        new_start = None if start is None else start + shift
        if start is not None and start == first and window is not None:
            new_start = end - window
        after[entry] = (new_start, None if to is None else to + shift)
    return after


def following_second(moment: float) -> float:
    """The first whole second after a moment."""
    return float(int(moment) + 1)
