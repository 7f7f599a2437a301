"""Storage in S3 against a real HTTP server: the same bytes as on a disk, one commit, and never a half of anything."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlspec_runtime import dataset, frames, inputs, task, train
from mlspec_runtime.storage import Mirror
from mlspec_runtime.task import FINAL, Document, perform
from mlspec_storage import Bucket, Refused
from mlspec_storage import bucket as buckets
from runtime.conftest import CANCER, LOGISTIC, SPLIT, Storage, job
from s3 import S3, SECRET

STEP: Document = {"subject": "train", "step": "train", "name": "r-1", "code": {"path": "code/none"}}
PLACE = "runs/r-1/train"
ASKED = 2
"""Writes by which a step sees that the server honours conditions."""
MODEL = ("model/model.pkl", "model/model.json", "reference.json")


def writes(content: str, document: Document | None = None) -> Callable[[Document, Path], Document]:
    """A subject that leaves the files of a model, all with one content."""

    def subject(task: Document, root: Path) -> Document:
        for name in MODEL:
            path = root / PLACE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content} {name}")
        return {"by": content, **(document or {})}

    return subject


class Place:
    """A bucket's prefix, and a new scratch folder for every process."""

    def __init__(self, server: S3, bucket: str, tmp_path: Path) -> None:
        self.server, self.bucket, self._folder = server, bucket, tmp_path
        self._made = 0
        self.prefix = "team/"

    def mirror(self) -> tuple[Mirror, Path]:
        """A process's storage."""
        self._made += 1
        root = self._folder / f"scratch-{self._made}"
        root.mkdir(parents=True)
        return Mirror(f"s3://{self.bucket}/{self.prefix.rstrip('/')}", root), root

    def attempt(self, subject: task.Subject, document: Document = STEP) -> tuple[int, Document]:
        """One attempt in a pod of its own: its exit code, and the result (or error) that it has told."""
        mirror, root = self.mirror()
        aware = functools.partial(subject, storage=mirror) if subject is train.run else subject
        code = perform(aware, document, root, mirror)
        folder = root / "runs" / document["name"] / document["step"]
        name = "result.json" if code == 0 else "error.json"
        return code, json.loads((folder / name).read_text())

    def objects(self) -> dict[str, bytes]:
        """What is in the bucket, by the path of the layout."""
        found = self.server.objects(self.bucket, self.prefix)
        return {key.removeprefix(self.prefix): data for key, data in found.items()}

    def seen(self) -> set[str]:
        """Whose files a reader finds as the model: empty before the commit, else of one attempt, complete."""
        mirror, root = self.mirror()
        mirror.pull(f"{PLACE}/model")
        mirror.pull(f"{PLACE}/reference.json")
        files = (
            [path for path in (root / PLACE).rglob("*") if path.is_file()] if (root / PLACE).exists() else []
        )
        assert len(files) in (0, len(MODEL))
        return {path.read_text().split()[0] for path in files}


@pytest.fixture
def place(s3_server: S3, bucket: str, tmp_path: Path) -> Place:
    return Place(s3_server, bucket, tmp_path)


# --- the same bytes


def test_a_run_leaves_the_same_bytes_in_a_bucket_as_on_a_disk(
    place: Place, storage: Storage, tmp_path: Path
) -> None:
    """The promise of the layout: every file below the same name, and only times differ."""
    spec: Document = {"source": {"function": "load.py:rows"}, "key": ["patient"]}
    code = storage.bundle(load=CANCER, train=LOGISTIC)
    place.server.put(place.bucket, storage.root, place.prefix)
    read = {
        "subject": "dataset", "step": "dataset", "name": "d-1", "dataset": "d", "spec": spec, "parameters": {},
        "code": {"path": code, "entry": "load.py:rows"}, "files": None,
    }  # fmt: skip
    assert perform(dataset.run, read, storage.root) == 0
    taken = storage.result("d-1", "dataset")
    entries = {
        name: {"use": use, "dataset": {"path": taken["path"], "spec": spec}, "view": None, "as_of": None}
        for name, use in SPLIT.items()
    }
    prepare = {"subject": "frames", "step": "frames", "name": "j-1", "spec": job(SPLIT), "data": entries}
    fit = storage.training("j-1", LOGISTIC, SPLIT) | {"code": {"path": code, "entry": "train.py:train"}}
    for subject, document in ((dataset.run, read), (frames.run, prepare), (train.run, fit)):
        if document is not read:
            assert perform(subject, document, storage.root) == 0
        assert place.attempt(subject, document)[0] == 0
    here = {
        path.relative_to(storage.root).as_posix(): path.read_bytes()
        for path in storage.root.rglob("*")
        if path.is_file()
    }
    there = place.objects()
    assert {name for name in here if not name.startswith("code/")} == {
        name for name in there if not name.startswith("code/")
    }
    for name, data in here.items():
        if name.endswith("/lock"):
            assert there[name] == data == b""
        elif name.startswith(f"runs/{read['name']}") or name.endswith(
            ("result.json", "outcome.json", "snapshot.json")
        ):
            assert timeless(there[name]) == timeless(data), name
        elif not name.startswith("code/"):
            assert unstamped(there[name]) == unstamped(data), name
    assert there["runs/j-1/train/model/model.pkl"] == here["runs/j-1/train/model/model.pkl"]


