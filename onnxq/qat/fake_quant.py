"""Fake quantization: values are rounded to what integers can hold, and gradients pass through.

The forward pass computes ``clip(round_half_even(x / scale), qmin - z, qmax - z) * scale`` in
float32, which is what QuantizeLinear and DequantizeLinear compute with zero point ``z``. The
backward pass takes the rounding for the identity: the straight-through estimator of Bengio et al.,
"Estimating or Propagating Gradients Through Stochastic Neurons" (2013), with a gradient of zero
where a value was clipped. A scale that is learned has the gradient of Esser et al., "Learned Step
Size Quantization" (2020), equations 3 and 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onnxq.types import QParams, QType, WeightBlocks

# What a runtime takes for a scale: the smallest normal float32.
TINY = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Integers:
    """A quantized tensor, as what it counts.

    Attributes:
        steps: Integers less their zero point, as float32.
        scale: The value of a step, float32; one, or one per channel.
        zero_point: The zero point, as float32; of ``scale``'s shape.
    """

    steps: Tensor
    scale: Tensor
    zero_point: Tensor


def steps_of(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integers that hold values, less their zero point; as float32, and without gradients.

    Args and shapes are those of ``fake_quantize``.
    """
    return clipped_steps((x / scale).round_(), zero_point, qmin, qmax)


def clipped_steps(steps: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Clip steps from the zero point to those that integers can hold, in place."""
    lo, hi = qmin - zero_point, qmax - zero_point
    if zero_point.numel() == 1:  # with numbers for ends it is several times as fast
        return steps.clamp_(float(lo), float(hi))
    return steps.clamp_(lo, hi)


class _FakeQuantize(torch.autograd.Function):
    """Inputs: values, scale and zero point (broadcastable), ends of the integers.

    What is kept for the backward pass are the values and the result, which the operators on both
    sides mostly keep anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch has no type for what it adds to it
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        made = steps_of(x, scale, zero_point, qmin, qmax).mul_(scale)
        ctx.save_for_backward(x, scale, zero_point, *([made] if ctx.needs_input_grad[1] else []))
        ctx.ends = qmin, qmax
        return made

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, scale, zero_point, *made = ctx.saved_tensors
        qmin, qmax = ctx.ends
        # what rounds to an end lies within half a step of it
        lo, hi = (qmin - 0.5 - zero_point) * scale, (qmax + 0.5 - zero_point) * scale
        if lo.numel() == 1:
            to_values = torch.ops.aten.hardtanh_backward(grad, x, float(lo), float(hi))
        else:
            to_values = grad * ((x > lo) & (x < hi))
        to_scale = None
        if made:
            # d/ds of round(x/s) * s is round(x/s) - x/s inside, and the end itself outside. Times
            # the gradient and summed, both are the sum of made/s less that of x/s inside.
            if scale.numel() == 1:
                slope = (_dot(grad, made[0]) - _dot(to_values, x)).reshape(scale.shape)
            else:
                slope = (grad * made[0] - to_values * x).sum_to_size(scale.shape)
            # LSQ's scale of gradients: 1 / sqrt(values per scale * largest integer)
            factor = (x.numel() / scale.numel() * (qmax - qmin) / 2) ** -0.5
            to_scale = slope / scale * factor
        return (to_values if ctx.needs_input_grad[0] else None), to_scale, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, without a tensor of products where both lie alike in memory."""
    if a.stride() != b.stride() or not _dense(a):
        return (a * b).sum()
    flat = (a.numel(),), (1,)
    return torch.dot(a.as_strided(*flat), b.as_strided(*flat))


def _dense(a: Tensor) -> bool:
    return a.is_contiguous() or (a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last))


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Round values to what integers can hold; gradients pass straight through.

    Args:
        x: float32 values of any shape.
        scale: Positive float32; one, or shaped so that it broadcasts against ``x``. Where it needs
            a gradient it gets that of learned step sizes.
        zero_point: Integers, as float32, shaped like ``scale``.
        qmin: The smallest integer.
        qmax: The largest integer.

    Returns:
        float32 values of ``x``'s shape.
    """
    made: Tensor = _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)
    return made


