"""The termination message: how a pod tells the outcome of its step to somebody who cannot read the storage."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mlspec_runtime import task

TASK = {"name": "churn-1", "step": "train"}


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that Kubernetes would read."""
    path = tmp_path / "termination-log"
    monkeypatch.setenv("MLSPEC_MESSAGE", str(path))
    return path


def unpacked(text: str) -> dict[str, object]:
    """What a reader makes of a message."""
    plain = zlib.decompress(base64.b64decode(text[2:])).decode() if text.startswith("z:") else text
    found: dict[str, object] = json.loads(plain)
    return found


def committed(root: Path) -> dict[str, object]:
    """What the storage holds."""
    found: dict[str, object] = json.loads((root / "runs/churn-1/train/result.json").read_text())
    return found


def test_a_small_result_is_readable(message: Path, tmp_path: Path) -> None:
    """`kubectl get pod -o yaml` shows it as it is."""
    assert task.perform(lambda *_: {"metrics": {"auc": 0.9}}, TASK, tmp_path) == 0
    assert message.read_text().startswith('{"finished":')
    assert unpacked(message.read_text()) == committed(tmp_path)


def test_a_large_result_is_packed(message: Path, tmp_path: Path) -> None:
    """Kubernetes cuts a message after 4096 bytes, and a cut document is no document."""
    bins = {f"feature_{number}": [0.25] * 20 for number in range(100)}
    assert task.perform(lambda *_: {"bins": bins}, TASK, tmp_path) == 0
    assert len(message.read_bytes()) <= 4096
    assert unpacked(message.read_text()) == committed(tmp_path)


def test_a_result_that_cannot_fit_is_left_to_the_storage(message: Path, tmp_path: Path) -> None:
    """The step has done its work; it does not fail for its message."""
    noise = random.Random(1)
    values = [noise.random() for _ in range(2000)]
    assert task.perform(lambda *_: {"values": values}, TASK, tmp_path) == 0
    assert not message.exists()
    assert committed(tmp_path)["values"] == values


def test_a_smaller_limit_is_kept(message: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The containers of one pod share 12 KiB."""
    monkeypatch.setenv("MLSPEC_MESSAGE_LIMIT", "300")
    assert task.perform(lambda *_: {"bins": [1] * 500}, TASK, tmp_path) == 0
    assert len(message.read_bytes()) <= 300
    assert unpacked(message.read_text()) == committed(tmp_path)


def test_a_result_of_before_is_told_again(message: Path, tmp_path: Path) -> None:
    """A pod was lost after the commit: the next one finds the result and must not end in silence."""
    assert task.perform(lambda *_: {"rows": 3}, TASK, tmp_path) == 0
    message.unlink()
    assert task.perform(lambda *_: pytest.fail("ran twice"), TASK, tmp_path) == 0
    assert unpacked(message.read_text()) == committed(tmp_path)


def refuse(*_: object) -> dict[str, object]:
    """A mistake of the user."""
    raise task.TaskError("the column age\nis missing", "add it to FeatureView/people")


def test_a_mistake_is_one_line_and_final(message: Path, tmp_path: Path) -> None:
    """Whoever reads the pod's status reads what to do; the engine does not try it again."""
    assert task.perform(refuse, TASK, tmp_path) == task.FINAL == 2
    assert message.read_text() == "the column age is missing; add it to FeatureView/people"


@pytest.mark.parametrize(("error", "code"), [(ConnectionError("reset"), 1), (KeyError("age"), 2)])
def test_what_may_pass_is_not_final(message: Path, tmp_path: Path, error: Exception, code: int) -> None:
    """A network comes back, a KeyError does not: the same rule as on a laptop."""

    def fail(*_: object) -> dict[str, object]:
        raise error

    assert task.perform(fail, TASK, tmp_path) == code
    assert message.read_text() == f"{type(error).__name__}: {error}; the log has the traceback"


def test_a_long_sentence_is_cut_between_characters(message: Path, tmp_path: Path) -> None:
    """Half a character would make the whole status unreadable."""

    def fail(*_: object) -> dict[str, object]:
        raise task.TaskError("ü" * 5000)

    assert task.perform(fail, TASK, tmp_path) == 2
    assert message.read_text("utf-8") == "ü" * 2048


def test_no_message_when_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop there is no such file."""
    monkeypatch.delenv("MLSPEC_MESSAGE", raising=False)
    assert task.perform(refuse, TASK, tmp_path) == 2


def test_a_message_that_cannot_be_written_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome is what the storage holds."""
    monkeypatch.setenv("MLSPEC_MESSAGE", str(tmp_path / "missing" / "log"))
    assert task.perform(lambda *_: {"rows": 3}, TASK, tmp_path) == 0


@pytest.mark.parametrize("as_file", [True, False])
def test_a_step_reads_its_document_from_a_file_or_an_argument(tmp_path: Path, as_file: bool) -> None:
    """A document too long for a command line comes as a mounted file; its failure is told in both cases."""
    document = {"name": "r", "step": "dataset", "dataset": "none", "spec": {"source": {}}, "files": None}
    text = json.dumps(document)
    if as_file:
        (tmp_path / "task.json").write_text(text)
    line = ["-m", "mlspec_runtime", "dataset", "--task", str(tmp_path / "task.json") if as_file else text]
    environment = {**os.environ, "MLSPEC_ROOT": str(tmp_path), "MLSPEC_MESSAGE": str(tmp_path / "message")}
    done = subprocess.run(
        [sys.executable, *line], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "message").read_text()
    assert (tmp_path / "runs/r/dataset/error.json").exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A pod that crashes again and again explains itself in its status."""
    (tmp_path / "task.json").write_text("{")
    line = ["-m", "mlspec_runtime", "serve", "--task", str(tmp_path / "task.json")]
    environment = {**os.environ, "MLSPEC_ROOT": str(tmp_path), "MLSPEC_MESSAGE": str(tmp_path / "message")}
    done = subprocess.run(
        [sys.executable, *line], env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "message").read_text()
