"""``shift_deep_weights``: convolutions of many products per output reach the matrix units.

A processor with AMX adds up 16 x 16 products of 64 integers each in one instruction. ONNX Runtime's
matrix products use it. Its kernel for a Conv of uint8 and int8 (MlasConvSym) does not, and is taken
wherever the zero points of weights are 0. Weights that are stored one lower, with the zero point
-1, are the same numbers, and such a Conv is computed as a matrix product, to the last bit as
before. That writes sums to memory, and copies what a window of several pixels sees. So it pays
where an output is the sum of many products: a 3x3 Conv of 256 channels takes half of the time, a
1x1 Conv of 64 channels one and a half times as long.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.rewrite.names import Names, zero_point_name
from onnxq.types import Array, QType

# What costs as much as so many products: to write a sum to memory and read it again, to copy a
# value that a window sees, and to call the other kernel. Measured on ONNX Runtime 1.31, one thread,
# with 352 convolutions of 1 to 784 pixels, 16 to 1,024 channels, and windows of 1 and 9 pixels: of
# those for which it pays by these figures none is more than 3 % slower. Folded stems are not among
# them: their copies are short, which costs more, and 252 values of a 7x7 window took 14 % longer.
_SUM, _COPY, _CALL = 180, 35, 300_000
# Matrix units compute so many pixels at once.
_ROWS = 16
_USUAL_SIZE = 32
# The other kernel takes a multiple of so many channels only.
_CHANNELS = 4


def shift_deep_weights(model: Model, nodes: Collection[str]) -> Model:
    """Store the weights of some quantized convolutions one lower, with the zero point -1.

    Args:
        model: A model as ``to_qdq`` writes it, before stems are folded.
        nodes: Names of the nodes that compute on integers.

    Returns:
        A new model that computes the same to the last bit. Where several convolutions read one
        DequantizeLinear, its weights are lower for all of them.
    """
    view, editor = model.view(), Editor(model)
    names = Names(view)
    for node in view.nodes:
        if node.full_op != "Conv" or node.name not in nodes:
            continue
        filters = view.producer(node.inputs[1])
        if filters is None or filters.op != "DequantizeLinear" or len(filters.inputs) < 3:
            continue
        found = _weights(view, filters) if _is_deep(view, node, filters.inputs[0]) else None
        if found is None:
            continue
        weights, zeros = found
        stored = names.of(filters.inputs[0], "shifted")
        zero = names.of(zero_point_name(QType.INT8, -1, zeros.size if zeros.ndim else None))
        editor.redirect(filters.name, 0, editor.add_constant(stored, _lower(weights)))
        editor.redirect(filters.name, 2, editor.add_constant(zero, _lower(zeros)))
    return editor.finish()


def _weights(view: GraphView, filters: NodeView) -> tuple[Array, Array] | None:
    """The stored weights of a DequantizeLinear, and zero points; None unless they can be lower."""
    stored, zeros = (view.constant(filters.inputs[port]) for port in (0, 2))
    if stored is None or zeros is None or stored.dtype != np.int8 or zeros.any():
        return None
    return (stored, zeros) if stored.min(initial=0) > -128 else None


def _lower(values: Array) -> Array:
    return np.subtract(values, 1, dtype=np.int8)


def _is_deep(view: GraphView, node: NodeView, stored: str) -> bool:
    """Whether the matrix units gain more than reaching them costs, of one image."""
    shape = [size for size in view.shape(stored) or () if isinstance(size, int)]
    if len(shape) != 4 or shape[1] % _CHANNELS or node.attrs.get("group", 1) != 1:
        return False
    outputs, channels, *window = shape
    sizes = (view.shape(node.outputs[0]) or (None, None, None, None))[2:]
    pixels = prod(size if isinstance(size, int) else _USUAL_SIZE for size in sizes)
    products = channels * prod(window)
    copied = products if prod(window) > 1 else 0
    saved = pixels * (outputs * (products - _SUM) - copied * _COPY)
    return pixels >= _ROWS and saved > _CALL
