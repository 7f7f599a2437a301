"""`reproduce`: a finished run, repeated, says whether the same came out."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from mlspec_runtime.reproduce import main, reproduce
from mlspec_runtime.task import TaskError


def test_a_run_repeats_to_the_byte_and_a_tampered_one_does_not(
    storage: Any,
    cancer: Any,
    split: Any,
    logistic: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim behind content-addressed runs, checked; and the check notices a difference."""
    cancer("j-1")
    storage.train(storage.training("j-1", logistic, split))
    report = reproduce("j-1", storage.root)
    assert report["equal"]
    assert report["reproduction"] == "j-1-reproduced-1"
    assert report["frames"] == {"test": True, "train": True}
    assert report["model"]["equal"]

    path = storage.root / "runs/j-1/train/result.json"
    kept = json.loads(path.read_text())
    kept["metrics"]["auc"] = 0.5
    path.write_text(json.dumps(kept))
    monkeypatch.setattr(sys, "argv", ["reproduce", "j-1", "--root", str(storage.root)])
    capsys.readouterr()
    assert main() == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["reproduction"], told["equal"], told["model"]["equal"]) == ("j-1-reproduced-2", False, True)
    assert told["metrics"]["auc"]["equal"] is False


def test_an_unfinished_run_is_refused(storage: Any) -> None:
    """A misspelt name must not start anything."""
    with pytest.raises(TaskError, match="j-9 is not a finished training run"):
        reproduce("j-9", storage.root)
