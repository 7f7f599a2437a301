"""Distances and tests of two count vectors on the same bins: everything that is ever said about drift.

`reference.count` makes the counts; `judge` asks `compare` about one column of one window and `holm` about all of them.
All functions are pure; random draws are seeded by the counts, so a verdict can be repeated.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, ndtr

from mlspec.sensitivity import DECISION_BINS
from mlspec_runtime.monitor.reference import Bins, Counts, Floats

LEAST_EXPECTED = 5.0
"""Below this expected count the chi-square distribution is not trusted (Cochran 1954)."""
DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """One column of one window against its reference."""

    effect: float
    """Total variation distance on the decision bins, 0 to 1."""
    p: float
    """Probability of such counts if nothing had changed."""


def shares(counts: npt.NDArray[Any]) -> Floats:
    """Counts as shares of their sum; zeros when there is nothing."""
    total = counts.sum()
    return counts / total if total else np.zeros(len(counts))


def tvd(reference: Counts, current: Counts) -> float:
    """Total variation distance: half the L1 distance of the shares, 0 to 1."""
    return float(np.abs(shares(reference) - shares(current)).sum() / 2)


def psi(reference: Counts, current: Counts) -> float:
    """Population stability index; half a row is added to each bin so that an empty one does not make it infinite."""
    p, q = (shares(counts + 0.5) for counts in (reference, current))
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(reference: Counts, current: Counts) -> float:
    """Jensen-Shannon distance (the root of the divergence) to base 2, 0 to 1."""
    p, q = shares(reference), shares(current)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(one > 0, one * np.log2(one / middle), 0.0).sum() for one in (p, q)]
    return float(np.sqrt(max(0.0, sum(parts) / 2)))


def hellinger(reference: Counts, current: Counts) -> float:
    """Hellinger distance, 0 to 1."""
    p, q = shares(reference), shares(current)
    return float(np.sqrt(np.square(np.sqrt(p) - np.sqrt(q)).sum() / 2))


def kolmogorov_smirnov(reference: Counts, current: Counts) -> float:
    """Largest difference of the cumulative shares, at bin edges: a lower bound of the exact statistic."""
    return float(np.abs(np.cumsum(shares(reference)) - np.cumsum(shares(current))).max(initial=0.0))


def chi_square(reference: Counts, current: Counts, level: float = 0.0) -> float:
    """p-value of Pearson's two-sample test: the reference is a sample too, so its size counts.

    Where an expected count of the smaller sample is below 5, rows are dealt anew between the two samples (their sum
    kept, as in Fisher's test) as often as `level` needs.
    """
    pooled = reference + current
    filled = pooled > 0
    reference, current, pooled = reference[filled], current[filled], pooled[filled]
    rows, others = int(current.sum()), int(reference.sum())
    if len(pooled) < 2 or not rows or not others:
        return 1.0
    expected = (pooled * (rows / (rows + others))).astype(np.float64)
    scale = 1 + rows / others
    statistic = float((np.square(current - expected) / expected).sum() * scale)
    if expected.min() * min(1.0, others / rows) >= LEAST_EXPECTED:
        return float(chdtrc(len(pooled) - 1, statistic))
    return _dealt(pooled, rows, expected, scale, statistic, level)


def _dealt(
    pooled: Counts, rows: int, expected: Floats, scale: float, statistic: float, level: float
) -> float:
    """Monte Carlo p-value with the observed table counted in, so that it is never zero (Phipson and Smyth 2010)."""
    rng = np.random.default_rng(zlib.crc32(pooled.tobytes()) ^ rows)
    wanted = DRAWS if level <= 0 else min(200_000, max(DRAWS, int(20 / level)))
    hits = draws = 0
    for size in (1_000, wanted):
        if pooled.sum() < 10**9:
            tables = rng.multivariate_hypergeometric(pooled, rows, size=size, method="marginals")
        else:
            tables = rng.multinomial(rows, pooled / pooled.sum(), size=size)
        statistics = (np.square(tables - expected) / expected).sum(axis=1) * scale
        hits += int((statistics >= statistic * (1 - 1e-12)).sum())
        draws += size
        if hits > 20:
            break
    return (hits + 1) / (draws + 1)


def rank(reference: Counts, current: Counts) -> float:
    """p-value of the Wilcoxon-Mann-Whitney test on ordered bins, with the variance of ties: sees shifts of location."""
    pooled = (reference + current).astype(np.float64)
    rows, others = float(current.sum()), float(reference.sum())
    total = rows + others
    if not rows or not others or total < 3:
        return 1.0
    ranks = np.cumsum(pooled) - (pooled - 1) / 2
    distance = float((current * ranks).sum()) - rows * (total + 1) / 2
    ties = float((pooled**3 - pooled).sum()) / (total * (total - 1))
    variance = rows * others / 12 * (total + 1 - ties)
    return float(2 * ndtr(-abs(distance) / np.sqrt(variance))) if variance > 0 else 1.0


def compare(frozen: Bins, current: Counts, level: float = 0.0) -> Comparison:
    """One column of one window: effect on the decision bins, and the smaller of two p-values, doubled.

    The chi-square test sees any change (also of null and unseen), the rank test a small shift of location. `level` is
    the smallest p-value that matters; it bounds the work for sparse counts.
    """
    groups = decision_groups(frozen)
    before, now = _merge(frozen.counts, groups), _merge(current, groups)
    p = chi_square(before, now, level)
    if frozen.ordered > 1:
        ordered = slice(0, frozen.ordered)
        p = min(1.0, 2 * min(p, rank(frozen.counts[ordered], current[ordered])))
    return Comparison(tvd(before, now), p)


def decision_groups(frozen: Bins) -> npt.NDArray[np.intp]:
    """Decision bin of each bin: neighbours of a numeric column are merged until a tenth of the reference is in each.

    Fewer bins are quieter and see shifts better; chosen on the reference alone, so the test stays valid.
    """
    size = len(frozen.counts)
    if frozen.kind != "numeric":
        return np.arange(size)
    total = frozen.counts[: frozen.ordered].sum()
    if not total:
        return np.append(np.zeros(size - 1, dtype=np.intp), 1)
    before = np.cumsum(frozen.counts[: frozen.ordered]) - frozen.counts[: frozen.ordered]
    tenth = np.floor(before / total * DECISION_BINS + 1e-6).astype(np.intp)
    _, places = np.unique(tenth, return_inverse=True)
    return np.append(places, places[-1] + 1)


def _merge(counts: Counts, groups: npt.NDArray[np.intp]) -> Counts:
    return np.bincount(groups, weights=counts).astype(np.int64)


def holm(values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses fall so that any false rejection among all has at most probability `level` (Holm 1979)."""
    rejected = [False] * len(values)
    for step, place in enumerate(sorted(range(len(values)), key=lambda one: values[one])):
        if values[place] > level / (len(values) - step):
            break
        rejected[place] = True
    return rejected
