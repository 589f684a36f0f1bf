"""Observers: the ranges they tell, and that cuts, order and merging do not matter."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxq.calibrate.choose import entropy_ends, mse_ends, percentile_ends, sigma_ends, trimmed_ends
from onnxq.calibrate.histogram import Histogram
from onnxq.calibrate.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    PercentileObserver,
    SigmaObserver,
    Stratum,
    Tap,
    TrimmedObserver,
)
from onnxq.errors import UsageError
from onnxq.types import Grid

GRID = Grid(8)
OBSERVERS = {
    "minmax": MinMaxObserver,
    "histogram": HistogramObserver,
    "percentile": lambda: PercentileObserver(95),
    "entropy": EntropyObserver,
    "mse": MseObserver,
    "sigma": lambda: SigmaObserver(2),
    "trimmed": TrimmedObserver,
    "moving-average": lambda: MovingAverageObserver(momentum=0.7, warmup=3),
}
MERGEABLE = pytest.mark.parametrize("kind", OBSERVERS)


def tap(samples, first: int = 0, stream: str = "data", numbers: tuple[int, ...] = ()) -> Tap:
    """What one run shows of some samples, each a list of values."""
    rows = [np.asarray(sample, np.float32) for sample in samples]
    return Tap(
        stream,
        first,
        np.array([row.min() for row in rows]),
        np.array([row.max() for row in rows]),
        (Stratum(np.concatenate(rows)),),
        numbers,
    )


def observed(kind: str, *taps: Tap):
    observer = OBSERVERS[kind]()
    for one in taps:
        observer.observe(one)
    return observer


def state(value):
    """All that an observer remembers, as a comparable value that tells -0.0 from 0.0."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: state(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [state(entry) for entry in value]
    if hasattr(value, "__dict__"):
        return type(value).__name__, state(vars(value))
    return (type(value).__name__, repr(value))


# ---------------------------------------------------------------- cuts, order, merging

values = st.one_of(
    st.floats(-100, 100, width=32), st.sampled_from([0.0, -0.0, 1e-40, -1e-20, 6.0, 1e29, -1e29])
)
samples = st.lists(st.lists(values, min_size=1, max_size=8), min_size=1, max_size=24)


@MERGEABLE
@settings(deadline=None, max_examples=60)
@given(samples, st.data())
def test_cut_order_and_merging_do_not_matter(kind, rows, data):
    names = data.draw(st.lists(st.sampled_from(["a", "b"]), min_size=len(rows), max_size=len(rows)))
    streams = {
        name: [r for r, n in zip(rows, names, strict=True) if n == name] for name in set(names)
    }
    whole = observed(kind, *[tap(part, 0, name) for name, part in streams.items()])

    taps = []
    for name, part in streams.items():
        cuts = data.draw(st.lists(st.integers(0, len(part)), max_size=6))
        for start, end in pairwise(sorted({0, len(part), *cuts})):
            taps.append(tap(part[start:end], start, name))
    taps = data.draw(st.permutations(taps))
    assert state(observed(kind, *taps)) == state(whole)

    cuts = data.draw(st.lists(st.integers(0, len(taps)), max_size=4))
    observers = [
        observed(kind, *taps[start:end]) for start, end in pairwise(sorted([0, len(taps), *cuts]))
    ]
    while len(observers) > 1:  # any tree
        one = observers.pop(data.draw(st.integers(0, len(observers) - 1)))
        before = copy.deepcopy(state(one))
        observers[data.draw(st.integers(0, len(observers) - 1))].merge(one)
        assert state(one) == before, "merging changed the other observer"
    assert state(observers[0]) == state(whole)
    assert observers[0].range(GRID) == whole.range(GRID)
    lo, hi = whole.range(GRID)
    assert whole.min <= lo <= hi <= whole.max


@MERGEABLE
def test_merged_observers_do_not_share_what_they_see_later(kind):
    one, other = observed(kind), observed(kind, tap([[1.0, 2.0]] * 5))
    one.merge(other)
    before = copy.deepcopy(state(other))
    one.observe(tap([[-3.0, 4.0]] * 3, 5))
    assert state(other) == before


