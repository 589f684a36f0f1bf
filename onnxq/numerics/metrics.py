"""How far a tensor is from its reference, summed up so that memory does not grow with samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Attention masks are written as -inf or as a huge finite number; both carry no signal.
_HUGE = 1e30


@dataclass
class ErrorSums:
    """The sums behind the error metrics: add batches in any number, merge parts in any order.

    An entry says nothing, and is left out, when both sides are NaN, or are the same infinity or
    the same mask value (beyond 1e30). Where only one side is NaN, or an infinity is not met by the
    same one, the error is infinite.

    Attributes:
        signal: Sum of ``reference^2``.
        power: Sum of ``value^2``.
        noise: Sum of ``(reference - value)^2``.
        product: Sum of ``reference * value``.
        max_abs_error: Largest ``|reference - value|``.
    """

    signal: float = 0.0
    power: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    max_abs_error: float = 0.0

    def add(self, reference: ArrayLike, value: ArrayLike) -> None:
        """Add a batch.

        Args:
            reference: Values of any shape and real dtype; computed with in float64.
            value: The values to compare, of the same shape.

        Raises:
            ValueError: The shapes differ.
        """
        ref, val = _telling_pairs(reference, value)
        if not (np.isfinite(ref).all() and np.isfinite(val).all()):
            self.noise = self.max_abs_error = math.inf
            return
        error = ref - val
        with np.errstate(over="ignore"):  # squares of float64 values may be infinite
            self.signal += float(ref @ ref)
            self.power += float(val @ val)
            self.noise += float(error @ error)
            self.product += float(ref @ val)
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max(initial=0.0)))

    def merge(self, other: ErrorSums) -> None:
        """Fold in what another instance has summed up."""
        self.signal += other.signal
        self.power += other.power
        self.noise += other.noise
        self.product += other.product
        self.max_abs_error = max(self.max_abs_error, other.max_abs_error)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio, ``10 log10(signal / noise)``, in decibels.

        It is inf without any error, and -inf when the error is infinite or the reference is 0.
        """
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or self.noise == math.inf:
            return -math.inf
        return 10 * (math.log10(self.signal) - math.log10(self.noise))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between reference and value, from -1 to 1.

        It is 1 without any error, and 0 when the error is infinite or exactly one side is 0.
        """
        if self.noise == 0:
            return 1.0
        if self.noise == math.inf or self.signal == 0 or self.power == 0:
            return 0.0
        cosine = self.product / (math.sqrt(self.signal) * math.sqrt(self.power))
        return min(1.0, max(-1.0, cosine))


def sqnr_db(reference: ArrayLike, value: ArrayLike) -> float:
    """Signal to quantization noise ratio in decibels; see `ErrorSums.sqnr_db`.

    Args:
        reference: Values of any shape and real dtype.
        value: The values to compare, of the same shape.

    Returns:
        ``10 log10(sum(reference^2) / sum((reference - value)^2))``, computed in float64.

    Raises:
        ValueError: The shapes differ.
    """
    return _sums(reference, value).sqnr_db


def cosine(reference: ArrayLike, value: ArrayLike) -> float:
    """Cosine similarity of two tensors, taken as flat vectors; see `ErrorSums.cosine`.

    Args:
        reference: Values of any shape and real dtype.
        value: The values to compare, of the same shape.

    Returns:
        A number from -1 to 1, computed in float64.

    Raises:
        ValueError: The shapes differ.
    """
    return _sums(reference, value).cosine


def top1_agreement(reference: ArrayLike, value: ArrayLike) -> float:
    """Fraction of rows whose largest entry stands at the same place.

    Args:
        reference: Scores of shape ``(..., classes)``.
        value: The scores to compare, of the same shape.

    Returns:
        A fraction from 0 to 1. Among equal entries the first one counts as the largest.

    Raises:
        ValueError: The shapes differ, are scalar, or hold no entry.
    """
    ref, val = _same_shape(np.asarray(reference), np.asarray(value))
    if ref.ndim == 0 or ref.size == 0:
        raise ValueError(f"an array of shape {ref.shape} has no largest entry per row")
    return float(np.mean(ref.argmax(axis=-1) == val.argmax(axis=-1)))


def _sums(reference: ArrayLike, value: ArrayLike) -> ErrorSums:
    sums = ErrorSums()
    sums.add(reference, value)
    return sums


def _telling_pairs(
    reference: ArrayLike, value: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Flatten both sides to float64, without the pairs that say nothing."""
    ref, val = _same_shape(np.asarray(reference, np.float64), np.asarray(value, np.float64))
    ref, val = ref.ravel(), val.ravel()
    ordinary = np.abs(ref) <= _HUGE  # False for NaN
    if ordinary.all():
        return ref, val
    told = ordinary | ~((ref == val) | (np.isnan(ref) & np.isnan(val)))
    return ref[told], val[told]


def _same_shape(reference: NDArray[Any], value: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if reference.shape != value.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {value.shape}")
    return reference, value
