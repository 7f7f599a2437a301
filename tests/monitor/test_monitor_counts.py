"""Counts on frozen bins and everything computed from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from mlspec_runtime.monitor import counts, reference

numbers = st.lists(st.one_of(st.none(), st.floats(allow_nan=True, width=32), st.integers(-5, 5)), max_size=60)
texts = st.lists(st.one_of(st.none(), st.text(max_size=2), st.sampled_from("abc")), max_size=60)


def bins_of(column: pa.Array) -> reference.Bins:
    """The frozen bins of one column."""
    document = reference.build(pa.table({"x": column}), {}, None, {})
    return reference.bins(document["features"]["x"])


@given(training=numbers, one=numbers, two=numbers)
@settings(max_examples=150, deadline=None)
def test_counts_of_numbers_add_up(training, one, two):
    """Late rows and merged windows rest on this law: count(a + b) = count(a) + count(b), and no row is lost."""
    frozen = bins_of(pa.array(training, pa.float64()))
    first, second = (pa.array(part, pa.float64()) for part in (one, two))
    both = reference.count(frozen, pa.chunked_array([first, second]))
    assert (both == reference.count(frozen, first) + reference.count(frozen, second)).all()
    assert both.sum() == len(one) + len(two)
    assert both[-1] == sum(value is None or value != value for value in one + two)


@given(training=texts, one=texts, two=texts)
@settings(max_examples=150, deadline=None)
def test_counts_of_categories_add_up(training, one, two):
    """The same law for categories, with null and unseen in their own bins."""
    frozen = bins_of(pa.array(training, pa.string()))
    first, second = (pa.array(part, pa.string()) for part in (one, two))
    both = reference.count(frozen, pa.chunked_array([first, second]))
    assert (both == reference.count(frozen, first) + reference.count(frozen, second)).all()
    assert both.sum() == len(one) + len(two)
    unseen = sum(value is not None and value not in training for value in one + two)
    assert frozen.unseen is not None
    assert both[frozen.unseen] == unseen


@given(training=numbers)
@settings(max_examples=100, deadline=None)
def test_the_reference_counts_itself(training):
    """Frozen counts are those of the same bins: otherwise every quiet window would drift."""
    column = pa.array(training, pa.float64())
    frozen = bins_of(column)
    assert (reference.count(frozen, column) == frozen.counts).all()


@pytest.mark.parametrize("decimals", [0, 1, 2, 9])
def test_single_precision_requests_fall_into_the_same_bins(decimals):
    """A graph may log 32-bit floats of values trained in 64 bits; rounding must not look like drift."""
    values = np.round(np.random.default_rng(0).normal(40, 15, 5000), decimals)
    frozen = bins_of(pa.array(values))
    again = reference.count(frozen, pa.array(values.astype(np.float32)))
    assert np.abs(again - frozen.counts).max() <= (1 if decimals == 9 else 0)


def test_columns_of_any_type_are_counted_and_null_only_ones_too():
    """One odd column must not end the report of the others (Evidently #1480)."""
    rows = 40
    table = pa.table(
        {
            "empty": pa.nulls(rows),
            "nan": pa.array([float("nan")] * rows),
            "flag": pa.array([True, False] * 20),
            "when": pa.array(range(rows), pa.timestamp("us", "UTC")),
            "day": pa.array(range(rows), pa.date32()),
            "money": pa.array([1] * rows).cast(pa.decimal128(21, 2)),
            "word": pa.array(["x", None] * 20).dictionary_encode(),
            "list": pa.array([[1]] * rows),
            "infinite": pa.array([float("inf"), -float("inf")] * 20),
        }
    )
    document = reference.build(table, {"probability": np.zeros((rows, 3))}, None, {"auc": float("nan")})
    assert set(document["features"]) == set(table.column_names) - {"list"}
    assert document["predictions"] == {}
    assert document["metrics"] == {}
    for name, one in document["features"].items():
        frozen = reference.bins(one)
        assert (reference.count(frozen, table.column(name)) == frozen.counts).all(), name
        for odd in (
            pa.nulls(3),
            pa.array(["1.5", "no", None]),
            pa.array([[1], [2], None]),
            pa.array([], pa.int8()),
        ):
            found = reference.count(frozen, odd)
            assert found.sum() == len(odd), (name, odd.type)
            assert 0 <= counts.compare(frozen, found).p <= 1


def test_numbers_sent_as_text_are_numbers_and_other_text_is_null():
    """A client that sends the wrong type shows up as a rise of null, not as a crash."""
    frozen = bins_of(pa.array(np.arange(100.0)))
    good = reference.count(frozen, pa.array(["1", " 2.5 ", "-3e1"]))
    assert good[-1] == 0
    assert reference.count(frozen, pa.array(["", "12 km", "NaN"]))[-1] == 3


def test_frequent_categories_have_bins_the_rest_is_other_and_new_ones_are_unseen():
    """High cardinality must not blow up the reference, and a new carrier must not hide in `other`."""
    training = pa.array([f"c{n % 80}" for n in range(8000)] + ["top"] * 500)
    frozen = bins_of(training)
    assert len(frozen.counts) == reference.CATEGORIES + 3
    assert frozen.values[0] == "top"
    found = reference.count(frozen, pa.array(["top", "c79", "brand new", None]))
    assert found[0] == 1
    assert found[-3:].tolist() == [1, 1, 1]


vectors = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 400), min_size=size, max_size=size).filter(any)] * 2)
)


