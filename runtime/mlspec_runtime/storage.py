"""Storage in S3: the root is a scratch folder of this process, and what counts is in the bucket, in the layout of `task`.

Objects are written once, by `If-None-Match`, except for the state of a policy and the newest result of a schedule. A step
commits by putting `runs/<run>/<step>/result.json` last, with `files`: where its files are, and their digests. So

* an attempt that was killed leaves files that nobody names;
* two attempts never mix: one that finds another's file in its way (with another content) puts all of its own below
  `runs/<run>/<step>/attempt-<id>/`, and of two results the first counts; the other attempt takes it for its own;
* nothing changes what a committed result names, and a reader compares the digests.

The folders of `datasets` and `features` are named by their content; the file that describes them is written last, and a
folder without it is not there. What is immutable is pulled once: whole, into a folder that appears at once.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

from mlspec_runtime import inputs
from mlspec_runtime.task import Document, TaskError, write_json
from mlspec_storage import Bucket, Refused
from mlspec_storage.bucket import digest

RESULT = "result.json"
KEPT = "outcome.json"
LOCK = "lock"
"""What a training keeps when all but the end of its MLflow run is done (`train`)."""
OURS = (RESULT, "error.json", LOCK, KEPT)
"""Files of a step's folder that are no part of what it made."""
MARKERS = {"datasets": "snapshot.json", "features": "meta.json"}
"""The file without which a folder is not complete."""
THREADS = 8


