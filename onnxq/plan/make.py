"""``make_plan``: what every node computes in, out of what is wanted and what can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace as with_fields

from onnxq.graph import GraphView
from onnxq.ops import Census, NodeInfo
from onnxq.plan.choices import Choices, with_choices
from onnxq.plan.dynamic import lacks_dynamic_kernel, refuse_dynamic
from onnxq.plan.half import refuse_half, worth_half
from onnxq.plan.layers import LayerSettings, layer_settings
from onnxq.plan.plan import NodePlan, QuantPlan
from onnxq.plan.recipe import Recipe
from onnxq.plan.scales import weight_params
from onnxq.plan.static import plan_static
from onnxq.plan.weights import refuse_int4_weights, refuse_weights, small_storage
from onnxq.targets import Target
from onnxq.types import Precision, QParams, Reason, TensorRange, WeightBlocks

Refusal = Callable[[GraphView, NodeInfo], Reason | None]
# Precisions that need no ranges: why a node cannot compute so.
REFUSALS: dict[Precision, Refusal] = {
    Precision.FP16: refuse_half,
    Precision.INT8_DYNAMIC: refuse_dynamic,
    Precision.INT8_WEIGHTS: refuse_weights,
    Precision.INT4_WEIGHTS: refuse_int4_weights,
}

_NO_GAIN = "only moves what is float32 around it"
_FLOATS = (Precision.FLOAT, Precision.FP16)


def make_plan(
    view: GraphView,
    census: Census,
    ranges: dict[str, TensorRange],
    recipe: Recipe,
    target: Target,
    choices: Choices | None = None,
) -> QuantPlan:
    """Decide about every node and every tensor. Pure: no runtime, no data.

    Args:
        view: The prepared graph.
        census: What ``classify`` said of it.
        ranges: Observed ranges by tensor; needed for static precisions only.
        recipe: What is wanted of each node.
        target: The provider to plan for.
        choices: What a search decided about single nodes; it wins over the recipe.

    Returns:
        The plan.

    Raises:
        UsageError: A pattern of the recipe matches no node.
    """
    wishes = with_choices(layer_settings(census, recipe), choices or {})
    layers = {node.name: _computed(wishes[node.name], node, target) for node in census.nodes}
    static = plan_static(view, census, layers, ranges, target)
    integers = {node.name for node in static.chosen}
    nodes = []
    for node in census.nodes:
        wanted = layers[node.name]
        if wanted.precision.static or wanted.precision is Precision.FLOAT:
            refused = None if node.name in integers else static.reasons[node.name]
        elif wanted.precision in target.refuses:
            text = f"stays float: {target.refuses[wanted.precision]}"
            refused = Reason("target-refuses", text, node.name)
        else:
            refused = REFUSALS[wanted.precision](view, node)
        got = Precision.FLOAT if refused else wanted.precision
        pinned = wanted.precision is Precision.FLOAT and node.name not in (choices or {})
        if got is Precision.FLOAT and recipe.float_type == "fp16" and not pinned:
            got = Precision.FLOAT if refuse_half(view, node) else Precision.FP16
        nodes.append(NodePlan(node.name, node.op, got, refused or wanted.reason))
    worth = worth_half(view, {n.name for n in nodes if n.precision is Precision.FP16})
    nodes = [
        NodePlan(n.name, n.op, Precision.FLOAT, n.reason or Reason("no-gain", _NO_GAIN, n.name))
        if n.precision is Precision.FP16 and n.name not in worth
        else n
        for n in nodes
    ]
    precisions = {node.name: node.precision for node in nodes}
    weights, blocks = _weights(view, census, precisions, layers, static.activations, target)
    tensors = static.activations | static.constants | weights
    return QuantPlan(target.name, tuple(nodes), tensors, static.groups, blocks)


def _computed(wanted: LayerSettings, node: NodeInfo, target: Target) -> LayerSettings:
    """What comes nearest to what is wanted: without a dynamic kernel, the same weights as int8."""
    if wanted.precision is not Precision.INT8_DYNAMIC or not lacks_dynamic_kernel(node):
        return wanted
    if Precision.INT8_DYNAMIC in target.refuses:
        return wanted
    # blocks mean nothing to dynamic layers
    return with_fields(wanted, precision=Precision.INT8_WEIGHTS, block_size=None)


def _weights(
    view: GraphView,
    census: Census,
    precisions: Mapping[str, Precision],
    layers: Mapping[str, LayerSettings],
    activations: dict[str, QParams],
    target: Target,
) -> tuple[dict[str, QParams], dict[str, WeightBlocks]]:
    """Scales of all weights that are stored as integers, whatever their nodes compute in."""
    uses: dict[str, list[NodeInfo]] = {}
    for node in census.nodes:
        for stored in node.stored if precisions[node.name] not in _FLOATS else ():
            weight = (stored.port, stored.tensor)
            user = with_fields(node, weight=weight, channel_axis=stored.axis)
            uses.setdefault(stored.tensor, []).append(user)
    params: dict[str, QParams] = {}
    blocks: dict[str, WeightBlocks] = {}
    for tensor, users in uses.items():
        small = small_storage(view, users, precisions, layers)
        if isinstance(small, WeightBlocks):
            blocks[tensor] = small
        else:
            params[tensor] = weight_params(
                view,
                users,
                activations,
                target if small is None else with_fields(target, weight=small, weight_headroom=1.0),
                per_channel=all(layers[node.name].per_channel for node in users),
            )
    return params, blocks
