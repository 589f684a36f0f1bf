"""What people want to know of a tensor's values, and whether the samples were enough."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onnxq.calibrate.calibration import Calibration, Pair
from onnxq.calibrate.choose import quantization_error
from onnxq.calibrate.histogram import Bins
from onnxq.calibrate.observers import HistogramObserver
from onnxq.types import Grid, TensorRange

# Columns of the small picture of a distribution.
PICTURE = 14
# A range that still moves by more than this share of itself was not seen often enough.
SETTLED = 0.02


class TensorStatistics(msgspec.Struct, frozen=True):
    """One tensor.

    Attributes:
        min: Smallest ordinary value.
        max: Largest ordinary value.
        lo: Lower end of the chosen range.
        hi: Upper end of the chosen range.
        finite: False when infinities or masks were seen, which no range holds.
        clipped: Share of the values outside the range; None without a histogram.
        sqnr_db: Signal-to-quantization-noise ratio of this tensor alone, quantized to the range;
            None without a histogram, and where there is no noise.
        moved: How much of its width the range still moved in the last tenth of the samples; None
            with too few samples to tell.
        picture: Share of the values in equal parts from min to max; empty without a histogram.
    """

    min: float
    max: float
    lo: float
    hi: float
    finite: bool
    clipped: float | None = None
    sqnr_db: float | None = None
    moved: float | None = None
    picture: tuple[float, ...] = ()


class Statistics(msgspec.Struct, frozen=True):
    """All tensors.

    Attributes:
        samples: How many samples were seen.
        observer: Name of the observer.
        grid: The integers that ranges were chosen for.
        tensors: What was found, by tensor, in the graph's order.
    """

    samples: int
    observer: str
    grid: Grid
    tensors: dict[str, TensorStatistics]

    @property
    def unsettled(self) -> tuple[str, ...]:
        """Tensors whose range still moved, most of all first."""
        moved = {name: t.moved for name, t in self.tensors.items() if t.moved is not None}
        late = [name for name, share in moved.items() if share > SETTLED]
        return tuple(sorted(late, key=lambda name: -moved[name]))

    @property
    def moved(self) -> float | None:
        """How much the range moved that moved most; None when it cannot be told."""
        return max((t.moved for t in self.tensors.values() if t.moved is not None), default=None)


def movements(calibration: Calibration, grid: Grid) -> dict[str, float]:
    """How much of its width each range still moved in the last tenth of the samples.

    Tensors that were not seen before, or not any more, are missing.
    """
    calibration, found = calibration.resolved(), {}
    for tensor, pair in calibration.tensors.items():
        chosen = calibration.whole(tensor).range(grid)
        moved = _moved(pair, chosen, grid) if chosen is not None else None
        if moved is not None:
            found[tensor] = moved
    return found


def describe(calibration: Calibration, grid: Grid) -> Statistics:
    """Tell of every tensor what its values are like, and what a grid makes of them."""
    calibration, found = calibration.resolved(), {}
    for tensor, pair in calibration.tensors.items():
        whole = calibration.whole(tensor)
        chosen = whole.range(grid)
        if chosen is None:
            continue
        facts: dict[str, Any] = {"moved": _moved(pair, chosen, grid)}
        observer = whole.observer
        if isinstance(observer, HistogramObserver) and observer.histogram.total:
            facts |= _of_values(observer.histogram.bins(), chosen, grid)
        found[tensor] = TensorStatistics(
            chosen.min, chosen.max, chosen.lo, chosen.hi, chosen.finite, **facts
        )
    return Statistics(calibration.samples, calibration.observer.name, grid, found)


def _moved(pair: Pair, chosen: TensorRange, grid: Grid) -> float | None:
    if not pair.tail.seen or not pair.body.seen:
        return None
    before = pair.body.range(grid)
    width = chosen.hi - chosen.lo
    if before is None:
        return None
    if width == 0:
        return 0.0
    return (abs(before.lo - chosen.lo) + abs(before.hi - chosen.hi)) / width


def _of_values(bins: Bins, chosen: TensorRange, grid: Grid) -> dict[str, Any]:
    # a bin of the ends reaches beyond them
    values, count = np.clip(bins.center, chosen.min, chosen.max), bins.count
    outside = count[(bins.right < chosen.lo) | (bins.left > chosen.hi)].sum()
    magnitudes = max(-chosen.lo, 0.0), max(chosen.hi, 0.0)
    noise = (count * quantization_error(values, magnitudes, grid) ** 2).sum()
    signal = (count * values**2).sum()
    sqnr = float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else None
    return {
        "clipped": float(outside / count.sum()),
        "sqnr_db": sqnr,
        "picture": _picture(values, count, chosen),
    }


def _picture(
    values: NDArray[np.float64], count: NDArray[np.float64], chosen: TensorRange
) -> tuple[float, ...]:
    """Shares of the values in equal parts from min to max."""
    if chosen.max <= chosen.min:
        return (1.0,)
    place = (values - chosen.min) / (chosen.max - chosen.min) * PICTURE
    place = np.clip(place.astype(np.int64), 0, PICTURE - 1)
    shares = np.bincount(place, count, PICTURE) / count.sum()
    return tuple(shares.tolist())
