"""From the range of a tensor to its scale and zero point.

The formulas are those of Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018), section 3, and of Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference" (2018), sections 2.1 and 2.2.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.types import QParams, QType

_FLOAT32 = np.finfo(np.float32)

# Below the smallest normal float32 a scale loses precision, and runtimes may flush it to zero.
_SMALLEST_SCALE = _FLOAT32.tiny


def choose_qparams(
    lo: ArrayLike,
    hi: ArrayLike,
    qtype: QType,
    *,
    symmetric: bool = False,
    axis: int | None = None,
) -> QParams:
    """Choose the scale and the zero point that cover ``[lo, hi]``.

    The range is widened to include 0, so that 0 is represented exactly. With ``b`` bits:

    * asymmetric: ``scale = (hi - lo) / (2^b - 1)`` and
      ``zero_point = qmin + round_half_even(-lo / scale)``, clipped to the type;
    * symmetric: ``scale = max(|lo|, |hi|) / (2^(b-1) - 1)``, and the zero point is 0 for signed
      types and ``2^(b-1)`` for unsigned ones.

    Scales are computed in float64 and rounded to float32. An asymmetric scale of a range that
    starts at 0 is rounded down where the largest representable value would otherwise exceed
    ``hi``: ONNX Runtime drops a Clip in front of a QuantizeLinear only if the quantized range lies
    within the clip (its ``ClipQuantFusion``).

    Args:
        lo: Lower end of the range: a scalar, or one value per channel.
        hi: Upper end, shaped like ``lo``.
        qtype: Type of the stored integers.
        symmetric: Whether the zero point is to be the middle of the type.
        axis: The channel axis; needed when ``lo`` and ``hi`` are one per channel.

    Returns:
        The parameters. Each scale is a normal float32 value; it is 1 where the range is only 0.

    Raises:
        ValueError: An end is not a finite float32 value, ``lo > hi``, the shapes of ``lo`` and
            ``hi`` differ, or they do not fit ``axis``.
    """
    low, high = _checked_range(lo, hi, axis)
    levels = qtype.qmax - qtype.qmin  # 2^b - 1
    if symmetric:
        scale = float32_scale(np.maximum(-low, high), (levels - 1) // 2)
        zero_point = np.full(scale.shape, (qtype.qmin + qtype.qmax + 1) // 2)
    else:
        scale = float32_scale(high - low, levels)
        # A range of only 0 keeps its scale of 1.
        scale = _step_below(scale, levels, np.where((low == 0) & (high > 0), high, np.inf))
        offset = np.rint(-low / scale.astype(np.float64))
        zero_point = np.clip(qtype.qmin + offset, qtype.qmin, qtype.qmax).astype(np.int64)
    return QParams(qtype, tuple(scale.tolist()), tuple(zero_point.tolist()), axis)


@overload
def channel_range(w: NDArray[Any], axis: None) -> tuple[float, float]: ...
@overload
def channel_range(w: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def channel_range(
    w: NDArray[Any], axis: int | None
) -> tuple[float | NDArray[Any], float | NDArray[Any]]: ...
def channel_range(
    w: NDArray[Any], axis: int | None
) -> tuple[float | NDArray[Any], float | NDArray[Any]]:
    """Find the smallest and the largest value of a tensor, or of each of its channels.

    Args:
        w: An array of any shape that is not empty.
        axis: The channel axis; None for one range over the whole tensor.

    Returns:
        ``(lo, hi)``: two floats without an axis; else two arrays of shape ``(w.shape[axis],)`` in
        the dtype of ``w``. A NaN in a block makes both of its ends NaN.

    Raises:
        ValueError: ``w`` is empty, or has no such axis.
    """
    if axis is not None and not -w.ndim <= axis < w.ndim:
        raise ValueError(f"an array of shape {w.shape} has no axis {axis}")
    if w.size == 0:
        raise ValueError(f"an empty array of shape {w.shape} has no range")
    if axis is None:
        return float(w.min()), float(w.max())
    others = tuple(n for n in range(w.ndim) if n != axis % w.ndim)
    return w.min(axis=others), w.max(axis=others)


def _checked_range(
    lo: ArrayLike, hi: ArrayLike, axis: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check both ends, widen the range to include 0, and give it one entry per scale."""
    low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    expected_ndim = 0 if axis is None else 1
    if low.shape != high.shape or low.ndim != expected_ndim:
        raise ValueError(f"ranges of shape {low.shape} and {high.shape} do not fit axis {axis}")
    if not (np.all(np.abs(low) <= _FLOAT32.max) and np.all(np.abs(high) <= _FLOAT32.max)):
        raise ValueError(f"the range [{low}, {high}] is not finite in float32")
    if np.any(low > high):
        raise ValueError(f"the range [{low}, {high}] is upside down")
    # Adding 0.0 turns -0.0 into 0.0.
    return np.minimum(np.atleast_1d(low), 0.0) + 0.0, np.maximum(np.atleast_1d(high), 0.0) + 0.0


def float32_scale(extent: NDArray[np.float64], steps: int) -> NDArray[np.float32]:
    """Divide an extent into steps; an extent of 0 gets the scale 1."""
    scale = np.where(extent == 0, 1.0, np.maximum(extent / steps, _SMALLEST_SCALE))
    return scale.astype(np.float32)


def _step_below(
    scale: NDArray[np.float32], levels: int, limit: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Lower scales by single ulps until ``scale * levels``, in float32, is at most ``limit``.

    Rounding lifted the scale and the product by half an ulp each, so the loop ends after a step or
    two.
    """
    ceiling = limit.astype(np.float32)
    while True:
        with np.errstate(over="ignore"):  # an infinite product is above the ceiling, as it should
            above = (scale * np.float32(levels) > ceiling) & (scale > _SMALLEST_SCALE)
        if not above.any():
            return scale
        scale = np.where(above, np.nextafter(scale, np.float32(0)), scale)
