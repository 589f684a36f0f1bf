"""``multiply_bias_scales``: scales of int32 biases are computed when a model is loaded.

A bias has the scale of the products that it is added to, ``s_x * s_w``: one for every channel, and
so as many bytes of scales as of bias. Both factors are in the file already. Written as a Mul of
them, which is folded into one constant when the model is loaded, they are the same numbers.

Other ways to save bytes cost int8 kernels. With float biases ONNX Runtime 1.20 runs every Conv on
floats, and whole nets six times slower; 1.31 does so with a Gemm of float output. Without the zero
point of its weight a Gemm runs on floats in 1.31, and fails in 1.20.
"""

from __future__ import annotations

import math

import numpy as np

from onnxq.graph import Editor, GraphView, Model, NodeView
from onnxq.ops import OPERATORS
from onnxq.rewrite.names import Names

# Bytes of a scale, and by how many a Mul is longer than a constant, names aside.
_SCALE, _MUL = 4, 5


def multiply_bias_scales(model: Model) -> Model:
    """Let a Mul make the scales of int32 biases out of those of the input and the weight.

    Args:
        model: A model as ``to_qdq`` writes it.

    Returns:
        A new model that computes the same to the last bit. Scales that are no such product, that
        something else reads, or that take fewer bytes than a Mul stay as they are.
    """
    view, editor = model.view(), Editor(model)
    names = Names(view)
    for node in view.nodes:
        found = _factors(view, node)
        if found is None:
            continue
        bias, *factors = found
        scales, name = bias.inputs[1], f"{bias.name.removesuffix('_DQ')}_Mul"
        count = math.prod(size for size in view.shape(scales) or () if isinstance(size, int))
        if _SCALE * count > _MUL + sum(map(len, (name, *factors))):
            editor.compute(scales, "Mul", factors, name=names.new(name))
    return editor.finish()


def _factors(view: GraphView, node: NodeView) -> tuple[NodeView, str, str] | None:
    """What dequantizes a node's bias, and the scales whose product its own scales are."""
    spec = OPERATORS.get(node.full_op)
    if spec is None or spec.bias is None or spec.bias >= len(node.inputs):
        return None
    makers = [view.producer(node.inputs[port]) for port in (0, 1, spec.bias)]
    pairs = [maker for maker in makers if maker is not None and maker.op == "DequantizeLinear"]
    if len(pairs) < len(makers) or view.dtype(pairs[-1].inputs[0]) != "int32":
        return None
    names = [pair.inputs[1] for pair in pairs]
    x, w, bias = map(view.constant, names)
    if x is None or w is None or bias is None or len(view.uses(names[-1])) > 1:
        return None
    # bit for bit, for outputs must not change
    same = x.dtype == w.dtype == bias.dtype and np.array_equal(np.multiply(x, w), bias)
    return (pairs[-1], names[0], names[1]) if same else None