def unstamped(data: bytes) -> bytes:
    """Without the serial number and the time that MLflow gives to every model that it saves."""
    return re.sub(rb"(?m)^(model_uuid|utc_time_created|model_id):.*$", b"", data)


def timeless(data: bytes) -> Document:
    """A document without moments, durations, and the names of its files."""
    document = json.loads(data)
    times = ("started", "finished", "seconds", "function_seconds", "taken", "files")
    frames = {name: one | {"seconds": 0} for name, one in document.get("frames", {}).items()}
    return {key: value for key, value in document.items() if key not in times} | {"frames": frames}


# --- one commit


def test_a_step_that_has_succeeded_is_not_run_again(place: Place) -> None:
    """A pod that was lost after its commit comes again, and finds the result."""
    first = place.attempt(writes("a"))
    before = place.objects()

    def never(task: Document, root: Path) -> Document:
        raise AssertionError("it ran again")

    assert place.attempt(never) == first
    assert place.objects() == before
    assert place.seen() == {"a"}


def test_the_files_have_their_usual_names(place: Place) -> None:
    """Whoever looks into the bucket needs no tool of ours; what a dead attempt left with the same content is adopted."""
    place.attempt(writes("a"))
    assert set(place.objects()) == {f"{PLACE}/{name}" for name in (*MODEL, "lock", "result.json")}


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # an order that fails is short enough to read
)
@given(turns=st.lists(st.integers(0, 2), max_size=14))
def test_attempts_that_race_agree_on_one_result(place: Place, turns: list[int]) -> None:
    """Writes of three attempts in any order: all return the first result, whose files never change."""
    place.prefix = f"race-{os.urandom(6).hex()}/"
    attempts = [Paused(place, f"{number}") for number in range(3)]
    committed: dict[str, bytes] = {}
    for number in [*turns, *(n for n in range(3) for _ in range(2 * len(MODEL) + 2))]:
        attempts[number].step()
        if not committed and attempts[number].done:
            now = place.objects()
            committed = {key: now[key] for key in named(now)}
    after = place.objects()
    assert {key: after[key] for key in committed} == committed
    results = [one.result() for one in attempts]
    assert results[0] == results[1] == results[2]
    assert place.seen() == {results[0]["by"]}


def named(objects: dict[str, bytes]) -> set[str]:
    """The objects that the committed result names, and itself."""
    files = json.loads(objects[f"{PLACE}/result.json"])["files"]
    return {f"{files['at']}/{name}" for name in files["sha256"]} | {f"{PLACE}/result.json"}


class Paused:
    """An attempt that writes only when it is told to."""

    def __init__(self, place: Place, content: str) -> None:
        self._turn, self._idle = threading.Semaphore(0), threading.Semaphore(0)
        self._mirror, self._root = place.mirror()
        write = self._mirror.bucket._write

        def gated(*arguments: Any) -> str | None:
            self._idle.release()
            self._turn.acquire()
            return write(*arguments)

        self._mirror.bucket._write = gated  # type: ignore[method-assign]
        self._code: int | None = None
        self._content = content
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._idle.acquire()

    def _run(self) -> None:
        self._code = perform(writes(self._content), STEP, self._root, self._mirror)
        self._idle.release()

    @property
    def done(self) -> bool:
        return self._code is not None

    def step(self) -> None:
        """One write, if it is not done."""
        if self._code is None:
            self._turn.release()
            assert self._idle.acquire(timeout=20)

    def result(self) -> Document:
        self._thread.join(20)
        assert self._code == 0
        files = {path.read_text().split()[0] for path in (self._root / PLACE / "model").iterdir()}
        result: Document = json.loads((self._root / PLACE / "result.json").read_text())
        assert files == {result["by"]}, "the next step in this pod reads what counts"
        return result


