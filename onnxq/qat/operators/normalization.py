"""Operators that bring values to a common mean and scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import asks, together, unsupported


def _epsilon(node: NodeView, default: float = 1e-5) -> float:
    return float(node.attrs.get("epsilon", default))


def _standardized(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, ...]:
    """Values with mean 0 and variance 1 over some axes; their mean, and 1 / deviation."""
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + epsilon)
    return (x - mean) * scale, mean, scale


@operator("BatchNormalization")
def batch_normalization(
    node: NodeView, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Normalise by given statistics, which training leaves as they are."""
    if node.attrs.get("training_mode", 0):
        raise unsupported(
            node, "it computes statistics of each batch", "export the model for inference"
        )
    x, scale, shift, mean, variance = together(x, scale, shift, mean, variance)
    return F.batch_norm(x, mean, variance, scale, shift, eps=_epsilon(node))


@operator("InstanceNormalization")
def instance_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise every channel of every sample by its own statistics."""
    x, scale, shift = together(x, scale, shift)
    flat = x.flatten(2)
    if flat.shape[2] > 1:
        return F.instance_norm(flat, weight=scale, bias=shift, eps=_epsilon(node)).reshape(x.shape)
    return torch.zeros_like(x) + shift.reshape(-1, *(1,) * (x.dim() - 2))  # PyTorch refuses it


@operator("GroupNormalization")
def group_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise groups of channels; a scale and shift per channel, up to opset 20 per group."""
    x, scale, shift = together(x, scale, shift)
    groups, channels = node.attrs["num_groups"], x.shape[1]
    if scale.numel() != channels:
        scale, shift = (v.repeat_interleave(channels // groups) for v in (scale, shift))
    return F.group_norm(x, groups, scale, shift, _epsilon(node))


@operator("LayerNormalization")
def layer_normalization(
    node: NodeView, x: Tensor, scale: Tensor, shift: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Normalise the axes from ``axis`` on; the mean and 1 / deviation where asked."""
    axis = range(x.dim())[node.attrs.get("axis", -1)]
    return _layer_norm(node, x, scale, shift, axis)


def _layer_norm(
    node: NodeView, x: Tensor, scale: Tensor, shift: Tensor | None, axis: int
) -> Tensor | tuple[Tensor, ...]:
    x, scale = together(x, scale)
    shift = None if shift is None else shift.to(x.device)
    whole = scale.shape == x.shape[axis:] and (shift is None or shift.shape == scale.shape)
    if whole and not asks(node, 1) and not asks(node, 2):
        return F.layer_norm(x, x.shape[axis:], scale, shift, _epsilon(node))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # as stash_type says
    normal, mean, deviation = _standardized(wide, tuple(range(axis, x.dim())), _epsilon(node))
    y = normal.to(x.dtype) * scale
    return (y if shift is None else y + shift), mean, deviation


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(node: NodeView, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root of the mean square over the axes from ``axis`` on."""
    x, scale = together(x, scale)
    axis = range(x.dim())[node.attrs.get("axis", -1)]
    return _divided_by_rms(x, tuple(range(axis, x.dim())), _epsilon(node)) * scale


def _divided_by_rms(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    square = (wide * wide).mean(axes, keepdim=True)
    return (wide * torch.rsqrt(square + epsilon)).to(x.dtype)


@operator("com.microsoft::SkipLayerNormalization")
def skip_layer_normalization(
    node: NodeView,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Layer normalization of a sum, which is the fourth output."""
    total = _skipped(x, skip, bias)
    made = _layer_norm(node, total, scale, shift, total.dim() - 1)
    y, mean, deviation = made if isinstance(made, tuple) else (made, None, None)
    return y, mean, deviation, total


@operator("com.microsoft::SkipSimplifiedLayerNormalization")
def skip_rms_normalization(
    node: NodeView, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Division of a sum by its root mean square; the sum is the fourth output."""
    total = _skipped(x, skip, bias)
    y = _divided_by_rms(total, (-1,), _epsilon(node)) * scale.to(total.device)
    return y, None, None, total


def _skipped(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    x, skip = together(x, skip)
    return x + skip if bias is None else x + skip + bias.to(x.device)


@operator("LRN")
def local_response_normalization(node: NodeView, x: Tensor) -> Tensor:
    """Divide by a power of the sum of squares over neighbouring channels."""
    size = node.attrs["size"]
    alpha, beta = node.attrs.get("alpha", 1e-4), node.attrs.get("beta", 0.75)
    # of an even number of channels, the one more lies behind
    around = (0, 0) * (x.dim() - 2) + ((size - 1) // 2, size // 2)
    squares = F.pad(x * x, around).unfold(1, size, 1).sum(-1)
    y: Tensor = x / (node.attrs.get("bias", 1.0) + alpha / size * squares) ** beta
    return y


@operator("LpNormalization")
def lp_normalization(node: NodeView, x: Tensor) -> Tensor:
    """Divide by the 1-norm or 2-norm along an axis; zeros stay zeros."""
    axis, p = node.attrs.get("axis", -1), node.attrs.get("p", 2)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: NodeView, x: Tensor) -> Tensor:
    """Bring values to mean 0 and variance 1 over axes; 1e-9 as ONNX has it."""
    axes = tuple(node.attrs.get("axes", (0, 2, 3)))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)
