"""Static quantization: the nodes that compute on integers, and the scales of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace as with_fields

from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo
from onnxq.plan.layers import LayerSettings
from onnxq.plan.policy import Regions, not_static
from onnxq.plan.scales import activation_params, bias_fits, constant_params, share_scales
from onnxq.targets import Kernel, Target
from onnxq.types import Precision, QParams, QType, Reason, TensorRange


@dataclass(frozen=True)
class Static:
    """What is planned for the nodes that compute on integers with known ranges.

    Attributes:
        chosen: The nodes, in the graph's order.
        reasons: Why other nodes are not among them.
        activations: Scales of activations that carry a Q/DQ pair.
        constants: Scales of constant operands.
        groups: Tensors that share a scale.
    """

    chosen: tuple[NodeInfo, ...]
    reasons: dict[str, Reason]
    activations: dict[str, QParams]
    constants: dict[str, QParams]
    groups: tuple[tuple[str, ...], ...]


def plan_static(
    view: GraphView,
    census: Census,
    layers: Mapping[str, LayerSettings],
    ranges: dict[str, TensorRange],
    target: Target,
) -> Static:
    """Choose the nodes that gain from integers together, and their scales."""
    kept = not_static(census, layers)
    lacking = _without_scale(view, census, Regions(view, census, kept), ranges, target)
    regions = Regions(view, census, lacking | kept)
    chosen = [node for node in census.nodes if node.name in regions.int8]
    used = {tensor: ranges[tensor] for tensor in regions.tensors()}
    used |= _within_clamps(census, used)
    groups = share_scales(chosen, used)
    wide = _wide(chosen, layers)
    activations = activation_params(used, groups, target, wide)
    constants = {t: _type(t, wide, target) for node in chosen for _, t in node.constants}
    return Static(
        tuple(chosen),
        regions.reasons,
        activations,
        {
            t: constant_params(view, t, qtype, symmetric=target.symmetric_activations)
            for t, qtype in sorted(constants.items())
        },
        tuple(groups),
    )


def _wide(nodes: list[NodeInfo], layers: Mapping[str, LayerSettings]) -> set[str]:
    """Tensors with 16 bits: those that only nodes of that precision read and make."""
    touched: dict[Precision, set[str]] = {Precision.INT8: set(), Precision.INT16: set()}
    for node in nodes:
        read = (t for _, t in (*node.data, *node.constants))
        touched[layers[node.name].precision].update(read, node.outputs)
    return touched[Precision.INT16] - touched[Precision.INT8]


def _type(tensor: str, wide: set[str], target: Target) -> QType:
    return target.activation16 if tensor in wide else target.activation


def _within_clamps(census: Census, ranges: dict[str, TensorRange]) -> dict[str, TensorRange]:
    """Ranges behind a Relu or Clip, no wider than what was seen there where it cuts.

    An observer may choose a wider one. It would not cut what the clamp cuts, so that the clamp and
    the layer before it would run as float. Where these are float anyhow the range is the same one:
    what a tensor is rounded to does not hang on which layers around it are. A Relu cuts nothing at
    its upper end.
    """
    clamps = [node for node in census.nodes if node.kernel is Kernel.CLAMP]
    behind = {tensor: node.op for node in clamps for tensor in node.outputs}
    return {
        tensor: with_fields(
            found,
            lo=max(found.lo, found.min),
            hi=found.hi if op == "Relu" else min(found.hi, found.max),
        )
        for tensor, op in behind.items()
        if (found := ranges.get(tensor)) is not None
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