@given(pair=vectors)
@settings(max_examples=200, deadline=None)
def test_distances_equal_scipy(pair):
    """The distances are the textbook ones, so that figures can be compared with other tools."""
    before, now = (np.array(one) for one in pair)
    p, q = before / before.sum(), now / now.sum()
    assert counts.jensen_shannon(before, now) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)
    assert counts.tvd(before, now) == pytest.approx(np.abs(p - q).sum() / 2)
    assert counts.hellinger(before, now) == pytest.approx(
        np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / np.sqrt(2)
    )
    samples = [np.repeat(np.arange(len(one)), one) for one in (before, now)]
    assert counts.kolmogorov_smirnov(before, now) == pytest.approx(stats.ks_2samp(*samples).statistic)
    smooth, other = (before + 0.5) / (before + 0.5).sum(), (now + 0.5) / (now + 0.5).sum()
    both = stats.entropy(smooth, other) + stats.entropy(other, smooth)
    assert counts.psi(before, now) == pytest.approx(both)


@given(pair=vectors)
@settings(max_examples=200, deadline=None)
def test_rank_test_equals_scipy_on_the_raw_rows(pair):
    """The ordered test from counts is the Mann-Whitney test of the rows that were counted."""
    before, now = (np.array(one) for one in pair)
    samples = [np.repeat(np.arange(len(one)), one) for one in (before, now)]
    if len(np.unique(np.concatenate(samples))) < 2 or before.sum() + now.sum() < 3:
        return
    expected = stats.mannwhitneyu(*samples, use_continuity=False, method="asymptotic").pvalue
    assert counts.rank(before, now) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(pair=vectors)
@settings(max_examples=200, deadline=None)
def test_chi_square_equals_scipy_where_counts_suffice(pair):
    """With expected counts of 5 and more it is Pearson's test of the 2 x k table: the reference counts as a sample."""
    before, now = (np.array(one) + 20 for one in pair)
    expected = stats.contingency.expected_freq(np.array([before, now]))
    if expected.min() < counts.LEAST_EXPECTED:
        return
    found = stats.chi2_contingency(np.array([before, now]), correction=False).pvalue
    assert counts.chi_square(before, now) == pytest.approx(found, rel=1e-9, abs=1e-300)


def test_sparse_counts_get_the_exact_answer():
    """Below 5 the chi-square curve is wrong; the redealt tables agree with Fisher's exact test."""
    for before, now in (([990, 10], [18, 2]), ([40, 4], [9, 6]), ([500, 2], [20, 0])):
        exact = stats.fisher_exact([before, now]).pvalue
        assert counts.chi_square(np.array(before), np.array(now)) == pytest.approx(exact, abs=0.01)


def test_holm_equals_the_definition():
    """Step-down: the smallest p-value against level/m, the next against level/(m-1), stop at the first failure."""
    assert counts.holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert counts.holm([0.02, 0.02], 0.05) == [True, True]
    assert counts.holm([], 0.05) == []


def test_all_null_is_drift():
    """90 % of a column turned NULL has PSI .017 in Evidently, because NaN is dropped; here null is a bin."""
    rng = np.random.default_rng(0)
    frozen = bins_of(pa.array(rng.normal(size=5000)))
    broken = pa.array(np.where(rng.random(1000) < 0.9, np.nan, rng.normal(size=1000)))
    found = counts.compare(frozen, reference.count(frozen, broken))
    assert found.p < 1e-100
    assert found.effect == pytest.approx(0.9, abs=0.05)
