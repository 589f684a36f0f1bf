"""The values that pass between the stages: plain, frozen, serialisable.

They know nothing of ONNX files, of ONNX Runtime or of the command line.
"""

from __future__ import annotations

from enum import StrEnum

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Feed = dict[str, Array]


class QType(StrEnum):
    """An integer type that quantized values are stored in."""

    INT4 = "int4"
    UINT4 = "uint4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"

    @property
    def bits(self) -> int:
        """Width of a stored integer; files pack two of 4 bits into a byte."""
        return int(self.value.removeprefix("u").removeprefix("int"))

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The NumPy type of the stored values; those of 4 bits are of ``ml_dtypes``."""
        return _SMALL.get(self.value) or np.dtype(self.value)

    @property
    def qmin(self) -> int:
        """The smallest storable integer."""
        return 0 if self.value.startswith("u") else -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The largest storable integer."""
        return self.qmin + (1 << self.bits) - 1


_SMALL: dict[str, np.dtype[np.generic]] = {
    "int4": np.dtype(ml_dtypes.int4),
    "uint4": np.dtype(ml_dtypes.uint4),
}


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
    FP16 = "fp16"
    INT8 = "int8"  # static: weights and activations
    INT16 = "int16"  # static: 8 bit weights, 16 bit activations
    INT8_DYNAMIC = "int8-dynamic"  # activations are quantized while the model runs
    INT8_WEIGHTS = "int8-weights"  # weights only, activations stay float
    INT4_WEIGHTS = "int4-weights"

    @property
    def static(self) -> bool:
        """Whether ranges of activations are needed beforehand."""
        return self in (Precision.INT8, Precision.INT16)


class Form(StrEnum):
    """How the graph says that a node computes on integers."""

    QDQ = "qdq"  # QuantizeLinear and DequantizeLinear around float operators
    QOPERATOR = "qoperator"  # integer operators of their own: QLinearConv, MatMulNBits


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


class WeightBlocks(msgspec.Struct, frozen=True):
    """How a weight is stored in blocks; the scales follow from it and the weight.

    There may be a scale for every 16 values, which are too many for a plan. They are found again,
    without data, whenever the plan is applied.

    Attributes:
        qtype: Type of the stored integers.
        axis: The axis that is cut into blocks, not negative.
        size: Values per block.
        symmetric: Whether the zero point is the middle of the type.
        method: ``rtn`` (round to nearest) or ``hqq`` (half-quadratic optimisation).
    """

    qtype: QType
    axis: int
    size: int
    symmetric: bool
    method: str = "rtn"
