"""From values to a tap: exact ends and tails, and how near a sample comes to all values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate.observers import (
    EntropyObserver,
    MseObserver,
    PercentileObserver,
    SigmaObserver,
)
from onnxq.calibrate.sample import HUGE, SAMPLE_SIZE, TAIL_RANK, _places, join_taps, take_tap
from onnxq.errors import DataError
from onnxq.types import Grid

MASK = float(np.float32(-3.4e38))


def take(values, rows: int = 1, *, first: int = 0, sample: bool = True, exact: bool = False):
    values = np.asarray(values, np.float32)
    return take_tap("conv1", values, "data", first, rows, sample=sample, exact=exact)


def by_weight(tap) -> dict[int, list[float]]:
    """Values by what they stand for, in ascending order."""
    found: dict[int, list[float]] = {}
    for stratum in tap.strata:
        found.setdefault(stratum.weight, []).extend(stratum.values.tolist())
    return {weight: sorted(values) for weight, values in found.items() if values}


# Activations as they come: rows, channels, places.
def drawn(kind: str, rows: int, channels: int = 64, places: int = 56 * 56, seed: int = 0):
    rng = np.random.default_rng(seed)
    shape = (rows, channels, places)
    normal = rng.normal(size=shape)
    scale = np.ones(channels)
    scale[[3 % channels, 17 % channels]] = 20, 8
    return {
        "normal": lambda: normal,
        "channel outliers": lambda: normal * scale[:, None],
        "channel scales": lambda: normal * rng.lognormal(0, 1, channels)[:, None],
        "relu": lambda: np.maximum(normal, 0),
        "relu6": lambda: np.clip(normal * 3, 0, 6),
        "laplace": lambda: rng.laplace(size=shape),
        "student t": lambda: rng.standard_t(4, shape),
        "gelu": lambda: normal * (1 + np.tanh(0.8 * normal * (2 + 0.36 * normal**2))),
    }[kind]().astype(np.float32)


KINDS = ["normal", "channel outliers", "channel scales", "relu", "relu6", "laplace", "student t",
         "gelu"]  # fmt: skip

# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_ends_are_exact(rows, sample):
    values = drawn("laplace", 3)
    values[1, 5, 7], values[2, 0, 0] = 1000, -2000  # no sample need meet them
    tap, ordinary = take(values, rows, first=40, sample=sample)
    table = values.reshape(rows, -1)
    assert ordinary
    assert (tap.stream, tap.first, list(tap.samples)) == ("data", 40, list(range(40, 40 + rows)))
    assert tap.lows.tolist() == table.min(axis=1).tolist()
    assert tap.highs.tolist() == table.max(axis=1).tolist()
    assert bool(tap.strata) == sample


def test_values_in_any_memory_order():
    values = drawn("normal", 2, 16, 900)
    swapped = np.ascontiguousarray(values.swapaxes(1, 2)).swapaxes(1, 2)
    assert by_weight(take(swapped, 2)[0]) == by_weight(take(values, 2)[0])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_nan_names_the_tensor_and_the_sample(rows, at):
    values = drawn("normal", 3, 2, 10)
    values[at, 1, 4] = math.nan
    number = 7 + (at if rows == 3 else 0)
    with pytest.raises(DataError, match=rf"'conv1' became NaN at sample {number};"):
        take(values, rows, first=7)


@pytest.mark.parametrize("mask", [math.inf, -math.inf, MASK, -MASK, 1.01e30, -1e38])
@pytest.mark.parametrize("exact", [True, False])
def test_masks_are_left_out_and_flagged(mask, exact):
    values = drawn("normal", 2, 2, 10)
    values[0, 0, 3] = values[1, 1, :5] = mask
    tap, ordinary = take(values, 2, exact=exact)
    assert not ordinary
    kept = [row[np.abs(row) <= HUGE] for row in values.reshape(2, -1)]
    assert tap.lows.tolist() == [row.min() for row in kept]
    assert tap.highs.tolist() == [row.max() for row in kept]
    assert by_weight(tap) == {1: sorted(np.concatenate(kept).tolist())}
    assert list(tap.samples) == [0, 1]


def test_values_up_to_the_limit_are_no_masks():
    limit = float(np.nextafter(np.float32(HUGE), np.float32(0)))
    tap, ordinary = take([limit, -limit, 0])
    assert ordinary
    assert (tap.lows[0], tap.highs[0]) == (-limit, limit)


def test_a_large_tensor_with_masks_is_sampled_like_the_rest_of_it():
    values = drawn("normal", 1)
    values[0, :, ::2] = MASK
    rest = np.ascontiguousarray(values[:, :, 1::2])
    assert by_weight(take(values)[0]) == by_weight(take(rest)[0])


def test_nothing_ordinary_is_no_tap():
    assert take(np.full((2, 5), MASK), 2) == (None, False)
    assert take([math.inf, -math.inf]) == (None, False)
    for shape in ((0,), (0, 3), (2, 0)):
        assert take(np.zeros(shape), shape[0] or 1) == (None, True)
    assert take(np.zeros((0, 3)), 0) == (None, True)


def test_a_sample_of_masks_alone_keeps_the_numbers_of_the_others():
    values = drawn("normal", 5, 1, 4)
    values[1:3] = MASK
    tap, _ = take(values, 5, first=10)
    assert list(tap.samples) == [10, 13, 14]
    assert tap.lows.tolist() == values[[0, 3, 4]].min(axis=(1, 2)).tolist()
    last, _ = take(values[1:4], 3, first=11)
    assert (last.first, list(last.samples)) == (13, [13])


def test_a_scalar():
    tap, _ = take(np.float32(3))
    assert (tap.lows.tolist(), tap.highs.tolist(), by_weight(tap)) == ([3], [3], {1: [3]})


# ---------------------------------------------------------------- strata


@pytest.mark.parametrize("exact", [True, False])
def test_small_rows_and_exact_ones_are_taken_whole(exact):
    values = drawn("normal", 3, 8, SAMPLE_SIZE // 8 + exact)
    assert by_weight(take(values, 3, exact=exact)[0]) == {1: sorted(values.ravel().tolist())}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_add_up_to_about_the_number_of_values(kind, rows):
    values = drawn(kind, rows)
    tap, _ = take(values, rows)
    told = sum(stratum.weight * stratum.values.size for stratum in tap.strata)
    # The share beyond a tail's threshold is told by 64 of some 8,000 sampled values, which vary by
    # 8 or so, times two tails: 0.42 % at three standard deviations, and half a piece at the end.
    assert told == pytest.approx(values.size, rel=4.5e-3)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_the_thresholds_are_there_exactly_once(kind, rows):
    values = drawn(kind, rows, seed=3)
    tails, middles = [], []
    for row in values.reshape(rows, -1):
        tap, _ = take(row)
        tail, middle = (stratum.values for stratum in tap.strata)
        low, high = middle.min(), middle.max()
        assert sorted(tail.tolist()) == sorted(row[(row < low) | (row > high)].tolist())
        assert np.isin(middle, row).all()
        tails += tail.tolist()
        middles += middle.tolist()
    found = by_weight(take(values, rows)[0])
    assert found.pop(1, []) == sorted(tails)
    assert list(found.values()) == [sorted(middles)]


def test_rare_values_beyond_a_repeated_one_are_in_the_tail():
    """The sample may hold nothing below its most frequent value; the tensor does."""
    values = np.zeros(400_000, np.float32)
    places, _ = _places(values.size)
    never_drawn = np.setdiff1d(np.arange(values.size), places)[[11, 5000, 77_777]]
    for sign in (1, -1):
        values[never_drawn] = [-1 * sign, -2 * sign, -3 * sign]
        assert by_weight(take(values)[0])[1] == sorted(values[never_drawn].tolist())


def test_a_saturated_end_leaves_the_tail_empty():
    values = np.minimum(np.abs(drawn("normal", 1)) * 9, np.float32(6))
    tail, middle = (stratum.values for stratum in take(values)[0].strata)
    assert middle.max() == 6
    assert tail.max() < 1  # only the lower one
    share = float((middle == 6).mean())
    # 8,192 drawn values tell a share to 0.5 %: three standard deviations are 1.7 %
    assert share == pytest.approx(float((values == 6).mean()), abs=0.017)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_strata_are_the_same_however_rows_are_cut(sizes):
    values = drawn("laplace", sum(sizes), 8, 1500)
    values[0, 2, :700] = MASK
    whole = take(values, len(values))[0]
    taps, start = [], 0
    for size in sizes:
        taps.append(take(values[start : start + size], size, first=start)[0])
        start += size
    joined = join_taps(taps)
    assert by_weight(joined) == by_weight(whole)
    assert joined.lows.tolist() == whole.lows.tolist()
    assert joined.highs.tolist() == whole.highs.tolist()
    assert list(joined.samples) == list(whole.samples)


def test_joining_taps_loses_nothing():
    values = drawn("normal", 6, 4, 4000)
    cut = [take(values[0:1], first=0), take(values[1:4], 3, first=1), take(values[5:6], first=5)]
    taps = [tap for tap, _ in cut]
    joined = join_taps(taps)
    assert (joined.stream, joined.first, list(joined.samples)) == ("data", 0, [0, 1, 2, 3, 5])
    assert joined.lows.tolist() == np.concatenate([tap.lows for tap in taps]).tolist()
    assert joined.highs.tolist() == np.concatenate([tap.highs for tap in taps]).tolist()
    assert len({stratum.weight for stratum in joined.strata}) == len(joined.strata) == 2
    told = [(w, v) for tap in taps for w, values in by_weight(tap).items() for v in values]
    assert sorted((w, v) for w, vs in by_weight(joined).items() for v in vs) == sorted(told)


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    "shape", [(128, 768), (128, 3072), (197, 768), (12, 128, 128), (64, 112, 112), (2048, 7, 7),
              (56, 56, 24), (1000, 1000), (8193,), (9, 911)],
)  # fmt: skip
def test_places_miss_no_channel(shape):
    size = math.prod(shape)
    places, piece = _places(size)
    assert SAMPLE_SIZE / 2 <= len(places) <= SAMPLE_SIZE
    assert len(places) * piece == pytest.approx(size, abs=piece)  # the last piece may be short
    assert (np.diff(places) > 0).all()
    assert (places // piece == np.arange(len(places))).all(), "one of every piece"
    for axis, found in enumerate(np.unravel_index(places, shape)):
        counts = np.bincount(found, minlength=shape[axis])
        expected = len(places) / shape[axis]
        if expected >= 6:
            assert counts.min() >= 1
            # counts of random places would vary by the root of their mean; allow four of these
            assert np.abs(counts - expected).max() <= 4 * math.sqrt(expected)


# ---------------------------------------------------------------- how near


def squared_error(values, lo: float, hi: float) -> float:
    lo, hi = min(lo, 0), max(hi, 0)
    step = (hi - lo) / 255
    zero = round(-lo / step)
    quantized = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    return float(((values - quantized) ** 2).sum(dtype=float))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_of_a_sample_are_those_of_all_values(kind, rows):
    values = drawn(kind, rows, seed=5)  # 0.2 and 0.8 million
    some, everything = take(values, rows)[0], take(values, rows, exact=True)[0]
    grid = Grid(8)
    near, errors = {}, []
    for method in (PercentileObserver, MseObserver, EntropyObserver, SigmaObserver):
        found = []
        for tap in (some, everything):
            observer = method()
            observer.observe(tap)
            found.append(observer.range(grid))
            if method is MseObserver:
                errors.append(squared_error(values, *found[-1]))
        (lo, hi), (exact_lo, exact_hi) = found
        near[method] = max(abs(lo - exact_lo), abs(hi - exact_hi)) / (exact_hi - exact_lo)
    assert near[PercentileObserver] <= 0.001  # its two values lie in the tails
    # The minimum is flat: one percent is what the range may cost, and it may be reached at 1.5 %
    # of the range from where all values have it.
    assert errors[0] <= 1.01 * errors[1]
    assert near[MseObserver] <= 0.015
    assert near[EntropyObserver] <= 0.01
    # A deviation of 8,192 drawn values is off by 1 % or so, and a Relu's lower end does not move.
    assert near[SigmaObserver] <= 0.025


def test_the_tail_holds_what_the_default_percentile_leaves_out():
    assert TAIL_RANK / SAMPLE_SIZE >= 10 * (1 - 99.99 / 100)
