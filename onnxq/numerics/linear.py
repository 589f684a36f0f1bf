"""Quantize and dequantize, bit for bit as the ONNX operators do it.

Source: the ONNX specification of QuantizeLinear and DequantizeLinear, and ONNX Runtime's CPU
kernels, which divide and multiply in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.slices import rows_of, slices
from onnxq.types import QParams, QType


def quantize(x: ArrayLike, params: QParams) -> NDArray[np.integer[Any]]:
    """Compute ``saturate(round_half_even(x / scale) + zero_point)``, as QuantizeLinear does.

    The division is one of float32 values. Infinities saturate.

    Args:
        x: Values of any shape; taken as float32.
        params: Scale and zero point; per channel along ``params.axis``.

    Returns:
        Integers of ``x``'s shape, of dtype ``params.qtype.dtype``.

    Raises:
        ValueError: ``x`` holds a NaN, or does not have one channel per scale.
    """
    with np.errstate(over="ignore"):  # too large for float32 means infinite, which saturates
        real = np.asarray(x, np.float32)
        scale, zero_point = _broadcastable(params, real.shape)
        stored = np.empty(real.shape, params.qtype.dtype)
        for rows in slices(real):
            steps = real[rows] / rows_of(scale, rows)
            stored[rows] = _integers(steps, rows_of(zero_point, rows), params.qtype)
    return stored


def _integers(
    steps: NDArray[np.float32], zero_point: NDArray[np.int64], qtype: QType
) -> NDArray[Any]:
    if np.isnan(steps).any():
        raise ValueError("NaN cannot be quantized")
    # float32 for 8 and 16 bits: exact wherever nothing saturates. float64 for 32 bits.
    exact = np.float64 if qtype is QType.INT32 else np.float32
    shifted = np.rint(steps).astype(exact, copy=False) + zero_point.astype(exact)
    return np.asarray(np.clip(shifted, qtype.qmin, qtype.qmax), qtype.dtype)


def dequantize(q: NDArray[Any], params: QParams) -> NDArray[np.float32]:
    """Compute ``(q - zero_point) * scale`` in float32, as DequantizeLinear does.

    Args:
        q: Integers of any shape, of dtype ``params.qtype.dtype``.
        params: Scale and zero point; per channel along ``params.axis``.

    Returns:
        float32 values of ``q``'s shape.

    Raises:
        ValueError: ``q`` has another dtype, or does not have one channel per scale.
    """
    if q.dtype != params.qtype.dtype:
        raise ValueError(f"values of {q.dtype} do not fit parameters of {params.qtype}")
    scale, zero_point = _broadcastable(params, q.shape)
    # The difference is exact in int32, or in int64 for 32 bits, and then rounded once.
    wide = np.int64 if params.qtype is QType.INT32 else np.int32
    steps = (q.astype(wide) - zero_point.astype(wide)).astype(np.float32)
    return np.asarray(steps * scale, np.float32)


def fake_quantize(x: ArrayLike, params: QParams) -> NDArray[np.float32]:
    """Round values to those that quantization can represent: quantize, then dequantize.

    Args:
        x: Values of any shape; taken as float32.
        params: Scale and zero point; per channel along ``params.axis``.

    Returns:
        float32 values of ``x``'s shape.

    Raises:
        ValueError: As `quantize` raises it.
    """
    return dequantize(quantize(x, params), params)


def _broadcastable(
    params: QParams, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Shape the scales and zero points so that they broadcast against a tensor of ``shape``."""
    scale = np.array(params.scale, np.float32)
    zero_point = np.array(params.zero_point, np.int64)
    if params.axis is None:
        return scale.reshape(()), zero_point.reshape(())
    rank = len(shape)
    if not -rank <= params.axis < rank or shape[params.axis] != len(scale):
        raise ValueError(f"{len(scale)} scales do not fit axis {params.axis} of shape {shape}")
    columns = [1] * rank
    columns[params.axis] = -1
    return scale.reshape(columns), zero_point.reshape(columns)
