"""Weights alone: which nodes store theirs as integers and compute in float, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.graph import MINIMUM_OPSET, SMALL_TYPES_OPSET, GraphView
from onnxq.ops import NodeInfo, Role
from onnxq.plan.layers import LayerSettings
from onnxq.plan.recipe import Recipe
from onnxq.types import Precision, QType, Reason, WeightBlocks

# Smaller weights are not worth a DequantizeLinear of their own.
LEAST_WEIGHT = 256
# Values per scale of 4 bit weights, where nothing is said: with 128 they lose 1 to 3 dB more.
INT4_BLOCK = 32
# A Conv sums along three axes: its output channels have a scale each, and no blocks.
_INT4 = ("MatMul", "Gemm", "Gather", "LSTM", "GRU", "RNN", "Conv", "ConvTranspose")


def needed_opset(recipe: Recipe) -> int:
    """The least opset that can say what a recipe wants."""
    wanted = set(recipe.precisions)
    sizes = (recipe.weights.block_size, *(rule.block_size for rule in recipe.layers))
    blocks = Precision.INT8_WEIGHTS in wanted and any(sizes)
    small = recipe.objective == "size"  # 4 bits are among what a search may choose then
    if small or blocks or wanted & {Precision.INT16, Precision.INT4_WEIGHTS}:
        return SMALL_TYPES_OPSET
    return MINIMUM_OPSET


def refuse_weights(view: GraphView, node: NodeInfo) -> Reason | None:
    """Why a node's weights are not stored as integers; None when they are."""
    weights = [view.constant(stored.tensor) for stored in node.stored]
    if not weights:
        text = "has no constant float32 weight that onnxq stores as integers"
        return Reason("no-weight", text, node.name)
    if all(values is None or values.size < LEAST_WEIGHT for values in weights):
        return Reason("small-weight", f"its weight has under {LEAST_WEIGHT} values", node.name)
    if not all(values is not None and np.isfinite(values).all() for values in weights):
        return Reason("weight-not-finite", "its weight holds NaN or infinity", node.name)
    return None


def refuse_int4_weights(view: GraphView, node: NodeInfo) -> Reason | None:
    """Why a node's weights are not stored as 4 bits; None when they are."""
    if odd := next((stored.op for stored in node.stored if stored.op not in _INT4), None):
        return Reason("no-int4", f"the weights of {odd} are not stored as int4", node.name)
    return refuse_weights(view, node)


def small_storage(
    view: GraphView,
    users: Sequence[NodeInfo],
    precisions: Mapping[str, Precision],
    layers: Mapping[str, LayerSettings],
) -> WeightBlocks | QType | None:
    """How a weight is stored that needs more or less than 8 bits and a scale per channel.

    A weight is stored once. Among nodes that share it, the one of the most bits says how, and
    among equals the first that computes with it.

    Args:
        view: The graph.
        users: The nodes that use it, each with it as its ``weight``.
        precisions: How they compute.
        layers: What is wanted of them.

    Returns:
        Blocks; the type where there are scales per channel in fewer than 8 bits; None for the
        usual 8 bits.
    """
    found = {precisions[node.name] for node in users}
    if not found <= {Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS}:
        return None
    widest = Precision.INT8_WEIGHTS if Precision.INT8_WEIGHTS in found else Precision.INT4_WEIGHTS
    equals = [node for node in users if precisions[node.name] is widest]
    first = min(equals, key=lambda node: node.role is not Role.COMPUTE)
    bits = 4 if widest is Precision.INT4_WEIGHTS else 8
    size = layers[first.name].block_size or (INT4_BLOCK if bits == 4 else None)
    axis = next((s.summed for s in first.stored if (s.port, s.tensor) == first.weight), None)
    if size is None or axis is None:
        return QType.INT4 if bits == 4 else None
    settings = layers[first.name]
    qtype = QType(f"int{bits}" if settings.symmetric else f"uint{bits}")
    return WeightBlocks(qtype, axis, size, settings.symmetric, settings.method)
