"""What an operator is: the table, and ``classify``, which judges every node of a graph by it."""

from onnxq.ops.census import Census, NodeInfo
from onnxq.ops.classify import classify
from onnxq.ops.quantized import refuse_quantized
from onnxq.ops.table import OPERATORS, OpSpec, Role

__all__ = [
    "OPERATORS",
    "Census",
    "NodeInfo",
    "OpSpec",
    "Role",
    "classify",
    "refuse_quantized",
]
