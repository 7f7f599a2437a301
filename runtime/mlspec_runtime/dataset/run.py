"""`run(task, root)`: the step `dataset`, from the task document to the result document."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mlspec.kinds.dataset import DatasetSpec
from mlspec_runtime.dataset import checks, columns, snapshot, sources
from mlspec_runtime.task import Document, TaskError


def run(task: Document, root: Path) -> Document:
    """Take a snapshot of the dataset of `task`.

    `task`: `dataset` (name), `spec` (DatasetSpec document), `code` ({path, entry} or null), `parameters`, `files`
    (absolute paths or null). Raises TaskError when the source cannot be read, a column does not become its type, or a
    check of severity `error` fails; each lists all faults that it found.
    """
    started = time.perf_counter()
    name = str(task["dataset"])
    spec = DatasetSpec.model_validate(task["spec"])
    raw = sources.read(name, spec, task, root)
    print(f"{name}: {raw.num_rows:,} rows read in {time.perf_counter() - started:.1f} s", flush=True)

    table, remarks = columns.cast(name, raw, spec)
    now = datetime.now(UTC)
    outcomes = checks.check(table, spec, now)
    failed = [outcome for outcome in outcomes if not outcome.passed and outcome.severity == "error"]
    warned = [outcome for outcome in outcomes if not outcome.passed and outcome.severity == "warn"]
    if failed:
        title = f"{len(failed)} of {len(outcomes)} checks of dataset {name} {'fails' if len(failed) == 1 else 'fail'}"
        lines = "".join(f"\n  {outcome.sentence}" for outcome in failed)
        raise TaskError(
            title + lines,
            "mend the source, or the check; `tolerate` allows a share, `severity: warn` lets it pass",
        )
    for outcome in warned:
        print(f"warning: {outcome.sentence}", flush=True)

    identity, kept = snapshot.write(
        table, name, spec, [outcome.document() for outcome in outcomes], root, now
    )
    seconds = time.perf_counter() - started
    state = "is known already" if kept else "written"
    print(f"{name}: snapshot {identity} {state}, {table.num_rows:,} rows, {seconds:.1f} s", flush=True)
    folder = root / "datasets" / name / identity
    return {
        "snapshot": identity,
        "path": f"datasets/{name}/{identity}",
        "rows": table.num_rows,
        "bytes": (folder / snapshot.DATA).stat().st_size,
        "columns": [{"name": field.name, "type": columns.name_of(field.type)} for field in table.schema],
        "checks": [outcome.document() for outcome in outcomes],
        "newest": newest(table, spec),
        "warnings": [*remarks, *(outcome.sentence for outcome in warned)],
        "seconds": round(seconds, 3),
    }


def newest(table: pa.Table, spec: DatasetSpec) -> str | None:
    """The newest event time, ISO 8601; None without event times."""
    if spec.time is None or table.num_rows == 0:
        return None
    value = pc.max(table[spec.time.event]).as_py()
    return None if value is None else str(value.isoformat())
