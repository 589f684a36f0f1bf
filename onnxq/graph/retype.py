"""Which inputs and outputs of a node change their type together, from float32 to a smaller float.

ONNX says it itself: an operator's schema gives every input and output a type variable and the
types that it may stand for. What is written here are the exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import ml_dtypes
import numpy as np
import onnx

from onnxq.graph.view import GraphView, NodeView
from onnxq.types import Array

# Operators that take any type and whose outputs do not follow from it: they read what is there.
TYPELESS = ("Cast", "Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike")
# Operators that make what is no tensor, though shape inference may say that it is one.
SEQUENCES = ("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap",
             "SplitToSequence", "Optional")  # fmt: skip
# Operators that cannot change: they hold subgraphs, read bits, or are defined with float32 inside.
FIXED = (*SEQUENCES, "If", "Loop", "Scan", "BitCast", "MeanVarianceNormalization")
# The attribute that says the type of what an operator makes.
TYPE_ATTRIBUTE = {
    "Cast": "to", "EyeLike": "dtype", "Bernoulli": "dtype",
    "Constant": "value", "ConstantOfShape": "value",
    "RandomNormal": "dtype", "RandomUniform": "dtype",
    "RandomNormalLike": "dtype", "RandomUniformLike": "dtype",
    "BlackmanWindow": "output_datatype", "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype", "MelWeightMatrix": "output_datatype",
}  # fmt: skip
# Inputs that may be small floats and should not: coordinates need more than their bits.
KEPT_INPUTS = {"Resize": (1, 2)}
# Operators of ONNX Runtime: the inputs and outputs that share one float type.
CONTRIB: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "BiasGelu": ((0, 1), (0,)),
    "FastGelu": ((0, 1), (0,)),
    "FusedMatMul": ((0, 1), (0,)),
    "Gelu": ((0,), (0,)),
    "MatMulNBits": ((0, 2, 5), (0,)),
    "QuickGelu": ((0,), (0,)),
    "SkipLayerNormalization": ((0, 1, 2, 3, 4), (0, 3)),
}


@dataclass(frozen=True)
class FloatPorts:
    """What of a node changes its type together.

    Attributes:
        inputs: Input ports that read the smaller float.
        outputs: Output ports that make it.
        attribute: The attribute that says so; empty when the inputs say it.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attribute: str = ""


def narrow(values: Array, dtype: str) -> Array:
    """Values rounded to ``float16`` or ``bfloat16``; those out of its range become infinities."""
    with np.errstate(over="ignore"):
        return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def float_ports(view: GraphView, node: NodeView, dtype: str = "float16") -> FloatPorts | None:
    """The ports that become ``dtype`` when a node computes in it instead of float32.

    Args:
        view: The graph, with its types inferred.
        node: One of its nodes.
        dtype: ``float16`` or ``bfloat16``.

    Returns:
        None when the operator has no such form, when it touches no float32 tensor that could
        change, when a type is not known, and for nodes with subgraphs, sequences or optionals.
    """
    named = [t for t in (*node.inputs, *node.outputs) if t]
    if node.op in FIXED or any(not _type(view, t) for t in named):
        return None
    ports = _contrib(view, node) if node.domain else _standard(view, node, dtype)
    return ports if ports is not None and (ports.inputs or ports.outputs) else None


def _type(view: GraphView, tensor: str) -> str:
    """NumPy type name of a tensor; empty when it is not known, or not one tensor."""
    producer = view.producer(tensor)
    maker = producer.op if producer is not None else ""
    if producer is not None and maker == "DequantizeLinear" and not view.dtype(tensor):
        return view.dtype(producer.inputs[1])
    if maker in SEQUENCES:
        return ""
    return view.dtype(tensor) if view.is_tensor(tensor) else ""


def _contrib(view: GraphView, node: NodeView) -> FloatPorts | None:
    if node.domain != "com.microsoft" or node.op not in CONTRIB:
        return None
    inputs, outputs = CONTRIB[node.op]
    inputs = tuple(p for p in inputs if p < len(node.inputs) and node.inputs[p])
    if any(_type(view, node.inputs[p]) != "float32" for p in inputs):
        return None
    return FloatPorts(inputs, tuple(p for p in outputs if p < len(node.outputs)))


def _standard(view: GraphView, node: NodeView, dtype: str) -> FloatPorts | None:
    schema = _schema(node.op, view.opset)
    if schema is None:
        return None
    if node.op in TYPE_ATTRIBUTE and _type(view, node.outputs[0]) == "float32":
        return FloatPorts((), (0,), TYPE_ATTRIBUTE[node.op])
    if node.op in TYPELESS:
        return None
    kept = KEPT_INPUTS.get(node.op, ())
    inputs = tuple(
        port
        for port, tensor in enumerate(node.inputs)
        if tensor and port not in kept
        and _type(view, tensor) == "float32" and dtype in schema.types_of(port)
    )  # fmt: skip
    changed = {schema.input(port) for port in inputs}
    outputs = (p for p, t in enumerate(node.outputs) if t and schema.output(p) in changed)
    return FloatPorts(inputs, tuple(outputs))


@dataclass(frozen=True)
class _Schema:
    """The type variables of an operator, and the types that they may stand for."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[str, frozenset[str]]

    def input(self, port: int) -> str:
        return self.inputs[min(port, len(self.inputs) - 1)]  # the last one may be variadic

    def output(self, port: int) -> str:
        return self.outputs[min(port, len(self.outputs) - 1)]

    def types_of(self, port: int) -> frozenset[str]:
        return self.types.get(self.input(port), frozenset())


@lru_cache(maxsize=512)
def _schema(op: str, opset: int) -> _Schema | None:
    try:
        found = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    types = {
        c.type_param_str: frozenset(
            t.removeprefix("tensor(").removesuffix(")") for t in c.allowed_type_strs
        )
        for c in found.type_constraints
    }
    return _Schema(
        tuple(i.type_str for i in found.inputs), tuple(o.type_str for o in found.outputs), types
    )
