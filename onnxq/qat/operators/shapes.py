"""Operators on shapes, and those that make tensors of a shape or give values another place."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import dtype_of, numbers, to_tensor, together, unsupported


@operator("Shape")
def shape(node: NodeView, x: Tensor) -> Tensor:
    """The sizes of axes ``start`` to ``end``."""
    sizes = x.shape[node.attrs.get("start", 0) : node.attrs.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


@operator("Size")
def size(node: NodeView, x: Tensor) -> Tensor:
    """The number of values."""
    return torch.tensor(x.numel())


@operator("Constant")
def constant(node: NodeView) -> Tensor:
    """The values that the node holds."""
    name, value = next(iter(node.attrs.items()))
    if name == "value":
        return to_tensor(value)
    if name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    if name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    raise unsupported(node, f"PyTorch has no tensor for its attribute '{name}'")


@operator("ConstantOfShape")
def constant_of_shape(node: NodeView, sizes: Tensor) -> Tensor:
    """A tensor that holds one value everywhere, float32 zero by default."""
    if "value" not in node.attrs:
        return torch.zeros(numbers(sizes))
    return to_tensor(node.attrs["value"]).reshape(()).repeat(numbers(sizes))


@operator("Range")
def arange(node: NodeView, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from ``start`` up to ``limit``, ``delta`` apart."""
    ends = (start.item(), limit.item(), delta.item())
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


@operator("EyeLike")
def eye_like(node: NodeView, x: Tensor) -> Tensor:
    """1 on a diagonal, 0 elsewhere."""
    dtype = dtype_of(node, node.attrs["dtype"]) if "dtype" in node.attrs else x.dtype
    k = node.attrs.get("k", 0)
    return torch.ones_like(x, dtype=dtype).tril(k).triu(k)


@operator("Reshape")
def reshape(node: NodeView, x: Tensor, sizes: Tensor) -> Tensor:
    """Another shape; 0 copies a size of the input, -1 takes what is left."""
    wanted = numbers(sizes)
    if not node.attrs.get("allowzero", 0):
        wanted = [s if s else x.shape[axis] for axis, s in enumerate(wanted)]
    if -1 in wanted and x.numel() == 0:  # PyTorch cannot tell the rest of nothing
        known = prod(s for s in wanted if s != -1)
        wanted = [(0 if known else 1) if s == -1 else s for s in wanted]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(node: NodeView, x: Tensor) -> Tensor:
    """A matrix: the axes before ``axis`` are its rows."""
    axis = node.attrs.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Squeeze")
def squeeze(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1: those that are named, or all."""
    return x.squeeze() if axes is None else x.squeeze(numbers(axes))


@operator("Unsqueeze")
def unsqueeze(node: NodeView, x: Tensor, axes: Tensor) -> Tensor:
    """With axes of size 1 at the named places of the output."""
    rank = x.dim() + axes.numel()
    for axis in sorted(axis % rank for axis in numbers(axes)):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(node: NodeView, x: Tensor) -> Tensor:
    """Axes in another order, reversed by default."""
    return x.permute(node.attrs.get("perm", tuple(reversed(range(x.dim())))))


@operator("Expand")
def expand(node: NodeView, x: Tensor, sizes: Tensor) -> Tensor:
    """Repeat axes of size 1, as arithmetic would with a tensor of these sizes."""
    wanted = np.broadcast_shapes(tuple(x.shape), tuple(numbers(sizes)))
    return x.expand(wanted)


@operator("Tile")
def tile(node: NodeView, x: Tensor, repeats: Tensor) -> Tensor:
    """The whole tensor, repeated along every axis."""
    return x.repeat(numbers(repeats))


@operator("Concat")
def concat(node: NodeView, *inputs: Tensor) -> Tensor:
    """The inputs behind each other along an axis."""
    return torch.cat(together(*inputs), node.attrs["axis"])


@operator("Split")
def split(node: NodeView, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Pieces along an axis: of given sizes, or equal ones with a shorter last."""
    axis = node.attrs.get("axis", 0)
    if sizes is not None:
        return torch.split_with_sizes(x, numbers(sizes), axis)
    count, length = node.attrs.get("num_outputs", len(node.outputs)), x.shape[axis]
    piece = -(-length // count)
    lengths = [min(piece, max(length - at * piece, 0)) for at in range(count)]
    return torch.split_with_sizes(x, lengths, axis)


@operator("Slice")
def slice_(
    node: NodeView,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Part of every named axis."""
    begins, limits = numbers(starts), numbers(ends)
    names = list(range(len(begins))) if axes is None else numbers(axes)
    strides = [1] * len(begins) if steps is None else numbers(steps)
    for begin, limit, axis, step in zip(begins, limits, names, strides, strict=True):
        places = _sliced(begin, limit, step, x.shape[axis])
        if step > 0:
            kept = slice(places.start, places.stop, step)
            x = x[(slice(None),) * (axis % x.dim()) + (kept,)]
        else:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


def _sliced(begin: int, limit: int, step: int, size: int) -> range:
    """Places that a slice keeps: as in Python, but backwards it starts at the first at least."""
    begin, limit = (at + size if at < 0 else at for at in (begin, limit))
    if step > 0:
        return range(min(max(begin, 0), size), min(max(limit, 0), size), step)
    return range(min(max(begin, 0), size - 1), min(max(limit, -1), size - 1), step)


@operator("Pad")
def pad(
    node: NodeView,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Values before and behind those of every named axis; negative numbers cut."""
    amounts = numbers(pads)
    named = list(range(x.dim())) if axes is None else [a % x.dim() for a in numbers(axes)]
    begins, ends = [0] * x.dim(), [0] * x.dim()
    for axis, begin, end in zip(named, amounts[: len(named)], amounts[len(named) :], strict=True):
        begins[axis], ends[axis] = begin, end
    mode = node.attrs.get("mode", "constant")
    if mode == "constant":
        both = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
        return F.pad(x, both, value=0 if value is None else value.item())
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            places = _padded_places(x.shape[axis], begin, end, mode)
            x = x.index_select(axis, torch.tensor(places, device=x.device))
    return x


def _padded_places(length: int, begin: int, end: int, mode: str) -> Sequence[int]:
    """Places of the input along a padded axis."""
    places = np.arange(length)[max(-begin, 0) : length - max(-end, 0)]
    padded: list[int] = np.pad(places, (max(begin, 0), max(end, 0)), mode).tolist()  # type: ignore[call-overload]
    return padded


@operator("DepthToSpace")
def depth_to_space(node: NodeView, x: Tensor) -> Tensor:
    """Channels become blocks of pixels; ``mode`` tells which channels are neighbours."""
    block = node.attrs["blocksize"]
    batch, channels, height, width = x.shape
    depth = channels // block**2
    if _crd(node):
        x = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, depth, height * block, width * block)


def _crd(node: NodeView) -> bool:
    """Whether the channels of one block are neighbours: channel, row, column."""
    return bool(node.attrs.get("mode", "DCR") == "CRD")


@operator("SpaceToDepth")
def space_to_depth(node: NodeView, x: Tensor) -> Tensor:
    """Blocks of pixels become channels; ``mode`` tells which of them are neighbours."""
    block = node.attrs["blocksize"]
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // block, block, width // block, block)
    x = x.permute(0, 1, 3, 5, 2, 4) if _crd(node) else x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * block**2, height // block, width // block)


@operator("Trilu")
def triangle(node: NodeView, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle of matrices; the rest is 0."""
    diagonal = 0 if k is None else int(k.item())
    return x.triu(diagonal) if node.attrs.get("upper", 1) else x.tril(diagonal)
