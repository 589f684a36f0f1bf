"""Resize: every axis in turn, as a choice of values or as a product with a matrix of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import numbers, unsupported

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        index: Which axis.
        size: Its size before.
        wanted: Its size after.
        scale: What coordinates are divided by; ``wanted / size`` but for rounding.
        region: Start and end of the part that is read, as fractions of the size.
    """

    index: int
    size: int
    wanted: int
    scale: float
    region: tuple[float, float]

    @property
    def same(self) -> bool:
        """Whether nothing happens along it."""
        return self.wanted == self.size and self.scale == 1.0 and self.region == (0.0, 1.0)

    @property
    def blocks(self) -> Tensor:
        """The values that are taken when each is repeated as often."""
        return torch.arange(self.wanted) // (self.wanted // self.size)


@operator("Resize")
def resize(
    node: NodeView,
    x: Tensor,
    region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Values between values, by ``nearest``, ``linear`` or ``cubic`` interpolation."""
    y = x
    axes = [axis for axis in _axes(node, x, region, scales, sizes) if not axis.same]
    nearest = node.attrs.get("mode", "nearest") == "nearest"
    if nearest and _repeats(node, x, axes):
        after = {axis.index: axis.wanted for axis in axes}
        spatial = [after.get(index, x.shape[index]) for index in range(2, x.dim())]
        return F.interpolate(x, spatial, mode="nearest-exact")
    for axis in axes:
        places = _coordinates(node, axis)
        if nearest:
            y = y.index_select(axis.index, _nearest(node, axis, places).to(x.device))
        else:
            matrix = torch.from_numpy(_weights(node, axis, places)).to(x.device, _floating(x))
            y = torch.movedim(y.to(matrix.dtype), axis.index, -1) @ matrix.T
            y = torch.movedim(y, -1, axis.index)
        if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            outside = torch.from_numpy((places < 0) | (places > axis.size - 1)).to(x.device)
            outside = outside.reshape(-1, *(1,) * (x.dim() - 1 - axis.index))
            y = y.masked_fill(outside, node.attrs.get("extrapolation_value", 0.0))
    return y if y.dtype == x.dtype else _stored(y, x.dtype)


def _repeats(node: NodeView, x: Tensor, axes: list[Axis]) -> bool:
    """Whether every value becomes a block of equal ones; PyTorch has a kernel for that."""
    return (
        x.is_floating_point()
        and 3 <= x.dim() <= 5
        and all(axis.index >= 2 and axis.wanted % axis.size == 0 for axis in axes)
        and all(
            bool((_nearest(node, axis, _coordinates(node, axis)) == axis.blocks).all())
            for axis in axes
        )
    )


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float32


def _stored(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers again: cut off, not rounded, as ONNX Runtime does."""
    info = torch.iinfo(dtype)
    return y.clamp(info.min, info.max).to(dtype)


def _axes(
    node: NodeView, x: Tensor, region: Tensor | None, scales: Tensor | None, sizes: Tensor | None
) -> list[Axis]:
    named = [axis % x.dim() for axis in node.attrs.get("axes", range(x.dim()))]
    count, before = len(named), [x.shape[axis] for axis in named]
    if sizes is not None and sizes.numel():
        after = numbers(sizes)
        factors = [a / b for a, b in zip(after, before, strict=True)]
        policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = (min if policy == "not_larger" else max)(factors)
            factors = [factor] * count
            after = [int(factor * size + 0.5) for size in before]
    elif scales is not None:
        factors = [float(scale) for scale in scales.tolist()]
        after = [int(np.float32(f) * np.float32(b)) for f, b in zip(factors, before, strict=True)]
    else:
        raise unsupported(node, "it has neither sizes nor scales")
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    ends = region.tolist() if region is not None and crops else [0.0] * count + [1.0] * count
    regions = zip(ends[:count], ends[count:], strict=True)
    return [Axis(*row) for row in zip(named, before, after, factors, regions, strict=True)]


def _coordinates(node: NodeView, axis: Axis) -> Floats:
    """Where each value of the output lies on the axis of the input.

    In float32, as ONNX Runtime computes it: what lies in the middle is found nearest by rounding.
    """
    out, scale = np.arange(axis.wanted, dtype=np.float32), np.float32(axis.scale)
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    # ONNX Runtime counts the values there are, ONNX's reference ``scale * size``, maybe a fraction
    last, final = axis.size - 1, axis.wanted - 1
    start, end = (np.float32(at) for at in axis.region)
    half = (out + np.float32(0.5)) / scale - np.float32(0.5)
    modes: dict[str, Callable[[], Floats]] = {
        "half_pixel": lambda: half,
        "half_pixel_symmetric": lambda: half + (axis.size - axis.wanted / axis.scale) / 2,
        "pytorch_half_pixel": lambda: half if axis.wanted > 1 else out,
        "align_corners": lambda: out * last / max(final, 1),
        "asymmetric": lambda: out / scale,
        "tf_crop_and_resize": lambda: (
            start * last + out * (end - start) * last / final
            if final
            else out + (start + end) * last / 2
        ),
    }
    if mode not in modes:
        raise unsupported(node, f"its coordinate_transformation_mode '{mode}' is not known")
    return modes[mode]().astype(np.float64)


def _nearest(node: NodeView, axis: Axis, places: Floats) -> Tensor:
    """The index of the value that each coordinate takes."""
    modes: dict[str, Callable[[Floats], Floats]] = {
        "round_prefer_floor": lambda at: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda at: np.floor(at + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    chosen = modes[node.attrs.get("nearest_mode", "round_prefer_floor")](places)
    return torch.from_numpy(chosen.clip(0, axis.size - 1).astype(np.int64))


def _weights(node: NodeView, axis: Axis, places: Floats) -> Floats:
    """How much of each value of the input is in each one of the output: [wanted, size].

    What lies outside counts for the value at the border, or not at all.
    """
    mode = node.attrs["mode"]
    kernel = _cubic(node.attrs.get("cubic_coeff_a", -0.75)) if mode == "cubic" else _linear
    # a smaller output blurs with a kernel as wide as the distance of its values
    stretch = min(axis.scale, 1.0) if node.attrs.get("antialias", 0) else 1.0
    reach = int(np.ceil((2 if mode == "cubic" else 1) / stretch)) + 1
    taps = np.floor(places).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    weights = kernel(np.abs(taps - places[:, None]) * stretch)
    if node.attrs.get("exclude_outside", 0):
        weights = np.where((taps >= 0) & (taps < axis.size), weights, 0.0)
    weights /= weights.sum(1, keepdims=True)
    matrix: Floats = np.zeros((axis.wanted, axis.size))
    rows = np.broadcast_to(np.arange(axis.wanted)[:, None], taps.shape)
    np.add.at(matrix, (rows, taps.clip(0, axis.size - 1)), weights)
    return matrix


def _linear(distance: Floats) -> Floats:
    """The weight of a value at a distance, falling to 0 at 1."""
    return np.maximum(1 - distance, 0.0)


def _cubic(a: float) -> Callable[[Floats], Floats]:
    """Keys, "Cubic convolution interpolation for digital image processing" (1981), equation 4."""

    def kernel(distance: Floats) -> Floats:
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))

    return kernel
