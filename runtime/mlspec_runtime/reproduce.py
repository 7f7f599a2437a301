"""Run a finished training again, from its kept task documents, and say whether the same came out.

`python -m mlspec_runtime.reproduce RUN --root DIR` prints the report as JSON. The repetition goes to
`runs/<run>-reproduced-<n>/` and is not recorded in MLflow; the original is only read. The model is trained in the environment
of the run; when that is gone, or other packages have been installed into it, it is made again from what the run recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from mlspec_runtime import environment, frames
from mlspec_runtime import task as tasks
from mlspec_runtime.model import MANIFEST
from mlspec_runtime.task import Document, TaskError


def reproduce(run: str, root: Path) -> Document:
    """Repeat `run` and compare. The report:

    `{"run", "reproduction", "python", "equal", "frames": {name: bool}, "model": {"equal", "digests": [old, new]},
    "metrics": {name: {"old", "new", "equal"}}}`. Raises TaskError when the run is unfinished, or its inputs or its environment
    are gone.
    """
    original = root / "runs" / run
    if not (original / "train" / "result.json").exists():
        raise TaskError(f"{run} is not a finished training run", "see `mlspec runs`")
    try:
        python = _python(original / "train")
    except TaskError as error:
        message = f"could not reproduce {run}: its environment cannot be made again: {error.message}"
        raise TaskError(message, error.hint) from None
    name = _fresh(run, root)
    repeated = root / "runs" / name
    changes = {"name": name, "tracking": None, "baseline": None}
    documents = {
        step: json.loads((original / step / "task.json").read_text()) | changes
        for step in ("frames", "train")
    }
    for step, document in documents.items():
        code = (
            tasks.perform(frames.run, document, root) if step == "frames" else _train(python, document, root)
        )
        if code != 0:
            raise _failure(run, code, repeated / step / "error.json")

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
    found = {
        "run": run,
        "reproduction": name,
        "python": str(python),
        "frames": same,
        "model": {"equal": digests[0] == digests[1], "digests": digests},
        "metrics": {metric: {**pair, "equal": pair["old"] == pair["new"]} for metric, pair in values.items()},
    }
    equal = all(same.values()) and digests[0] == digests[1] and old["metrics"] == new["metrics"]
    return {**found, "equal": equal}


def _python(step: Path) -> Path:
    """The Python of the run. Runs of the first days recorded no more than the packages that their code imports."""
    if (step / environment.RECORD).exists():
        return environment.restore(json.loads((step / environment.RECORD).read_text()))
    return environment.interpreter(json.loads((step / "result.json").read_text())["requirements_frozen"])


def _train(python: Path, document: Document, root: Path) -> int:
    """Train in another Python, as the supervisor does; returns the exit code."""
    task = root / "runs" / document["name"] / "train" / "task.json"
    tasks.write_json(task, document)
    arguments = [str(python), "-P", "-m", "mlspec_runtime", "train", "--task", str(task), "--root", str(root)]
    variables = {name: value for name, value in os.environ.items() if name != "MLSPEC_STORAGE"}
    # Progress goes to stderr: stdout is for the report.
    return subprocess.run(arguments, stdout=2, env=variables, check=False).returncode


def _failure(run: str, code: int, report: Path) -> TaskError:
    """What a step reported, or that it ended without a report."""
    error = json.loads(report.read_text()) if report.exists() else {}
    message = error.get("message") or f"the step ended with exit code {code}; what it printed stands above"
    return TaskError(f"could not reproduce {run}: {message}", error.get("hint", ""))


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
