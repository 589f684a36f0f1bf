"""``QuantPlan``: a precision and a reason for every node, scales for every tensor."""

from __future__ import annotations

import msgspec
import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo
from onnxq.plan.policy import Regions, keep_float
from onnxq.plan.recipe import Recipe
from onnxq.plan.scales import (
    activation_params,
    bias_fits,
    constant_params,
    share_scales,
    weight_params,
)
from onnxq.targets import Kernel, Target
from onnxq.types import Precision, QParams, Reason, TensorRange

# Smaller weights are not worth a DequantizeLinear of their own.
LEAST_WEIGHT = 256


class NodePlan(msgspec.Struct, frozen=True):
    """What becomes of one node.

    Attributes:
        name: Name of the node.
        op: Operator type.
        precision: How it computes.
        reason: Why it does not compute in int8; None when it does.
    """

    name: str
    op: str
    precision: Precision
    reason: Reason | None = None


class QuantPlan(msgspec.Struct, frozen=True):
    """What becomes of a model: plain, serialisable, complete.

    Attributes:
        target: The provider it was made for.
        nodes: One entry per node, in the graph's order.
        tensors: Scale and zero point of every quantized tensor: activations that carry a Q/DQ
            pair, weights, and constant operands. Biases follow from these: ``s_x * s_w``.
        groups: Tensors that share one scale.
        schema: Version of this structure.
    """

    target: str
    nodes: tuple[NodePlan, ...]
    tensors: dict[str, QParams]
    groups: tuple[tuple[str, ...], ...] = ()
    schema: int = 1

    def precision(self) -> dict[str, Precision]:
        """Precision by node name."""
        return {node.name: node.precision for node in self.nodes}

    def count(self, *precisions: Precision) -> int:
        """How many nodes have one of these precisions."""
        return sum(node.precision in precisions for node in self.nodes)

    @property
    def empty(self) -> bool:
        """True when there is nothing to quantize."""
        return self.count(Precision.FLOAT) == len(self.nodes)


def make_plan(
    view: GraphView,
    census: Census,
    ranges: dict[str, TensorRange],
    recipe: Recipe,
    target: Target,
) -> QuantPlan:
    """Decide about every node and every tensor. Pure: no runtime, no data.

    Args:
        view: The prepared graph.
        census: What ``classify`` said of it.
        ranges: Observed ranges by tensor; needed for ``int8``, ignored for ``int8-weights``.
        recipe: Precision, patterns to keep float, granularity.
        target: The provider to plan for.

    Returns:
        The plan.

    Raises:
        UsageError: A pattern of the recipe matches no node.
    """
    kept = keep_float(census, recipe.keep_float, recipe.keep_float_op)
    if recipe.precision == "int8-weights":
        return _plan_weights(view, census, kept, recipe, target)
    return _plan_static(view, census, kept, ranges, recipe, target)


def _plan_static(
    view: GraphView,
    census: Census,
    kept: dict[str, Reason],
    ranges: dict[str, TensorRange],
    recipe: Recipe,
    target: Target,
) -> QuantPlan:
    lacking = _without_scale(view, census, Regions(view, census, kept), ranges, target)
    regions = Regions(view, census, lacking | kept)
    chosen = [node for node in census.nodes if node.name in regions.int8]
    used = {tensor: ranges[tensor] for tensor in regions.tensors()}
    used |= _within_clamps(chosen, used)
    groups = share_scales(chosen, used)
    tensors = activation_params(used, groups, target)
    constants = {t for node in chosen for _, t in node.constants}
    params = {t: constant_params(view, t, target) for t in sorted(constants)}
    params |= _weights(view, chosen, tensors, recipe, target)
    nodes = tuple(
        NodePlan(node.name, node.op, Precision.INT8)
        if node.name in regions.int8
        else NodePlan(node.name, node.op, Precision.FLOAT, regions.reasons[node.name])
        for node in census.nodes
    )
    return QuantPlan(target.name, nodes, tensors | params, tuple(groups))


def _within_clamps(nodes: list[NodeInfo], ranges: dict[str, TensorRange]) -> dict[str, TensorRange]:
    """Ranges behind a Relu or Clip, no wider than what was seen there.

    An observer may choose a wider one. It would not cut what the clamp cuts, so that the clamp and
    the layer before it would run as float.
    """
    behind = (t for node in nodes if node.kernel is Kernel.CLAMP for t in node.outputs)
    seen = {tensor: ranges[tensor] for tensor in behind if tensor in ranges}
    return {
        tensor: with_fields(found, lo=max(found.lo, found.min), hi=min(found.hi, found.max))
        for tensor, found in seen.items()
    }


def _weights(
    view: GraphView,
    nodes: list[NodeInfo],
    activations: dict[str, QParams],
    recipe: Recipe,
    target: Target,
) -> dict[str, QParams]:
    uses: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        if node.weight is not None:
            uses.setdefault(node.weight[1], []).append(node)
    return {
        tensor: weight_params(view, users, activations, target, per_channel=recipe.per_channel)
        for tensor, users in uses.items()
    }


def _without_scale(
    view: GraphView,
    census: Census,
    regions: Regions,
    ranges: dict[str, TensorRange],
    target: Target,
) -> dict[str, Reason]:
    """Nodes with a tensor that no scale suits: never computed, with infinities, a huge bias."""
    reasons: dict[str, Reason] = {}
    for node in census.nodes:
        if node.name not in regions.int8:
            continue
        for tensor in regions.observed(node):
            found = ranges.get(tensor)
            if found is None:
                text = f"no value of '{tensor}' was observed"
                reasons[node.name] = Reason("not-observed", text, node.name)
            elif not found.finite:
                text = f"'{tensor}' holds infinities or mask values beyond 1e30"
                reasons[node.name] = Reason("not-finite", text, node.name)
        if node.name not in reasons and not bias_fits(view, node, ranges, target):
            text = "its bias is too large beside its input for any scale of its weights"
            reasons[node.name] = Reason("bias-too-large", text, node.name)
    return reasons


def _plan_weights(
    view: GraphView,
    census: Census,
    kept: dict[str, Reason],
    recipe: Recipe,
    target: Target,
) -> QuantPlan:
    reasons = {n.name: kept.get(n.name) or _refuse_weight(view, n) for n in census.nodes}
    chosen = [node for node in census.nodes if reasons[node.name] is None]
    nodes = tuple(
        NodePlan(
            node.name,
            node.op,
            Precision.FLOAT if reasons[node.name] else Precision.INT8_WEIGHTS,
            reasons[node.name],
        )
        for node in census.nodes
    )
    return QuantPlan(target.name, nodes, _weights(view, chosen, {}, recipe, target))


def _refuse_weight(view: GraphView, node: NodeInfo) -> Reason | None:
    if not node.weight_only or node.weight is None:
        text = "has no constant float32 weight that onnxq stores as int8"
        return Reason("no-weight", text, node.name)
    values = view.constant(node.weight[1])
    if values is None or values.size < LEAST_WEIGHT:
        return Reason("small-weight", f"its weight has under {LEAST_WEIGHT} values", node.name)
    if not np.isfinite(values).all():
        return Reason("weight-not-finite", "its weight holds NaN or infinity", node.name)
    return None
