"""The self-check of every rewrite: what was quantized can be taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from onnxq.errors import SelfCheckError
from onnxq.graph import GraphView, Model, NodeView, Place, Tolerance, difference, strip
from onnxq.numerics import LEAST_SHRINK, block_range
from onnxq.ops import OPERATORS, stored_in_bodies
from onnxq.plan import QuantPlan
from onnxq.targets import get_target
from onnxq.types import Array, Precision, QParams, WeightBlocks

# Rounding to the nearest step is off by half a step; float32 arithmetic adds a few of its own
# last places (2^-24 each) to numbers of up to 255 steps.
HALF_STEP = 0.5 * (1 + 1e-3)


def check(model: Model, quantized: Model, plan: QuantPlan, raw: Mapping[str, str]) -> None:
    """Strip the quantized model and compare it with the one that it was made from.

    Args:
        model: The float model.
        quantized: What was made of it.
        plan: The plan that it follows.
        raw: Tensors of ``model`` whose name the output of their pair has now: new name to old.

    Raises:
        SelfCheckError: Anything but constants within half a quantization step differs, or a
            pair of an activation has other parameters than the plan says.
    """
    found = difference(model.view(), strip(quantized).view(), _tolerances(model, plan))
    if found:
        raise SelfCheckError(f"the quantized graph does not strip back to its source: {found}")
    found = _wrong_pair(model.view(), quantized.view(), plan, raw)
    if found:
        raise SelfCheckError(f"the quantized graph is not the plan's: {found}")


def _wrong_pair(
    source: GraphView, quantized: GraphView, plan: QuantPlan, raw: Mapping[str, str]
) -> str:
    """The first Q or DQ of an activation that is not the plan's, as a sentence."""
    planned = {t for t in plan.tensors if not source.is_constant(t)}
    seen = set()
    for node in quantized.nodes:
        if node.op != "QuantizeLinear":
            continue
        tensor = raw.get(node.inputs[0], node.inputs[0])
        if tensor not in planned:
            return f"'{node.name}' quantizes '{tensor}'"
        seen.add(tensor)
        readers = [quantized.by_name[use.node] for use in quantized.uses(node.outputs[0])]
        for one in (node, *readers):
            if not _has_params(quantized, one, plan.tensors[tensor]):
                return f"'{one.name}' has other parameters than '{tensor}'"
    missing = sorted(planned - seen)
    return f"'{missing[0]}' carries no pair" if missing else ""


def _has_params(view: GraphView, node: NodeView, params: QParams) -> bool:
    scale, zero = (view.constant(name) for name in node.inputs[1:3])
    return (
        scale is not None
        and zero is not None
        and zero.dtype == params.qtype.dtype
        and bool(np.all(scale == np.float32(params.scale[0])))
        and bool(np.all(zero == params.zero_point[0]))
    )


def _tolerances(model: Model, plan: QuantPlan) -> dict[Place, Tolerance]:
    view = model.view()
    precision, target = plan.precision(), get_target(plan.target)
    allowed: dict[Place, Tolerance] = {}
    for node in view.nodes:
        if precision.get(node.name, Precision.FLOAT) in (Precision.FLOAT, Precision.FP16):
            continue
        places: list[tuple[int | str, str]] = [*enumerate(node.inputs)]
        if node.full_op not in OPERATORS:
            places = [(s.tensor, s.tensor) for s in stored_in_bodies(view, node)]
        for place, tensor in places:
            if tensor in plan.tensors and view.is_constant(tensor):
                allowed[node.name, place] = _half_step(plan.tensors[tensor], view.rank(tensor) or 0)
            elif tensor in plan.blocks:
                allowed[node.name, place] = partial(_of_blocks, scheme=plan.blocks[tensor])
        bias = OPERATORS[node.full_op].bias if node.full_op in OPERATORS else None
        integer = precision[node.name].static and target.integer_bias
        if integer and bias is not None and bias < len(node.inputs):
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
    # of 16 bits it is up to 65,535 steps whose last places count
    rounding = 1 + 2.0 ** (params.qtype.bits - 21)
    return HALF_STEP * rounding * scale.reshape(shape)


def _of_blocks(values: Array, scheme: WeightBlocks) -> Array:
    """How far every value of a weight in blocks may be off, whatever scales were chosen for it.

    No scale is coarser than the one that spreads the integers over the block's range. A value is
    off by half a step of that; with ``hqq``, which may leave half of the range on either side to
    the ends of the integers, also by as much as it lies beyond that.
    """
    lo, hi = (np.asarray(end, np.float64) for end in block_range(values, scheme.axis, scheme.size))
    lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    levels = scheme.qtype.qmax - scheme.qtype.qmin
    step = np.maximum(-lo, hi) / (levels // 2) if scheme.symmetric else (hi - lo) / levels
    which = np.arange(values.shape[scheme.axis]) // scheme.size
    # Subnormal weights have the smallest normal scale.
    half = HALF_STEP * np.maximum(step, np.finfo(np.float32).tiny)
    allowed = half.astype(np.float32).take(which, axis=scheme.axis)
    if scheme.method == "rtn":
        return allowed
    near, far = ((LEAST_SHRINK * end).take(which, axis=scheme.axis) for end in (lo, hi))
    beyond = np.maximum(np.subtract(values, far), np.subtract(near, values))
    return np.maximum(allowed, 2 * HALF_STEP * beyond)
