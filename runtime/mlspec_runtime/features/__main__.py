"""`python -m mlspec_runtime.features`: the parity of a graph's request log, for `mlspec features`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec_runtime.features import parity


def main() -> int:
    """Print one line per view and the first differences; exit code 0: equal, 1: something differs or cannot be checked."""
    parser = argparse.ArgumentParser(prog="mlspec_runtime.features", description=__doc__)
    parser.add_argument("--document", required=True, help="document of the graph's service, as JSON")
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument(
        "--rows", type=int, default=2000, help="newest rows of the request log that are checked"
    )
    arguments = parser.parse_args()
    document = json.loads(arguments.document)
    log = newest(arguments.root / "logs" / document["name"], arguments.rows)
    if log is None:
        print(f"{document['name']} has logged no request yet")
        return 1
    return max([view(name, one, log, arguments.root) for name, one in document["views"].items()], default=0)


def newest(folder: Path, rows: int) -> pa.Table | None:
    """The newest rows of a request log that were answered."""
    files = sorted(folder.glob("*.parquet"), reverse=True)
    found: list[pa.Table] = []
    for file in files:
        found.append(pq.read_table(file))
        if sum(one.num_rows for one in found) >= rows:
            break
    if not found:
        return None
    table = pa.concat_tables(found, promote_options="permissive")
    return table.filter(pc.equal(table["status"], 200)).slice(0, rows)


def view(name: str, definition: Mapping[str, Any], log: pa.Table, root: Path) -> int:
    """Check one view and say what came of it."""
    sets = {
        key: (FeatureSetSpec.model_validate(one["spec"]), root / one["path"])
        for key, one in definition["sets"].items()
    }
    outcome = parity.check(
        log,
        FeatureViewSpec.model_validate(definition["spec"]),
        DatasetSpec.model_validate(definition["dataset"]),
        sets,
    )
    differing = sum(outcome.differing.values())
    print(f"{name}: {outcome.rows:,} requests, {outcome.cells:,} feature values, {differing:,} differ")
    for one in outcome.examples:
        print(
            f"  {one.feature} of request {one.id}: served {one.served}, training would have seen {one.expected}"
        )
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
