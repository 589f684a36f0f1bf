"""Weights in blocks: runs of values along one axis, each with a scale and a zero point of its own.

The stored form is that of ONNX's blocked QuantizeLinear and DequantizeLinear (opset 21). Two
methods choose the scales, both without data:

* ``rtn``: the range of a block's values becomes the range of the integers, and values are rounded
  to nearest. A symmetric block uses all integers (``-8`` to ``7``) or, where that has the smaller
  squared error, as many on both sides of zero.
* ``hqq``: half-quadratic splitting after Badri and Shaji, "Half-Quadratic Quantization of Large
  Machine Learning Models" (2023). Their zero point is a real number and their scale stays as it
  is; ONNX stores integer zero points, so that here the scale is fitted along with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.qparams import float32_scale
from onnxq.types import Array, QType, WeightBlocks

Floats = NDArray[np.floating]
# Values that are worked on at a time: temporary memory is some fifty bytes for each.
PIECE = 1 << 18
# Least scale that ``hqq`` may choose, in scales of ``rtn``: it cuts off at most half of a range.
LEAST_SHRINK = 0.5
# Scales that ``hqq`` starts from, in scales of ``rtn``. It finds the nearest minimum, and large
# blocks with outliers have several; three starts gain up to 0.3 dB over one.
STARTS = (1.0, 0.88, 0.76)
ROUNDS = 8
# The norm of the error and the weight of the splitting, as in the paper. Values are in steps here.
NORM, BETA, BETA_GROWTH = 0.7, 10.0, 1.01
_TINY = 1e-8


@dataclass(frozen=True)
class BlockedWeight:
    """A weight as integers.

    Attributes:
        stored: The integers, shaped like the weight.
        scale: float32, the weight's shape with the blocked axis divided by the block size.
        zero_point: Integers of the stored type, shaped like ``scale``.
    """

    stored: Array
    scale: NDArray[np.float32]
    zero_point: Array


def quantize_blocks(weight: Array, scheme: WeightBlocks) -> BlockedWeight:
    """Store a weight in blocks.

    The last block of a row is short where the axis is no multiple of the block size. Scales are
    positive. Nothing depends on how the weight is cut into pieces, and memory beyond the result is
    that of a piece.

    Args:
        weight: Finite float32 values with at least one axis.
        scheme: Type, axis, block size, symmetry and method.

    Returns:
        Integers, scales and zero points. With ``rtn`` every value is within half a step of its
        own; ``hqq`` has the same or a smaller squared error in every block, and may cut off values
        beyond ``LEAST_SHRINK`` of the block's range.

    Raises:
        ValueError: The axis does not exist, the method is unknown, or a value is not finite.
    """
    if not 0 <= scheme.axis < weight.ndim:
        raise ValueError(f"shape {weight.shape} has no axis {scheme.axis} to cut into blocks")
    if scheme.method not in ("rtn", "hqq"):
        raise ValueError(f"unknown method '{scheme.method}'; known: rtn, hqq")
    outer, length, inner = _three_axes(weight.shape, scheme.axis)
    blocks = -(-length // scheme.size)
    values = weight.reshape(outer, length, inner)
    stored = np.empty(values.shape, scheme.qtype.dtype)
    scales = np.empty((outer, blocks, inner), np.float32)
    zeros = np.empty((outer, blocks, inner), scheme.qtype.dtype)
    for rows, along, each, columns in _pieces(outer, length, inner, scheme.size):
        x, shape = _groups(values[rows, along, columns], each)
        if not np.isfinite(x).all():
            raise ValueError("NaN and infinity cannot be stored in blocks")
        scale, zero = _choose(x, scheme)
        stored[rows, along, columns] = _ungroup(_store(x, scale, zero, scheme.qtype), shape)
        which = slice(along.start // scheme.size, -(-along.stop // scheme.size))
        scales[rows, which, columns] = _ungroup(scale, (*shape[:3], 1))
        zeros[rows, which, columns] = _ungroup(zero, (*shape[:3], 1))
    divided = (*weight.shape[: scheme.axis], blocks, *weight.shape[scheme.axis + 1 :])
    return BlockedWeight(
        stored.reshape(weight.shape), scales.reshape(divided), zeros.reshape(divided)
    )


def dequantize_blocks(blocked: BlockedWeight, scheme: WeightBlocks) -> NDArray[np.float32]:
    """Compute ``(stored - zero_point) * scale`` in float32, as blocked DequantizeLinear does.

    Args:
        blocked: Integers, scales and zero points.
        scheme: The scheme that they follow; its axis and block size are used.

    Returns:
        float32 values, shaped like ``blocked.stored``.
    """
    outer, length, inner = _three_axes(blocked.stored.shape, scheme.axis)
    stored = blocked.stored.reshape(outer, length, inner)
    scales = blocked.scale.reshape(outer, -1, inner)
    zeros = blocked.zero_point.reshape(outer, -1, inner)
    made = np.empty(stored.shape, np.float32)
    for rows, along, each, columns in _pieces(outer, length, inner, scheme.size):
        which = slice(along.start // scheme.size, -(-along.stop // scheme.size))
        zero = zeros[rows, which, columns].astype(np.int32).repeat(each, axis=1)
        steps = stored[rows, along, columns].astype(np.int32) - zero
        made[rows, along, columns] = steps * scales[rows, which, columns].repeat(each, axis=1)
    return made.reshape(blocked.stored.shape)


def block_range(weight: Array, axis: int, size: int) -> tuple[Array, Array]:
    """The smallest and the largest value of every block.

    Args:
        weight: Values of any shape.
        axis: The axis that is cut into blocks.
        size: Values per block; the last may have fewer.

    Returns:
        ``(lo, hi)``, both with the axis divided by ``size``.
    """
    starts = np.arange(0, weight.shape[axis], size)
    return (
        np.minimum.reduceat(weight, starts, axis=axis),
        np.maximum.reduceat(weight, starts, axis=axis),
    )


def _three_axes(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Sizes before, along and behind an axis."""
    before, behind = shape[:axis], shape[axis + 1 :]
    return int(np.prod(before, dtype=int)), shape[axis], int(np.prod(behind, dtype=int))


