"""From a histogram to a range: percentile, mean and deviation, mean squared error, entropy.

Every function takes a histogram that is not empty and the exact ends, and returns ``(lo, hi)``
inside them, with ``lo <= 0 <= hi`` wherever the ends have 0 between them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxq.calibrate.histogram import Bins, Histogram
from onnxq.types import Grid

Ends = tuple[float, float]
Vector = NDArray[np.float64]

# Mean squared error: the share of the values that may lie far outside, and how far that is. The
# largest of a million values with a normal or Laplace distribution is 1.2 or 1.3 times the
# magnitude that one in fifty thousand exceeds.
RARE, FAR = 2e-5, 4.0
# How far below the largest magnitude a range may end, in octaves: beyond 2^-12 not even a 16 bit
# grid would gain from clipping outliers.
_DEEPEST = 12
# The candidates, as factors of the last best one: nearer and nearer, to 1/512 octave.
_FACTORS: tuple[Vector, ...] = (
    2.0 ** -np.arange(0, _DEEPEST, 1 / 4),
    2.0 ** np.linspace(-1 / 4, 1 / 4, 33),
    2.0 ** np.linspace(-1 / 64, 1 / 64, 17),
)
# Standard deviations beyond which a value is an outlier. What follows a Relu has a long tail: at
# eight, trained networks lose 5 dB by what is cut off of it, at ten nothing.
_OUTLIER = 10.0
# Bins per octave for the mean squared error: as fine as the steps of 8 bits.
_MSE_BINS = 256
# Entropy: bins beside the largest magnitude, as TensorRT has them, and the half width of the
# window that smooths their counts.
_ENTROPY_BINS = 2048
_WINDOW = 32
# Entropy's thresholds: octaves below the largest magnitude, candidates per octave, and how many of
# these to both sides make the average that is compared.
_ENTROPY_OCTAVES, _CANDIDATES, _NEIGHBOURS = 3, 32, 4
# Entropy: how near to the least divergence another is as good, in nats and as a share of the least:
# a sample of the values moves it by a quarter of that, nine times in ten.
_NEAR, _NEAR_SHARE = 1e-5, 0.03
# Entropy: the least share of the values per bin that is told from 0. Prefix sums err by 1e-16.
_NOTHING = 1e-12


def percentile_ends(histogram: Histogram, ends: Ends, percentile: float) -> Ends:
    """Leave the same small share of the values out at both ends.

    Percentiles follow the linear definition (type 7 of Hyndman and Fan, "Sample Quantiles in
    Statistical Packages", 1996, NumPy's default), within a bin, whose width is a thousandth of the
    value.
    """
    bins = histogram.bins()
    up_to = np.cumsum(bins.count)
    share = 1 - percentile / 100
    lo, hi = (_quantile(bins, up_to, q) for q in (share, 1 - share))
    return _inside(lo, hi, ends)


def _quantile(bins: Bins, up_to: Vector, q: float) -> float:
    position = q * (up_to[-1] - 1)
    below = np.floor(position)
    low, high = (_order_statistic(bins, up_to, rank) for rank in (below, below + 1))
    return float(low + (position - below) * (high - low))


def _order_statistic(bins: Bins, up_to: Vector, rank: float) -> float:
    """Estimate the value of a rank from 0, as if each bin held its values evenly spaced."""
    rank = min(rank, up_to[-1] - 1)
    at = int(np.searchsorted(up_to, rank, side="right"))
    into = (rank - (up_to[at] - bins.count[at]) + 0.5) / bins.count[at]
    return float(bins.left[at] + into * (bins.right[at] - bins.left[at]))


def sigma_ends(histogram: Histogram, ends: Ends, sigmas: float) -> Ends:
    """Mean and so many standard deviations to both sides."""
    bins = histogram.bins()
    mean = np.average(bins.center, weights=bins.count)
    deviation = np.sqrt(np.average((bins.center - mean) ** 2, weights=bins.count))
    return _inside(mean - sigmas * deviation, mean + sigmas * deviation, ends)


def trimmed_ends(histogram: Histogram, ends: Ends) -> Ends:
    """The ends of the values without outliers: those beyond ten standard deviations.

    Mean and deviation are taken anew of what is left until nothing more is left out (sigma
    clipping, as for pictures of stars, where satellites leave traces): outliers that are frequent
    widen the first deviations so much that they hide behind them. By Chebyshev's inequality a round
    leaves out a hundredth of the values at most. Zeros, which every range holds, have no say:
    of a tensor that is mostly zeros everything else would be an outlier.
    """
    bins = histogram.bins()
    values, count = bins.center[bins.center != 0], bins.count[bins.center != 0]
    while values.size:
        mean = np.average(values, weights=count)
        most = _OUTLIER * np.sqrt(np.average((values - mean) ** 2, weights=count))
        near = np.abs(values - mean) <= most
        if near.all():
            break
        values, count = values[near], count[near]
    if not values.size:
        return ends
    kept = (bins.center >= values[0]) & (bins.center <= values[-1])
    return _inside(bins.left[kept][0], bins.right[kept][-1], ends)


def mse_ends(histogram: Histogram, ends: Ends, grid: Grid) -> Ends:
    """The range whose quantization has the least mean squared error.

    What lies outside is clipped, and errs by its distance. What lies within half a step of zero
    becomes zero, and errs by itself. Everything else errs by ``step^2 / 12`` on average (Bennett,
    "Spectra of quantized signals", 1948). Banner et al., "Post training 4-bit quantization of
    convolutional networks" (2019), minimise the same sum for known distributions. Counting the
    rounding errors of a sample one by one instead would move the flat minimum by some percent from
    sample to sample; they are counted once, at the end, to keep the whole range where clipping
    gains nothing.

    A handful of values far outside counts as if it lay nearer (``_tamed``): ten of a million at a
    hundred times the range of the others would else be worth a range that rounds all others to
    nothing.
    """
    bins = _tamed(histogram.bins(_MSE_BINS if grid.bits <= 8 else histogram.PER_OCTAVE))
    negative, positive = bins.right <= 0, bins.left >= 0
    below = _Side(-bins.center[negative][::-1], bins.count[negative][::-1], -ends[0])
    above = _Side(bins.center[positive], bins.count[positive], ends[1])
    order = np.abs(bins.center).argsort(kind="stable")
    rounded = _Rounded(np.abs(bins.center[order]), bins.count[order])

    def best(lo: Vector, hi: Vector) -> tuple[float, float]:
        """The best pair of the candidates, both as magnitudes."""
        if grid.symmetric:
            error = below.clipped(hi) + above.clipped(hi) + rounded.error(hi / grid.steps)
            at = int(error.argmin())
            return float(hi[at]), float(hi[at])
        step = (lo[:, None] + hi) / grid.steps
        error = below.clipped(lo)[:, None] + above.clipped(hi) + rounded.error(step)
        row, column = np.unravel_index(int(error.argmin()), error.shape)
        return float(lo[row]), float(hi[column])

    whole = max(-float(bins.left[0]), 0.0), max(float(bins.right[-1]), 0.0)
    whole = min(whole[0], max(-ends[0], 0.0)), min(whole[1], max(ends[1], 0.0))
    if grid.symmetric:
        whole = max(whole), max(whole)
    lo, hi = whole
    for factors in _FACTORS:
        pairs = zip((lo, hi), whole, strict=True)
        # an end at 0 is the only one of its side
        lo, hi = best(*(np.minimum(e * factors if e else [e], most) for e, most in pairs))
    # Bennett's step^2 / 12 is wrong where few steps hold all values: the real errors decide there.
    # A tenth is far more than the errors of two samples of one tensor differ by.
    if _squared_error(bins, whole, grid) < 0.9 * _squared_error(bins, (lo, hi), grid):
        lo, hi = whole
    return _inside(-lo, hi, ends)


def _tamed(bins: Bins) -> Bins:
    """Magnitudes, at most ``FAR`` times the one that all but the rarest values stay below.

    The tails of common distributions stay far below that limit, so that this leaves them alone.
    """
    magnitude = np.abs(bins.center)
    order = magnitude.argsort(kind="stable")  # two runs in order: merged, not sorted
    ordinary = int(np.searchsorted(np.cumsum(bins.count[order]), (1 - RARE) * bins.count.sum()))
    limit = FAR * magnitude[order[min(ordinary, len(order) - 1)]]
    if not limit:  # almost all is zero: the few others are what the tensor is about
        return bins
    return Bins(np.clip(bins.left, -limit, limit), np.clip(bins.right, -limit, limit), bins.count)


class _Side:
    """The values on one side of zero: what clipping them costs, from prefix sums.

    Args:
        magnitude: Ascending.
        count: How many values each stands for.
        end: The largest magnitude; not above 0 where there are none on this side.
    """

    def __init__(self, magnitude: Vector, count: Vector, end: float) -> None:
        self._magnitude = magnitude
        self._empty = end <= 0
        if self._empty:
            return
        powers = (count, count * magnitude, count * magnitude**2)
        self._above = [_sums(p[::-1])[::-1] for p in powers]

    def clipped(self, threshold: Vector) -> Vector:
        """Sum of squared distances of what lies beyond each threshold."""
        if self._empty:
            return np.zeros_like(threshold)
        at = np.searchsorted(self._magnitude, threshold, side="right")
        number, sums, squares = (above[at] for above in self._above)
        cost: Vector = np.maximum(squares - 2 * threshold * sums + threshold**2 * number, 0.0)
        return cost


class _Rounded:
    """The values by magnitude: what rounding them to a grid costs, from prefix sums."""

    def __init__(self, magnitude: Vector, count: Vector) -> None:
        self._magnitude = magnitude
        self._squares = _sums(count * magnitude**2)
        self._beyond = _sums(count[::-1])[::-1]

    def error(self, step: Vector) -> Vector:
        """Sum of squared errors at each step."""
        at = np.searchsorted(self._magnitude, step / 2)
        return self._squares[at] + self._beyond[at] * step**2 / 12


def _squared_error(bins: Bins, magnitudes: tuple[float, float], grid: Grid) -> float:
    """Sum of the squared errors of quantizing the middles of the bins."""
    return float((bins.count * quantization_error(bins.center, magnitudes, grid) ** 2).sum())


def quantization_error(values: Vector, magnitudes: tuple[float, float], grid: Grid) -> Vector:
    """What quantizing and dequantizing changes values by.

    Args:
        values: The values.
        magnitudes: How far the range reaches to both sides of 0, neither negative.
        grid: The integers.
    """
    below, above = magnitudes
    if grid.symmetric:
        step, first = max(below, above) / grid.steps, -grid.steps
        last = grid.steps
    else:
        step = (below + above) / grid.steps
        first = -int(np.rint(below / step)) if step else 0
        last = first + grid.steps
    if not step:
        return -values
    return np.clip(np.rint(values / step), first, last) * step - values


def entropy_ends(histogram: Histogram, ends: Ends, grid: Grid) -> Ends:
    """The range whose quantized distribution diverges least from the float one.

    Migacz, "8-bit inference with TensorRT" (2017): over bins up to the largest magnitude, take the
    threshold with the least Kullback-Leibler divergence between the distribution, all that lies
    outside added to the last bin, and the same without that, evened out within each level of the
    grid. An asymmetric grid's levels span both ends; each end is then searched with the other at
    its extreme.

    The minimum is flat, so that in the original it is the noise of single bins and the way in which
    bins fall into levels that decide: by a fifth of the range from one sample of a tensor to the
    next. Therefore counts are smoothed by a triangular window first (two boxes of 65 bins; the last
    bin, where a Clip gathers values, stays as it is), levels may end inside a bin, and divergences
    are averaged over nine thresholds, an eighth of an octave to both sides.

    Nor is it the one least that is taken: where two thresholds far from each other are almost
    equally good, the least noise would decide between them. It is the mean of all thresholds, each
    with the weight ``exp(-(d - least) / margin)`` of its divergence ``d``. The margin, 1e-5 nats
    and 3 % of the least, is above what a sample adds to most divergences. Where the minimum stands
    out, the mean is near to it, and everywhere it is continuous in the counts. Two samples of a
    real activation then differ by less than a hundredth of the range.

    A last level that holds nothing makes the divergence not infinite but large, by 28 nats
    (``_NOTHING``) of what lies outside: otherwise a range could not end between most values and a
    few outliers. And zeros, which every grid represents, are left out: they would be smeared over a
    level.
    """
    levels = grid.steps + 1
    if levels >= _ENTROPY_BINS:
        return ends  # a level holds one bin: nothing is lost inside the range
    if np.count_nonzero(histogram.counts != 0) + np.count_nonzero(histogram.small) < levels:
        return ends  # too few distinct values to tell a distribution, and a level for each
    reach = max(abs(ends[0]), abs(ends[1]))
    # a power of two, so that no bin of the histogram lies in two of these
    width = 2.0 ** np.ceil(np.log2(reach)) / _ENTROPY_BINS
    negative, positive = histogram.evenly(width, _ENTROPY_BINS)
    if grid.symmetric or ends[0] >= 0 or ends[1] <= 0:
        none = np.zeros_like(positive)
        hi = _Divergence(none, negative + positive, 0.0, reach / width).best(levels) * width
        return _inside(-hi, hi, ends)
    below, above = -ends[0] / width, ends[1] / width
    hi = _Divergence(negative, positive, below, above).best(levels) * width
    lo = _Divergence(positive, negative, above, below).best(levels) * width
    return _inside(-lo, hi, ends)


class _Divergence:
    """The divergence of ranges ``[-behind, threshold]``, in bins of equal width.

    Args:
        backward: Counts of the bins from 0 to the other side.
        forward: Counts of the bins from 0 to the side of the threshold.
        behind: How far the range reaches to the other side.
        reach: The largest value: thresholds lie at or below it.
    """

    def __init__(self, backward: Vector, forward: Vector, behind: float, reach: float) -> None:
        self._reach, self._start = reach, -behind
        first, last = int(np.floor(-behind)), int(np.ceil(reach))
        share = np.concatenate([_gathered(backward, -first)[::-1], _gathered(forward, last + 1)])
        share /= share.sum()
        # What a Clip gathers at the end is no noise: it stays where it is.
        end = min(int(np.floor(reach)) - first, len(share) - 1)
        gathered, share[end] = share[end], 0.0
        share = _smooth(share)
        share[end] += gathered
        self._first, self._share = first, share
        self._up_to = _sums(share)
        self._terms = share * _log(share)
        self._information = _sums(self._terms)

    def best(self, levels: int) -> float:
        """The threshold of least divergence: the mean of those that come near to it."""
        thresholds = self._reach * 2.0 ** -np.arange(0, _ENTROPY_OCTAVES, 1 / _CANDIDATES)
        found = self._of(thresholds, levels)
        # mirrored at the ends through the end itself, so that a slope stays one
        left = 2 * found[0] - found[_NEIGHBOURS:0:-1]
        right = 2 * found[-1] - found[-2 : -_NEIGHBOURS - 2 : -1]
        sums = _sums(np.concatenate([left, found, right]))
        width = 2 * _NEIGHBOURS + 1
        found = (sums[width:] - sums[:-width]) / width
        least = float(found.min())
        margin = _NEAR + _NEAR_SHARE * max(least, 0.0)  # the mirrored ones may fall below 0
        # a threshold stands for all up to the next, which is as far away as it is large
        weights = thresholds * np.exp((least - found) / margin)
        return float(np.average(thresholds, weights=weights))

    def _of(self, threshold: Vector, levels: int) -> Vector:
        """Divergence of each threshold, in bins from 0."""
        size = (threshold - self._start) / levels
        borders = self._start - self._first + size[:, None] * np.arange(levels + 1)
        up_to = _interpolated(self._up_to, self._share, borders)
        inside = up_to[:, -1] - up_to[:, 0]
        held = up_to[:, 1:] - up_to[:, :-1]
        outside = np.maximum(self._up_to[-1] - inside, 0.0)
        # The reference: all bins but the last, and the last with everything outside.
        before = np.maximum(threshold - 1 - self._first, 0)
        last = up_to[:, -1] - _interpolated(self._up_to, self._share, before) + outside
        known = _interpolated(self._information, self._terms, before)
        reference = known + last * _log(last)
        # The candidate: evened out within each level.
        whole = size * np.maximum(inside, 1e-30)
        evened = np.einsum("ij,ij->i", held, _log(held)) - inside * np.log(whole)
        divergence: Vector = reference - evened - outside * _log(held[:, -1] / whole)
        return divergence


def _interpolated(sums: Vector, terms: Vector, place: Vector) -> Vector:
    """Prefix sums at places inside bins, counted from the first, with the terms they are of."""
    at = place.astype(np.intp)
    found: Vector = place - at
    found *= terms.take(at)
    found += sums.take(at)
    return found


def _sums(values: Vector) -> Vector:
    """Prefix sums, from that of nothing."""
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def _gathered(counts: Vector, size: int) -> Vector:
    """The first bins; what lies beyond is added to the last of them."""
    kept = counts[:size].copy()
    if size:
        kept[-1] += counts[size:].sum()
    return kept


def _log(values: Vector) -> Vector:
    """Logarithm, of 0 that of next to nothing: such terms are multiplied by 0, or must be dear."""
    return np.log(np.maximum(values, _NOTHING))


def _smooth(counts: Vector) -> Vector:
    """Two boxes of ``2 * _WINDOW + 1`` bins, mirrored at both ends, so that the sum stays."""
    width = 2 * _WINDOW + 1
    for _ in range(2):
        padded = counts[_WINDOW::-1], counts, counts[: -_WINDOW - 1 : -1]
        sums = np.cumsum(np.concatenate(padded))
        counts = (sums[width:] - sums[:-width]) / width
    return counts


def _inside(lo: float, hi: float, ends: Ends) -> Ends:
    if ends[0] <= 0 <= ends[1]:
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    return min(max(float(lo), ends[0]), ends[1]), max(min(float(hi), ends[1]), ends[0])


Chooser = Callable[[Histogram, Ends, Grid], Ends]
