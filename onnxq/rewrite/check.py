"""The self-check of every rewrite: what was quantized can be taken out again."""

from __future__ import annotations

import numpy as np

from onnxq.errors import SelfCheckError
from onnxq.graph import Model, difference, strip
from onnxq.ops import OPERATORS
from onnxq.plan import QuantPlan
from onnxq.types import Array, Precision, QParams

# Rounding to the nearest step is off by half a step; float32 arithmetic adds a few of its own
# last places (2^-24 each) to numbers of up to 255 steps.
HALF_STEP = 0.5 * (1 + 1e-3)


def check(model: Model, quantized: Model, plan: QuantPlan) -> None:
    """Strip the quantized model and compare it with the one that it was made from.

    Raises:
        SelfCheckError: Anything but constants within half a quantization step differs.
    """
    found = difference(model.view(), strip(quantized).view(), _tolerances(model, plan))
    if found:
        raise SelfCheckError(f"the quantized graph does not strip back to its source: {found}")


def _tolerances(model: Model, plan: QuantPlan) -> dict[tuple[str, int], Array]:
    view = model.view()
    precision = plan.precision()
    allowed: dict[tuple[str, int], Array] = {}
    for node in view.nodes:
        if precision.get(node.name, Precision.FLOAT) is Precision.FLOAT:
            continue
        for port, tensor in enumerate(node.inputs):
            if tensor in plan.tensors and view.is_constant(tensor):
                allowed[node.name, port] = _half_step(plan.tensors[tensor], view.rank(tensor) or 0)
        bias = OPERATORS[node.op].bias
        if precision[node.name] is Precision.INT8 and bias is not None and bias < len(node.inputs):
            x, w = (plan.tensors[node.inputs[p]] for p in (0, 1))
            step = np.array(w.scale, np.float64) * x.scale[0]
            values = view.constant(node.inputs[bias])
            # A bias is up to 2^29 steps, and float32 keeps 24 bits of that.
            rounding = np.abs(values) * 2.0**-22 if values is not None else 0.0
            allowed[node.name, bias] = HALF_STEP * step + rounding
    return allowed


def _half_step(params: QParams, rank: int) -> Array:
    scale = np.array(params.scale, np.float64)
    shape = [1] * rank
    if params.axis is not None:
        shape[params.axis] = scale.size
    return HALF_STEP * scale.reshape(shape)
