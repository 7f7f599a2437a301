"""A policy whose state is an object in S3: the same verdicts as on a disk, and nothing told that is not remembered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mlspec_runtime import task as tasks
from mlspec_runtime.monitor import evaluate, outbox
from mlspec_runtime.monitor.store import opened
from mlspec_runtime.storage import Mirror
from mlspec_runtime.task import Document
from monitor.log_writer import TRUTH, World, wall
from monitor.test_monitor_outbox import Inbox
from s3 import S3

STATE = "monitors/watch/state.sqlite"
DRIFT = {"alerts": {"drift": {"drift": {}}}, "actions": [{"when": "any", "notify": "oncall"}]}


class Killed(BaseException):
    """The end of a process, at this line."""


class Watched:
    """A world on a disk and the same in a bucket; every evaluation there is a pod of its own."""

    def __init__(self, tmp_path: Path, server: S3, bucket: str) -> None:
        self.server, self.bucket, self._folder = server, bucket, tmp_path
        self.world = World(tmp_path / "world")
        for name in ("runs/flights-1/train/result.json", "datasets/flights/s1/snapshot.json"):
            (self.world.root / name).write_text("{}")
        self.pods = 0

    def send(self) -> None:
        """What serving and other steps have written by now."""
        for name in ("logs", "runs/flights-1", "datasets"):
            self.server.put(self.bucket, self.world.root / name, f"{name}/")

    def mirror(self) -> tuple[Mirror, Path]:
        """The storage of a new pod."""
        self.pods += 1
        root = self._folder / f"pod-{self.pods}"
        root.mkdir()
        return Mirror(f"s3://{self.bucket}", root), root

    def evaluate(self, task: Document, day: float) -> Document:
        """One evaluation in the bucket."""
        self.send()
        mirror, root = self.mirror()
        return evaluate.evaluate(task, root, wall(day), mirror)

    def remembered(self) -> dict[str, str]:
        """Messages in the state that the next evaluation will read: key -> what became of them."""
        mirror, root = self.mirror()
        mirror.take(STATE)
        with opened(root / STATE) as store:
            return dict(store.execute("SELECT key, state FROM outbox"))


@pytest.fixture
def watched(tmp_path: Path, s3_server: S3, bucket: str) -> Watched:
    return Watched(tmp_path, s3_server, bucket)


@pytest.fixture
def inbox() -> Any:
    running = Inbox()
    yield running
    running.server.shutdown()
    running.server.server_close()


def told(watched: Watched, inbox: Inbox) -> Document:
    """The task of a policy that tells, after a day that drifts; the next day does not."""
    watched.world.day(0, shift=1.0)
    watched.world.day(1)
    watched.send()
    return watched.world.task(DRIFT, receivers={"oncall": {"webhook": {"url": inbox.url}}})


def test_the_verdicts_are_those_of_a_disk(watched: Watched) -> None:
    """Counts, performance and alerts, day by day; and a file of the log is pulled once in its life."""
    spec = {"alerts": {"drift": {"drift": {}}, "auc": {"metric": "auc", "below": 0.6}}, "truth": TRUTH}
    task = watched.world.task(spec)
    epochs: dict[str, str] = {}
    for day in range(4):
        name = watched.world.day(day, shift=float(day == 2), skill=float(day < 2))
        before = len(watched.server.requests)
        there = watched.evaluate(task, day + 1)
        pulled = [path for method, path in watched.server.requests[before:] if method == "GET"]
        assert [path for path in pulled if path.endswith(".parquet") and "/logs/" in path] == [
            f"/{watched.bucket}/logs/flights/{name}"
        ]
        here = evaluate.evaluate(task, watched.world.root, wall(day + 1))
        assert there == here | {"epoch": there["epoch"]}
        assert there["epoch"] == epochs.setdefault("there", there["epoch"]) != here["epoch"]
    assert there["alerts"]["drift"]["value"] is not None


def test_another_window_counts_the_whole_log_again(watched: Watched) -> None:
    """The files that were counted are needed once more."""
    for day in range(3):
        watched.world.day(day)
    for window in ("1d", "12h"):
        task = watched.world.task({"alerts": {"drift": {"drift": {}}}, "window": window})
        there = watched.evaluate(task, 3)
        here = evaluate.evaluate(task, watched.world.root, wall(3))
        assert there == here | {"epoch": there["epoch"]}
    assert there["windows"] == 6


def test_the_truth_is_pulled_only_when_it_can_judge(watched: Watched) -> None:
    """A policy that looks every minute must not load a dataset every minute."""
    watched.world.day(0)
    task = watched.world.task({"alerts": {"auc": {"metric": "auc", "below": 0.6}}, "truth": TRUTH})
    for day, pulls in ((1, 0), (2, 1), (2, 0)):  # a window is complete when a later row has come
        if pulls:
            watched.world.day(1)
        watched.send()
        before = len(watched.server.requests)
        watched.evaluate(task, day)
        gets = [path for method, path in watched.server.requests[before:] if method == "GET"]
        assert sum(path.endswith("data.parquet") for path in gets) == pulls


def test_of_two_evaluations_at_once_one_counts_and_tells(watched: Watched, inbox: Inbox) -> None:
    """The one that comes later has told nobody, ends with exit code 1, and is made again."""
    task = told(watched, inbox)
    mirror, root = watched.mirror()
    replace = mirror.bucket.replace

    def late(*arguments: Any) -> str | None:
        if not inbox.got:
            watched.evaluate(task, 2)
        return replace(*arguments)

    mirror.bucket.replace = late  # type: ignore[method-assign]

    def subject(one: Document, where: Path) -> Document:
        return evaluate.evaluate(one, where, wall(2), mirror)

    assert tasks.repeat(subject, task, root, mirror) == 1
    assert "was written by another process" in (root / "runs/watch-monitor/monitor/error.json").read_text()
    assert len(inbox.got) == 1
    watched.evaluate(task, 2)
    assert len(inbox.got) == 1


@pytest.mark.parametrize(
    ("place", "times"),
    [
        ("before the first save", 1),
        ("before it tells", 1),
        ("before the last save", 2),
        ("before the result", 1),
    ],
)
def test_killed_anywhere_it_tells_at_least_once_and_remembers(
    watched: Watched, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, place: str, times: int
) -> None:
    """A message is repeated only under its own key; and what was told is known to the next evaluation, which tells its end."""
    task = told(watched, inbox)
    mirror, root = watched.mirror()
    save, saves = mirror.save, [0]

    def dying(path: str) -> None:
        saves[0] += 1
        if (place, saves[0]) in (("before the first save", 1), ("before the last save", 2)):
            raise Killed
        save(path)

    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(mirror, "save", dying)
    monkeypatch.setattr(mirror, "replace", die)

    def subject(one: Document, where: Path) -> Document:
        with monkeypatch.context() as patched:
            if place == "before it tells":
                patched.setattr(outbox, "deliver", die)
            return evaluate.evaluate(one, where, wall(2), mirror)

    with pytest.raises(Killed):
        tasks.repeat(subject, task, root, mirror)
    assert set(inbox.keys()) <= set(watched.remembered())
    watched.evaluate(task, 2)
    assert len(inbox.got) == times
    assert len(set(inbox.keys())) == 1
    watched.world.day(2)
    watched.evaluate(task, 3)
    assert [body["state"] for _, _, body in inbox.got][-2:] == ["firing", "resolved"]
    assert set(watched.remembered().values()) == {"delivered"}


def test_the_newest_result_is_in_the_bucket(watched: Watched) -> None:
    """Whoever looks there reads what the status says."""
    watched.world.day(0)
    watched.send()
    for _ in range(2):
        mirror, root = watched.mirror()

        def subject(one: Document, where: Path, mirror: Mirror = mirror) -> Document:
            return evaluate.run(one, where, mirror)

        assert (
            tasks.repeat(subject, watched.world.task({"alerts": {"drift": {"drift": {}}}}), root, mirror) == 0
        )
    objects = watched.server.objects(watched.bucket)
    assert re.search(rb'"windows": 1', objects["runs/watch-monitor/monitor/result.json"])
    assert STATE in objects
