"""``Census``: what ``classify`` found out about every node of a graph."""

from __future__ import annotations

import msgspec

from onnxq.ops.table import Role
from onnxq.targets import Kernel
from onnxq.types import Reason


class Stored(msgspec.Struct, frozen=True):
    """A constant of a node that can be stored as integers.

    Attributes:
        port: The node's input; -1 when the node's bodies read it.
        tensor: Name of the constant.
        axis: The axis of the channels that may have a scale each; None for one scale.
        op: The operator that reads it; of several inside bodies the first.
        summed: The axis along which blocks may have a scale each, not negative; None for none.
    """

    port: int
    tensor: str
    axis: int | None
    op: str
    summed: int | None


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
        reason: Why it cannot compute in int8; None when it can.
        stored: All its constants that can be stored as integers, also where it computes in float,
            its weight among them; empty unless all that the operator has are float32 constants.
            Of a node with bodies, those that are nothing but weights inside.
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
    reason: Reason | None
    stored: tuple[Stored, ...] = ()

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
