"""Observers, and the one pass over the data that shows them every tensor."""

from onnxq.calibrate.calibration import Calibration, Ranges, decode, encode
from onnxq.calibrate.cluster import connect
from onnxq.calibrate.collect import Setup
from onnxq.calibrate.observers import (
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    Observer,
    PercentileObserver,
    SigmaObserver,
    Stratum,
    Tap,
    TrimmedObserver,
)
from onnxq.calibrate.registry import AUTO, OBSERVERS, ObserverSpec, auto_observer
from onnxq.calibrate.run import Workers, calibrate
from onnxq.calibrate.statistics import PICTURE, Statistics, TensorStatistics, describe, movements

__all__ = [
    "AUTO",
    "OBSERVERS",
    "PICTURE",
    "Calibration",
    "EntropyObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "MseObserver",
    "Observer",
    "ObserverSpec",
    "PercentileObserver",
    "Ranges",
    "Setup",
    "SigmaObserver",
    "Statistics",
    "Stratum",
    "Tap",
    "TensorStatistics",
    "TrimmedObserver",
    "Workers",
    "auto_observer",
    "calibrate",
    "connect",
    "decode",
    "describe",
    "encode",
    "movements",
]
