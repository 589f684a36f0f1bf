"""The values that pass between the stages: plain, frozen, serialisable.

They know nothing of ONNX files, of ONNX Runtime or of the command line.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Feed = dict[str, Array]


class QType(StrEnum):
    """An integer type that quantized values are stored in."""

    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The NumPy type of the stored values."""
        return np.dtype(self.value)

    @property
    def qmin(self) -> int:
        """The smallest storable integer."""
        return int(np.iinfo(self.value).min)

    @property
    def qmax(self) -> int:
        """The largest storable integer."""
        return int(np.iinfo(self.value).max)


class Grid(msgspec.Struct, frozen=True):
    """The integers that a range is divided into, whatever type stores them.

    Attributes:
        bits: Width of the stored integers, 2 to 16.
        symmetric: Whether the zero point is the middle, so that both ends lie equally far from 0.
    """

    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"a grid of {self.bits} bits; 2 to 16 are possible")

    @property
    def steps(self) -> int:
        """Steps from the lower to the upper end; of a symmetric grid, from 0 to one end."""
        return int(2 ** (self.bits - 1) - 1) if self.symmetric else int(2**self.bits - 1)


class Precision(StrEnum):
    """How a node computes."""

    FLOAT = "float"
    INT8 = "int8"  # static: weights and activations
    INT8_WEIGHTS = "int8-weights"  # weights only, activations stay float


class Reason(msgspec.Struct, frozen=True):
    """Why a node is not (fully) quantized.

    Attributes:
        code: A stable word for machines, such as ``no-int8-kernel``.
        sentence: The same for people.
        node: Name of the node it speaks of.
    """

    code: str
    sentence: str
    node: str


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, type and shape of a model's input or output.

    Attributes:
        name: Name in the graph.
        dtype: NumPy type name (``float32``); empty when the graph does not tell.
        shape: One entry per axis: a size, a symbol, or None for an axis that is unknown; the
            whole is None when not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class TensorRange(msgspec.Struct, frozen=True):
    """The range of values that a tensor is quantized for.

    Attributes:
        lo: Lower end of the chosen range.
        hi: Upper end of the chosen range.
        min: Smallest finite value seen.
        max: Largest finite value seen.
        finite: False when an infinity or a huge mask value (beyond 1e30) was seen.
    """

    lo: float
    hi: float
    min: float
    max: float
    finite: bool = True


class QParams(msgspec.Struct, frozen=True):
    """Scale and zero point of a tensor: ``real = (stored - zero_point) * scale``.

    Attributes:
        qtype: Type of the stored integers.
        scale: One float32 value, or one per channel.
        zero_point: As many integers as there are scales.
        axis: The channel axis; None when one scale serves the whole tensor.
    """

    qtype: QType
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.zero_point) or (self.axis is None and len(self.scale) != 1):
            raise ValueError(f"{len(self.scale)} scales, {len(self.zero_point)} zero points")