@MERGEABLE
def test_the_state_is_as_large_for_many_samples(kind):
    """Fixed, but for the logarithm of the samples that a moving average takes."""

    def size(value) -> int:
        if isinstance(value, np.ndarray):
            return value.nbytes
        if hasattr(value, "__dict__"):
            return sum(size(entry) for entry in vars(value).values())
        if isinstance(value, dict):
            return sum(size(entry) for entry in value.values()) if value else 8
        return 8 * len(value) if isinstance(value, list) else 8

    few = observed(kind, tap([[1.0, -2.0]]))
    many = observed(kind, tap(np.random.default_rng(0).normal(size=(4095, 3))))
    assert size(many) <= size(few) + 32 * 11  # 4,095 samples are runs of 1, 2, 4, ... 2,048


# ---------------------------------------------------------------- ranges

DATA = np.random.default_rng(1).normal(0.5, 2, size=(40, 500)).astype(np.float32)
ENDS = float(DATA.min()), float(DATA.max())


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, symmetric=True), Grid(4)], ids=str)
def test_ranges_are_those_of_the_functions_that_choose(grid):
    histogram = Histogram()
    histogram.add(DATA.ravel())
    expected = {
        "minmax": ENDS,
        "histogram": ENDS,
        "percentile": percentile_ends(histogram, ENDS, 95),
        "entropy": entropy_ends(histogram, ENDS, grid),
        "mse": mse_ends(histogram, ENDS, grid),
        "sigma": sigma_ends(histogram, ENDS, 2),
        "trimmed": trimmed_ends(histogram, ENDS),
    }
    for kind, ends in expected.items():
        assert observed(kind, tap(DATA)).range(grid) == ends
    assert len(set(expected.values())) >= 4, "each method has its own idea"


def test_the_hundredth_percentile_is_the_exact_end():
    observer = PercentileObserver(100)
    observer.observe(tap(DATA))
    assert observer.range(GRID) == ENDS


def test_ends_count_beyond_the_values_that_were_taken():
    for kind in OBSERVERS:
        observer = observed(
            kind,
            Tap(
                "data",
                0,
                np.full(1, -9, np.float32),
                np.full(1, 7, np.float32),
                (Stratum(np.ones(5, np.float32), 200),),
            ),
        )
        assert (observer.min, observer.max) == (-9.0, 7.0)
        if kind in ("minmax", "histogram"):
            assert observer.range(GRID) == (-9.0, 7.0)


def test_a_weight_counts():
    light, heavy = HistogramObserver(), HistogramObserver()
    row = np.array([-1, 0, 2.5], np.float32)
    ends = row.min(keepdims=True), row.max(keepdims=True)
    light.observe(Tap("data", 0, *ends, (Stratum(np.tile(row, 6)),)))
    heavy.observe(Tap("data", 0, *ends, (Stratum(row, 5), Stratum(row))))
    assert state(light) == state(heavy)


@MERGEABLE
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.25, 6.0, 1e-45, -1e-40, 1e-30, 9e29])
@pytest.mark.parametrize("count", [1, 30])
def test_a_constant_is_its_own_range(kind, value, count):
    constant = float(np.float32(value))
    observer = observed(kind, tap([[constant] * 100] * count))
    assert observer.range(GRID) == (constant, constant)


# ---------------------------------------------------------------- moving average


def loop_average(ends: list[float], momentum: float, warmup: int) -> float:
    """The plain mean of the first samples, then one step of the average for every other."""
    average = sum(ends[:warmup]) / len(ends[:warmup])
    for end in ends[warmup:]:
        average = momentum * average + (1 - momentum) * end
    return average


@settings(deadline=None)
@given(
    st.lists(st.tuples(values, values), min_size=1, max_size=70),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 12),
)
@example([(0.0, 1.0)] * 3, 0.0, 8)
def test_a_moving_average_is_that_of_a_loop(pairs, momentum, warmup):
    pairs = [sorted(float(np.float32(value)) for value in pair) for pair in pairs]
    observer = MovingAverageObserver(momentum, warmup)
    observer.observe(tap(pairs))
    largest = max(abs(end) for pair in pairs for end in pair)
    # 70 sums of float64, whichever way they are bracketed
    near = {"rel": 1e-12, "abs": 1e-13 * largest}
    lo, hi = observer.range(GRID)
    assert lo == pytest.approx(loop_average([p[0] for p in pairs], momentum, warmup), **near)
    assert hi == pytest.approx(loop_average([p[1] for p in pairs], momentum, warmup), **near)


