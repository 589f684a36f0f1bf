"""Operators that reduce axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import numbers

Axes = tuple[int, ...]
Reduction = Callable[[Tensor, Axes], Tensor]


def _sum(x: Tensor, axes: Axes) -> Tensor:
    return x.sum(axes, keepdim=True, dtype=x.dtype)


def _mean(x: Tensor, axes: Axes) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=True)
    return x.double().mean(axes, keepdim=True).to(x.dtype)


def _product(x: Tensor, axes: Axes) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True, dtype=x.dtype)
    return x


def _extreme(largest: bool) -> Reduction:
    def reduce(x: Tensor, axes: Axes) -> Tensor:
        if x.numel():
            return x.amax(axes, keepdim=True) if largest else x.amin(axes, keepdim=True)
        sizes = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        return x.new_full(sizes, _end(x.dtype, lowest=largest))

    return reduce


def _end(dtype: torch.dtype, *, lowest: bool) -> float:
    """The least or greatest value of a type: the extreme of no values."""
    if dtype.is_floating_point:
        return -torch.inf if lowest else torch.inf
    if dtype == torch.bool:
        return not lowest
    return torch.iinfo(dtype).min if lowest else torch.iinfo(dtype).max


def _norm(x: Tensor, axes: Axes) -> Tensor:
    return _of_floats(lambda f: torch.linalg.vector_norm(f, 2, axes, keepdim=True), x)


def _of_floats(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x) if x.is_floating_point() else function(x.double()).to(x.dtype)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes: _sum(x.abs(), axes),
    "ReduceL2": _norm,
    "ReduceLogSum": lambda x, axes: _of_floats(lambda f: _sum(f, axes).log(), x),
    "ReduceLogSumExp": lambda x, axes: _of_floats(lambda f: f.logsumexp(axes, keepdim=True), x),
    "ReduceMax": _extreme(largest=True),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(largest=False),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes: _sum(x * x, axes),
}


def _register(name: str, reduction: Reduction) -> None:
    @operator(name)
    def reduce(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Tensor:
        # the axes are an attribute up to opset 17, of ReduceSum up to 12
        named = node.attrs.get("axes", ()) if axes is None else numbers(axes)
        if not named and node.attrs.get("noop_with_empty_axes", 0):
            return reduction(x.unsqueeze(-1), (x.dim(),)).squeeze(-1)
        over = tuple(sorted(axis % x.dim() for axis in named)) or tuple(range(x.dim()))
        if not over:  # a single number
            return reduction(x.reshape(1), (0,)).reshape(())
        y = reduction(x, over)
        return y if node.attrs.get("keepdims", 1) else y.squeeze(over)


for _name, _reduction in REDUCTIONS.items():
    _register(_name, _reduction)


@operator("CumSum")
def running_sum(node: NodeView, x: Tensor, axis: Tensor) -> Tensor:
    """Sums of the values up to each one, from either end, with or without itself."""
    along = numbers(axis)[0]
    backwards = bool(node.attrs.get("reverse", 0))
    x = x.flip(along) if backwards else x
    if node.attrs.get("exclusive", 0):
        first = torch.zeros_like(x.narrow(along, 0, 1))
        x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
    sums = x.cumsum(along, dtype=x.dtype)
    return sums.flip(along) if backwards else sums
