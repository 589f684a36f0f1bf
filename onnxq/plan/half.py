"""float16: which nodes can compute in it, and which of these gain from it.

float16 has 11 bits: values are off by up to a 2,048th, whole numbers are exact up to 2,048, nothing
lies beyond 65,504, and nothing but 0 below 6e-8. Layers, activations and normalisations live with
that (their kernels add up in float32); what squares, exponentiates, divides, adds up long rows or
counts does not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np

from onnxq.graph import TYPELESS, FloatPorts, GraphView, NodeView, Use, float_ports, narrow
from onnxq.numerics import ErrorSums, slices
from onnxq.ops import NodeInfo
from onnxq.plan.delicate import (
    LARGEST,
    LIMITING,
    delicate_nodes,
    huge,
    known_values,
    moves,
    squares,
)
from onnxq.types import Array, Reason

# A constant that loses more than that (1 part in 30) is not merely rounded, which costs 70 dB: it
# is too small for float16.
LEAST_DB = 30.0
# A sum of so many values leaves the range when they are 64 on average.
MOST_SUMMED = 1024

Verdict = tuple[str, str]


def _rows(ops: str, sentence: str) -> dict[str, str]:
    return dict.fromkeys(ops.split(), sentence)


# Why an operator stays float32, whatever its inputs.
STAYS: dict[str, str] = {
    **_rows("QuantizeLinear DequantizeLinear DynamicQuantizeLinear", "stays as it is"),
    **_rows(
        "ReduceSumSquare ReduceL2 LpNormalization MeanVarianceNormalization LRN LpPool",
        "squares its input, and squares leave the range of float16 from 256 on",
    ),
    **_rows(
        "Exp ReduceLogSumExp Sinh Cosh",
        "exponentials leave the range of float16 from 11.1 on",
    ),
    **_rows("ReduceProd CumProd Det", "products of many values leave the range of float16"),
    **_rows("ReduceL1 CumSum DFT STFT", "adds up many values, which 11 bits are too few for"),
    **_rows(
        "Reciprocal Tan Atanh Acosh Acos Asin",
        "small changes of its input become large ones of its output",
    ),
    **_rows("Log ReduceLogSum", "small inputs, which float16 makes 0, become infinite"),
    **_rows("Sin Cos", "angles beyond a few turns need more than 11 bits"),
    **_rows(
        "Floor Ceil Round Mod Equal TopK ArgMax ArgMin Unique NonZero Hardmax",
        "decides by values that 11 bits cannot tell apart",
    ),
    **_rows(
        "GridSample AffineGrid RoiAlign MaxRoiPool Range NonMaxSuppression DeformConv",
        "coordinates need more than 11 bits",
    ),
    **_rows(
        "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial",
        "draws other random numbers in another type",
    ),
    **_rows(
        "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss BlackmanWindow HammingWindow "
        "HannWindow MelWeightMatrix EyeLike",
        "has no float16 kernel",
    ),
}
# Whole numbers of these types are exact in float16.
SMALL_TYPES = ("bool", "int8", "uint8", "float16", "bfloat16", "float32")


def refuse_half(view: GraphView, node: NodeInfo) -> Reason | None:
    """Why a node cannot compute in float16; None when it can."""
    verdict = _refuse(view, view.by_name[node.name])
    return Reason(*verdict, node.name) if verdict else None


def worth_half(view: GraphView, nodes: Collection[str]) -> frozenset[str]:
    """The nodes among these that gain from float16, when exactly these may compute in it.

    What only moves data gains where its input is float16 already, or where all its readers want
    it so. Elsewhere it would round what is read as float32 again.

    Args:
        view: The graph.
        nodes: Nodes that ``refuse_half`` lets through.
    """
    kept = {name for name in nodes if not moves(view.by_name[name])}
    candidates = [n for n in view.nodes if n.name in nodes and n.name not in kept]
    for node in candidates:
        producers = [view.producer(t) for t in _floats(view, node.inputs)]
        if any(p is not None and p.name in kept for p in producers):
            kept.add(node.name)
    for node in reversed(candidates):
        readers = [u.node for t in node.outputs for u in view.uses(t) if not _typeless(view, u)]
        public = any(t in view.output_names for t in node.outputs)
        if readers and not public and all(reader in kept for reader in readers):
            kept.add(node.name)
    return frozenset(kept)


def _typeless(view: GraphView, use: Use) -> bool:
    reader = view.by_name[use.node]
    return use.port >= 0 and reader.op in TYPELESS and not reader.domain


def _floats(view: GraphView, tensors: Iterable[str]) -> list[str]:
    return [t for t in tensors if t and view.dtype(t) == "float32"]


def _refuse(view: GraphView, node: NodeView) -> Verdict | None:
    if node.op in ("If", "Loop", "Scan"):
        return "control-flow", f"{node.op} and the nodes inside its bodies stay as they are"
    if not _floats(view, (*node.inputs, *node.outputs)):
        return "not-float32", "computes on integers"
    if not node.domain and node.op in STAYS:
        return "float16-range", f"{node.op} stays float32: {STAYS[node.op]}"
    ports = float_ports(view, node)
    if ports is None:
        if node.op in ("Shape", "Size", "Cast") and not node.domain:
            return "not-float32", "takes any type, and makes none of it"
        return "no-float16-kernel", f"{node.op} has no form in float16, or a type is not known"
    return (
        _refuse_constants(view, node, ports)
        or _refuse_operator(view, node)
        or _refuse_delicate(view, node)
    )


def _refuse_constants(view: GraphView, node: NodeView, ports: FloatPorts) -> Verdict | None:
    for name, values in known_values(view, node, ports.inputs):
        if node.op not in LIMITING and (largest := huge(values)):
            text = f"constant '{name}' holds {largest:.4g}, and float16 ends at 65504"
            return "float16-overflow", text
        if _too_small(values):
            return "float16-underflow", f"constant '{name}' is too small for float16"
    return None


def _refuse_delicate(view: GraphView, node: NodeView) -> Verdict | None:
    what = delicate_nodes(view).get(node.name)
    return ("float16-range", f"{node.op} {what}") if what else None


def _too_small(values: Array) -> bool:
    sums = ErrorSums()
    for rows in slices(values):
        part = np.asarray(values[rows], np.float32)
        part = part[np.isfinite(part) & (np.abs(part) <= LARGEST)]
        sums.add(part, narrow(part, "float16"))
    return sums.noise > 0 and sums.sqnr_db < LEAST_DB


def _refuse_operator(view: GraphView, node: NodeView) -> Verdict | None:
    """What depends on attributes, shapes and edges of one node."""
    if node.op in ("ReduceSum", "ReduceMean"):
        count = _reduced(view, node)
        if count is None or count > MOST_SUMMED:
            many = "a number of values that is not known" if count is None else f"{count} values"
            return "float16-range", f"{node.op} adds up {many}, which may leave float16's range"
    if squares(view, node):
        return "float16-range", f"{node.op} makes powers, which may leave float16's range"
    if node.op == "Div" and not node.domain:
        divisor = view.constant(node.inputs[1])
        if divisor is None:
            return "float16-range", "Div by a small computed value would leave float16's range"
        if ((narrow(divisor, "float16") == 0) & (divisor != 0)).any():
            text = f"constant '{node.inputs[1]}' holds divisors that float16 makes 0"
            return "float16-underflow", text
    if (
        node.op in ("ScatterElements", "ScatterND")
        and node.attrs.get("reduction", "none") != "none"
    ):
        return "no-float16-kernel", f"{node.op} has no float16 kernel that combines values"
    if node.op == "Cast" and view.dtype(node.inputs[0]) not in SMALL_TYPES:
        text = f"Cast from {view.dtype(node.inputs[0])} makes numbers that need more than 11 bits"
        return "float16-range", text
    return None


def _reduced(view: GraphView, node: NodeView) -> int | None:
    """How many values a reduction makes one of; None when it is not known."""
    shape = view.shape(node.inputs[0])
    given = node.attrs.get("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        given = view.constant(node.inputs[1])
        if given is None:
            return None
    if shape is None:
        return None
    axes = range(len(shape)) if given is None or len(given) == 0 else [int(a) for a in given]
    sizes = [shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None