def dynamic_quantize(x: Tensor) -> Tensor:
    """Fake-quantize values for their own range, as DynamicQuantizeLinear does: uint8, one scale."""
    lo, hi = torch.aminmax(x.detach())
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    scale = torch.where(hi > lo, (hi - lo) / 255, 1.0)
    zero_point = torch.round(-lo / scale).clamp(0, 255)
    return fake_quantize(x, scale, zero_point, 0, 255)


class Grid:
    """The integers of a type, or fewer of them.

    Args:
        qtype: The type.
        bits: Use fewer bits; its own if None.
        headroom: Use one part of so many of its range.

    Attributes:
        qmin: The smallest integer.
        qmax: The largest integer.
    """

    def __init__(self, qtype: QType, bits: int | None = None, headroom: float = 1.0) -> None:
        self.qmin, self.qmax = qtype.qmin, qtype.qmax
        middle = (qtype.qmin + qtype.qmax + 1) // 2
        if bits is not None and bits < qtype.bits:
            self.qmax = middle + (1 << (bits - 1)) - 1
            self.qmin = 2 * middle - self.qmax  # as many on both sides
        if headroom > 1:
            self.qmax = middle + math.ceil((self.qmax - middle) / headroom)
            self.qmin = 2 * middle - self.qmax

    def most(self, zero_point: int) -> int:
        """Steps from the zero point to the upper end."""
        return self.qmax - zero_point


def _along(numbers: Tensor, axis: int | None, x: Tensor) -> Tensor:
    """Numbers per channel, shaped so that they broadcast against ``x``; one number stays as is."""
    if axis is None:
        return numbers
    shape = [1] * x.ndim
    shape[axis] = -1
    return numbers.reshape(shape)


class TensorQuantizer:
    """Fake-quantizes one tensor, or tensors that share a scale.

    The scale is fixed, or learned. Then the parameter is the logarithm of the factor that it has
    grown by: the scale stays positive, every step of an optimizer changes it by a share of itself,
    and before the first step it is the given one to the last bit.

    Args:
        params: Scale and zero point to start from; of these the zero point stays.
        learned: Whether the scale is a parameter.
        ceiling: What a learned scale must not exceed; no limit if None.
    """

    def __init__(
        self, params: QParams, *, learned: bool = False, ceiling: float | None = None
    ) -> None:
        self.params, self.learned = params, learned
        self._grid, self._ceiling = Grid(params.qtype), ceiling
        scale = torch.tensor(params.scale, dtype=torch.float32)
        self.zero_point = torch.tensor(params.zero_point, dtype=torch.float32)
        self._scale = scale
        self.log_factor = torch.zeros_like(scale).requires_grad_() if learned else None

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self._scale, self.zero_point = self._scale.to(device), self.zero_point.to(device)
        if self.log_factor is not None:
            self.log_factor = self.log_factor.detach().to(device).requires_grad_()

    def set_params(self, params: QParams) -> None:
        """Take another scale and zero point, of the same type and axis."""
        device = self._scale.device
        self.params = params
        self._scale = torch.tensor(params.scale, dtype=torch.float32, device=device)
        self.zero_point = torch.tensor(params.zero_point, dtype=torch.float32, device=device)
        if self.log_factor is not None:
            self.log_factor.data.zero_()

    def scale(self) -> Tensor:
        """The scale as it is now, one value or one per channel."""
        return self._scale if self.log_factor is None else self._scale * self.log_factor.exp()

    def project(self) -> None:
        """Bring a learned scale back below its ceiling, after a step of an optimizer."""
        if self.log_factor is not None and self._ceiling is not None:
            with torch.no_grad():
                self.log_factor.clamp_(max=math.log(self._ceiling / self.params.scale[0]))

    def __call__(self, x: Tensor) -> Tensor:
        """Fake-quantize values, float32 of any shape."""
        axis = self.params.axis
        scale, zero = _along(self.scale(), axis, x), _along(self.zero_point, axis, x)
        return fake_quantize(x, scale, zero, self._grid.qmin, self._grid.qmax)

    def integers(self, x: Tensor) -> Integers:
        """Quantize values, float32 of any shape; without gradients."""
        axis = self.params.axis
        scale, zero = _along(self.scale(), axis, x), _along(self.zero_point, axis, x)
        steps = steps_of(x, scale, zero, self._grid.qmin, self._grid.qmax)
        return Integers(steps, self.scale(), self.zero_point)

    def rounded(self, steps: Tensor) -> Tensor:
        """Round steps from the zero point, of one scale for all, and make them values, in place."""
        qmin, qmax = self._grid.qmin, self._grid.qmax
        return clipped_steps(steps.round_(), self.zero_point, qmin, qmax).mul_(self.scale())

    def result(self) -> QParams:
        """Scale and zero point as they are now."""
        scale = self.scale().detach().cpu().clamp(min=TINY, max=self._ceiling)
        return QParams(
            self.params.qtype, tuple(scale.tolist()), self.params.zero_point, self.params.axis
        )