ROWS = np.sort(np.random.default_rng(2).normal(size=(100, 2)).astype(np.float32) * 3, axis=1)


def averages(rows, momentum: float = 0.7, warmup: int = 3) -> tuple[float, float]:
    lows, highs = (loop_average([float(v) for v in column], momentum, warmup) for column in rows.T)
    return lows, highs


def test_streams_count_as_their_samples_do():
    observer = observed("moving-average", tap(ROWS[60:], 0, "b"), tap(ROWS[:60], 0, "a"))
    a, b = averages(ROWS[:60]), averages(ROWS[60:])
    expected = [0.6 * x + 0.4 * y for x, y in zip(a, b, strict=True)]
    assert observer.range(GRID) == pytest.approx(expected, rel=1e-12)  # sums of float64


def test_a_body_and_a_tail_that_two_observers_saw():
    whole = observed("moving-average", tap(ROWS))
    body, tail = (
        observed("moving-average", tap(ROWS[:90])),
        observed("moving-average", tap(ROWS[90:], 90)),
    )
    before = tail.range(GRID)
    steps = 0.3 * 0.7 ** np.arange(9, -1, -1)  # no start to keep: weighed by what was seen
    expected = [float((steps * column).sum() / steps.sum()) for column in ROWS[90:].T]
    assert before == pytest.approx(expected, rel=1e-6)  # float32 sums
    for one, other in ((body, tail), (tail, body)):
        merged = copy.deepcopy(one)
        merged.merge(other)
        assert state(merged) == state(whole)
        assert merged.range(GRID) == whole.range(GRID)
    assert whole.range(GRID) == pytest.approx(averages(ROWS), rel=1e-12)


def test_samples_that_are_missing_are_left_out():
    kept = [n for n in range(40) if n not in (7, 8, 9, 20, 31)]
    one_by_one = observed("moving-average", *[tap(ROWS[n : n + 1], n) for n in kept[::-1]])
    numbered = observed("moving-average", tap(ROWS[kept], 0, numbers=tuple(kept)))
    assert state(numbered) == state(one_by_one)
    assert one_by_one.range(GRID) == pytest.approx(averages(ROWS[kept]), rel=1e-12)


def test_a_moving_average_stays_within_the_ends():
    lo, hi = observed("moving-average", tap([[0.1, 0.7]] * 50)).range(GRID)
    assert (lo, hi) == (float(np.float32(0.1)), float(np.float32(0.7)))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PercentileObserver(99), PercentileObserver(99.9)),
        (SigmaObserver(3), SigmaObserver(4)),
        (MovingAverageObserver(0.9), MovingAverageObserver(0.95)),
        (MovingAverageObserver(0.9, warmup=4), MovingAverageObserver(0.9, warmup=8)),
    ],
)
def test_observers_of_other_options_cannot_be_merged(one, other):
    other.observe(tap([[1.0, 2.0]]))
    before = copy.deepcopy(state(one))
    with pytest.raises(ValueError, match="cannot merge"):
        one.merge(other)
    assert state(one) == before


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (PercentileObserver, [50, 0.01, 100.1, -1, math.nan], "percentile"),
        (SigmaObserver, [0, -1, math.inf, math.nan], "sigmas"),
        (MovingAverageObserver, [1, 1.5, -0.1, math.nan], "momentum"),
        (lambda n: MovingAverageObserver(warmup=n), [0, -3], "warm-up"),
    ],
)
def test_options_out_of_bounds(make, bad, message):
    for value in bad:
        with pytest.raises(UsageError, match=message):
            make(value)


def test_only_ends_are_wanted_where_they_do():
    wants = {kind: OBSERVERS[kind]().wants_values for kind in OBSERVERS}
    assert [kind for kind, wanted in wants.items() if not wanted] == ["minmax", "moving-average"]
