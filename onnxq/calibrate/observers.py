"""What is remembered of a tensor while data run through the model.

An observer's state depends only on the samples it was shown: not on how they were cut into batches,
not on their order, and not on which of several merged observers saw them. Its size is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from onnxq.calibrate.choose import (
    Ends,
    entropy_ends,
    mse_ends,
    percentile_ends,
    sigma_ends,
    trimmed_ends,
)
from onnxq.calibrate.histogram import Histogram
from onnxq.errors import UsageError
from onnxq.types import Grid

Float32 = NDArray[np.float32]

# Bounds of a state that data can leave. Exponents are biased; 255 is that of infinities.
_LARGEST, _TOP, _TOTAL = float(np.finfo(np.float32).max), 254, 2**62
# Of 2^63 samples, and of the least that 1 - momentum and 1 / warmup can be.
_LEVELS, _LEAST_WEIGHT = 63, 1e-20


@dataclass(frozen=True)
class Stratum:
    """Some values of a tensor, each of which stands for as many as its weight.

    Attributes:
        values: float32 of shape ``(n,)``.
        weight: How many values of the tensor each of these stands for.
    """

    values: Float32
    weight: int = 1


@dataclass(frozen=True)
class Tap:
    """What one run shows of one tensor. Infinities and masks (beyond 1e30) are left out.

    Attributes:
        stream: Names the data that the samples belong to.
        first: Number of the first sample in that stream.
        lows: Smallest value of each sample, float32 of shape ``(samples,)``.
        highs: Largest value of each sample, shaped like ``lows``.
        strata: Values of the tensor; none when no observer wants values.
        numbers: Number of each sample where they do not follow each other; else empty.
    """

    stream: str
    first: int
    lows: Float32
    highs: Float32
    strata: tuple[Stratum, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def samples(self) -> Sequence[int]:
        """Number of each sample in the stream."""
        return self.numbers or range(self.first, self.first + len(self.lows))


class Observer(Protocol):
    """A mergeable summary of all that a tensor held.

    Its state is its attributes: numbers, strings, booleans, lists and dictionaries of these, and
    NumPy arrays. They are written into files and sent between processes, so that what a new
    observer of the same class starts with tells their types. It is made with the options of the
    recipe as keyword arguments. An observer that needs only ``lows`` and ``highs`` may say
    ``wants_values = False``, which makes the run a little faster.
    """

    def observe(self, tap: Tap) -> None:
        """Take some samples in."""

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""

    def range(self, grid: Grid) -> Ends:
        """Tell ``(lo, hi)``, the range to quantize for; at least one sample was observed."""


class MinMaxObserver:
    """The smallest and the largest value.

    Attributes:
        min: Smallest value; infinity when none was seen.
        max: Largest value; minus infinity when none was seen.
    """

    wants_values: ClassVar[bool] = False

    def __init__(self) -> None:
        self.min = math.inf
        self.max = -math.inf

    @property
    def ends(self) -> Ends:
        """The exact ends."""
        return self.min, self.max

    def observe(self, tap: Tap) -> None:
        """Take some samples in."""
        # 0 is added because -0.0 + 0.0 is 0.0: which of the two equals is kept depends on the order
        self.min = min(self.min, float(tap.lows.min()) + 0.0)
        self.max = max(self.max, float(tap.highs.max()) + 0.0)

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    def range(self, grid: Grid) -> Ends:
        """The exact ends."""
        del grid
        return self.ends

    def check(self) -> None:
        """Look at a state that was read from a file, which may say anything.

        Raises:
            ValueError: No data can leave it.
        """
        unseen = self.ends == (math.inf, -math.inf)
        if not (unseen or -_LARGEST <= self.min <= self.max <= _LARGEST):
            raise ValueError(f"the ends are {self.min} and {self.max}")


class HistogramObserver(MinMaxObserver):
    """The ends, and a histogram of the values. By itself its range is that of the ends.

    Attributes:
        histogram: Counts of the values.
    """

    wants_values: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.histogram = Histogram()

    def observe(self, tap: Tap) -> None:
        """Take some samples in."""
        super().observe(tap)
        for stratum in tap.strata:
            self.histogram.add(stratum.values, stratum.weight)

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""
        super().merge(other)
        self.histogram.merge(other.histogram)

    def check(self) -> None:
        """Look at a state that was read from a file, which may say anything.

        Raises:
            ValueError: No data can leave it.
        """
        super().check()
        held = self.histogram
        counts = np.concatenate([held.counts.ravel(), held.small]).astype(np.float64)
        total = counts.sum() + held.zeros
        if not 0 <= held.top <= _TOP or min(counts.min(), held.zeros) < 0 or total > _TOTAL:
            raise ValueError("the histogram holds what cannot be counted")
        if (total > 0) != (self.min <= self.max):
            raise ValueError(f"{total:.0f} values between {self.min} and {self.max}")


class PercentileObserver(HistogramObserver):
    """A range that leaves out the same small share of the values at both ends.

    Args:
        percentile: Upper percentile, above 50 and up to 100, which means the exact ends; the lower
            one is ``100 - percentile``.

    Raises:
        UsageError: The percentile is outside of its bounds.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise UsageError(f"percentile {percentile} is not above 50 and up to 100")
        super().__init__()
        self.percentile = percentile

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen.

        Raises:
            ValueError: The other is of another percentile.
        """
        if self.percentile != other.percentile:
            raise ValueError(
                f"cannot merge percentiles {self.percentile:g} and {other.percentile:g}"
            )
        super().merge(other)

    def range(self, grid: Grid) -> Ends:
        """The two percentiles (``choose.percentile_ends``)."""
        del grid
        if self.percentile == 100:
            return self.ends
        return percentile_ends(self.histogram, self.ends, self.percentile)


class MseObserver(HistogramObserver):
    """The range whose quantization has the least mean squared error (``choose.mse_ends``)."""

    def range(self, grid: Grid) -> Ends:
        """The range of the least error."""
        return mse_ends(self.histogram, self.ends, grid)


class EntropyObserver(HistogramObserver):
    """The range of the least Kullback-Leibler divergence (``choose.entropy_ends``)."""

    def range(self, grid: Grid) -> Ends:
        """The range of the least divergence."""
        return entropy_ends(self.histogram, self.ends, grid)


class SigmaObserver(HistogramObserver):
    """The mean and so many standard deviations to both sides, within the exact ends.

    Args:
        sigmas: How many deviations, above 0. At 8 bits some 4 suit a normal distribution, and
            some 7 a Laplace distribution.

    Raises:
        UsageError: It is not above 0.
    """

    def __init__(self, sigmas: float = 6.0) -> None:
        if not 0 < sigmas < math.inf:
            raise UsageError(f"sigmas {sigmas} is not a number above 0")
        super().__init__()
        self.sigmas = sigmas

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen.

        Raises:
            ValueError: The other is of another number of deviations.
        """
        if self.sigmas != other.sigmas:
            raise ValueError(f"cannot merge {self.sigmas:g} and {other.sigmas:g} deviations")
        super().merge(other)

    def range(self, grid: Grid) -> Ends:
        """Mean and deviations (``choose.sigma_ends``)."""
        del grid
        return sigma_ends(self.histogram, self.ends, self.sigmas)


