"""What an operator is: the table, and ``classify``, which judges every node of a graph by it."""

from onnxq.ops.census import Census, NodeInfo, Stored
from onnxq.ops.classify import classify, stored_in_bodies
from onnxq.ops.quantized import refuse_quantized
from onnxq.ops.table import OPERATORS, OpSpec, Role

__all__ = [
    "OPERATORS",
    "Census",
    "NodeInfo",
    "OpSpec",
    "Role",
    "Stored",
    "classify",
    "refuse_quantized",
    "stored_in_bodies",
]
