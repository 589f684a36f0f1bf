"""Which constants of a graph are trained: weights, biases, and what normalisation scales by."""

from __future__ import annotations

import numpy as np

from onnxq.errors import ModelError
from onnxq.graph import GraphView

# Input ports by operator. BatchNormalization stays as it is: its statistics are those of the data
# that the model was trained with, and mostly it has been folded into the layer before.
TRAINED: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Gather": (0,),
    "PRelu": (1,),
    "Add": (0, 1),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "com.microsoft::Attention": (1, 2),
    "com.microsoft::EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "com.microsoft::SkipLayerNormalization": (2, 3, 4),
    "com.microsoft::BiasGelu": (1,),
    "com.microsoft::FusedMatMul": (0, 1),
}


def trained_weights(view: GraphView, fixed: frozenset[str]) -> tuple[str, ...]:
    """Names of the constants that are trained, in the graph's order.

    They are float32, hold more than one value, and nothing but the ports above reads them.

    Args:
        view: The prepared graph.
        fixed: Constant operands, whose scales do not follow them.

    Raises:
        ModelError: There are none.
    """
    found = []
    for name in view.constant_names:
        values = view.constant(name)
        if values is None or values.dtype != np.float32 or values.size < 2 or name in fixed:
            continue
        if name in view.output_names:
            continue
        uses = view.uses(name)
        nodes = [(view.by_name[use.node], use.port) for use in uses]
        if uses and all(port in TRAINED.get(node.full_op, ()) for node, port in nodes):
            found.append(name)
    if not found:
        raise ModelError("the model has no float32 weight that could be trained")
    return tuple(found)