class TrimmedObserver(HistogramObserver):
    """The ends of the values that are no outliers (``choose.trimmed_ends``)."""

    def range(self, grid: Grid) -> Ends:
        """The ends without outliers."""
        del grid
        return trimmed_ends(self.histogram, self.ends)


@dataclass(frozen=True)
class _Run:
    """What ``2^level`` neighbouring samples do to an average: ``keep * average + sum``.

    Attributes:
        keep: What is left of the average before.
        weight: What the samples add to an average of ones; a start in the middle weighs less.
        lo: What they add to the average of the smallest values.
        hi: What they add to the average of the largest values.
    """

    keep: float = 1.0
    weight: float = 0.0
    lo: float = 0.0
    hi: float = 0.0

    def then(self, later: _Run) -> _Run:
        keep = later.keep
        return _Run(
            self.keep * keep,
            self.weight * keep + later.weight,
            self.lo * keep + later.lo,
            self.hi * keep + later.hi,
        )


@dataclass
class _Averages:
    """The averages over a stream of samples, as a binary counter over their numbers.

    Neighbours join when their numbers differ in the last bit, and so do pairs of pairs: however the
    samples arrive, the same sums are made, and a whole stream of n samples takes log2(n) entries.

    Attributes:
        runs: ``[keep, weight, lo, hi]`` by ``level/number``.
    """

    runs: dict[str, list[float]]

    def add(self, level: int, number: int, run: _Run) -> None:
        while (other := self.runs.pop(f"{level}/{number ^ 1}", None)) is not None:
            pair = (_Run(*other), run) if number % 2 else (run, _Run(*other))
            run = pair[0].then(pair[1])
            level, number = level + 1, number // 2
        self.runs[f"{level}/{number}"] = [run.keep, run.weight, run.lo, run.hi]

    def items(self) -> list[tuple[int, int, _Run]]:
        found = []
        for key, run in self.runs.items():
            level, _, number = key.partition("/")
            found.append((int(level), int(number), _Run(*run)))
        return sorted(found, key=lambda item: item[1] << item[0])

    def total(self) -> tuple[_Run, int]:
        """Everything in the order of the samples, and how many samples that is."""
        items = self.items()
        whole = reduce(_Run.then, (run for _, _, run in items), _Run())
        return whole, sum(1 << level for level, _, _ in items)


