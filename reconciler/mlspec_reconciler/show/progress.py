"""Progress of an apply: one line for each thing that happened, and on a terminal what is under way now."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.status import Status

from mlspec.compile import readings
from mlspec.engine import Live
from mlspec.health import Health, State
from mlspec.kinds.project import Target
from mlspec.manifest import OWN
from mlspec_reconciler.apply import Outcome
from mlspec_reconciler.cluster import Object
from mlspec_reconciler.plan import ORIGIN, Verb, Write
from mlspec_reconciler.show.plan import duration
from mlspec_reconciler.step import Observation, health

WORDS = {
    Verb.CREATE: "created",
    Verb.APPLY: "changed",
    Verb.ADOPT: "taken over",
    Verb.REPLACE: "replaced",
    Verb.RESTART: "started again",
    Verb.DELETE: "deleted",
}


class Progress:
    """Follows the rounds of a reconcile. `say` prints one line; `live` (a terminal) shows what runs."""

    def __init__(self, target: Target, say: Callable[[str], None], live: bool) -> None:
        self._target = target
        self._say = say
        self._states: dict[str, tuple[State, str]] = {}
        self._started: dict[str, float] = {}
        self._titles: dict[str, str] = {}
        self._reads = readings(target.choice)
        self._status = _spinner() if live else None
        self.failures: list[str] = []
        """What has failed, for good: runs and services."""
        self._refused: list[str] = []

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    @property
    def refused(self) -> list[str]:
        """Writes that failed in the newest round. Each round tries again what is still wanted."""
        return self._refused

    def report(self, seen: Observation, outcomes: list[Outcome]) -> None:
        """Print what is new since the round before. What passes by itself is not worth a line."""
        self._objects(seen)
        before = self._refused
        self._refused = [_words(one) for one in outcomes if one.error]
        for outcome in outcomes:
            what = outcome.write.key
            if outcome.error:
                words = _words(outcome)
                if not outcome.retryable and words not in before:
                    self._say(f"  x {words}")
            elif outcome.write.manifest is not None and outcome.write.manifest.title:
                self._started.setdefault(what.name, time.monotonic())
                self._titles[what.name] = outcome.write.manifest.title
            elif self._is_record(outcome.write):
                self._say(
                    f"  ~ {outcome.change.resource}: {outcome.change.sentence or 'its model is accepted'}"
                )
            else:
                self._say(
                    f"  {'-' if outcome.write.verb is Verb.DELETE else '~'} {what} {WORDS[outcome.write.verb]}"
                )
        if self._status is not None:
            self._status.update(self._now())

    def _objects(self, seen: Observation) -> None:
        for one in seen.objects:
            name = f"{one.key.kind} {one.key.name}"
            found = health(one, self._target)
            before = self._states.get(name)
            self._states[name] = (found.state, found.sentence)
            read = self._reads.get(one.key.kind)
            if read is None:
                continue
            if read.run is not None:
                title = self._titles.get(one.key.name, one.key.name)
                self._run(one, title, found, before)
            elif before is not None and before[0] is not found.state and read.url is not None:
                self._service(one, found, read.url(one.live) or found.sentence)

    def _is_record(self, write: Write) -> bool:
        read = self._reads.get(write.key.kind)
        if write.manifest is None or read is None or read.record is None:
            return False
        return bool(read.record(Live(write.manifest.body, {})))

    def _run(self, live: Object, title: str, found: Health, before: tuple[State, str] | None) -> None:
        name = live.key.name
        if name not in self._started or (before is not None and before[0] is found.state):
            return
        took = duration(time.monotonic() - self._started[name])
        match found.state:
            case State.READY:
                self._say(f"  > {title} ({name}) done in {took}")
            case State.FAILED:
                self._fail(f"{title} ({name}) failed: {found.sentence}", live, name)
            case State.PROGRESSING:
                self._say(f"  > {title} ({name}) ...")

    def _service(self, live: Object, found: Health, url: str) -> None:
        match found.state:
            case State.READY:
                self._say(f"  + {live.key.name} answers at {url}")
            case State.FAILED:
                words = f"{live.key.name}: {found.sentence}"
                self._fail(words, live, live.annotations.get(f"{OWN}resource", live.key.name))

    def _fail(self, words: str, live: Object, logs: str) -> None:
        way = "; ".join(filter(None, (live.annotations.get(ORIGIN), f"next: mlspec logs {logs}")))
        words = f"{words}\n    {way}"
        self.failures.append(words)
        self._say(f"  x {words}")

    def _now(self) -> str:
        busy = [
            f"{name} {duration(time.monotonic() - self._started.get(name.split(' ', 1)[1], time.monotonic()))}"
            for name, (state, _) in self._states.items()
            if state in (State.PROGRESSING, State.WAITING) and not self._repeats(name)
        ]
        return ", ".join(busy) or "looking"

    def _repeats(self, name: str) -> bool:
        read = self._reads.get(name.split(" ", 1)[0])
        return read is not None and read.result is not None


def _words(outcome: Outcome) -> str:
    """What was refused, with the place in git that asked for it."""
    place = outcome.write.marks.get(ORIGIN, "")
    return f"{outcome.change.resource}{f' ({place})' if place else ''}: {outcome.error}"


def _spinner() -> Status:
    return Console(stderr=True).status("looking")
