"""The histogram: what it counts where, and that cuts, order and merging do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate.histogram import Bins, Histogram

LARGEST = float(np.nextafter(np.float32(1e30), np.float32(0)))  # float32(1e30) lies above 1e30
# What a tensor may hold: subnormals, both zeros, everything up to masks.
values_of_any_size = st.one_of(
    st.floats(-LARGEST, LARGEST, width=32),
    st.floats(-10, 10, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-41, -1e-41, 2e-41, 1e-38, -1e-38, 1e-33, 1e-34]),
)
arrays = hnp.arrays(np.float32, st.integers(1, 200), elements=values_of_any_size)

# A float32 of magnitude below 2^13 units of 2^-149 has no bit in what names its bin.
TOLD_FROM_ZERO = 2.0**-136


def counted(*parts, weight: int = 1) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32), weight)
    return histogram


def state(histogram: Histogram):
    """All that a histogram remembers, as a comparable value."""
    return (
        histogram.counts.tobytes(),
        histogram.small.tolist(),
        histogram.zeros,
        histogram.top,
    )


def by_searching(values: np.ndarray, bins: Bins) -> list[int]:
    """Counts of the bins, found by searching the edges for every value."""
    wide = values.astype(np.float64)
    found = []
    for left, right in zip(bins.left.tolist(), bins.right.tolist(), strict=True):
        if left == right:
            inside = np.abs(wide) < TOLD_FROM_ZERO
        elif left >= 0:  # by magnitude, the lower edge belongs to the bin
            inside = (wide >= max(left, TOLD_FROM_ZERO)) & (wide < right)
        else:
            inside = (wide > left) & (wide <= min(right, -TOLD_FROM_ZERO))
        found.append(int(inside.sum()))
    return found


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=20_000),
    "shifted": lambda rng: rng.normal(5, 1, 20_000),
    "negative": lambda rng: -rng.exponential(size=20_000),
    "relu": lambda rng: np.maximum(rng.normal(size=20_000), 0),
    "30 octaves": lambda rng: rng.choice([-1, 1], 20_000) * 2.0 ** rng.uniform(-25, 5, 20_000),
    "subnormal": lambda rng: rng.choice([-1, 1], 20_000) * 2.0 ** rng.uniform(-149, -120, 20_000),
    "huge": lambda rng: rng.normal(0, 1e29, 20_000),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_counts_are_those_of_a_search_in_the_bins_own_edges(kind):
    values = DISTRIBUTIONS[kind](np.random.default_rng(1)).astype(np.float32)
    histogram = counted(values)
    bins = histogram.bins()
    assert bins.count.tolist() == by_searching(values, bins)
    assert bins.count.sum() == histogram.total == len(values)
    assert (bins.count > 0).all()
    assert (bins.left[1:] >= bins.right[:-1]).all(), "ascending, without overlap"


def test_counts_are_those_of_numpys_histogram():
    values = np.random.default_rng(2).uniform(1, 2, 50_000).astype(np.float32)
    bins = counted(values).bins()
    edges = 1 + np.arange(1025) / 1024
    assert bins.left.tolist() == edges[:-1].tolist()  # 50 a bin: none is empty
    assert bins.right.tolist() == edges[1:].tolist()
    assert bins.count.tolist() == np.histogram(values, edges)[0].tolist()


@settings(deadline=None)
@given(arrays)
@example(np.zeros(3, np.float32))
@example(np.array([-0.0, 0.0, 1e-45], np.float32))
@example(np.array([-0.0, -1.0, 0.0], np.float32))
@example(np.array([1e-34, 0.0, -0.0, -1e-34], np.float32))
def test_every_value_lies_in_one_bin_that_is_fine_beside_it(values):
    histogram = counted(values)
    bins = histogram.bins()
    assert bins.count.sum() == histogram.total == len(values)
    assert bins.count.tolist() == by_searching(values, bins)
    # Bins of 2^-10 beside a value, for sixteen octaves; all that is smaller is in one bin.
    far = np.maximum(np.abs(bins.left), np.abs(bins.right))
    width = bins.right - bins.left
    least = far.max() * 2.0**-15
    assert (width <= np.maximum(np.where(far > least, far * 2**-10, least), 2.0**-136)).all()


def test_zeros_are_counted_by_themselves():
    histogram = counted([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 0.0])
    assert histogram.zeros == 5  # the smallest subnormals cannot be told from zero
    assert histogram.small.tolist() == [0, 0]
    assert histogram.counts.sum(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("top", [0.0, 1e-45, 1e-41, 1e-38, 1e-35, 1e-33, 1e-31, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_zeros_stay_zeros_beside_a_largest_value_of_any_size(top, sign):
    """Where the sixteen octaves reach below the smallest float, zero is still no bin of them."""
    bins = counted([0.0, -0.0, 0.0, sign * top, -0.0]).bins()
    at_zero = (bins.left == 0) & (bins.right == 0)
    tells = np.float32(top) >= TOLD_FROM_ZERO
    assert bins.count[at_zero].tolist() == [4 if tells else 5]
    assert bins.count[~at_zero].tolist() == ([1] if tells else [])


def test_an_all_zero_tensor_is_one_bin():
    bins = counted(np.zeros(1000)).bins()
    assert (bins.left.tolist(), bins.right.tolist(), bins.count.tolist()) == ([0], [0], [1000])


def test_values_below_sixteen_octaves_are_small():
    histogram = counted([1.5, 2.0**-15, -(2.0**-15), 0.99 * 2.0**-15, -1e-6, -1e-7, 0.0])
    assert histogram.small.tolist() == [2, 1]
    assert histogram.zeros == 1
    assert histogram.total == 7
    bins = histogram.bins()
    least = 2.0**-15
    assert (-least, 0.0) in zip(bins.left.tolist(), bins.right.tolist(), strict=True)
    assert (0.0, least) in zip(bins.left.tolist(), bins.right.tolist(), strict=True)


def test_an_outlier_does_not_coarsen_the_bins_of_the_others():
    values = np.random.default_rng(3).normal(size=10_000)
    values = values[np.abs(values) > 0.1]
    alone, beside = counted(values).bins(), counted(values, [1000.0]).bins()
    for column in ("left", "right", "count"):
        assert getattr(beside, column)[:-1].tolist() == getattr(alone, column).tolist()


def test_a_weight_counts_values_so_many_times():
    values = np.array([0.5, -3.0, 0.0, -0.0, 1e-9, -1e-9, 0.5], np.float32)
    weighted = counted(values, weight=7)
    assert state(weighted) == state(counted(*[values] * 7))
    assert weighted.total == 7 * len(values)


def test_nothing_is_counted_of_an_empty_array():
    histogram = counted([])
    assert (histogram.total, histogram.bins().count.size) == (0, 0)
    some = counted([1.0, -2.0])
    before = state(some)
    some.add(np.zeros(0, np.float32))
    some.merge(Histogram())
    assert state(some) == before
    histogram.merge(some)
    assert state(histogram) == before


@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, 1e-45, 1e-39, 1.17e-38, LARGEST, -LARGEST])
def test_one_value(value):
    bins = counted([value]).bins()
    assert bins.count.tolist() == [1]
    exact = float(np.float32(value))
    if abs(exact) >= TOLD_FROM_ZERO:
        assert bins.left[0] <= exact <= bins.right[0]
    # a bin is a thousandth of its octave; what cannot be told from zero is 0
    assert math.isclose(bins.center[0], exact, rel_tol=2**-11, abs_tol=TOLD_FROM_ZERO)


@settings(deadline=None)
@given(arrays, st.data())
@example(np.array([0.0, -0.0, 1e-40, 1.0, 1e30 / 2], np.float32), None)
def test_cut_order_and_merging_do_not_matter(values, data):
    whole = state(counted(values))
    if data is None:
        assert state(counted(*[[v] for v in values])) == whole
        assert state(counted(*[[v] for v in values[::-1]])) == whole
        return
    order = np.array(data.draw(st.permutations(range(len(values)))), int)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    parts = np.split(values[order], cuts)
    assert state(counted(*parts)) == whole
    histograms = data.draw(st.permutations([counted(part) for part in parts]))
    while len(histograms) > 1:  # any tree
        one = histograms.pop(data.draw(st.integers(0, len(histograms) - 1)))
        other = histograms[data.draw(st.integers(0, len(histograms) - 1))]
        before = state(one)
        other.merge(one)
        assert state(one) == before, "merging changed the other histogram"
        other.add(np.zeros(0, np.float32))
    assert state(histograms[0]) == whole


def test_merged_histograms_do_not_share_what_they_count_later():
    one, other = counted([1.0]), counted([2.0])
    fresh = Histogram()
    fresh.merge(other)
    one.merge(other)
    before = state(other)
    one.add(np.array([2.0, 1e-9, -2.0], np.float32))
    fresh.add(np.array([2.0, 1e-9, -2.0], np.float32))
    assert state(other) == before


def test_new_histograms_do_not_share_what_they_count_later():
    """All start with the same counts of nothing."""
    one, other, third = Histogram(), Histogram(), Histogram()
    one.merge(other)  # nothing with nothing
    one.add(np.array([2.0, -2.0], np.float32))
    third.merge(one)
    third.merge(one)
    assert (one.total, other.total, third.total, Histogram().total) == (2, 0, 4, 0)
    assert other.bins().count.size == 0


def test_large_arrays_are_counted_in_pieces_of_which_nothing_is_lost():
    values = np.random.default_rng(4).normal(size=2**17 * 2 + 5).astype(np.float32)
    assert state(counted(values)) == state(counted(*np.array_split(values, 7)))
    assert counted(values).total == len(values)


def test_the_size_is_fixed():
    few = counted([1.0])
    many = counted(np.random.default_rng(5).normal(size=300_000), [1e30 / 2, 1e-40], [-1e-20])
    for histogram in (few, many):
        held = sum(v.nbytes for v in vars(histogram).values() if isinstance(v, np.ndarray))
        assert held == 2 * 16 * 1024 * 8 + 16
    assert vars(few).keys() == vars(many).keys()


@pytest.mark.parametrize("per_octave", [1024, 256, 8])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_wider_bins_are_joined_neighbours(kind, per_octave):
    values = DISTRIBUTIONS[kind](np.random.default_rng(1)).astype(np.float32)
    histogram = counted(values)
    bins = histogram.bins(per_octave)
    assert bins.count.sum() == histogram.total
    assert by_searching(values, bins) == bins.count.tolist()


@pytest.mark.parametrize("number", [2048, 64])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_bins_of_equal_width(kind, number):
    values = DISTRIBUTIONS[kind](np.random.default_rng(1)).astype(np.float32)
    reach = float(np.abs(values).max())
    width = 2.0 ** math.ceil(math.log2(reach)) / number
    kept = values[np.abs(values) >= TOLD_FROM_ZERO].astype(np.float64)
    place = np.floor(np.abs(kept) / width).astype(int)
    expected = [np.bincount(place[side], minlength=number + 1) for side in (kept < 0, kept > 0)]
    assert counted(values).evenly(width, number).tolist() == np.array(expected).tolist()
