"""``Target``: the types and the operators that a provider runs as int8."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from onnxq.types import Grid, QType


class Kernel(StrEnum):
    """How a provider runs an operator between quantized tensors."""

    FUSED = "fused"  # Q/DQ pairs around it fuse into one int8 kernel
    MOVES = "moves"  # runs on int8 data when input and output share scale and zero point
    CLAMP = "clamp"  # vanishes into the range of the quantized output before it
    FLOAT = "float"  # always float: a pair is pure loss


class Support(msgspec.Struct, frozen=True):
    """How one operator runs, and why it is better left float where it is.

    Attributes:
        kernel: How it runs.
        why: For ``Kernel.FLOAT``: the rest of the sentence "stays float: ...".
    """

    kernel: Kernel
    why: str = ""


class Target(msgspec.Struct, frozen=True):
    """An execution provider on a kind of processor.

    Attributes:
        name: What ``--target`` takes.
        activation: Type of quantized activations, asymmetric.
        weight: Type of quantized weights, symmetric.
        weight_headroom: Weights use 1/headroom of their type's range. 2 (7-bit weights) where
            products of uint8 and int8 are added in pairs in saturating 16 bits.
        requantizes_float_layers: The provider quantizes the weights of a float Conv or Gemm
            by itself when its input comes from a DequantizeLinear with one scale.
        operators: How each operator runs; an operator that is missing runs as float.
        source: Where these facts come from.
    """

    name: str
    activation: QType
    weight: QType
    weight_headroom: float
    requantizes_float_layers: bool
    operators: dict[str, Support]
    source: str

    @property
    def activation_grid(self) -> Grid:
        """The integers of quantized activations."""
        return Grid(self.activation.dtype.itemsize * 8)

    def support(self, op: str) -> Support:
        """How an operator runs on this target."""
        default = Support(Kernel.FLOAT, f"{self.name} has no int8 kernel for it")
        return self.operators.get(op, default)
