"""What every node and every crossing costs in time, measured on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from onnxq.graph import GraphView
from onnxq.plan import Costs, QuantPlan
from onnxq.runtime import TappedSession, profile_models
from onnxq.sensitivity.maker import Maker
from onnxq.types import Feed, Precision

_STATIC = tuple(precision for precision in Precision if precision.static)
# A dynamic kernel must take less than this share of the float one's time: profiles are noisy, and
# it loses accuracy too.
_CLEARLY = 0.9
# Microseconds that a kernel takes which does nothing.
_LAUNCH = 2.0
# Nanoseconds per element that changes sides between float and integers: one kernel converts the
# type, and around a Conv two more change the layout. A plan that rests on a single price may cross
# too often or too seldom: cuts are made at several, and what they give is measured.
PRICES = (0.25, 0.5, 1.0, 2.0, 4.0)


class LayerTimes(msgspec.Struct, frozen=True):
    """Microseconds by node: in the prepared float model, and where every node has one precision.

    Attributes:
        floating: In the float model. A node that vanished into another's kernel is missing.
        quantized: By precision and node, for the nodes that have that precision.
        elements: Elements of every activation.
    """

    floating: dict[str, float]
    quantized: dict[Precision, dict[str, float]]
    elements: dict[str, int]

    @property
    def static(self) -> Precision:
        """The static precision that was measured; int8 when none was."""
        return next((p for p in self.quantized if p.static), Precision.INT8)

    def costs(
        self,
        price: float,
        losses: Mapping[Precision, Mapping[str, float]] | None = None,
        pins: frozenset[str] = frozenset(),
    ) -> tuple[Costs, frozenset[str]]:
        """What a minimum cut is made over.

        Args:
            price: Nanoseconds per element that crosses.
            losses: Microseconds that the loss of accuracy of a node is worth, by precision.
            pins: Nodes that nothing is decided about: they stay where the recipe wants them.

        Returns:
            The costs, and the nodes that compute dynamically where they are on the float side.
        """
        lost = losses or {}
        integer = {
            name: spent + lost.get(self.static, {}).get(name, 0.0)
            for name, spent in self.quantized.get(self.static, {}).items()
            if name not in pins
        }
        floating, dynamic = dict(self.floating), set()
        for name, spent in self.quantized.get(Precision.INT8_DYNAMIC, {}).items():
            worth = spent + lost.get(Precision.INT8_DYNAMIC, {}).get(name, 0.0)
            if name not in pins and worth < _CLEARLY * floating.get(name, 0.0):
                floating[name] = worth
                dynamic.add(name)
        crossing = {t: _LAUNCH + price * 1e-3 * n for t, n in self.elements.items()}
        return Costs(floating, integer, crossing, crossing), frozenset(dynamic)


def measure_times(
    maker: Maker,
    plans: Mapping[Precision, QuantPlan],
    feed: Feed,
    *,
    threads: int = 1,
    seconds: float = 2.0,
) -> LayerTimes:
    """Profile the float model and its quantized forms, interleaved.

    Args:
        maker: The model.
        plans: Plans in which every node has one precision, by that precision.
        feed: What they are fed.
        threads: Threads inside an operator.
        seconds: About how long to measure.

    Raises:
        RuntimeFailure: A form cannot be loaded, or fails on the feed.
    """
    models = [maker.model, *(maker.build(plan) for plan in plans.values())]
    floating, *others = profile_models(models, maker.view, feed, threads=threads, seconds=seconds)
    quantized = {
        precision: {name: profile.nodes.get(name, 0.0) for name in plan.named(precision)}
        for (precision, plan), profile in zip(plans.items(), others, strict=True)
    }
    return LayerTimes(floating.nodes, quantized, _elements(maker, plans, feed))


def _elements(maker: Maker, plans: Mapping[Precision, QuantPlan], feed: Feed) -> dict[str, int]:
    """Sizes of the activations around nodes that may change sides."""
    static = {name for plan in plans.values() for name in plan.named(*_STATIC)}
    if not static:
        return {}
    near = _around(maker.view, static)
    values = TappedSession(maker.model, near).read(feed)
    return {tensor: math.prod(value.shape) for tensor, value in values.items()}


def _around(view: GraphView, names: set[str]) -> list[str]:
    nodes = [node for node in view.nodes if node.name in names]
    tensors = (t for node in nodes for t in (*node.inputs, *node.outputs))
    return [t for t in dict.fromkeys(tensors) if t and not view.is_constant(t)]