class MovingAverageObserver(MinMaxObserver):
    """Exponential moving averages of each sample's smallest and largest value.

    As in Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 3.1, by sample and not by batch, so that the
    batch size does not matter. Samples count in the order of their numbers, and streams in that of
    their names, whatever the order in which they arrive.

    Args:
        momentum: What an average keeps at each sample, from 0 up to 1.
        warmup: The first samples of each stream, which make a plain mean to start with; 1 or more.

    Raises:
        UsageError: An argument is outside of its bounds.
    """

    def __init__(self, momentum: float = 0.95, warmup: int = 8) -> None:
        if not 0 <= momentum < 1:
            raise UsageError(f"momentum {momentum} is not from 0 up to 1")
        if warmup < 1:
            raise UsageError(f"a warm-up of {warmup} samples", "use 1 or more")
        super().__init__()
        self.momentum, self.warmup = momentum, int(warmup)
        self.streams: dict[str, dict[str, list[float]]] = {}

    def observe(self, tap: Tap) -> None:
        """Take some samples in."""
        super().observe(tap)
        averages = _Averages(self.streams.setdefault(tap.stream, {}))
        for number, lo, hi in zip(tap.samples, tap.lows.tolist(), tap.highs.tolist(), strict=True):
            keep, take = self.momentum, 1 - self.momentum
            if number < self.warmup:
                keep, take = 1.0, 1 / self.warmup
            averages.add(0, number, _Run(keep, take, take * lo + 0.0, take * hi + 0.0))

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen.

        Raises:
            ValueError: The other averages in another way.
        """
        if (self.momentum, self.warmup) != (other.momentum, other.warmup):
            raise ValueError("cannot merge moving averages of another momentum or warm-up")
        super().merge(other)
        for stream, runs in other.streams.items():
            averages = _Averages(self.streams.setdefault(stream, {}))
            for level, number, run in _Averages(runs).items():
                averages.add(level, number, run)

    def check(self) -> None:
        """Look at a state that was read from a file, which may say anything.

        Raises:
            ValueError: No data can leave it.
        """
        super().check()
        if bool(self.streams) != (self.min <= self.max) or not all(self.streams.values()):
            raise ValueError("an average of nothing")
        for runs in self.streams.values():
            for key, (keep, weight, lo, hi) in runs.items():
                level, number = map(int, key.split("/"))
                if not (0 <= level <= _LEVELS and 0 <= number <= 2**_LEVELS):
                    raise ValueError(f"there is no run {key}")
                ends = max(abs(lo), abs(hi)) <= _LARGEST
                if not (0 <= keep <= 1 and _LEAST_WEIGHT <= weight <= 2 and ends):
                    raise ValueError(f"run {key} is no average")

    def range(self, grid: Grid) -> Ends:
        """The averages after the last sample; a stream counts as its samples do."""
        del grid
        lo = hi = 0.0
        seen = 0
        for _, runs in sorted(self.streams.items()):
            whole, samples = _Averages(runs).total()
            seen += samples
            lo += samples / seen * (whole.lo / whole.weight - lo)
            hi += samples / seen * (whole.hi / whole.weight - hi)
        # the averages of equal values may differ from them in the last bit
        return min(max(lo, self.min), self.max), max(min(hi, self.max), self.min)
