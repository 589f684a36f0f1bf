"""Observers, and the one pass over the data that shows them every tensor."""

from onnxq.calibrate.collect import Ranges, calibrate
from onnxq.calibrate.observers import (
    MinMaxObserver,
    Observer,
    PercentileObserver,
    Tap,
    make_observer,
)

__all__ = [
    "MinMaxObserver",
    "Observer",
    "PercentileObserver",
    "Ranges",
    "Tap",
    "calibrate",
    "make_observer",
]
