"""Ranges chosen from histograms, against references that are written independently.

What a histogram knows of a value is its bin, a thousandth (2^-10) of an octave wide.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from onnxq.calibrate.choose import (
    entropy_ends,
    mse_ends,
    percentile_ends,
    quantization_error,
    sigma_ends,
    trimmed_ends,
)
from onnxq.types import Grid

BIN = 2.0**-10
ASYMMETRIC, SYMMETRIC = Grid(8), Grid(8, symmetric=True)
N = 60_000


def fake_quantized(values: np.ndarray, lo: float, hi: float, grid: Grid) -> np.ndarray:
    """The textbook formulas, with zero on the grid."""
    if grid.symmetric:
        steps = 2 ** (grid.bits - 1) - 1
        scale = max(-lo, hi) / steps
        return np.clip(np.round(values / scale), -steps, steps) * scale
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**grid.bits - 1)
    zero = np.round(-lo / scale)
    return (np.clip(np.round(values / scale) + zero, 0, 2**grid.bits - 1) - zero) * scale


def true_mse(values: np.ndarray, lo: float, hi: float, grid: Grid) -> float:
    wide = values.astype(np.float64)
    return float(np.mean((wide - fake_quantized(wide, lo, hi, grid)) ** 2))


def sqnr(values: np.ndarray, lo: float, hi: float, grid: Grid) -> float:
    return float(10 * np.log10(np.mean(values.astype(float) ** 2) / true_mse(values, lo, hi, grid)))


# ---------------------------------------------------------------- percentile

PERCENTILES = [60, 99, 99.9, 99.99, 99.999]
KINDS = ["normal", "laplace", "exponential", "relu", "negative", "shifted", "mixture", "student t",
         "constant", "few"]  # fmt: skip


@pytest.mark.parametrize("percentile", PERCENTILES)
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_numpys_to_the_width_of_a_bin(drawn, seen, kind, percentile):
    values = drawn(kind)
    histogram, ends = seen(values)
    lo, hi = percentile_ends(histogram, ends, percentile)
    wide = values.astype(np.float64)
    expected = [float(np.percentile(wide, p)) for p in (100 - percentile, percentile)]
    if ends[0] <= 0 <= ends[1]:  # then a range has 0 in it
        expected = [min(expected[0], 0.0), max(expected[1], 0.0)]
    # Each of the two values that NumPy interpolates between is known to a bin. What lies sixteen
    # octaves below the largest value shares one.
    near = {"rel": BIN, "abs": 2.0**-15 * max(-ends[0], ends[1])}
    assert lo == pytest.approx(expected[0], **near)
    assert hi == pytest.approx(expected[1], **near)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32)),
    st.floats(50, 100, exclude_min=True, exclude_max=True),
)
def test_percentiles_of_few_values(seen, values, percentile):
    histogram, ends = seen(values)
    lo, hi = percentile_ends(histogram, ends, percentile)
    assert ends[0] <= lo <= hi <= ends[1]
    wide = values.astype(np.float64)
    expected = [float(np.percentile(wide, p)) for p in (100 - percentile, percentile)]
    if ends[0] <= 0 <= ends[1]:
        expected = [min(expected[0], 0.0), max(expected[1], 0.0)]
    # Between two values far apart, a bin of the larger one; below sixteen octaves, that bin; and
    # nothing below 2^-136 has a bit that tells it from 0.
    near = max(BIN * max(-ends[0], ends[1]), 2.0**-136)
    assert lo == pytest.approx(expected[0], abs=near)
    assert hi == pytest.approx(expected[1], abs=near)


def test_a_range_has_zero_in_it_where_the_ends_have(seen):
    values = np.append(np.full(100_000, 5.0), -1.0)
    assert percentile_ends(*seen(values), 99.9) == (0.0, 5.0)
    assert sigma_ends(*seen(values), 1.0)[0] == 0.0
    assert percentile_ends(*seen(-values), 99.9) == (-5.0, 0.0)
    assert percentile_ends(*seen(np.linspace(5, 6, 1001)), 90)[0] == pytest.approx(5.1, rel=BIN)


# ---------------------------------------------------------------- mean and deviation


@pytest.mark.parametrize("sigmas", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "shifted", "lopsided", "mixture"])
def test_sigma_is_numpys_mean_and_deviation(drawn, seen, kind, sigmas):
    values = drawn(kind)
    histogram, ends = seen(values)
    mean, deviation = values.mean(dtype=float), values.std(dtype=float)
    lo, hi = sigma_ends(histogram, ends, sigmas)
    # the middle of a bin is off by half a bin at most, and both errors cancel over many values
    near = {"abs": BIN / 2 * (abs(mean) + sigmas * deviation)}
    assert lo == pytest.approx(
        min(max(mean - sigmas * deviation, ends[0]), max(0, ends[0])), **near
    )
    assert hi == pytest.approx(
        max(min(mean + sigmas * deviation, ends[1]), min(0, ends[1])), **near
    )


# ---------------------------------------------------------------- without outliers


def near_bins(ends: tuple[float, float]) -> dict[str, float]:
    """An end is that of the bin which holds the outermost value: a thousandth of it."""
    return {"rel": BIN, "abs": 2.0**-15 * max(-ends[0], ends[1])}


@pytest.mark.parametrize("factor", [1.0, 20.0, 1000.0])
@pytest.mark.parametrize("share", [1e-4, 0.02])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "shifted", "lopsided"])
def test_trimmed_ends_are_those_of_scipys_clipped_values(drawn, seen, kind, share, factor):
    values = drawn(kind)
    values[: int(share * values.size)] *= np.float32(factor)
    histogram, ends = seen(values)
    left = stats.sigmaclip(values[values != 0].astype(np.float64), 10, 10).clipped
    expected = left.min(), left.max()
    if ends[0] <= 0 <= ends[1]:  # then a range has 0 in it
        expected = min(expected[0], 0.0), max(expected[1], 0.0)
    lo, hi = trimmed_ends(histogram, ends)
    assert (lo, hi) == pytest.approx(expected, **near_bins(expected))


@pytest.mark.parametrize("share", [0.001, 0.02])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "exponential"])
def test_a_range_without_outliers_is_about_that_of_the_others(drawn, seen, kind, share):
    """A fiftieth at 100 times the size: of one round of 10 deviations most would be left.

    Outliers are small now and then: what is left of them lies within ten deviations of the others,
    of whom the outermost of 60,000 normal values lies at 4.4.
    """
    values = drawn(kind)
    outliers = values[: int(share * values.size)]
    others = values[outliers.size :]
    whole = others.max() - min(others.min(), 0)
    outliers *= np.float32(100)
    lo, hi = trimmed_ends(*seen(values))
    assert 0.5 * whole <= hi - lo <= 2.5 * whole
    assert values.max() - values.min() > 20 * whole


def test_what_is_mostly_zero_keeps_its_other_values(seen):
    """With zeros the deviation would be a tenth of 0.03, and every one an outlier."""
    values = np.zeros(100_000, np.float32)
    values[::1000] = 1.0
    assert trimmed_ends(*seen(values)) == (0.0, 1.0)


# ---------------------------------------------------------------- mean squared error

GRIDS = [ASYMMETRIC, SYMMETRIC, Grid(4), Grid(4, symmetric=True), Grid(16)]


def least_mse(values: np.ndarray, ends: tuple[float, float], grid: Grid) -> float:
    """Fake quantize everything with a dense grid of ranges: first every 6 %, then every 1 %."""
    below, above = max(-ends[0], 0.0), max(ends[1], 0.0)
    part = values[:: max(1, len(values) // 15_000)]
    if grid.symmetric:
        whole = max(below, above)
        first = whole * 2.0 ** -np.arange(0, 8, 1 / 16)
        best = min((true_mse(part, -t, t, grid), t) for t in first)[1]
        near = np.minimum(best * 2.0 ** np.linspace(-1 / 8, 1 / 8, 33), whole)
        return min(true_mse(values, -t, t, grid) for t in near)
    first = 2.0 ** -np.arange(0, 8, 1 / 2)
    pairs = [(a, b) for a in set(below * first) for b in set(above * first)]
    _, below_best, above_best = min((true_mse(part, -a, b, grid), a, b) for a, b in pairs)
    for width, candidates in ((1 / 2, 9), (1 / 16, 7)):
        near = 2.0 ** np.linspace(-width, width, candidates)
        pairs = [
            (a, b)
            for a in set(np.minimum(below_best * near, below))
            for b in set(np.minimum(above_best * near, above))
        ]
        least, below_best, above_best = min((true_mse(values, -a, b, grid), a, b) for a, b in pairs)
    return least


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    "kind",
    ["normal", "laplace", "exponential", "relu", "shifted", "mixture", "lopsided", "student t",
     "softmax", "uniform"],
)  # fmt: skip
def test_the_least_squared_error_is_that_of_brute_force(drawn, seen, kind, grid):
    values = drawn(kind, 20_000 if grid.bits == 16 else N)
    histogram, ends = seen(values)
    lo, hi = mse_ends(histogram, ends, grid)
    assert ends[0] <= lo <= 0 <= hi <= ends[1] or lo == ends[0] > 0
    # 1 %, or 0.04 dB: the error of this one sample as opposed to that of its distribution
    assert true_mse(values, lo, hi, grid) <= 1.01 * least_mse(values, ends, grid)


@pytest.mark.parametrize(
    ("kind", "bits", "optimum"),
    [("normal", 8, 3.92), ("normal", 4, 2.55), ("laplace", 8, 9.89), ("laplace", 4, 5.03)],
)
def test_the_optima_of_banner_et_al(seen, kind, bits, optimum):
    """ACIQ: a standard normal distribution, and a Laplace distribution of b = 1."""
    n = 2_000_000  # spread evenly over the distribution: no noise
    share = (np.arange(n) + 0.5) / n
    values = {"normal": stats.norm, "laplace": stats.laplace}[kind].ppf(share)
    lo, hi = mse_ends(*seen(values), Grid(bits))
    # ACIQ has 2^b levels and no zero among them, this grid 2^b - 1 steps: at 4 bits that is 7 % of
    # the step, which the optimum follows by a third. And a minimum is told to about a percent.
    near = 0.03 if bits == 4 else 0.015
    assert -lo == pytest.approx(optimum, rel=near)
    assert hi == pytest.approx(optimum, rel=near)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(-1000, 1000, width=32)),
    st.sampled_from([*GRIDS, Grid(2), Grid(3, symmetric=True)]),
)
def test_clipping_never_costs_much_more_than_the_whole_range(seen, values, grid):
    histogram, ends = seen(values)
    lo, hi = mse_ends(histogram, ends, grid)
    assert ends[0] <= lo <= hi <= ends[1]
    whole = true_mse(values, *ends, grid) if any(ends) else 0.0
    chosen = true_mse(values, lo, hi, grid) if lo or hi else 0.0
    # 1 / 0.9 is what the errors of the middles of the bins may differ by. A value is half a bin
    # from the middle of its bin, which near a border between levels is an error of half a step.
    reach, step = max(-ends[0], ends[1]), (hi - lo) / grid.steps
    noise = reach * BIN
    assert chosen <= whole / 0.9 + 2 * noise * (step + math.sqrt(whole) + noise) + 1e-12


def test_quantization_error_is_that_of_the_textbook(drawn):
    values = drawn("mixture").astype(np.float64)
    for grid in (*GRIDS, Grid(2)):
        for below, above in ((3.0, 5.0), (0.0, 4.0), (2.0, 0.0)):
            expected = fake_quantized(values, -below, above, grid) - values
            found = quantization_error(values, (below, above), grid)
            np.testing.assert_allclose(found, expected, atol=1e-12)  # float64 rounding
    assert quantization_error(values, (0.0, 0.0), ASYMMETRIC).tolist() == (-values).tolist()


# ---------------------------------------------------------------- outliers


def with_outliers(share: float, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """A normal tensor of a million values, some of them up to so many times its range away."""
    rng = np.random.default_rng(7)
    values = rng.normal(size=1_000_000).astype(np.float32)
    at = rng.choice(len(values), round(share * len(values)), replace=False)
    far = factor * np.abs(values).max() * rng.uniform(0.9, 1, len(at))
    values[at] = far * rng.choice([-1, 1], len(at))
    return values, np.delete(values, at)


@pytest.mark.parametrize(
    ("share", "factor"), [(1e-5, 100), (1e-5, 30), (1e-5, 10), (5e-5, 100), (5e-5, 20)]
)
@pytest.mark.parametrize("grid", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_percentile_and_entropy_keep_the_signal_beside_outliers(seen, share, factor, grid):
    """SQNR of all values but the outliers: those cost more than everything else once clipped."""
    values, others = with_outliers(share, factor)
    histogram, ends = seen(values)
    whole = sqnr(others, *ends, grid)
    ideal = sqnr(others, *mse_ends(*seen(others), grid), grid)
    gained = {
        "percentile": sqnr(others, *percentile_ends(histogram, ends, 99.99), grid) - whole,
        "entropy": sqnr(others, *entropy_ends(histogram, ends, grid), grid) - whole,
    }
    # ten times the range are 20 dB, of which entropy may leave three: its bins and their window
    # are parts of the whole range, and its thresholds end at an eighth of that
    assert gained["percentile"] >= ideal - whole - 1
    assert gained["entropy"] >= 15


@pytest.mark.parametrize("factor", [30, 100, 1000])
@pytest.mark.parametrize("grid", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_squared_error_keeps_the_signal_beside_rare_outliers(seen, factor, grid):
    """One in a hundred thousand values counts as if it were four times as large as the others."""
    values, others = with_outliers(1e-5, factor)
    histogram, ends = seen(values)
    gained = sqnr(others, *mse_ends(histogram, ends, grid), grid) - sqnr(others, *ends, grid)
    assert gained >= 15


@pytest.mark.parametrize(("share", "factor"), [(1e-4, 100), (1e-3, 10), (1e-3, 30)])
@pytest.mark.parametrize("grid", [ASYMMETRIC, SYMMETRIC], ids=str)
def test_squared_error_weighs_frequent_outliers_by_their_squares(seen, share, factor, grid):
    """Over all values it is the best of all methods, though the others' signal may suffer."""
    values, others = with_outliers(share, factor)
    histogram, ends = seen(values)
    found = mse_ends(histogram, ends, grid)
    error = true_mse(values, *found, grid)
    # a tenth is left to the choice between the whole range and the clipped one
    assert error <= true_mse(values, *ends, grid) / 0.9
    for other in (percentile_ends(histogram, ends, 99.99), entropy_ends(histogram, ends, grid)):
        assert error <= true_mse(values, *other, grid)
    assert sqnr(others, *found, grid) >= sqnr(others, *ends, grid)


