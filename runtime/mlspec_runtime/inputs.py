"""What a process reads below the storage root, from its task document: one function for each subject.

Written out and not searched for: documents hold values of users (parameters, specs), and one that looks like a path is none.
A policy reads by need instead (`monitor.evaluate`): logs that it has not counted, truth that may judge a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from mlspec_runtime.task import Document


def _dataset(task: Document) -> Iterator[str]:
    if task.get("code"):
        yield task["code"]["path"]


def _features(task: Document) -> Iterator[str]:
    yield task["dataset"]["path"]


def _frames(task: Document) -> Iterator[str]:
    for entry in task["data"].values():
        yield entry["dataset"]["path"]
        if entry.get("view"):
            yield from (one["path"] for one in entry["view"]["sets"].values())


def _train(task: Document) -> Iterator[str]:
    yield task["code"]["path"]
    yield f"runs/{task['name']}/frames"
    if task.get("baseline"):
        yield task["baseline"]["path"]


def _serve(task: Document) -> Iterator[str]:
    yield from (one["path"] for one in task.get("models", {}).values())
    yield from (one["path"] for one in task.get("code", {}).values())
    for view in task.get("views", {}).values():
        yield from (one["path"] for one in view["sets"].values())


def _monitor(_: Document) -> Iterable[str]:
    return ()


SUBJECTS: Mapping[str, Callable[[Document], Iterable[str]]] = {
    "dataset": _dataset,
    "features": _features,
    "frames": _frames,
    "train": _train,
    "serve": _serve,
    "monitor": _monitor,
}


def of(task: Document) -> list[str]:
    """Paths that a task reads, relative to the storage root, each once."""
    return list(dict.fromkeys(SUBJECTS[task["subject"]](task)))