class Mirror:
    """A `task.Storage` in a bucket. For one process; its methods are not called by several threads, except for `send`."""

    remote = True

    def __init__(self, url: str, root: Path) -> None:
        self.bucket = Bucket(url)
        self._root = root
        self._etags: dict[str, str | None] = {}
        self._pushed: dict[str, Document] = {}
        self._results: dict[str, Document] = {}

    # --- steps

    def committed(self, task: Document) -> Document | None:
        """As in `task.Storage`."""
        with _words():
            place = _step(task)
            if (found := self._document(place, RESULT)) is not None:
                return self._adopt(place, RESULT, found)
            self.bucket.insist(f"{place}/{LOCK}")  # before hours of work, not after
            return None

    def prepare(self, task: Document) -> None:
        """As in `task.Storage`; with what an earlier attempt has kept."""
        with _words():
            for path in inputs.of(task):
                self._pull(path)
            if task["subject"] == "train" and (kept := self._document(_step(task), KEPT)):
                self._adopt(_step(task), KEPT, kept)

    def keep(self, task: Document, name: str, outcome: Document) -> Document:
        """As in `task.Storage`."""
        with _words():
            return self._decide(_step(task), name, outcome)

    def commit(self, task: Document, result: Document) -> Document:
        """As in `task.Storage`."""
        with _words():
            path = str(result.get("path") or "")
            if path.split("/", 1)[0] in MARKERS:
                self._publish(path)
            return self._decide(_step(task), RESULT, result)

    def replace(self, task: Document, result: Document) -> None:
        """As in `task.Storage`."""
        with _words():
            write_json(self._root / _step(task) / RESULT, result)
            self.bucket.put(f"{_step(task)}/{RESULT}", self._root / _step(task) / RESULT)

    def pull(self, path: str, known: Collection[str] = ()) -> None:
        """As in `task.Storage`."""
        with _words():
            self._pull(path, known)

    # --- files that change, and files of a log

    def take(self, path: str) -> None:
        """As in `task.Storage`."""
        with _words():
            file = self._root / path
            for suffix in ("", "-wal", "-shm"):
                file.with_name(file.name + suffix).unlink(missing_ok=True)
            self._etags[path] = self.bucket.fetch(path, file)

    def save(self, path: str) -> None:
        """As in `task.Storage`: a database, which may be open."""
        with _words():
            copy = (self._root / path).with_suffix(".sending")
            copy.unlink(missing_ok=True)
            try:
                with (
                    closing(sqlite3.connect(self._root / path)) as source,
                    closing(sqlite3.connect(copy)) as target,
                ):
                    source.backup(target)
                written = self.bucket.replace(path, copy, self._etags[path])
            finally:
                copy.unlink(missing_ok=True)
            if written is None:
                raise TaskError(
                    f"{path} was written by another process meanwhile",
                    "this evaluation is dropped and made again",
                    passing=True,
                )
            self._etags[path] = written

    def send(self, path: str) -> None:
        """As in `task.Storage`."""
        with _words():
            self.bucket.create(path, self._root / path)

    # --- how a step ends

    def _decide(self, place: str, name: str, document: Document) -> Document:
        """Put the step's files, then the document that names them; the first one counts."""
        files = self._pushed.get(place) or self._push(place)
        body = json.dumps({**document, "files": files}, indent=1, sort_keys=True).encode()
        if self.bucket.create(f"{place}/{name}", body):
            self._pushed[place] = files
            write_json(self._root / place / name, document)
            return document
        first = self._document(place, name)
        assert first is not None  # nobody deletes it
        print(f"{place}: another attempt was faster; its {name} counts", flush=True)
        return self._adopt(place, name, first)

    def _adopt(self, place: str, name: str, found: Document) -> Document:
        """Take over what is committed: the document and its files, in the place of what may be there."""
        folder = self._root / place
        files = found["files"]
        if self._pushed.get(place) != files:
            for item in folder.iterdir() if folder.exists() else ():
                if item.name != LOCK:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
            self._fetch(_where(files), folder)
            self._pushed[place] = files
        document = {key: value for key, value in found.items() if key != "files"}
        write_json(folder / name, document)
        return document

    def _push(self, place: str) -> Document:
        """Put the files of a step; returns where they are, and their digests."""
        folder = self._root / place
        names = sorted(name for name in _files(folder) if name not in OURS)
        digests = {name: digest(folder / name) for name in names}
        for at in (place, f"{place}/attempt-{uuid.uuid4().hex[:8]}"):
            if all(self.bucket.create(f"{at}/{name}", folder / name) for name in names):
                return {"at": at, "sha256": digests}
        raise TaskError(f"the files of {place} cannot be written", "it is tried again", passing=True)

    def _publish(self, path: str) -> None:
        """Put a folder that is named by its content; one that is complete is kept."""
        marker = MARKERS[path.split("/", 1)[0]]
        if self.bucket.digest(f"{path}/{marker}") is not None:
            return
        names = sorted(_files(self._root / path), key=lambda name: (name == marker, name))
        for name in names:
            self.bucket.create(f"{path}/{name}", self._root / path / name)

    # --- how it is read

    def _pull(self, path: str, known: Collection[str] = ()) -> None:
        first, *rest = PurePosixPath(path).parts
        match first:
            case "logs":
                names = (item.removeprefix(f"{path}/") for item in self.bucket.paths(path))
                fresh = [name for name in names if "/" not in name and name not in known]
                self._fetch({name: (f"{path}/{name}", "") for name in fresh}, self._root / path)
            case "runs" if len(rest) >= 2:
                self._pull_run("/".join(("runs", *rest[:2])), "/".join(rest[2:]))
            case _ if not (self._root / path).exists():
                listed = {item.removeprefix(f"{path}/"): (item, "") for item in self.bucket.paths(path)}
                if MARKERS.get(first, "") in ("", *listed):
                    self._appear(listed, self._root / path)

    def _pull_run(self, place: str, inner: str) -> None:
        """A step of a run, or a file or folder of it. A step without a result is not there."""
        target = self._root / place / inner
        if target.exists() if inner else (target / RESULT).exists():
            return
        result = self._results.get(place) or self._document(place, RESULT)
        if result is None:
            return
        self._results[place] = result
        files = _where(result["files"])
        if not inner:
            self._adopt(place, RESULT, result)
        elif inner in files:
            self._fetch({target.name: files[inner]}, target.parent)
        else:
            below = {k.removeprefix(f"{inner}/"): v for k, v in files.items() if k.startswith(f"{inner}/")}
            self._appear(below, target)

    def _document(self, place: str, name: str) -> Document | None:
        """What a step has put with its files; one that was copied from a disk names none, so they are listed."""
        found = self.bucket.read(f"{place}/{name}")
        if found is None:
            return None
        document: Document = json.loads(found.data)
        if "files" not in document:
            listed = (path.removeprefix(f"{place}/") for path in self.bucket.paths(place))
            names = [one for one in listed if one not in OURS and not one.startswith("attempt-")]
            document["files"] = {"at": place, "sha256": dict.fromkeys(names, "")}
        return document

    def _appear(self, files: Mapping[str, tuple[str, str]], target: Path) -> None:
        """Make a folder of objects, all at once."""
        if not files:
            return
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            self._fetch(files, temporary)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _fetch(self, files: Mapping[str, tuple[str, str]], folder: Path) -> None:
        """Read objects into files by their path in `folder`; with a digest, no other content than that."""

        def one(item: tuple[str, tuple[str, str]]) -> None:
            name, (path, expected) = item
            file = folder / name
            if file.exists():
                return
            if self.bucket.fetch(path, file) is None:
                raise TaskError(f"{path} is missing in {self.bucket.url}", "somebody has deleted it there")
            if expected and digest(file) != expected:
                file.unlink()
                raise TaskError(
                    f"{path} in {self.bucket.url} is not what the step has written",
                    "somebody has changed it there",
                )

        with ThreadPoolExecutor(THREADS, "pull") as pool:
            for _ in pool.map(one, files.items()):
                pass


def _step(task: Document) -> str:
    return f"runs/{task['name']}/{task['step']}"


def _where(files: Document) -> dict[str, tuple[str, str]]:
    """Name in the step's folder -> object and digest."""
    return {name: (f"{files['at']}/{name}", sha256) for name, sha256 in files["sha256"].items()}


def _files(folder: Path) -> Iterator[str]:
    """Names of all files, without temporary ones and what Python compiled."""
    for path in folder.rglob("*") if folder.exists() else ():
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield "/".join(parts)


@contextmanager
def _words() -> Iterator[None]:
    """A refusal of the bucket as a failure of the step."""
    try:
        yield
    except Refused as error:
        raise TaskError(error.message, error.hint, passing=error.passing) from None
