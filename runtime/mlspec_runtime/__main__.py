"""`python -m mlspec_runtime SUBJECT --task FILE --root DIR`: the only way into the runtime."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
from pathlib import Path

from mlspec_runtime import task

STEPS = {
    "dataset": "mlspec_runtime.dataset",
    "features": "mlspec_runtime.features.materialise",
    "frames": "mlspec_runtime.frames",
    "train": "mlspec_runtime.train",
}
"""Steps of runs: committed once. Each module has `run(task, root) -> result`."""

AWARE = {"train", "monitor"}
"""Subjects that make something durable before they end; their third argument is the `task.Storage`."""

REPEATED = {"monitor": "mlspec_runtime.monitor.evaluate"}
"""Steps of schedules: each start is a new evaluation; its result is overwritten."""

SERVICES = {"serve": "mlspec_runtime.serve.server"}
"""Long-running processes: each module has `serve(task_file, root, storage) -> exit code` and follows changes of the file."""


def main() -> int:
    """Parse the arguments, load the one module that is needed, run it."""
    parser = argparse.ArgumentParser(
        prog="mlspec_runtime", description="Run one step, schedule or service of mlspec."
    )
    parser.add_argument("subject", choices=[*STEPS, *REPEATED, *SERVICES])
    parser.add_argument(
        "--task", required=True, help="JSON document of the task: a file, or the document itself"
    )
    parser.add_argument(
        "--root", default=os.environ.get("MLSPEC_ROOT"), required="MLSPEC_ROOT" not in os.environ
    )
    arguments = parser.parse_args()
    root = Path(arguments.root).absolute()
    storage = _storage(root)
    if arguments.subject in SERVICES:
        module = importlib.import_module(SERVICES[arguments.subject])
        return int(module.serve(Path(arguments.task), root, storage))
    text = arguments.task if arguments.task.lstrip().startswith("{") else Path(arguments.task).read_text()
    document = json.loads(text)
    module = importlib.import_module((STEPS | REPEATED)[arguments.subject])
    subject = functools.partial(module.run, storage=storage) if arguments.subject in AWARE else module.run
    process = task.repeat if arguments.subject in REPEATED else task.perform
    return process(subject, document, root, storage)


def _storage(root: Path) -> task.Storage:
    """The root itself, or the bucket that `MLSPEC_STORAGE` (`s3://BUCKET/PREFIX`) names; then the root is scratch."""
    url = os.environ.get("MLSPEC_STORAGE")
    if not url:
        return task.Here(root)
    module = importlib.import_module("mlspec_runtime.storage")  # brings the client: a third of a second
    mirror: task.Storage = module.Mirror(url, root)
    return mirror


if __name__ == "__main__":
    raise SystemExit(main())
