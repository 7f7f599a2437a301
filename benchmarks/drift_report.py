"""Drift report over 50 columns x 1 million rows, against one plain numpy histogram pass over the same columns.

    python benchmarks/drift_report.py [ROWS]

Both start from the table in memory; the reference is frozen before, as in production. The report counts every column on
its frozen bins (40 numeric, 10 categorical), runs both tests, computes five distances, and judges all by Holm's method.
The floor is `numpy.histogram` with 20 equal bins of each column that numpy can count. Alternating rounds; CPU seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from mlspec_runtime.monitor import counts, reference

NUMERIC, CATEGORICAL, ROUNDS = 40, 10, 3
DISTANCES = (counts.psi, counts.jensen_shannon, counts.hellinger, counts.tvd, counts.kolmogorov_smirnov)


def draw(rows: int, seed: int) -> pa.Table:
    """Normal columns, every tenth shifted by 0.2 in the current data (odd seeds), and columns of 30 categories."""
    rng = np.random.default_rng(seed)
    columns = {
        f"n{place}": rng.normal(0.2 * (place % 10 == 0) * (seed % 2), 1, rows) for place in range(NUMERIC)
    }
    names = pa.array([f"category {place}" for place in range(30)])
    columns |= {f"c{place}": names.take(pa.array(rng.integers(0, 30, rows))) for place in range(CATEGORICAL)}
    return pa.table(columns)


def report(bins: dict[str, reference.Bins], table: pa.Table) -> int:
    """Number of columns that drift."""
    level = 0.01
    found = {name: reference.count(frozen, table.column(name)) for name, frozen in bins.items()}
    for name, frozen in bins.items():
        _ = [distance(frozen.counts, found[name]) for distance in DISTANCES]
    compared = [counts.compare(frozen, found[name], level / len(bins)) for name, frozen in bins.items()]
    rejected = counts.holm([one.p for one in compared], level)
    return sum(falls and one.effect >= 0.05 for falls, one in zip(rejected, compared, strict=True))


def floor(table: pa.Table) -> int:
    """One histogram per numeric column, one count per category code: nothing is compared."""
    for place in range(NUMERIC):
        np.histogram(table.column(f"n{place}").to_numpy(), bins=20)
    for place in range(CATEGORICAL):
        codes = table.column(f"c{place}").combine_chunks().dictionary_encode()
        np.bincount(np.asarray((codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes).indices))
    return NUMERIC + CATEGORICAL


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """CPU seconds and what the work returns."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    """Print the ratio of each round."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    trained, current = draw(100_000, 2), draw(rows, 3)
    seconds, document = timed(lambda: len(reference.build(trained, {}, None, {})["features"]))
    print(f"freezing {document} columns of 100,000 rows: {seconds:.2f} s CPU")
    features = reference.build(trained, {}, None, {})["features"]
    bins = {name: reference.bins(one) for name, one in features.items()}
    for _ in range(ROUNDS):
        ours, drifted = timed(lambda: report(bins, current))
        least, _ = timed(lambda: floor(current))
        print(
            f"report {ours:.2f} s ({drifted} columns drift), histograms {least:.2f} s: ratio {ours / least:.2f}"
        )


if __name__ == "__main__":
    main()