def _pieces(
    outer: int, length: int, inner: int, size: int
) -> Iterator[tuple[slice, slice, int, slice]]:
    """Cut (outer, length, inner) into pieces of whole blocks, about ``PIECE`` values each.

    Yields:
        The three slices, and the values per block: short blocks make pieces of their own.
    """
    wide = max(1, min(inner, PIECE // size))
    long = max(1, min(length // size, PIECE // (size * wide))) * size
    deep = max(1, PIECE // (long * wide))
    whole = length // size * size
    stretches = [(slice(at, min(at + long, whole)), size) for at in range(0, whole, long)]
    if whole < length:
        stretches.append((slice(whole, length), length - whole))
    rows = [slice(at, min(at + deep, outer)) for at in range(0, outer, deep)]
    columns = [slice(at, min(at + wide, inner)) for at in range(0, inner, wide)]
    for row, (along, each), column in product(rows, stretches, columns):
        yield row, along, each, column


def _groups(piece: Array, each: int) -> tuple[Floats, tuple[int, ...]]:
    """One row per block, and the shape (outer, blocks, inner, each) that leads back."""
    outer, length, inner = piece.shape
    blocks = piece.reshape(outer, length // each, each, inner).swapaxes(2, 3)
    # rows in memory order: sums of them must not depend on the shape of the piece
    return blocks.reshape(-1, each).astype(np.float64, order="C"), blocks.shape


def _ungroup(rows: Array, shape: tuple[int, ...]) -> Array:
    outer, blocks, inner, each = shape
    return rows.reshape(shape).swapaxes(2, 3).reshape(outer, blocks * each, inner)


def _store(x: Floats, scale: Floats, zero: Floats, qtype: QType) -> Array:
    """Integers of values, as blocked QuantizeLinear computes them."""
    steps = np.rint(x.astype(np.float32) / scale.astype(np.float32)) + zero
    return np.clip(steps, qtype.qmin, qtype.qmax).astype(np.int16).astype(qtype.dtype)


def _choose(x: Floats, scheme: WeightBlocks) -> tuple[Floats, Floats]:
    """Scale, as float32 values, and zero point of every row."""
    scale, zero = _round_to_nearest(x, scheme)
    if scheme.method == "rtn":
        return scale, zero
    found, shifted = _half_quadratic(x / scale, zero, scheme)
    found = float32_scale(found * scale, 1)
    better = _squared_error(x, found, shifted, scheme) < _squared_error(x, scale, zero, scheme)
    return np.where(better, found, scale), np.where(better, shifted, zero)


def _round_to_nearest(x: Floats, scheme: WeightBlocks) -> tuple[Floats, Floats]:
    """The scale and zero point that cover the range of every row."""
    qmin, qmax = scheme.qtype.qmin, scheme.qtype.qmax
    lo = np.minimum(x.min(axis=1, keepdims=True), 0.0)
    hi = np.maximum(x.max(axis=1, keepdims=True), 0.0)
    if not scheme.symmetric:
        scale = float32_scale(hi - lo, qmax - qmin)
        return scale, np.clip(np.rint(qmin - lo / scale), qmin, qmax)
    middle = (qmin + qmax + 1) // 2
    zero = np.full(lo.shape, float(middle))
    full = float32_scale(np.maximum(hi / (qmax - middle), -lo / (middle - qmin)), 1)
    even = float32_scale(np.maximum(hi, -lo), qmax - middle)
    finer = _squared_error(x, full, zero, scheme) <= _squared_error(x, even, zero, scheme)
    return np.where(finer, full, even), zero


def _squared_error(x: Floats, scale: Floats, zero: Floats, scheme: WeightBlocks) -> Floats:
    gap = _steps(x / scale, zero, scheme) * scale - x
    return np.asarray(np.einsum("ij,ij->i", gap, gap)[:, None])


def _steps(u: Floats, zero: Floats, scheme: WeightBlocks) -> Floats:
    """Values in steps, rounded to those that the integers can hold."""
    return np.asarray(np.clip(np.rint(u), scheme.qtype.qmin - zero, scheme.qtype.qmax - zero))


def _half_quadratic(x: Floats, zero: Floats, scheme: WeightBlocks) -> tuple[Floats, Floats]:
    """Scale and zero point that lessen the error of every row, by half-quadratic splitting.

    The error is split off into outliers, which the l_p norm with p < 1 forgives, and a rest that a
    least-squares fit of scale and zero point makes small; the two are found in turn. Of all that
    come up, the pair with the least squared error is returned: it is what outputs feel.

    Args:
        x: Values in steps of ``rtn``, one row per block.
        zero: Zero point of ``rtn``.
        scheme: Type and symmetry.

    Returns:
        Scales in scales of ``rtn``, and zero points.
    """
    u, zero = x.astype(np.float32), zero.astype(np.float32)
    ends = u.min(axis=1, keepdims=True), u.max(axis=1, keepdims=True)
    best, best_zero = np.ones_like(zero), zero
    least = np.full(zero.shape, np.inf, np.float32)
    for start in STARTS:
        scale, shifted, beta = np.full_like(zero, start), zero, BETA
        for _ in range(ROUNDS):
            steps = _steps(u / scale, shifted, scheme)
            gap = u - steps * scale
            error = np.einsum("ij,ij->i", gap, gap)[:, None]
            better = (error < least) & _keeps_half(*ends, scale, shifted, scheme)
            least = np.where(better, error, least)
            best, best_zero = np.where(better, scale, best), np.where(better, shifted, best_zero)
            inliers = u - _shrink(gap, beta)
            scale, shifted = _fit(steps, inliers, shifted, scale, scheme)
            beta *= BETA_GROWTH
    return best.astype(np.float64), best_zero.astype(np.float64)


def _keeps_half(
    lo: Floats, hi: Floats, scale: Floats, zero: Floats, scheme: WeightBlocks
) -> NDArray[np.bool_]:
    """Where the integers still cover ``LEAST_SHRINK`` of each side of a row's range."""
    lowest, highest = (scheme.qtype.qmin - zero) * scale, (scheme.qtype.qmax - zero) * scale
    return np.asarray((lowest <= lo * LEAST_SHRINK) & (highest >= hi * LEAST_SHRINK))


def _shrink(gap: Floats, beta: float) -> Floats:
    """The proximal operator of the l_p norm: what is left of an error beyond a threshold."""
    size = np.abs(gap)
    threshold = np.power(np.maximum(size, _TINY), NORM - 1.0) / beta
    return np.asarray(np.copysign(np.maximum(size - threshold, 0.0), gap))


def _fit(
    steps: Floats, target: Floats, zero: Floats, scale: Floats, scheme: WeightBlocks
) -> tuple[Floats, Floats]:
    """Scale and integer zero point with the least squares of ``target - steps * scale``."""
    if not scheme.symmetric:
        mean, aim = steps.mean(axis=1, keepdims=True), target.mean(axis=1, keepdims=True)
        spread = steps - mean
        slope = _ratio(np.einsum("ij,ij->i", spread, target - aim), spread, scale)
        # The shift that moves the line through the two means back through zero.
        moved = np.clip(np.rint(zero + mean - aim / slope), scheme.qtype.qmin, scheme.qtype.qmax)
        steps, zero = steps + zero - moved, moved
    scale = _ratio(np.einsum("ij,ij->i", steps, target), steps, scale)
    return scale, zero


def _ratio(top: Floats, steps: Floats, otherwise: Floats) -> Floats:
    """``top`` over the squares of ``steps``, kept where a scale may be."""
    below = np.einsum("ij,ij->i", steps, steps)[:, None]
    ratio = np.where(below > 0, top[:, None] / np.maximum(below, _TINY), otherwise)
    return np.asarray(np.clip(ratio, LEAST_SHRINK, 1.0))
