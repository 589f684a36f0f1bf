"""An observer of your own: name it as ``examples/my_observer.py:PowerOfTwo``."""

import math
from typing import Self

from onnxq.calibrate import Tap
from onnxq.types import Grid


class PowerOfTwo:
    """A symmetric range that ends at a power of two, for hardware that scales by shifting."""

    wants_values = False  # the smallest and largest value of each sample are enough

    def __init__(self) -> None:
        self.largest = 0.0

    def observe(self, tap: Tap) -> None:
        """Take some samples in."""
        self.largest = max(self.largest, float(-tap.lows.min()), float(tap.highs.max()))

    def merge(self, other: Self) -> None:
        """Fold in what another observer has seen."""
        self.largest = max(self.largest, other.largest)

    def range(self, grid: Grid) -> tuple[float, float]:
        """Tell the range to quantize for, whatever the grid."""
        del grid
        end = 2.0 ** math.ceil(math.log2(self.largest)) if self.largest else 0.0
        return -end, end
