"""Convolutions and pools over one to three spatial axes.

PyTorch pads both ends of an axis alike. Where ONNX asks for more at one end, the input is padded
beforehand, or the output of a transposed convolution is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from onnxq.graph import NodeView
from onnxq.qat.operators.registry import operator
from onnxq.qat.operators.values import asks, together, unsupported

Function = Callable[..., Any]
# By the number of spatial axes.
CONV: dict[int, Function] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Function] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
MAX_POOL: dict[int, Function] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL: dict[int, Function] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its input; one number per spatial axis.

    Attributes:
        kernel: Values that the kernel covers.
        strides: Steps between places of the kernel.
        dilations: Distance between the values that it covers.
        begins: Padding before the first value.
        ends: Padding behind the last value.
        sizes: Sizes of the output.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """Input values from the first to the last that the kernel covers."""
        return _spans(self.kernel, self.dilations)

    @property
    def even(self) -> bool:
        """Whether both ends are padded alike."""
        return self.begins == self.ends

    @property
    def halved(self) -> bool:
        """Whether PyTorch's pools take the padding: alike, and at most half a kernel."""
        pairs = zip(self.begins, self.kernel, strict=True)
        return self.even and all(2 * pad <= size for pad, size in pairs)

    def overhangs(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How far the last place of the kernel reaches behind the padded input."""
        axes = zip(shape, self.begins, self.ends, self.strides, self.spans, self.sizes, strict=True)
        return tuple(
            max((size - 1) * stride + span - (length + begin + end), 0)
            for length, begin, end, stride, span, size in axes
        )


def _spans(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))


def _per_axis(node: NodeView, name: str, count: int, default: int = 1) -> tuple[int, ...]:
    return tuple(node.attrs.get(name) or (default,) * count)


def _window(node: NodeView, shape: Sequence[int], kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pool on an input with these spatial sizes."""
    count = len(kernel)
    if count not in CONV:
        raise unsupported(node, f"it has {count} spatial axes, PyTorch has kernels for 1 to 3")
    strides, dilations = (_per_axis(node, name, count) for name in ("strides", "dilations"))
    spans, pads = _spans(kernel, dilations), _per_axis(node, "pads", 2 * count, 0)
    begins, ends = pads[:count], pads[count:]
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        axes = zip(shape, strides, spans, strict=True)
        totals = [
            max((-(-size // stride) - 1) * stride + span - size, 0) for size, stride, span in axes
        ]
        begins, ends = _shared(totals, upper=mode == "SAME_UPPER")
    elif mode == "VALID":
        begins = ends = (0,) * count
    up = bool(node.attrs.get("ceil_mode", 0)) and mode not in ("SAME_UPPER", "SAME_LOWER")
    sizes = tuple(
        _places(*axis, up=up) for axis in zip(shape, begins, ends, strides, spans, strict=True)
    )
    return Window(kernel, strides, dilations, begins, ends, sizes)


def _places(size: int, begin: int, end: int, stride: int, span: int, *, up: bool) -> int:
    """Places of the kernel along an axis; ``up`` counts one that reaches behind the end.

    A place that would start in the padding behind the values does not count.
    """
    rest = size + begin + end - span
    places = (-(-rest // stride) if up else rest // stride) + 1
    return places - 1 if up and (places - 1) * stride >= size + begin else places


def _shared(totals: Sequence[int], *, upper: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding cut into both ends, the larger half at the upper or the lower one."""
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, large) if upper else (large, small)


def _padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the spatial axes; negative numbers cut."""
    if not any(begins) and not any(ends):
        return x
    axes = zip(reversed(begins), reversed(ends), strict=True)  # F.pad counts from the last axis
    return F.pad(x, list(chain.from_iterable(axes)), value=value)


@operator("Conv")
def conv(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution; x is [batch, channels, ...], weight [outputs, channels / group, ...]."""
    x, weight = together(x, weight)
    window = _window(node, x.shape[2:], tuple(weight.shape[2:]))
    group = node.attrs.get("group", 1)
    pads: tuple[int, ...] | int = window.begins
    if not window.even:
        x, pads = _padded(x, window.begins, window.ends), 0
    function = CONV[len(window.kernel)]
    y: Tensor = function(x, weight, bias, window.strides, pads, window.dilations, group)
    return y


@operator("ConvTranspose")
def conv_transpose(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution; weight is [channels, outputs / group, ...]."""
    x, weight = together(x, weight)
    kernel = tuple(weight.shape[2:])
    count = len(kernel)
    if count not in CONV:
        raise unsupported(node, f"it has {count} spatial axes, PyTorch has kernels for 1 to 3")
    strides, dilations = (_per_axis(node, name, count) for name in ("strides", "dilations"))
    extra = _per_axis(node, "output_padding", count, 0)
    full = [
        (size - 1) * stride + span
        for size, stride, span in zip(x.shape[2:], strides, _spans(kernel, dilations), strict=True)
    ]
    begins, ends = _cuts(node, x.shape[2:], strides, full, extra)
    function, group = CONV_TRANSPOSE[count], node.attrs.get("group", 1)
    steps = zip(extra, strides, dilations, strict=True)
    if begins == ends and all(e < max(stride, dilation) for e, stride, dilation in steps):
        y: Tensor = function(x, weight, bias, strides, begins, extra, group, dilations)
        return y
    y = function(x, weight, None, strides, 0, 0, group, dilations)
    more = [e - end for e, end in zip(extra, ends, strict=True)]
    y = _padded(y, [-begin for begin in begins], more)
    return y if bias is None else y + bias.reshape(-1, *(1,) * count)


def _cuts(
    node: NodeView,
    shape: Sequence[int],
    strides: Sequence[int],
    full: Sequence[int],
    extra: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is cut off at both ends of a transposed convolution's full output."""
    count = len(shape)
    mode, wanted = node.attrs.get("auto_pad", "NOTSET"), node.attrs.get("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(shape, strides, strict=True)]
    if wanted is not None:
        totals = [f + e - w for f, e, w in zip(full, extra, wanted[-count:], strict=True)]
        begins, _ = _shared([max(t, 0) for t in totals], upper=mode == "SAME_UPPER")
        return begins, tuple(t - begin for t, begin in zip(totals, begins, strict=True))
    pads = _per_axis(node, "pads", 2 * count, 0) if mode == "NOTSET" else (0,) * (2 * count)
    return pads[:count], pads[count:]


@operator("MaxPool")
def max_pool(node: NodeView, x: Tensor) -> Tensor:
    """The largest value of each window; padding is never the largest."""
    if asks(node, 1):
        raise unsupported(node, "the places of the largest values are asked for (Indices)")
    if not x.is_floating_point():  # exact: pooled integers have 8 bits
        return max_pool(node, x.float()).to(x.dtype)
    window = _window(node, x.shape[2:], tuple(node.attrs["kernel_shape"]))
    over = window.overhangs(x.shape[2:])
    pads: tuple[int, ...] | int = window.begins
    if not window.halved or any(over):
        behind = [end + more for end, more in zip(window.ends, over, strict=True)]
        x, pads = _padded(x, window.begins, behind, -torch.inf), 0
    function = MAX_POOL[len(window.kernel)]
    y: Tensor = function(x, window.kernel, window.strides, pads, window.dilations)
    return y


@operator("AveragePool")
def average_pool(node: NodeView, x: Tensor) -> Tensor:
    """The mean of each window, with or without the padding."""
    window = _window(node, x.shape[2:], tuple(node.attrs["kernel_shape"]))
    counted = bool(node.attrs.get("count_include_pad", 0))
    over = window.overhangs(x.shape[2:])
    if window.halved and not any(over) and set(window.dilations) == {1}:
        function = AVERAGE_POOL[len(window.kernel)]
        y: Tensor = function(
            x, window.kernel, window.strides, window.begins, count_include_pad=counted
        )
        return y
    inside = x.new_ones((1, 1, *x.shape[2:]))
    inside = _padded(inside, window.begins, window.ends, float(counted))
    behind = [end + more for end, more in zip(window.ends, over, strict=True)]
    sums = _window_sums(_padded(x, window.begins, behind), window)
    return sums / _window_sums(_padded(inside, (0,) * len(over), over), window)


@operator("LpPool")
def lp_pool(node: NodeView, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    window = _window(node, x.shape[2:], tuple(node.attrs["kernel_shape"]))
    p = node.attrs.get("p", 2)
    over = window.overhangs(x.shape[2:])
    behind = [end + more for end, more in zip(window.ends, over, strict=True)]
    powers = _padded(x.abs() ** p, window.begins, behind)
    y: Tensor = _window_sums(powers, window) ** (1 / p)
    return y


def _window_sums(x: Tensor, window: Window) -> Tensor:
    """The sum of every window of a padded input."""
    if set(window.dilations) == {1}:
        means: Tensor = AVERAGE_POOL[len(window.kernel)](x, window.kernel, window.strides)
        return means * prod(window.kernel)
    # PyTorch's pools know no dilation: each channel is convolved with ones
    channels = x.reshape(-1, 1, *x.shape[2:])
    ones = x.new_ones((1, 1, *window.kernel))
    sums: Tensor = CONV[len(window.kernel)](
        channels, ones, None, window.strides, 0, window.dilations
    )
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@operator("GlobalAveragePool")
def global_average_pool(node: NodeView, x: Tensor) -> Tensor:
    """The mean of each channel."""
    return x.mean(_spatial(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: NodeView, x: Tensor) -> Tensor:
    """The largest value of each channel."""
    return x.amax(_spatial(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(node: NodeView, x: Tensor) -> Tensor:
    """The p-norm of each channel."""
    p = node.attrs.get("p", 2)
    y: Tensor = (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1 / p)
    return y
