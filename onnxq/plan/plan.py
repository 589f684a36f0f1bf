"""``QuantPlan``: a precision and a reason for every node, scales for every tensor."""

from __future__ import annotations

from functools import cached_property

import msgspec

from onnxq.types import Precision, QParams, Reason, WeightBlocks


class NodePlan(msgspec.Struct, frozen=True):
    """What becomes of one node.

    Attributes:
        name: Name of the node.
        op: Operator type.
        precision: How it computes.
        reason: Why it does not compute as was asked for; None when it does.
    """

    name: str
    op: str
    precision: Precision
    reason: Reason | None = None


class QuantPlan(msgspec.Struct, frozen=True, dict=True):
    """What becomes of a model: plain, serialisable, complete.

    Attributes:
        target: The provider it was made for.
        nodes: One entry per node, in the graph's order.
        tensors: Scale and zero point of every quantized tensor: activations that carry a Q/DQ
            pair, weights, and constant operands. Biases follow from these: ``s_x * s_w``.
        groups: Tensors that share one scale.
        blocks: How weights are stored whose scales are too many for a plan.
        schema: Version of this structure.
    """

    target: str
    nodes: tuple[NodePlan, ...]
    tensors: dict[str, QParams]
    groups: tuple[tuple[str, ...], ...] = ()
    blocks: dict[str, WeightBlocks] = {}
    schema: int = 1

    def precision(self) -> dict[str, Precision]:
        """Precision by node name."""
        return {node.name: node.precision for node in self.nodes}

    def is_static(self, node: str) -> bool:
        """Whether a node computes on integers with known ranges."""
        return node in self._static

    @cached_property
    def _static(self) -> frozenset[str]:
        return frozenset(node.name for node in self.nodes if node.precision.static)

    def named(self, *precisions: Precision) -> tuple[str, ...]:
        """The nodes that have one of these precisions."""
        return tuple(node.name for node in self.nodes if node.precision in precisions)

    def count(self, *precisions: Precision) -> int:
        """How many nodes have one of these precisions."""
        return sum(node.precision in precisions for node in self.nodes)

    @property
    def empty(self) -> bool:
        """True when there is nothing to quantize."""
        return self.count(Precision.FLOAT) == len(self.nodes)
