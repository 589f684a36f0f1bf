"""Operators of ONNX and of ONNX Runtime in PyTorch, by name: ``OPERATORS`` and ``CONTROL``."""

from onnxq.qat.operators import (
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    matrix,
    normalization,
    quantized,
    recurrent,
    reductions,
    resize,
    shapes,
)
from onnxq.qat.operators.registry import CONTROL, OPERATORS, Operator, Run

# Importing a family registers its operators.
FAMILIES = (
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    matrix,
    normalization,
    quantized,
    recurrent,
    reductions,
    resize,
    shapes,
)

__all__ = ["CONTROL", "FAMILIES", "OPERATORS", "Operator", "Run"]
