"""Observers: the ranges they tell, and that cuts, order and merging do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate.observers import (
    Histogram,
    MinMaxObserver,
    Observer,
    PercentileObserver,
    Tap,
    make_observer,
)
from onnxq.errors import DataError, UsageError
from onnxq.types import TensorRange

NO_VALUES = np.array([], np.float32)
MASK = float(np.float32(-3.4e38))

PERCENTILES = [75, 99, 99.9, 99.99, 100]
KINDS = [
    pytest.param(MinMaxObserver, id="minmax"),
    pytest.param(PercentileObserver, id="percentile"),
]

numbers = st.floats(width=32, allow_nan=False)  # includes infinities, masks and subnormals
LARGEST = float(np.nextafter(np.float32(1e30), np.float32(0)))  # float32(1e30) lies above 1e30
ordinary = st.floats(-LARGEST, LARGEST, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 60), elements=numbers)
ordinary_arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=ordinary)


def tap(values) -> Tap:
    values = np.asarray(values, np.float32)
    if not values.size:
        return Tap(math.inf, -math.inf, values, 0)
    return Tap(float(values.min()), float(values.max()), values, values.size)


def observed(kind, *batches) -> Observer:
    observer = kind()
    for batch in batches:
        observer.observe(tap(batch))
    return observer


def state(observer: Observer):
    """All that an observer remembers, as a comparable value."""
    if isinstance(observer, MinMaxObserver):
        return observer
    histogram = observer._histogram
    return observer._ends, histogram.exponent, histogram.counts.tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(arrays, st.data())
def test_cut_order_and_merging_do_not_matter(kind, values, data):
    whole = observed(kind, values)
    shuffled = np.array(data.draw(st.permutations(values.tolist())), np.float32)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    batches = np.split(shuffled, cuts)
    assert state(observed(kind, *batches)) == state(whole)

    parts = data.draw(st.permutations([observed(kind, batch) for batch in batches]))
    before = state(parts[-1])
    merged = kind()
    for part in parts:
        merged.merge(part)
    assert state(merged) == state(whole)
    assert merged.range() == whole.range()
    assert state(parts[-1]) == before, "merging changed the other observer"


@settings(deadline=None)
@given(arrays)
def test_min_max_of_the_ordinary_values(values):
    kept = [v for v in values.tolist() if abs(v) <= 1e30]
    finite = len(kept) == len(values)
    lo, hi = (min(kept), max(kept)) if kept else (0.0, 0.0)
    assert observed(MinMaxObserver, values).range() == TensorRange(lo, hi, lo, hi, finite)


@settings(deadline=None)
@given(ordinary_arrays, st.sampled_from(PERCENTILES))
def test_percentiles_are_numpys_within_a_bin(values, percentile):
    told = observed(lambda: PercentileObserver(percentile), values).range()
    assert (told.min, told.max, told.finite) == (values.min(), values.max(), True)
    assert told.min <= told.lo <= told.max
    assert told.min <= told.hi <= told.max
    wide = values.astype(np.float64)
    # A bin is 2^(k+1) / 2^14 wide, with 2^(k-1) <= absmax: at most absmax / 2^12. Both order
    # statistics that NumPy interpolates between are known to within a bin. The rest is rounding.
    width = float(np.abs(wide).max()) * (2**-12 + 1e-12)
    assert abs(told.lo - np.percentile(wide, 100 - percentile)) <= width
    assert abs(told.hi - np.percentile(wide, percentile)) <= width
    if percentile == 100:
        assert (told.lo, told.hi) == (told.min, told.max)


def test_percentiles_of_many_values():
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    observer = observed(PercentileObserver, *np.split(values, 50))
    told = observer.range()
    width = 2 * 8 / Histogram.BINS  # all values lie within (-8, 8) and some beyond 4
    assert 4 < np.abs(values).max() < 8
    assert abs(told.lo - np.percentile(values, 0.01)) <= width
    assert abs(told.hi - np.percentile(values, 99.99)) <= width
    assert told.min < told.lo < told.hi < told.max


def test_an_outlier_is_left_out_of_the_range_and_kept_in_the_ends():
    values = np.append(np.linspace(-1, 1, 100_000), 1000.0)
    told = observed(PercentileObserver, values).range()
    assert told.max == 1000.0
    # One bin of [-1024, 1024).
    assert abs(told.hi - 1.0) <= 2048 / Histogram.BINS
    assert observed(MinMaxObserver, values).range().hi == 1000.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.25, 6.0, 1e-45, -1e-40, 1e30])
def test_a_constant_is_its_own_range(kind, value):
    constant = float(np.float32(value))
    told = observed(kind, np.full(1000, value), [value]).range()
    if abs(constant) > 1e30:  # float32 rounds 1e30 up
        assert told == TensorRange(0.0, 0.0, 0.0, 0.0, finite=False)
    else:
        assert told == TensorRange(constant, constant, constant, constant)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [-math.inf, math.inf, MASK, -MASK, -1e38])
def test_masks_are_left_out_and_noted(kind, mask):
    told = observed(kind, [mask, -2.0, 0.5, 3.0]).range()
    assert (told.min, told.max, told.finite) == (-2.0, 3.0, False)
    assert told.lo >= -2.0
    assert told.hi <= 3.0
    assert told.lo < 0 < told.hi
    only = observed(kind, [mask, mask]).range()
    assert only == TensorRange(0.0, 0.0, 0.0, 0.0, finite=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_at_one_end_without_a_sample_keeps_the_other_end(kind):
    observer = kind()
    observer.observe(Tap(-math.inf, 4.0, NO_VALUES, 10))
    observer.observe(Tap(-1.0, 2.0, NO_VALUES, 10))
    assert observer.range() == TensorRange(-1.0, 4.0, -1.0, 4.0, finite=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_tensor_count_beyond_its_sample(kind):
    observer = kind()
    observer.observe(Tap(-9.0, 7.0, np.array([-1.0, 0.0, 1.0], np.float32), 1000))
    told = observer.range()
    assert (told.min, told.max, told.finite) == (-9.0, 7.0, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "bad",
    [
        Tap(math.nan, 1.0, NO_VALUES, 5),
        Tap(0.0, math.nan, NO_VALUES, 5),
        Tap(0.0, 1.0, np.array([0.5, math.nan], np.float32), 5),
    ],
)
def test_nan_is_refused(kind, bad):
    with pytest.raises(DataError, match="NaN"):
        kind().observe(bad)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_observed_is_an_error(kind):
    with pytest.raises(DataError, match="no value"):
        kind().range()
    with pytest.raises(DataError, match="no value"):
        observed(kind, []).range()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_changes_nothing(kind):
    observer = observed(kind, [1.0, 2.0], [])
    # What a reduction tells of an empty tensor is up to the runtime.
    observer.observe(Tap(math.nan, 7.0, np.array([7.0], np.float32), seen=0))
    assert state(observer) == state(observed(kind, [1.0, 2.0]))


@settings(deadline=None)
@given(ordinary_arrays)
@example(np.array([0.0, 1e-40, -1e-45], np.float32))
def test_a_histogram_is_as_fine_as_its_values_allow(values):
    histogram = Histogram()
    for value in values.astype(np.float64):
        histogram.add(np.array([value]))
    absmax = float(np.abs(values).max())
    assert absmax < 2.0**histogram.exponent
    if absmax > 0:
        assert absmax >= 2.0 ** (histogram.exponent - 1)
    assert histogram.total == len(values)
    # Counted directly at the final width.
    bins = [math.floor(v / histogram.width) + Histogram.BINS // 2 for v in values.tolist()]
    assert histogram.counts.tolist() == np.bincount(bins, minlength=Histogram.BINS).tolist()


def test_the_values_of_a_bin_are_taken_as_evenly_spaced():
    histogram = Histogram()
    histogram.add(np.array([8000.0, 8001.0]))
    assert (histogram.exponent, histogram.width) == (13, 1.0)
    histogram.add(np.array([-8000.5, -8000.25, -8000.75, -8000.0001]))  # all in [-8001, -8000)
    ranks = [histogram.percentile(percent) for percent in (0, 20, 50, 60, 80, 100)]
    # Ranks 0 to 3 are eighths of the bin; 50 % is rank 2.5.
    assert ranks == [-8000.875, -8000.625, -8000.25, -8000.125, 8000.5, 8001.5]


def test_counts_are_exact_integers():
    observer = observed(PercentileObserver, np.zeros(5), [1e-30, 1e30 / 2])
    counts = observer._histogram.counts
    assert counts.dtype == np.int64
    assert counts[Histogram.BINS // 2] == 6


def test_other_percentiles_cannot_be_merged():
    with pytest.raises(ValueError, match="99"):
        PercentileObserver(99).merge(PercentileObserver(99.9))


@pytest.mark.parametrize("percentile", [50, 0.01, 100.1, -1, math.nan])
def test_percentiles_out_of_bounds(percentile):
    with pytest.raises(UsageError, match="percentile"):
        PercentileObserver(percentile)


def test_observers_by_name():
    assert isinstance(make_observer("minmax"), MinMaxObserver)
    assert not make_observer("minmax").wants_values
    percentile = make_observer("percentile", percentile=99.5)
    assert isinstance(percentile, PercentileObserver)
    assert percentile.percentile == 99.5
    assert percentile.wants_values


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"'percentle'.*minmax, percentile.*mean 'percentile'"):
        make_observer("percentle")
    with pytest.raises(UsageError, match=r"known are minmax, percentile$"):
        make_observer("xyz")


@pytest.mark.parametrize("name", ["minmax", "percentile"])
def test_an_unknown_option_is_refused(name):
    with pytest.raises(UsageError, match="'percent'"):
        make_observer(name, percent=99)