@pytest.mark.parametrize("survived", range(ASKED + len(MODEL) + 2))
def test_kill_9_between_any_two_writes(place: Place, survived: int) -> None:
    """A reader sees nothing or a whole model; the next attempt, with other bytes, succeeds and mixes nothing."""
    if (pid := os.fork()) == 0:
        mirror, root = place.mirror()
        write, left = mirror.bucket._write, [survived]

        def dying(*arguments: Any) -> str | None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return write(*arguments)

        mirror.bucket._write = dying  # type: ignore[method-assign]
        perform(writes("killed"), STEP, root, mirror)
        os._exit(0)
    os.waitpid(pid, 0)
    done = survived > ASKED + len(MODEL)
    place._made += 1
    assert place.seen() == ({"killed"} if done else set())
    code, result = place.attempt(writes("next"))
    assert (code, result["by"]) == (0, "killed" if done else "next")
    assert place.seen() == {result["by"]}


@pytest.mark.parametrize("survived", range(ASKED + 4))
def test_a_snapshot_is_there_when_its_last_file_is(place: Place, survived: int) -> None:
    """Killed between any two writes: nobody reads a half, the next attempt completes it, and a third changes nothing."""
    early = STEP | {"subject": "dataset", "step": "dataset", "code": None}

    def subject(task: Document, root: Path) -> Document:
        (root / "datasets/d/1").mkdir(parents=True)
        for name in ("data.parquet", "snapshot.json"):
            (root / "datasets/d/1" / name).write_text(f"{name} of {root.name}")
        return {"path": "datasets/d/1"}

    def seen() -> list[str]:
        mirror, root = place.mirror()
        mirror.pull("datasets/d/1")
        return sorted(path.name for path in (root / "datasets").rglob("*.*"))

    mirror, root = place.mirror()
    write, left = mirror.bucket._write, [survived]

    def dying(*arguments: Any) -> str | None:
        if not left[0]:
            raise SystemExit(137)
        left[0] -= 1
        return write(*arguments)

    mirror.bucket._write = dying  # type: ignore[method-assign]
    with contextlib.suppress(SystemExit):
        perform(subject, early, root, mirror)
    assert seen() == (["data.parquet", "snapshot.json"] if survived > ASKED + 1 else [])
    assert place.attempt(subject, early)[0] == 0
    assert seen() == ["data.parquet", "snapshot.json"]
    before = place.objects()
    assert place.attempt(subject, early)[0] == 0
    assert place.objects() == before


def test_an_answer_that_was_lost_is_our_own_commit(place: Place) -> None:
    """The client asks again and hears that there is a result: it is ours."""
    lost: list[str] = []

    def once(method: str, path: str) -> str | None:
        if method == "PUT" and "result.json" in path and not lost:
            lost.append(path)
            return "lost"
        return None

    place.server.fault = once
    code, result = place.attempt(writes("a"))
    assert (code, result["by"], len(lost)) == (0, "a", 1)


