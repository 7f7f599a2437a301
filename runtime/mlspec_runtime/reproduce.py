"""Run a finished training again, from its kept task documents, and say whether the same came out.

`python -m mlspec_runtime.reproduce RUN --root DIR` prints the report as JSON. The repetition goes to
`runs/<run>-reproduced-<n>/` and is not recorded in MLflow; the original is only read.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq

from mlspec_runtime import frames, train
from mlspec_runtime import task as tasks
from mlspec_runtime.model import MANIFEST
from mlspec_runtime.task import Document, TaskError


def reproduce(run: str, root: Path) -> Document:
    """Repeat `run` and compare. The report:

    `{"run", "reproduction", "equal", "frames": {name: bool}, "model": {"equal", "digests": [old, new]},
    "metrics": {name: {"old", "new", "equal"}}}`. Raises TaskError when the run is unfinished or its inputs are gone.
    """
    original = root / "runs" / run
    if not (original / "train" / "result.json").exists():
        raise TaskError(f"{run} is not a finished training run", "see `mlspec runs`")
    name = _fresh(run, root)
    repeated = root / "runs" / name
    for step, subject in (("frames", frames.run), ("train", train.run)):
        document = json.loads((original / step / "task.json").read_text()) | {
            "name": name,
            "tracking": None,
            "baseline": None,
        }
        if tasks.perform(subject, document, root) != 0:
            error = json.loads((repeated / step / "error.json").read_text())
            raise TaskError(f"the repetition of {run} failed: {error['message']}", error["hint"])

    old = json.loads((original / "train" / "result.json").read_text())
    new = json.loads((repeated / "train" / "result.json").read_text())
    same = {
        path.stem: bool(pq.read_table(path).equals(pq.read_table(repeated / "frames" / path.name)))
        for path in sorted((original / "frames").glob("*.parquet"))
    }
    digests = [_digest(folder / "train" / "model") for folder in (original, repeated)]
    values = {
        metric: {"old": old["metrics"].get(metric), "new": new["metrics"].get(metric)}
        for metric in sorted(old["metrics"].keys() | new["metrics"].keys())
    }
    report = {
        "run": run,
        "reproduction": name,
        "frames": same,
        "model": {"equal": digests[0] == digests[1], "digests": digests},
        "metrics": {metric: {**pair, "equal": pair["old"] == pair["new"]} for metric, pair in values.items()},
    }
    equal = all(same.values()) and digests[0] == digests[1] and old["metrics"] == new["metrics"]
    return {**report, "equal": equal}


def _fresh(run: str, root: Path) -> str:
    """Take the first free name, by making its folder."""
    number = 1
    while True:
        name = f"{run}-reproduced-{number}"
        try:
            os.mkdir(root / "runs" / name)  # noqa: PTH102 (fails when it exists, which is the point)
        except FileExistsError:
            number += 1
        else:
            return name


def _digest(folder: Path) -> str:
    """Hash of the pickled model; the files that MLflow dates are left out."""
    file = json.loads((folder / MANIFEST).read_text())["file"]
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


def main() -> int:
    """Exit code 0: equal, 2: different, 1: it could not be repeated."""
    parser = argparse.ArgumentParser(
        prog="mlspec_runtime.reproduce", description="Repeat a training run and compare."
    )
    parser.add_argument("run")
    parser.add_argument("--root", required=True)
    arguments = parser.parse_args()
    try:
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # the steps tell their progress; stdout is for the report
            report = reproduce(arguments.run, Path(arguments.root).absolute())
    except TaskError as error:
        print(f"error: {error.message} ({error.hint})", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1))
    return 0 if report["equal"] else 2


if __name__ == "__main__":
    raise SystemExit(main())
