"""A histogram whose bins are as fine, beside a value, as that value is large."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_MANTISSA_BITS = 23
# The bits of -0.0, and of what is too small to be told from it, without the last 13.
_NEGATIVE_ZERO = np.uint32(1 << 18)
# Values at a time: what they and their places take stays in a core's cache.
_PIECE = 2**17


@dataclass(frozen=True)
class Bins:
    """The bins that hold something, in ascending order; zero is a bin without width.

    Attributes:
        left: Lower edges, float64 of shape ``(n,)``.
        right: Upper edges, float64 of shape ``(n,)``.
        count: How many values each bin stands for, float64 of shape ``(n,)``.
    """

    left: NDArray[np.float64]
    right: NDArray[np.float64]
    count: NDArray[np.float64]

    @cached_property
    def center(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        return (self.left + self.right) / 2


class Histogram:
    """Counts of float32 values in bins that the bits of a float name.

    An octave ``[2^e, 2^(e+1))`` has 1,024 equal bins: sign, exponent and the first ten bits of the
    mantissa are the bin. The sixteen octaves below the largest value are kept apart; smaller values
    are counted together, zeros by themselves. What is counted thus depends neither on the order of
    the values nor on how they were grouped, outliers do not coarsen the bins of the others, and the
    size is fixed (256 KB).

    Attributes:
        counts: int64 of shape ``(2, OCTAVES * PER_OCTAVE)``: negative and positive values, by
            ascending magnitude.
        small: int64 of shape ``(2,)``: negative and positive values below these octaves.
        zeros: How many values are 0.
        top: Biased exponent of the highest octave.
    """

    OCTAVES: ClassVar[int] = 16
    PER_OCTAVE: ClassVar[int] = 1024

    _SHIFT: ClassVar[np.uint32] = np.uint32(_MANTISSA_BITS - 10)
    _SIZE: ClassVar[int] = OCTAVES * PER_OCTAVE
    # What histograms start with: most of a calibration's are replaced before they count anything.
    _NONE: ClassVar[NDArray[np.int64]] = np.zeros((2, _SIZE), np.int64)
    _NONE.flags.writeable = False

    def __init__(self) -> None:
        self.counts = self._NONE
        self.small: NDArray[np.int64] = np.zeros(2, np.int64)
        self.zeros = 0
        self.top = 0

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum() + self.small.sum()) + self.zeros

    def add(self, values: NDArray[np.float32], weight: int = 1) -> None:
        """Count finite values, contiguous float32 of shape ``(n,)``, each so many times."""
        for start in range(0, len(values), _PIECE):
            self._add(values[start : start + _PIECE], weight)

    def _add(self, values: NDArray[np.float32], weight: int) -> None:
        bits = values.view(np.uint32)
        # as int32: adding a negative base must not wrap
        place = ((bits & _MAGNITUDE) >> self._SHIFT).view(np.int32)
        self._raise_top(int(place.max()) // self.PER_OCTAVE)
        zeros, negative_zeros = int(np.count_nonzero(place == 0)), 0
        place += np.int32(1 - self._base)
        zero = max(1 - self._base, 0)  # above 0 where the octaves reach below the subnormal numbers
        np.maximum(place, 0, out=place)  # place 0: all that is small
        if values.min() < 0:
            place += (bits >> np.uint32(31)).view(np.int32) * np.int32(self._SIZE + 1)
            negative_zeros = int(np.count_nonzero((bits >> self._SHIFT) == _NEGATIVE_ZERO))
        if not self._counted:
            self.counts = np.zeros(self._NONE.shape, np.int64)
        counted = np.bincount(place, minlength=self._SIZE + 1)
        counted[zero] -= zeros - negative_zeros
        sides = [(1, counted[: self._SIZE + 1])]
        if len(counted) > self._SIZE + 1:
            counted[self._SIZE + 1 + zero] -= negative_zeros
            sides.append((0, counted[self._SIZE + 1 :]))
        for side, found in sides:
            self.small[side] += weight * found[0]
            self.counts[side, : len(found) - 1] += weight * found[1:]
        self.zeros += zeros * weight

    def merge(self, other: Self) -> None:
        """Add the counts of another histogram."""
        self._raise_top(other.top)
        lifted = type(self)()
        lifted.counts, lifted.small, lifted.top = other.counts, other.small, other.top
        lifted._raise_top(self.top)
        if lifted._counted and not self._counted:
            self.counts = lifted.counts.copy()
        elif lifted._counted:
            for side in np.flatnonzero(lifted.counts.any(axis=1)):  # untouched memory takes none
                self.counts[side] += lifted.counts[side]
        self.small = self.small + lifted.small
        self.zeros += other.zeros

    def bins(self, per_octave: int = PER_OCTAVE) -> Bins:
        """The bins that hold something, in ascending order.

        Args:
            per_octave: Bins of an octave, a divisor of ``PER_OCTAVE``: neighbours are joined.
        """
        edges = _edges(self.top, self.OCTAVES, per_octave)
        (negative, fewer), (positive, more) = (
            _held(side, self.PER_OCTAVE // per_octave) for side in self.counts
        )
        least = edges[0]
        middle = (-least, 0.0, self.small[0]), (0.0, 0.0, self.zeros), (0.0, least, self.small[1])
        parts: list[tuple[ArrayLike, ArrayLike, ArrayLike]] = [
            (-edges[negative + 1][::-1], -edges[negative][::-1], fewer[::-1]),
            *(([left], [right], [count]) for left, right, count in middle if count),
            (edges[positive], edges[positive + 1], more),
        ]
        left, right, count = (
            np.concatenate([np.asarray(part, np.float64) for part in column])
            for column in zip(*parts, strict=True)
        )
        return Bins(left, right, count)

    def evenly(self, width: float, number: int) -> NDArray[np.float64]:
        """Counts in bins of equal width to both sides of 0; zeros are left out.

        Args:
            width: Of a bin: a power of two, so that each holds whole bins of the histogram.
            number: How many bins; larger values are counted in one more.

        Returns:
            Negative and positive values by magnitude, float64 of shape ``(2, number + 1)``.
        """
        places = _even_places(self.top, self.OCTAVES, self.PER_OCTAVE, width, number)
        found = np.zeros((2, number + 1))
        for side in np.flatnonzero(self.counts.any(axis=1)):
            found[side] = np.bincount(places, self.counts[side], number + 1)
        found[:, 0] += self.small
        return found

    @property
    def _base(self) -> int:
        """Sign-less bits, without the last 13, of the lowest bin that is kept apart."""
        return (self.top - self.OCTAVES + 1) * self.PER_OCTAVE

    @property
    def _counted(self) -> bool:
        """Whether it has counts of its own."""
        return self.counts is not self._NONE

    def _raise_top(self, top: int) -> None:
        """Keep the octaves below a higher one: the lowest join what is small."""
        octaves = min(top - self.top, self.OCTAVES)
        if octaves <= 0:
            return
        if not self._counted or not self.counts.any():
            self.top = top
            return
        gone = octaves * self.PER_OCTAVE
        lifted = np.zeros_like(self.counts)
        lifted[:, : self._SIZE - gone] = self.counts[:, gone:]
        self.small = self.small + self.counts[:, :gone].sum(axis=1)
        self.counts, self.top = lifted, top


def _held(counts: NDArray[np.int64], step: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which bins of one side hold something, and how much, so many neighbours joined."""
    joined = reduce(np.add, (counts[place::step] for place in range(step)))
    held = np.flatnonzero(joined != 0)  # faster than of integers
    return held, joined[held]


@lru_cache(maxsize=64)
def _edges(top: int, octaves: int, per_octave: int) -> NDArray[np.float64]:
    """Lower edge of every bin of one side, by magnitude, and the upper edge of the last."""
    places = np.arange(octaves * per_octave + 1) + (top - octaves + 1) * per_octave
    exponent, mantissa = np.divmod(places, per_octave)
    edges = np.ldexp(1 + mantissa / per_octave, exponent - 127)
    # Exponent 0 is that of the subnormal numbers, without the hidden one; nothing lies below.
    subnormal = np.ldexp(mantissa / per_octave, -126)
    return np.where(exponent > 0, edges, np.where(exponent == 0, subnormal, 0.0))


@lru_cache(maxsize=64)
def _even_places(
    top: int, octaves: int, per_octave: int, width: float, number: int
) -> NDArray[np.int64]:
    """Which of the bins of equal width each bin of one side lies in."""
    lower = _edges(top, octaves, per_octave)[:-1]
    return np.minimum(lower / width, number).astype(np.int64)