# ---------------------------------------------------------------- degenerate

METHODS = {
    "percentile": lambda histogram, ends, grid: percentile_ends(histogram, ends, 99.99),
    "sigma": lambda histogram, ends, grid: sigma_ends(histogram, ends, 3.0),
    "trimmed": lambda histogram, ends, grid: trimmed_ends(histogram, ends),
    "mse": mse_ends,
    "entropy": entropy_ends,
}
DEGENERATE = {
    "zeros": np.zeros(5000),
    "negative zeros": np.full(5000, -0.0),
    "one zero": [0.0],
    "one value": [3.7],
    "one negative value": [-3.7],
    "constant": np.full(5000, 3.7),
    "negative constant": np.full(5000, -3.7),
    "a power of two": np.full(5000, 4.0),
    "two values": np.repeat([-1.0, 2.0], 3000),
    "zero and one": np.repeat([0.0, 1.0], 3000),
    "one value beside zeros": np.append(np.zeros(5000), 1e-6),
    "negative": -np.linspace(1, 2, 5000),
    "around 1e-30": np.linspace(-1e-30, 2e-30, 5000),
    "around 1e30": np.linspace(-0.9e30, 0.5e30, 5000),
    "subnormal": np.linspace(-1e-40, 3e-41, 5000),
    "told from zero by their sign only": np.repeat([1e-45, -1e-45], 3000),
    "1e-38 beside 1e30": np.append(np.full(5000, 1e-38), 0.9e30),
}


