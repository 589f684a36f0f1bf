"""Plans of single layers, cut out of the plan of the whole model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace as with_fields

from onnxq.graph import GraphView
from onnxq.ops import Census
from onnxq.plan import Choice, NodePlan, QuantPlan, Recipe, make_plan
from onnxq.targets import Kernel, Pairs, Target, get_target
from onnxq.types import Precision, TensorRange

_FLOATS = (Precision.FLOAT, Precision.FP16)


@dataclass(frozen=True)
class Subject:
    """What is analysed: a model, and all that a plan for it is made of.

    Attributes:
        view: The prepared graph.
        census: What each of its nodes is.
        ranges: Observed ranges by tensor.
        recipe: What was asked for.
        target: The provider to plan for.
    """

    view: GraphView
    census: Census
    ranges: Mapping[str, TensorRange]
    recipe: Recipe
    target: Target

    def plan(self, precision: Precision, kept_float: Collection[str] = ()) -> QuantPlan:
        """The plan that gives a precision to every node that can have it.

        Args:
            precision: The precision.
            kept_float: Names of nodes that stay float whatever the recipe says.
        """
        choices = {name: Choice(Precision.FLOAT, "its share is measured") for name in kept_float}
        recipe = recipe_for(self.recipe, precision)
        ranges = dict(self.ranges)
        return make_plan(self.view, self.census, ranges, recipe, self.target, choices)


def recipe_for(recipe: Recipe, precision: Precision) -> Recipe:
    """A recipe with another precision for all layers.

    What it says of single layers is about its own precision: of that only what stays float is left.
    """
    layers = recipe.layers
    if precision is not recipe.usual:
        layers = tuple(rule for rule in layers if rule.precision == "float")
    # a layer that is kept float would be float16 again
    float_type = "float32" if precision is Precision.FP16 else recipe.float_type
    return with_fields(recipe, precision=precision.value, layers=layers, float_type=float_type)


def layers_of(plan: QuantPlan, census: Census, precision: Precision) -> tuple[str, ...]:
    """The layers that a plan gives a precision to, in the graph's order.

    A Relu or Clip that vanishes into the range of the layer before it belongs to that one.
    """
    clamps = {n.name for n in census.nodes if n.kernel is Kernel.CLAMP and precision.static}
    return tuple(name for name in plan.named(precision) if name not in clamps)


def with_clamps(view: GraphView, census: Census, plans: Iterable[QuantPlan]) -> dict[str, str]:
    """Relus and Clips that vanish into the layer before them in one of the plans, by that layer."""
    static = {n.name for plan in plans for n in plan.nodes if n.precision.static}
    clamps = {n.name for n in census.nodes if n.kernel is Kernel.CLAMP} & static
    makers: dict[str, str] = {}
    for node in view.nodes:
        maker = view.producer(node.inputs[0]) if node.name in clamps else None
        if maker is not None:
            makers[node.name] = makers.get(maker.name, maker.name)
    return makers


def of_layer(plan: QuantPlan, view: GraphView, census: Census, layer: str) -> QuantPlan:
    """A plan in which one layer alone computes as in the whole plan."""
    followers = with_clamps(view, census, [plan])
    return reduced(plan, view, {layer, *(n for n, leader in followers.items() if leader == layer)})


def reduced(plan: QuantPlan, view: GraphView, nodes: Collection[str] | None = None) -> QuantPlan:
    """What a plan says of some nodes, which compute as in the whole plan; all others are float.

    Args:
        plan: The plan.
        view: The graph that it was made for, or a part of it.
        nodes: The nodes that are not float; those of the plan when None.

    Returns:
        A plan for ``view``: pairs of what these nodes read and make, their constants, and the
        groups that are left of it.
    """
    wanted = plan.precision()
    precisions = {
        node.name: wanted.get(node.name, Precision.FLOAT)
        if nodes is None or node.name in nodes
        else Precision.FLOAT
        for node in view.nodes
    }
    kept = _Needed(view, precisions, get_target(plan.target).pairs)
    tensors = {t: params for t, params in plan.tensors.items() if kept.needs(t)}
    groups = (tuple(t for t in group if t in tensors) for group in plan.groups)
    return with_fields(
        plan,
        nodes=tuple(NodePlan(n.name, n.full_op, precisions[n.name]) for n in view.nodes),
        tensors=tensors,
        groups=tuple(group for group in groups if len(group) > 1),
        blocks={t: scheme for t, scheme in plan.blocks.items() if kept.needs(t)},
    )


@dataclass(frozen=True)
class _Needed:
    """Which tensors of a plan some nodes need."""

    view: GraphView
    precisions: Mapping[str, Precision]
    pairs: Pairs

    def needs(self, tensor: str) -> bool:
        users = [self.precisions[use.node] for use in self.view.uses(tensor)]
        if self.view.is_constant(tensor):
            return any(precision not in _FLOATS for precision in users)
        maker = self.view.producer(tensor)
        made = maker is not None and self.precisions[maker.name].static
        return (made and self.pairs is Pairs.AROUND) or any(p.static for p in users)


def has_constants(plan: QuantPlan, view: GraphView, layer: str) -> bool:
    """Whether a plan stores a constant of a layer as integers."""
    return any(t in plan.tensors or t in plan.blocks for t in _constants(view, layer))


def weights_only(plan: QuantPlan, view: GraphView, layer: str) -> QuantPlan:
    """A plan in which a layer's constants are as in the whole plan, and all compute in float.

    A bias is not among them: it follows from the scales of the activations.
    """
    constants = _constants(view, layer)
    precision = plan.precision()[layer]
    if precision.static or precision is Precision.INT8_DYNAMIC:
        precision = Precision.INT8_WEIGHTS
    nodes = tuple(
        NodePlan(n.name, n.full_op, precision if n.name == layer else Precision.FLOAT)
        for n in view.nodes
    )
    return with_fields(
        plan,
        nodes=nodes,
        tensors={t: params for t, params in plan.tensors.items() if t in constants},
        groups=(),
        blocks={t: scheme for t, scheme in plan.blocks.items() if t in constants},
    )


def _constants(view: GraphView, layer: str) -> set[str]:
    node = view.by_name[layer]
    return {t for t in (*node.inputs, *node.captures) if t and view.is_constant(t)}


def changed_nodes(view: GraphView, one: QuantPlan, other: QuantPlan) -> frozenset[str]:
    """The nodes that compute something else under one plan than under another.

    Their precisions differ, or the scales of something that they read or make.
    """
    mine, theirs = one.precision(), other.precision()
    found = {name for name in mine if mine[name] is not theirs[name]}
    tensors = {*one.tensors, *other.tensors}
    moved = {t for t in tensors if one.tensors.get(t) != other.tensors.get(t)}
    moved |= {t for t in {*one.blocks, *other.blocks} if one.blocks.get(t) != other.blocks.get(t)}
    for tensor in moved:
        maker = view.producer(tensor)
        found |= {use.node for use in view.uses(tensor)} | ({maker.name} if maker else set())
    return frozenset(found)