class WeightQuantizer:
    """Fake-quantizes a weight, symmetric, per tensor or per channel.

    A fixed scale follows the weight while it is trained: it is the largest magnitude over the
    largest integer, times the headroom. No scale falls below a floor, which leaves room for biases.

    Args:
        params: How the plan stores it.
        weight: Its values at the start.
        bits: Fewer bits than the stored type has; its own if None.
        learned: Whether the scale is a parameter, and does not follow the weight.
        headroom: Weights use one part of so many of the type's range.
    """

    def __init__(
        self,
        params: QParams,
        weight: Tensor,
        bits: int | None = None,
        *,
        learned: bool = False,
        headroom: float = 1.0,
    ) -> None:
        self.params, self._grid = params, Grid(params.qtype, bits, headroom)
        self._others = [n for n in range(weight.ndim) if n != params.axis]
        self.zero_point = torch.tensor(float(params.zero_point[0]))
        self._most = Grid(params.qtype, bits).most(params.zero_point[0]) / headroom
        self._floor = torch.full((len(params.scale),), TINY)
        self.log_factor: Tensor | None = None
        if learned:
            planned = torch.tensor(params.scale, dtype=torch.float32)
            self._start = self._following(weight) if bits else planned
            self.log_factor = torch.zeros_like(self._start).requires_grad_()

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self._floor, self.zero_point = self._floor.to(device), self.zero_point.to(device)
        if self.log_factor is not None:
            self._start = self._start.to(device)
            self.log_factor = self.log_factor.detach().to(device).requires_grad_()

    def _largest(self, weight: Tensor) -> Tensor:
        """The largest magnitude, one value or one per channel, always of one axis."""
        if self.params.axis is None:
            return weight.abs().amax().reshape(1)
        return weight.abs().amax(self._others) if self._others else weight.abs()

    def _following(self, weight: Tensor) -> Tensor:
        # in float64, then rounded once, as a plan's scales are
        extent = self._largest(weight.detach().double())
        scale = torch.where(extent == 0, 1.0, (extent / self._most).clamp(min=TINY))
        return torch.maximum(scale.float(), self._floor)

    def set_floor(self, floor: Tensor) -> None:
        """Say what no scale may fall below, one value or one per channel; learned ones are raised.

        Args:
            floor: float32, of shape (1,) or (channels,).
        """
        least = floor.amax().reshape(1) if len(self.params.scale) == 1 else floor
        self._floor = least.clamp(min=TINY).expand(len(self.params.scale))
        if self.log_factor is not None:
            with torch.no_grad():
                self.log_factor.clamp_(min=torch.log(self._floor / self._start))

    def scale(self, weight: Tensor) -> Tensor:
        """The scale for a weight, one value or one per channel."""
        if self.log_factor is None:
            return self._following(weight)
        return self._start * self.log_factor.exp()

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize a weight."""
        scale = _along(self.scale(weight), self.params.axis, weight)
        return fake_quantize(weight, scale, self.zero_point, self._grid.qmin, self._grid.qmax)

    def integers(self, weight: Tensor) -> Integers:
        """Quantize a weight; without gradients."""
        scale = self.scale(weight)
        along = _along(scale, self.params.axis, weight)
        steps = steps_of(weight, along, self.zero_point, self._grid.qmin, self._grid.qmax)
        return Integers(steps, scale, self.zero_point)

    def result(self, weight: Tensor) -> QParams:
        """How the weight is stored as it is now."""
        scale = torch.maximum(self.scale(weight).detach(), self._floor).cpu()
        return QParams(
            self.params.qtype, tuple(scale.tolist()), self.params.zero_point, self.params.axis
        )

    def clipped(self, weight: Tensor) -> Tensor:
        """The weight within what its integers can hold, so that storing it clips nothing."""
        with torch.no_grad():
            scale = _along(self.scale(weight), self.params.axis, weight)
            zero = self.params.zero_point[0]
            return weight.clamp(scale * (self._grid.qmin - zero), scale * (self._grid.qmax - zero))


class BlockQuantizer:
    """Fake-quantizes a weight in blocks, by rounding to nearest.

    The scales follow the weight, as ``onnxq.numerics.quantize_blocks`` chooses them with ``rtn``: a
    symmetric block uses all integers or as many on both sides of zero, whichever has the smaller
    squared error.

    Args:
        scheme: How the plan stores it.
    """

    def __init__(self, scheme: WeightBlocks) -> None:
        self._scheme = scheme

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize a weight."""
        axis, size = self._scheme.axis, self._scheme.size
        length = weight.shape[axis]
        pad = -length % size
        moved = weight.movedim(axis, -1)
        # a short last block is filled up with its own last value, which changes no range
        filled = torch.cat([moved, moved[..., -1:].expand(*moved.shape[:-1], pad)], -1)
        blocks = filled.unflatten(-1, (-1, size))
        real = torch.ones(length + pad, dtype=torch.bool, device=weight.device)
        real[length:] = False
        scale, zero = self._choose(blocks.detach(), real.unflatten(0, (-1, size)))
        qtype = self._scheme.qtype
        made = fake_quantize(blocks, scale, zero, qtype.qmin, qtype.qmax)
        return made.flatten(-2)[..., :length].movedim(-1, axis)

    def _choose(self, blocks: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        qmin, qmax = self._scheme.qtype.qmin, self._scheme.qtype.qmax
        x = blocks.double()
        lo = x.amin(-1, keepdim=True).clamp(max=0)
        hi = x.amax(-1, keepdim=True).clamp(min=0)
        if not self._scheme.symmetric:
            scale = _float32(hi - lo, qmax - qmin)
            zero = torch.round(qmin - lo / scale.double()).clamp(qmin, qmax)
            return scale, zero.float()
        middle = (qmin + qmax + 1) // 2
        zero = torch.full_like(lo, float(middle))
        full = _float32(torch.maximum(hi / (qmax - middle), -lo / (middle - qmin)), 1)
        even = _float32(torch.maximum(hi, -lo), qmax - middle)

        def error(scale: Tensor) -> Tensor:
            wide = scale.double()
            steps = torch.round(x / wide).clamp(qmin - middle, qmax - middle)
            return ((steps * wide - x) ** 2 * real).sum(-1, keepdim=True)

        return torch.where(error(full) <= error(even), full, even), zero.float()


def _float32(extent: Tensor, steps: int) -> Tensor:
    """Divide an extent into steps; an extent of 0 gets the scale 1."""
    return torch.where(extent == 0, 1.0, (extent / steps).clamp(min=TINY)).float()