@pytest.mark.parametrize("grid", [ASYMMETRIC, SYMMETRIC, Grid(2), Grid(16)], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_ranges_of_degenerate_tensors(seen, kind, method, grid):
    histogram, ends = seen(DEGENERATE[kind])
    lo, hi = METHODS[method](histogram, ends, grid)
    assert type(lo) is type(hi) is float
    assert ends[0] <= lo <= hi <= ends[1]  # so they are finite
    if ends[0] <= 0 <= ends[1]:
        assert lo <= 0 <= hi
    if ends[0] == ends[1]:
        assert (lo, hi) == ends


@pytest.mark.parametrize("method", ["mse", "entropy", "percentile", "trimmed"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**90])
def test_ranges_scale_with_the_values(drawn, seen, method, scale):
    values = drawn("mixture")
    lo, hi = METHODS[method](*seen(values), ASYMMETRIC)
    # powers of two leave every bin where it was, up to the rounding of squares and logarithms
    expected = (lo * scale, hi * scale)
    assert METHODS[method](*seen(values * np.float32(scale)), ASYMMETRIC) == pytest.approx(
        expected, rel=1e-9
    )


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_mirrored_with_the_values(drawn, seen, method):
    values = drawn("lopsided")
    lo, hi = METHODS[method](*seen(values), ASYMMETRIC)
    assert METHODS[method](*seen(-values), ASYMMETRIC) == pytest.approx((-hi, -lo), rel=1e-9)
