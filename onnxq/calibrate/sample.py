"""From the values of a tensor to a tap: exact ends, exact tails, and a sample of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxq.calibrate.observers import Float32, Stratum, Tap
from onnxq.errors import DataError

# Beyond it a value is a mask, such as the -3.4e38 that attention adds, and not a signal.
HUGE = 1e30
# Values per sample and tensor. Smaller tensors are taken whole.
SAMPLE_SIZE = 4096
# Everything beyond the values of this rank in the sample, at both ends, is taken whole: some
# 32 / 4096 of a tensor, eighty times the share that a percentile of 99.99 leaves out.
TAIL_RANK = 32
# A row is cut into pieces of equal length and one value is taken of each. A fixed place in the
# piece would be a stride, which misses channels when it shares factors with an inner axis. So the
# place varies, in units of 2^-16 of a piece, by a multiplier: of 150 drawn ones this spreads most
# evenly, over 270 shapes of common layers.
_UNITS, _MULTIPLIER = 2**16, 25665
# Values of a row at a time, so that they stay in a core's cache.
_PIECE = 2**16


def take_tap(
    tensor: str,
    values: Float32,
    stream: str,
    first: int,
    rows: int,
    *,
    sample: bool,
    exact: bool,
    names: Sequence[int] = (),
) -> tuple[Tap | None, bool]:
    """Take the ends of a tensor, and some or all of its values.

    Args:
        tensor: Its name, for messages.
        values: Its values; the first axis has one entry per row, unless there is only one row.
        stream: Names the data that the samples belong to.
        first: Number of the first sample.
        rows: How many samples the values belong to; 1 when they cannot be told apart.
        sample: Whether values are wanted, or only the ends.
        exact: Whether all values are wanted.
        names: What messages call the samples; their numbers if empty.

    Returns:
        The tap, None when nothing ordinary is left; and whether all values are ordinary.

    Raises:
        DataError: A value is NaN.
    """
    if not values.size:
        return None, True
    table = np.ascontiguousarray(values).reshape(rows, -1)
    lows, highs, strata = _look(table, sample=sample, exact=exact)
    if np.isnan(lows).any():
        row = int(np.isnan(lows).argmax())
        raise DataError(
            f"tensor '{tensor}' became NaN at sample {names[row] if names else first + row}",
            "the float model itself computes NaN there: check the model and this input",
        )
    if lows.min() >= -HUGE and highs.max() <= HUGE:
        return Tap(stream, first, lows, highs, strata), True
    kept = [
        (number, ordinary)
        for number, row in enumerate(table, first)
        if (ordinary := row[np.abs(row) <= HUGE]).size
    ]
    if not kept:
        return None, False
    looks = [_look(row[None], sample=sample, exact=exact) for _, row in kept]
    lows, highs = (np.concatenate([look[end] for look in looks]) for end in (0, 1))
    strata = tuple(stratum for look in looks for stratum in look[2])
    return _tap(stream, [number for number, _ in kept], lows, highs, strata), False


def _tap(
    stream: str,
    numbers: Sequence[int],
    lows: Float32,
    highs: Float32,
    strata: tuple[Stratum, ...],
) -> Tap:
    gaps = numbers[-1] - numbers[0] >= len(numbers)
    return Tap(stream, numbers[0], lows, highs, strata, tuple(numbers) if gaps else ())


def _look(
    table: Float32, *, sample: bool, exact: bool
) -> tuple[Float32, Float32, tuple[Stratum, ...]]:
    """Smallest and largest value of every row (NaN where it holds one), and some values."""
    if exact or not sample or table.shape[1] <= SAMPLE_SIZE:
        strata = (Stratum(table.ravel()),) if sample else ()
        return table.min(axis=1), table.max(axis=1), strata
    places, piece = _places(table.shape[1])
    tails: list[Float32] = []
    ends, middles = [], []
    for row in table:
        drawn = np.sort(row[places])  # faster than a partition: sorting is vectorised
        low, high = drawn[TAIL_RANK], drawn[-1 - TAIL_RANK]
        # values equal to those of the ranks belong to the middle, as a Relu's zeros do
        first = 0 if drawn[0] == low else np.searchsorted(drawn, low)
        last = len(drawn) if drawn[-1] == high else np.searchsorted(drawn, high, side="right")
        middles.append(drawn[first:last])
        least, most = low, high
        for start in range(0, row.size, _PIECE):
            part = row[start : start + _PIECE]
            lowest = part.min()  # NaN where the piece holds one
            above = part[np.flatnonzero(part > high)]
            if above.size:
                tails.append(above)
                most = max(most, above.max())
            if lowest < low:  # else none is: a Relu repeats its least value
                tails.append(part[np.flatnonzero(part < low)])
            least = np.minimum(least, lowest)  # keeps NaN
        ends.append((least, most))
    lows, highs = np.array(ends, np.float32).T
    tail = np.concatenate(tails) if tails else np.zeros(0, np.float32)
    return lows, highs, (Stratum(tail), Stratum(np.concatenate(middles), piece))


def join_taps(taps: Sequence[Tap]) -> Tap:
    """One tap of several in order, so that observers have larger arrays to work on."""
    by_weight: dict[int, list[Float32]] = {}
    for tap in taps:
        for stratum in tap.strata:
            by_weight.setdefault(stratum.weight, []).append(stratum.values)
    return _tap(
        taps[0].stream,
        [number for tap in taps for number in tap.samples],
        np.concatenate([tap.lows for tap in taps]),
        np.concatenate([tap.highs for tap in taps]),
        tuple(Stratum(np.concatenate(v), weight) for weight, v in sorted(by_weight.items())),
    )


@lru_cache(maxsize=1024)
def _places(size: int) -> tuple[NDArray[np.int64], int]:
    """Where to take values of a row, and the length of the piece that each stands for."""
    piece = -(-size // SAMPLE_SIZE)
    number = np.arange(-(-size // piece))
    places = number * piece + (number * _MULTIPLIER % _UNITS) * piece // _UNITS
    return places[places < size], piece
