"""Work on a large array by slices of its first axis, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType
from typing import Any

from numpy.typing import NDArray

# Bytes of a slice: far more than what a step of Python costs, far less than a large weight.
SLICE_BYTES = 16_000_000

Rows = slice | EllipsisType


def slices(array: NDArray[Any]) -> Iterator[Rows]:
    """Index parts of an array that are small enough; all of it where it is small itself."""
    if array.ndim == 0 or array.nbytes <= SLICE_BYTES:
        yield ...
        return
    step = max(1, SLICE_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def rows_of(other: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """The part of an array that broadcasts against a slice; it has the rank of the sliced one."""
    whole = other.ndim == 0 or len(other) == 1
    found: NDArray[Any] = other if whole else other[rows]
    return found
