"""``Census``: what ``classify`` found out about every node of a graph."""

from __future__ import annotations

import msgspec

from onnxq.ops.table import Role
from onnxq.targets import Kernel
from onnxq.types import Reason


class NodeInfo(msgspec.Struct, frozen=True):
    """One node, seen with the eyes of a quantizer.

    Attributes:
        name: Name of the node.
        op: Operator type, with its domain where it is not ONNX's own.
        role: What the operator does.
        kernel: How the target runs it between quantized tensors.
        data: Activation inputs as (port, tensor), constants left out.
        constants: Constant activation inputs (an Add's constant operand) as (port, tensor).
        outputs: Tensors that it makes.
        weight: Its constant weight as (port, tensor).
        bias: Its constant bias as (port, tensor).
        channel_axis: The weight's axis of output channels; None when there is no single one.
        weight_only: Its weight can be stored as int8, also where it computes in float.
        reason: Why it cannot compute in int8; None when it can.
    """

    name: str
    op: str
    role: Role
    kernel: Kernel
    data: tuple[tuple[int, str], ...]
    constants: tuple[tuple[int, str], ...]
    outputs: tuple[str, ...]
    weight: tuple[int, str] | None
    bias: tuple[int, str] | None
    channel_axis: int | None
    weight_only: bool
    reason: Reason | None

    @property
    def quantizable(self) -> bool:
        """True when the target can run this node as int8."""
        return self.reason is None


class Census(msgspec.Struct, frozen=True):
    """All nodes of a graph in order, judged for one target."""

    target: str
    nodes: tuple[NodeInfo, ...]

    def quantizable(self) -> tuple[NodeInfo, ...]:
        """The nodes that the target can run as int8."""
        return tuple(node for node in self.nodes if node.quantizable)