def test_a_training_that_was_killed_before_its_commit_is_not_trained_again(
    place: Place, storage: Storage, cancer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One identity has one FINISHED MLflow run, in a bucket as on a disk."""
    cancer("j-1")
    counted = storage.root / "count"
    code = LOGISTIC + f"\n    def note(): open({str(counted)!r}, 'a').write('x')\n"
    code = code.replace(
        "        features =", f"        open({str(counted)!r}, 'a').write('x')\n        features ="
    )
    code = code.replace(f"\n    def note(): open({str(counted)!r}, 'a').write('x')\n", "")
    uri = f"sqlite:///{storage.root / 'mlflow.db'}"
    document = storage.training("j-1", code, SPLIT, tracking=uri)
    place.server.put(place.bucket, storage.root, place.prefix)
    finish = train.tracking.Tracker.finish

    def killed(*arguments: Any) -> None:
        finish(*arguments)
        raise SystemExit(137)

    for ends in (killed, finish):
        monkeypatch.setattr(train.tracking.Tracker, "finish", ends)
        mirror, root = place.mirror()

        def subject(one: Document, where: Path, mirror: Mirror = mirror) -> Document:
            return train.run(one, where, mirror)

        if ends is killed:
            with pytest.raises(SystemExit):
                perform(subject, document, root, mirror)
            assert f"{PLACE.replace('r-1', 'j-1')}/result.json" not in place.objects()
        else:
            assert perform(subject, document, root, mirror) == 0
    assert counted.read_text() == "x"
    tracker = train.tracking.connect(uri, "j", storage.root)
    assert [run.info.status for run in tracker._runs("j-1")] == ["FINISHED"]


# --- reading


def test_what_does_not_change_is_pulled_once(place: Place) -> None:
    """A graph that swaps its model pulls the new one only."""
    place.attempt(writes("a"))
    mirror, root = place.mirror()
    mirror.pull(f"{PLACE}/model")
    before = len(place.server.requests)
    mirror.pull(f"{PLACE}/model")
    assert len(place.server.requests) == before
    assert {path.name for path in (root / PLACE / "model").iterdir()} == {"model.pkl", "model.json"}


def test_an_answer_that_breaks_off_is_read_again(place: Place) -> None:
    """A file is there whole or not at all."""
    place.attempt(writes("a"))
    cut: list[str] = []

    def once(method: str, path: str) -> str | None:
        if path.endswith("model.pkl") and len(cut) < 2:
            cut.append(path)
            return "cut"
        return None

    place.server.fault = once
    assert place.seen() == {"a"}
    assert len(cut) == 2


def test_the_steps_of_one_pod_share_its_folder(place: Place) -> None:
    """With the job engine the earlier step is an init container: what it made is not pulled; in the pod of a second attempt
    it is, because there the earlier step only finds its result."""
    early = STEP | {"subject": "frames", "step": "frames", "data": {}}

    def rows(task: Document, root: Path) -> Document:
        (root / "runs/r-1/frames").mkdir(parents=True, exist_ok=True)
        (root / "runs/r-1/frames/train.parquet").write_text("rows")
        return {}

    def reads(task: Document, root: Path) -> Document:
        return {"read": (root / "runs/r-1/frames/train.parquet").read_text()}

    mirror, root = place.mirror()
    assert perform(rows, early, root, mirror) == 0
    after = Mirror(mirror.bucket.url, root)
    before = len(place.server.requests)
    after.prepare(STEP)
    assert not [path for _, path in place.server.requests[before:] if path.endswith("frames/train.parquet")]
    mirror, root = place.mirror()
    assert perform(rows, early, root, mirror) == 0
    assert perform(reads, STEP, root, Mirror(mirror.bucket.url, root)) == 0
    assert json.loads((root / PLACE / "result.json").read_text())["read"] == "rows"


def test_a_folder_without_its_last_file_is_not_there(place: Place) -> None:
    """A snapshot that somebody is still writing is no snapshot."""
    place.server.write(place.bucket, "team/datasets/d/1/data.parquet", b"rows")
    mirror, root = place.mirror()
    mirror.pull("datasets/d/1")
    assert not (root / "datasets/d/1").exists()
    place.server.write(place.bucket, "team/datasets/d/1/snapshot.json", b"{}")
    mirror.pull("datasets/d/1")
    assert sorted(path.name for path in (root / "datasets/d/1").iterdir()) == [
        "data.parquet",
        "snapshot.json",
    ]


def test_a_run_that_was_copied_from_a_disk_is_read(place: Place, tmp_path: Path) -> None:
    """`aws s3 sync .mlspec/store s3://...` is a way to move."""
    assert perform(writes("a"), STEP, tmp_path / "disk") == 0
    place.server.put(place.bucket, tmp_path / "disk", place.prefix)
    assert place.seen() == {"a"}
    assert place.attempt(writes("b"))[1]["by"] == "a"


def test_a_training_that_was_copied_before_its_end_keeps_its_model(place: Place, tmp_path: Path) -> None:
    """Its outcome names no files, as on a disk; they are those beside it."""
    (tmp_path / "disk" / PLACE).mkdir(parents=True)
    writes("a")(STEP, tmp_path / "disk")
    (tmp_path / "disk" / PLACE / "outcome.json").write_text('{"by": "a"}')
    place.server.put(place.bucket, tmp_path / "disk", place.prefix)

    def closes(task: Document, root: Path) -> Document:
        found: Document = json.loads((root / PLACE / "outcome.json").read_text())
        return found

    assert place.attempt(closes)[0] == 0
    assert place.seen() == {"a"}


def test_a_file_that_somebody_changed_is_refused(place: Place) -> None:
    """A model is what its run has written, or it is an error."""
    place.attempt(writes("a"))
    place.server.write(place.bucket, f"team/{PLACE}/model/model.pkl", b"evil")
    mirror, root = place.mirror()
    with pytest.raises(task.TaskError, match="is not what the step has written"):
        mirror.pull(f"{PLACE}/model")
    assert not (root / PLACE / "model").exists()


def test_a_value_of_a_user_is_no_path() -> None:
    """Parameters and specs may hold whatever they like."""
    document = STEP | {"parameters": {"path": "datasets/x/y"}, "spec": {"path": "runs/a/b"}, "baseline": None}
    assert inputs.of(document) == ["code/none", "runs/r-1/frames"]


# --- what goes wrong, in one sentence


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (
            "AccessDenied",
            FINAL,
            "may not be used with these credentials (AccessDenied); it needs s3:ListBucket",
        ),
        ("NotImplemented", FINAL, "does not know conditional writes; take one that does"),
        ("SlowDown", 1, "answered SlowDown; it is tried again"),
    ],
)
def test_a_refusal_is_a_sentence(place: Place, fault: str, code: int, words: str) -> None:
    """Denied is final, busy is not; what the server echoes stays out of it."""
    place.server.fault = lambda method, path: fault
    found, error = place.attempt(writes("a"))
    assert found == code
    assert bool(error.get("retry")) == (code == 1)
    assert words in f"{error['message']}; {error['hint']}"
    assert place.bucket in error["message"]
    assert SECRET not in json.dumps(error)


def test_a_server_that_ignores_conditions_is_found_out(place: Place) -> None:
    """It would let a lost pod change the model that is in use, and nobody would see it."""
    place.server.fault = lambda method, path: "blind"
    ran: list[str] = []
    code, error = place.attempt(lambda task, root: {"ran": ran.append("yes")})
    assert (code, ran) == (FINAL, []), "before hours of work"
    assert "does not know conditional writes" in error["message"]


def test_no_bucket_no_server_no_credentials_no_url(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its way out, and with the exit code that says whether it may pass."""

    def told() -> tuple[int, str]:
        code, error = place.attempt(writes("a"))
        assert "\n" not in error["message"]
        return code, f"{error['message']}; {error['hint']}"

    place.bucket = "ml-nowhere"
    assert told() == (
        FINAL,
        "there is no bucket ml-nowhere; make it, or mend `storage` of the target",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hidden@127.0.0.1:1")
    code, words = told()
    assert code == 1
    assert words.startswith("the bucket ml-nowhere cannot be reached at 127.0.0.1:1; check AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    assert told()[0] == FINAL
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.server.endpoint)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    code, words = told()
    assert code == FINAL
    assert words.startswith("there are no credentials for the bucket ml-nowhere; set AWS_ACCESS_KEY_ID")


# --- the bucket itself


def test_a_large_file_goes_in_parts_and_is_new_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Models of many gigabytes are files like any other."""
    monkeypatch.setattr(buckets, "PART", 5 * 2**20)
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"a" * 12 * 2**20)
    other.write_bytes(b"b" * 12 * 2**20)
    bucket = Bucket(f"s3://{place.bucket}/team")
    assert bucket.create("large", file)
    assert bucket.create("large", file), "the same content is ours"
    assert not bucket.create("large", other)
    assert bucket.digest("large") == buckets.digest(file)
    assert bucket.fetch("large", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == file.read_bytes()


def test_a_write_over_a_version_that_is_gone_does_nothing(place: Place) -> None:
    """Two evaluations of one policy; also when the object was deleted meanwhile."""
    bucket = Bucket(f"s3://{place.bucket}")
    first = bucket.replace("state", b"1", None)
    assert first
    assert bucket.replace("state", b"other", None) is None
    second = bucket.replace("state", b"2", first)
    assert second
    assert bucket.replace("state", b"3", first) is None
    assert bucket.replace("state", b"2", first) == second, "the same content is ours"
    assert bucket.replace("gone", b"1", second) is None


def test_a_url_names_a_bucket_and_a_prefix(place: Place) -> None:
    """A prefix is a folder, with and without its slash."""
    for url in (f"s3://{place.bucket}/a/b", f"s3://{place.bucket}/a/b/"):
        Bucket(url).put("c/d", b"x")
        assert list(Bucket(url).paths("c")) == ["c/d"]
    assert set(place.server.objects(place.bucket)) == {"a/b/c/d"}
    with pytest.raises(Refused, match="there is no bucket"):
        list(Bucket("s3://ml-nowhere").paths("c"))
