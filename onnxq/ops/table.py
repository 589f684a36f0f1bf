"""The table of operators. Adding an operator is adding a row."""

from __future__ import annotations

from enum import StrEnum

import msgspec

ALL = (-1,)


class Role(StrEnum):
    """What an operator does to the values that flow through it."""

    COMPUTE = "compute"  # multiplies with a weight, or two activations
    ELEMENTWISE = "elementwise"  # combines tensors value by value
    JOIN = "join"  # puts tensors together, or chooses among them
    MOVE = "move"  # every output value is one of the input values
    CLAMP = "clamp"  # cuts values at constant limits
    ACTIVATION = "activation"  # any other function of one tensor
    POOL = "pool"  # averages
    NORM = "norm"  # normalises by statistics of its input
    OTHER = "other"  # not in the table


class OpSpec(msgspec.Struct, frozen=True):
    """One operator.

    Attributes:
        op: Its name, with its domain where it is not ONNX's own.
        role: What it does.
        data: Input ports that carry activations; ``ALL`` for every input.
        weight: Input port of the weight.
        bias: Input port of the bias.
        channel_axis: The weight's axis of output channels; negative counts from the end.
        summed: The weight's one axis that products are summed along, or along which a row of a
            table lies; negative counts from the end. None when there are several.
        stored: Constants of an operator without a single ``weight`` that can be stored as
            integers, as (port, axis of the channels that have a scale of their own).
    """

    op: str
    role: Role
    data: tuple[int, ...] = (0,)
    weight: int | None = None
    bias: int | None = None
    channel_axis: int | None = None
    summed: int | None = None
    stored: tuple[tuple[int, int | None], ...] = ()


def _rows(role: Role, ops: str, data: tuple[int, ...] = (0,)) -> list[OpSpec]:
    return [OpSpec(op, role, data) for op in ops.split()]


# Input and recurrent weights of shape [directions, gates * hidden, inputs or hidden].
_RECURRENT = ((1, 1), (2, 1))
# Tables of words, positions and segments, then gain and shift: one scale each.
_EMBEDDING = tuple((port, None) for port in range(2, 7))


OPERATORS: dict[str, OpSpec] = {
    spec.op: spec
    for spec in (
        OpSpec("Conv", Role.COMPUTE, weight=1, bias=2, channel_axis=0),
        OpSpec("ConvTranspose", Role.COMPUTE, weight=1, bias=2, channel_axis=1),
        OpSpec("Gemm", Role.COMPUTE, weight=1, bias=2, channel_axis=1, summed=0),
        OpSpec("MatMul", Role.COMPUTE, weight=1, channel_axis=-1, summed=-2),
        *(OpSpec(op, Role.COMPUTE, summed=2, stored=_RECURRENT) for op in ("LSTM", "GRU", "RNN")),
        OpSpec("com.microsoft::Attention", Role.COMPUTE, stored=((1, 1),)),
        OpSpec("com.microsoft::MultiHeadAttention", Role.COMPUTE, (0, 1, 2)),
        OpSpec("com.microsoft::EmbedLayerNormalization", Role.NORM, (), stored=_EMBEDDING),
        *_rows(Role.ELEMENTWISE, "Add Mul Sub Div", (0, 1)),
        *_rows(Role.ELEMENTWISE, "Min Max Sum", ALL),
        *_rows(Role.JOIN, "Concat", ALL),
        *_rows(Role.JOIN, "Where", (1, 2)),
        *_rows(Role.CLAMP, "Relu Clip"),
        *_rows(Role.ACTIVATION, "LeakyRelu PRelu Sigmoid Tanh HardSwish HardSigmoid Softmax Gelu"),
        *_rows(
            Role.MOVE,
            "MaxPool Split Resize Pad Reshape Flatten Transpose Squeeze Unsqueeze Slice "
            "Expand Tile DepthToSpace SpaceToDepth",
        ),
        OpSpec("Gather", Role.MOVE, summed=-1, stored=((0, 0),)),
        *_rows(Role.POOL, "AveragePool GlobalAveragePool ReduceMean"),
        *_rows(Role.NORM, "LayerNormalization InstanceNormalization"),
    )
}
