"""What each layer costs in accuracy and in time, and the search for the best plan in a budget."""

from onnxq.sensitivity.analyze import analyze
from onnxq.sensitivity.evaluate import Evaluator
from onnxq.sensitivity.plans import recipe_for
from onnxq.sensitivity.values import (
    FrontPoint,
    Histogram,
    LayerSensitivity,
    Loss,
    SensitivityReport,
)

__all__ = [
    "Evaluator",
    "FrontPoint",
    "Histogram",
    "LayerSensitivity",
    "Loss",
    "SensitivityReport",
    "analyze",
    "recipe_for",
]
