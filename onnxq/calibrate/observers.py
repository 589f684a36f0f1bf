"""What is remembered of a tensor while data run through the model.

An observer's state depends only on the values it was shown: not on how they were cut into batches,
not on their order, and not on which of several merged observers saw them. Its size is fixed.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, UsageError
from onnxq.types import TensorRange

# Beyond it a value is a mask, such as the -3.4e38 that attention adds, and not a signal.
_HUGE = 1e30


@dataclass
class Tap:
    """What leaves the session for one tensor and one batch.

    Attributes:
        min: Smallest value of the tensor.
        max: Largest value of the tensor.
        values: A bounded sample of its values, float32 of shape ``(n,)``; may be empty.
        seen: How many elements the tensor had; with 0, nothing else counts.
    """

    min: float
    max: float
    values: NDArray[np.float32]
    seen: int


class Observer(Protocol):
    """A mergeable summary of all that a tensor held."""

    wants_values: ClassVar[bool]
    """Whether the observer needs a sample of the values, or only the ends."""

    def observe(self, tap: Tap) -> None:
        """Take one batch in.

        Raises:
            DataError: The batch holds a NaN.
        """

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""

    def range(self) -> TensorRange:
        """Tell the range to quantize for.

        A tensor that held nothing but infinities and masks has the range ``[0, 0]``, not finite.

        Raises:
            DataError: No value was observed.
        """


@dataclass
class MinMaxObserver:
    """The smallest and the largest finite value.

    Infinities and masks (beyond 1e30) are left out and only noted. Where one of them stands at an
    end of a batch, the ordinary values of the sample stand in for that end.
    """

    wants_values: ClassVar[bool] = False

    _min: float = field(default=math.inf, init=False)
    _max: float = field(default=-math.inf, init=False)
    _finite: bool = field(default=True, init=False)

    def observe(self, tap: Tap) -> None:
        """Take one batch in.

        Raises:
            DataError: The batch holds a NaN.
        """
        if tap.seen == 0:
            return
        known = np.concatenate(([tap.min, tap.max], tap.values), dtype=np.float64)
        if np.isnan(known).any():
            raise DataError("the values hold NaN")
        ordinary = _ordinary(known)
        self._min = min(self._min, float(ordinary.min(initial=math.inf)))
        self._max = max(self._max, float(ordinary.max(initial=-math.inf)))
        self._finite &= len(ordinary) == len(known)

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)
        self._finite &= other._finite

    def range(self) -> TensorRange:
        """Tell the smallest and the largest finite value as the range.

        Raises:
            DataError: No value was observed.
        """
        if self._min <= self._max:
            return TensorRange(self._min, self._max, self._min, self._max, self._finite)
        if self._finite:
            raise DataError("no value was observed")
        return TensorRange(0.0, 0.0, 0.0, 0.0, finite=False)


class PercentileObserver:
    """A range that leaves out the same small share of the sampled values at both ends.

    Percentiles follow the linear definition (type 7 of Hyndman and Fan, "Sample Quantiles in
    Statistical Packages", 1996, NumPy's default), within one bin width of the histogram, and never
    reach beyond the exact smallest and largest value.

    Args:
        percentile: Upper percentile, above 50 and up to 100, which means the exact ends; the lower
            one is ``100 - percentile``.

    Raises:
        UsageError: The percentile is outside of its bounds.
    """

    wants_values: ClassVar[bool] = True

    def __init__(self, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise UsageError(f"percentile {percentile} is not above 50 and up to 100")
        self.percentile = percentile
        self._ends = MinMaxObserver()
        self._histogram = Histogram()

    def observe(self, tap: Tap) -> None:
        """Take one batch in.

        Raises:
            DataError: The batch holds a NaN.
        """
        self._ends.observe(tap)
        if tap.seen:
            self._histogram.add(_ordinary(tap.values.astype(np.float64)))

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen.

        Raises:
            ValueError: The other observes another percentile.
        """
        if self.percentile != other.percentile:
            raise ValueError(f"cannot merge percentiles {self.percentile} and {other.percentile}")
        self._ends.merge(other._ends)
        self._histogram.merge(other._histogram)

    def range(self) -> TensorRange:
        """Tell the range between the two percentiles; without a sample, the exact ends.

        Raises:
            DataError: No value was observed.
        """
        ends = self._ends.range()
        if self.percentile == 100 or self._histogram.total == 0:
            return ends
        lo, hi = (
            min(max(self._histogram.percentile(p), ends.min), ends.max)
            for p in (100 - self.percentile, self.percentile)
        )
        return TensorRange(lo, hi, ends.min, ends.max, ends.finite)


class Histogram:
    """Counts in equal bins over ``[-2^k, 2^k)``, for the least ``k`` with all ``|v| < 2^k``.

    Bins are aligned at 0 and their width is a power of two, so that a bin of the next coarser
    histogram is a pair of this one's: widening is exact, and what is counted does not depend on
    the order or on the grouping of the values.

    Attributes:
        counts: How many values fell into each bin, int64 of shape ``(BINS,)``.
        exponent: The ``k`` above.
        total: How many values were counted.
    """

    BINS: ClassVar[int] = 2**14

    # The least positive float32 value is 2^-149, so that only 0 lies inside.
    _LEAST_EXPONENT: ClassVar[int] = -149

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(self.BINS, np.int64)
        self.exponent = self._LEAST_EXPONENT

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(2.0 / self.BINS, self.exponent)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count values, float64 of shape ``(n,)``, all of them finite."""
        absmax = float(np.abs(values).max(initial=0.0))
        if absmax > 0:
            self._widen(math.frexp(absmax)[1])
        bins = np.floor(values / self.width).astype(np.int64) + self.BINS // 2
        self.counts += np.bincount(bins, minlength=self.BINS)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self._widen(other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)

    def percentile(self, percent: float) -> float:
        """Estimate a percentile, within one bin width; the histogram must not be empty."""
        position = percent / 100 * (self.total - 1)
        below = math.floor(position)
        fraction = position - below
        low = self._order_statistic(below)
        high = self._order_statistic(min(below + 1, self.total - 1))
        return low + fraction * (high - low)

    def _order_statistic(self, rank: int) -> float:
        """Estimate the value of a rank from 0, as if each bin held its values evenly spaced."""
        up_to = np.cumsum(self.counts)
        index = int(np.searchsorted(up_to, rank, side="right"))
        count = int(self.counts[index])
        into = (rank - (int(up_to[index]) - count) + 0.5) / count
        return (index - self.BINS // 2 + into) * self.width

    def _widen(self, exponent: int) -> None:
        """Make the interval at least ``[-2^exponent, 2^exponent)``."""
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent


def make_observer(name: str, **options: float) -> Observer:
    """Make an observer by its name.

    Args:
        name: ``minmax`` or ``percentile``.
        options: Options of that observer, such as ``percentile=99.9``.

    Returns:
        A new observer that has seen nothing.

    Raises:
        UsageError: The name, an option or its value is not known.
    """
    if name not in _OBSERVERS:
        close = difflib.get_close_matches(name, _OBSERVERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"unknown observer {name!r}, known are {', '.join(_OBSERVERS)}", hint)
    kind = _OBSERVERS[name]
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "none"
            raise UsageError(f"observer {name!r} has no option {option!r}, its options: {takes}")
    return kind(**options)


_OBSERVERS: dict[str, Callable[..., Observer]] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
}


def _ordinary(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out infinities and masks."""
    return values[np.abs(values) <= _HUGE]


def _coarser(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """Double the bin width so many times, by adding neighbouring pairs."""
    half = len(counts) // 2
    # Once everything is in the two bins around 0, it stays there.
    for _ in range(min(doublings, half.bit_length() - 1)):
        paired = np.zeros_like(counts)
        paired[half // 2 : half // 2 + half] = counts.reshape(half, 2).sum(axis=1)
        counts = paired
    return counts
