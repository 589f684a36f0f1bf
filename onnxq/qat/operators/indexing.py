"""Operators that choose values by their places, or find places."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import numbers, together

# ONNX's names of what becomes of the value that lies where another is written.
SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _places(indices: Tensor, size: int) -> Tensor:
    """Places counted from the start; negative ones count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of an axis, one for every index."""
    axis = node.attrs.get("axis", 0) % x.dim()
    x, indices = together(x, indices)
    places = _places(indices, x.shape[axis])
    if axis == 0 and x.dim() == 2 and x.is_floating_point():  # the fast gradient of a table
        return F.embedding(places, x)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    """For every index, the value at that place of its own line."""
    axis = node.attrs.get("axis", 0)
    x, indices = together(x, indices)
    return x.gather(axis, _places(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    """Slices by tuples of indices, behind ``batch_dims`` common axes."""
    batch = node.attrs.get("batch_dims", 0)
    x, indices = together(x, indices)
    depth, lead = indices.shape[-1], x.shape[:batch]
    rows = _rows(indices.reshape(prod(lead), -1, depth), x.shape[batch : batch + depth])
    rest = x.shape[batch + depth :]
    flat = x.reshape(prod(lead), -1, prod(rest))
    found = flat.gather(1, rows.unsqueeze(-1).expand(-1, -1, flat.shape[-1]))
    return found.reshape((*indices.shape[:-1], *rest))


def _rows(indices: Tensor, sizes: torch.Size) -> Tensor:
    """Tuples of indices as one number each, in a flattened tensor of these sizes."""
    rows = torch.zeros_like(indices[..., 0], dtype=torch.int64)
    for axis, size in enumerate(sizes):
        rows = rows * size + _places(indices[..., axis], size)
    return rows


@operator("ScatterElements")
def scatter_elements(node: NodeView, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write every update to the place that its index tells, in its own line."""
    axis, reduction = node.attrs.get("axis", 0), node.attrs.get("reduction", "none")
    x, indices, updates = together(x, indices, updates)
    places = _places(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, SCATTER[reduction])


@operator("ScatterND")
def scatter_nd(node: NodeView, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write slices to where tuples of indices tell."""
    reduction = node.attrs.get("reduction", "none")
    x, indices, updates = together(x, indices, updates)
    depth = indices.shape[-1]
    rows = _rows(indices.reshape(-1, depth), x.shape[:depth])
    flat = x.reshape(prod(x.shape[:depth]), -1)
    places = rows.unsqueeze(-1).expand(-1, flat.shape[-1])
    updates = updates.reshape(places.shape)
    if reduction == "none":
        return flat.scatter(0, places, updates).reshape(x.shape)
    return flat.scatter_reduce(0, places, updates, SCATTER[reduction]).reshape(x.shape)


@operator("NonZero")
def non_zero(node: NodeView, x: Tensor) -> Tensor:
    """The places of values other than 0, a column each."""
    return x.nonzero().T


@operator("OneHot")
def one_hot(node: NodeView, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """A new axis with the second value at the index, the first elsewhere."""
    count, axis = numbers(depth)[0], node.attrs.get("axis", -1)
    indices, values = together(indices, values)
    places = torch.where(indices < 0, indices + count, indices)
    hot = places.unsqueeze(axis) == _along(torch.arange(count), axis, indices.dim() + 1).to(
        indices.device
    )
    return torch.where(hot, values[1], values[0])


def _along(x: Tensor, axis: int, rank: int) -> Tensor:
    sizes = [1] * rank
    sizes[axis] = -1
    return x.reshape(sizes)


@operator("TopK")
def top_k(node: NodeView, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The largest or smallest values along an axis, in order, and their places."""
    axis, count = node.attrs.get("axis", -1), numbers(k)[0]
    # a stable sort puts the first of equal values first, as ONNX wants it; topk does not
    values, places = x.sort(dim=axis, descending=bool(node.attrs.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("ArgMax", "ArgMin")
def arg_extreme(node: NodeView, x: Tensor) -> Tensor:
    """The place of the largest or smallest value along an axis."""
    axis, keep = node.attrs.get("axis", 0), bool(node.attrs.get("keepdims", 1))
    find = torch.argmax if node.op == "ArgMax" else torch.argmin
    last = bool(node.attrs.get("select_last_index", 0))
    place: Tensor = find(x.flip(axis) if last else x, axis, keepdim=keep)
    return x.shape[axis] - 1 - place if last else place
