"""QuantizeLinear and DequantizeLinear, computed as they stand: rounding has no gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import dtype_of, together, unsupported

# ONNX's numbers of types of 4 bits, with their ends: the tensors that hold them have 8.
SMALL: Mapping[int, tuple[int, int]] = {21: (0, 15), 22: (-8, 7)}


def _spread(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points, shaped so that they meet the values they belong to."""
    if values.numel() == 1 and values.dim() <= 1:
        return values.reshape(())
    axis %= x.dim()
    if values.dim() == 1 and not block:
        return values.reshape(-1, *(1,) * (x.dim() - 1 - axis))
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values


@operator("QuantizeLinear")
def quantize_linear(
    node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """Values as integers: ``clip(round(x / scale) + zero_point)``."""
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    x, scale = together(x, scale)
    code = node.attrs.get("output_dtype", 0)
    dtype = zero_point.dtype if zero_point is not None else dtype_of(node, code or 2)
    if dtype.is_floating_point:
        raise unsupported(node, f"it stores numbers as {dtype}")
    info = torch.iinfo(dtype)
    low, high = SMALL.get(code, (info.min, info.max))
    steps = torch.round(x / _spread(scale, x, axis, block).to(x.dtype))
    if zero_point is not None:
        steps = steps + _spread(zero_point.to(x.device, torch.int32), x, axis, block)
    return steps.clamp(low, high).to(dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """Numbers that integers stand for: ``(x - zero_point) * scale``."""
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    x, scale = together(x, scale)
    steps = x.to(torch.int32) if not x.is_floating_point() else x
    if zero_point is not None:
        steps = steps - _spread(zero_point.to(x.device, steps.dtype), x, axis, block)
    code = node.attrs.get("output_dtype", 0)
    dtype = dtype_of(node, code) if code else scale.dtype
    return (steps.to(scale.dtype) * _spread(scale, x, axis, block)).to(dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values as uint8, over the range of the values and zero; their scale and zero point."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / safe).clamp(0, 255)
    y = (torch.round(x / safe) + zero_point).clamp(0, 255)
    return y.to(torch.uint8), scale, zero_point.to(torch.uint8)
