"""Which tensors share a scale, and the scales of activations, weights and constants."""

from __future__ import annotations

import numpy as np

from onnxq.graph import GraphView
from onnxq.numerics import channel_range, choose_qparams
from onnxq.ops import NodeInfo, Role
from onnxq.targets import Kernel, Target
from onnxq.types import Array, QParams, TensorRange

# A tensor joins the scale of a Concat only when that costs it at most one bit of resolution.
MOST_STRETCH = 2.0
# |bias| / (s_x * s_w) must fit int32; a quarter of it leaves room for the products.
BIAS_LIMIT = 2.0**29


def share_scales(nodes: list[NodeInfo], ranges: dict[str, TensorRange]) -> list[tuple[str, ...]]:
    """Groups of two and more tensors that must have one scale and zero point.

    An operator that only moves data has the same scale on both sides. The parts of a Concat
    share the whole's scale, so that it copies bytes, unless that is too coarse for a part.
    """
    parent = {tensor: tensor for tensor in ranges}

    def root(tensor: str) -> str:
        while parent[tensor] != tensor:
            parent[tensor] = parent[parent[tensor]]
            tensor = parent[tensor]
        return tensor

    for node in nodes:
        inside = [t for _, t in node.data if t in parent]
        made = [t for t in node.outputs if t in parent]
        joins = node.role is Role.JOIN and node.op == "Concat" and _alike(inside + made, ranges)
        if (node.kernel is Kernel.MOVES or joins) and inside and made:
            for tensor in inside + made:
                parent[root(tensor)] = root(made[0])
    groups: dict[str, list[str]] = {}
    for tensor in ranges:
        groups.setdefault(root(tensor), []).append(tensor)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _alike(tensors: list[str], ranges: dict[str, TensorRange]) -> bool:
    spans = [max(ranges[t].hi, 0.0) - min(ranges[t].lo, 0.0) for t in tensors]
    whole = max(ranges[t].hi for t in tensors) - min(ranges[t].lo for t in tensors)
    return whole <= MOST_STRETCH * min(spans)


def activation_params(
    ranges: dict[str, TensorRange], groups: list[tuple[str, ...]], target: Target
) -> dict[str, QParams]:
    """Scale and zero point of every activation; a group has those of its widest range."""
    ends = {tensor: (found.lo, found.hi) for tensor, found in ranges.items()}
    for group in groups:
        lo, hi = min(ends[t][0] for t in group), max(ends[t][1] for t in group)
        ends.update(dict.fromkeys(group, (lo, hi)))
    return {t: choose_qparams(lo, hi, target.activation) for t, (lo, hi) in ends.items()}


def constant_params(view: GraphView, tensor: str, target: Target) -> QParams:
    """Scale and zero point of a constant operand: of the activations' type, as kernels want."""
    values = _constant(view, tensor)
    return choose_qparams(float(values.min()), float(values.max()), target.activation)


def weight_params(
    view: GraphView,
    uses: list[NodeInfo],
    activations: dict[str, QParams],
    target: Target,
    *,
    per_channel: bool,
) -> QParams:
    """Scales of one weight, whatever number of nodes share it.

    Symmetric, one scale per output channel unless the nodes disagree on which axis that is. A
    channel whose bias would overflow int32 in units of ``s_x * s_w`` gets a coarser scale.

    Args:
        view: The graph.
        uses: The nodes that use this weight.
        activations: Scales of the activations, for the biases.
        target: Types, and how much of the weight type's range may be used.
        per_channel: Whether to have one scale per channel at all.
    """
    assert uses[0].weight is not None
    values = _constant(view, uses[0].weight[1])
    axes = {node.channel_axis for node in uses}
    axis = axes.pop() if per_channel and len(axes) == 1 else None
    axis = axis + values.ndim if axis is not None and axis < 0 else axis
    lo, hi = channel_range(values, axis)
    bound = np.maximum(np.abs(lo), np.abs(hi)) * target.weight_headroom
    for node in uses:
        bound = np.maximum(bound, _bound_for_bias(view, node, activations, target, axis))
    return choose_qparams(-bound, bound, target.weight, symmetric=True, axis=axis)


def _bound_for_bias(
    view: GraphView,
    node: NodeInfo,
    activations: dict[str, QParams],
    target: Target,
    axis: int | None,
) -> Array | float:
    """The least weight range for which the bias fits into int32."""
    source = next((t for _, t in node.data), "")
    if node.bias is None or source not in activations:
        return 0.0
    bias = np.abs(_constant(view, node.bias[1]).astype(np.float64)).ravel()
    least_scale = bias / (BIAS_LIMIT * activations[source].scale[0])
    bound = least_scale * target.weight.qmax
    return bound if axis is not None else float(bound.max(initial=0.0))


def _constant(view: GraphView, tensor: str) -> Array:
    values = view.constant(tensor)
    assert values is not None
    return values
