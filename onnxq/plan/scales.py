"""Which tensors share a scale, and the scales of activations, weights and constants."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from onnxq.graph import GraphView
from onnxq.numerics import channel_range, choose_qparams
from onnxq.ops import NodeInfo
from onnxq.targets import Kernel, Target
from onnxq.types import Array, QParams, QType, TensorRange

# A tensor joins the scale of a Concat only when that costs it at most one bit of resolution.
MOST_STRETCH = 2.0
# |bias| / (s_x * s_w) must fit int32; a quarter of it leaves room for the products.
BIAS_LIMIT = 2.0**29
# The bias' scale, s_x * s_w, is a float32 as well, and may become 0 below the smallest normal one;
# twice that leaves room for rounding.
SMALLEST_PRODUCT = 2.0 * float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class _Range:
    """The range of a group of tensors, and how far it may grow.

    Attributes:
        lo: Lower end, at most 0.
        hi: Upper end, at least 0.
        span: Width of the narrowest member.
        floor: What ``lo`` may not fall below: behind a Relu or Clip a wider range would not cut
            what the clamp cuts, so that the clamp and the layer before it would run as float.
        ceiling: The same for ``hi``.
    """

    lo: float
    hi: float
    span: float
    floor: float
    ceiling: float

    @classmethod
    def of(cls, found: TensorRange, clamp: str) -> _Range:
        lo, hi = min(found.lo, 0.0), max(found.hi, 0.0)
        return cls(lo, hi, hi - lo, lo if clamp else -np.inf, hi if clamp == "Clip" else np.inf)

    def join(self, other: _Range) -> _Range:
        return _Range(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            min(self.span, other.span),
            max(self.floor, other.floor),
            min(self.ceiling, other.ceiling),
        )

    @property
    def suits_all(self) -> bool:
        fine = self.hi - self.lo <= MOST_STRETCH * self.span
        return fine and self.floor <= self.lo and self.hi <= self.ceiling


def share_scales(nodes: list[NodeInfo], ranges: dict[str, TensorRange]) -> list[tuple[str, ...]]:
    """Groups of two and more tensors that must have one scale and zero point.

    An operator that only moves data has the same scale on both sides. The parts of a Concat
    share the whole's scale, so that it copies bytes, unless that does not suit one of them.
    """
    clamps = {t: node.op for node in nodes if node.kernel is Kernel.CLAMP for t in node.outputs}
    parent = {tensor: tensor for tensor in ranges}
    joint = {t: _Range.of(found, clamps.get(t, "")) for t, found in ranges.items()}

    def root(tensor: str) -> str:
        while parent[tensor] != tensor:
            parent[tensor] = parent[parent[tensor]]
            tensor = parent[tensor]
        return tensor

    movers = [node for node in nodes if node.kernel is Kernel.MOVES]
    for node in movers + [node for node in nodes if node.op == "Concat"]:
        inside = [t for _, t in node.data if t in parent]
        made = [t for t in node.outputs if t in parent]
        roots = {root(t) for t in inside + made}
        whole = reduce(_Range.join, (joint[r] for r in roots)) if inside and made else None
        if whole and (node.kernel is Kernel.MOVES or whole.suits_all):
            top = root(made[0])
            parent.update(dict.fromkeys(roots, top))
            joint[top] = whole
    groups: dict[str, list[str]] = {}
    for tensor in ranges:
        groups.setdefault(root(tensor), []).append(tensor)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def activation_params(
    ranges: dict[str, TensorRange],
    groups: list[tuple[str, ...]],
    target: Target,
    wide: Collection[str] = (),
) -> dict[str, QParams]:
    """Scale and zero point of every activation; a group has those of its widest range.

    Args:
        ranges: Ranges by tensor.
        groups: Tensors that share a scale.
        target: Types.
        wide: Tensors with 16 bits; a group has them when all of it does.
    """
    narrow = {t for group in groups if not all(t in wide for t in group) for t in group}
    ends = {tensor: (found.lo, found.hi) for tensor, found in ranges.items()}
    for group in groups:
        lo, hi = min(ends[t][0] for t in group), max(ends[t][1] for t in group)
        ends.update(dict.fromkeys(group, (lo, hi)))
    return {
        tensor: choose_qparams(
            lo,
            hi,
            target.activation16 if tensor in wide and tensor not in narrow else target.activation,
            symmetric=target.symmetric_activations,
        )
        for tensor, (lo, hi) in ends.items()
    }


def constant_params(view: GraphView, tensor: str, qtype: QType, *, symmetric: bool) -> QParams:
    """Scale and zero point of a constant operand: of the activations' type, as kernels want."""
    values = _constant(view, tensor)
    return choose_qparams(float(values.min()), float(values.max()), qtype, symmetric=symmetric)


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
    channel whose bias would overflow int32 in units of ``s_x * s_w``, or whose product of scales
    would be no float32, gets a coarser scale.

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
    if node.bias is None or source not in activations or not target.integer_bias:
        return 0.0
    bound = _least_bound(_constant(view, node.bias[1]), activations[source], target)
    return bound if axis is not None else float(bound.max(initial=0.0))


def bias_fits(
    view: GraphView, node: NodeInfo, ranges: dict[str, TensorRange], target: Target
) -> bool:
    """False when no float32 scale of the weights makes the bias fit into int32.

    Judged by the input's own range; a scale that is shared is never finer.
    """
    source = next((t for _, t in node.data), "")
    if node.bias is None or source not in ranges or not target.integer_bias:
        return True
    found, symmetric = ranges[source], target.symmetric_activations
    x = choose_qparams(found.lo, found.hi, target.activation, symmetric=symmetric)
    bound = _least_bound(_constant(view, node.bias[1]), x, target)
    return bool(np.all(bound <= np.finfo(np.float32).max))


def _least_bound(bias: Array, x: QParams, target: Target) -> NDArray[np.float64]:
    """The least weight range, per channel, for a bias behind an input of these parameters."""
    product = np.maximum(np.abs(bias.astype(np.float64)).ravel() / BIAS_LIMIT, SMALLEST_PRODUCT)
    return product / x.scale[0] * target.weight.qmax


def _constant(view: GraphView, tensor: str) -> Array:
    values = view.constant(tensor)
    assert values is not None
    return values
