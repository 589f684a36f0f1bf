"""``Target``: what a provider wants of a quantized graph, as plain values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from onnxq.types import Grid, Precision, QType


class Kernel(StrEnum):
    """How a provider runs an operator between quantized tensors."""

    FUSED = "fused"  # Q/DQ pairs around it fuse into one int8 kernel
    MOVES = "moves"  # runs on int8 data when input and output share scale and zero point
    CLAMP = "clamp"  # vanishes into the range of the quantized output before it
    RESIDUAL = "residual"  # vanishes into the layer that makes one input; the other has a pair
    FLOAT = "float"  # always float: a pair is pure loss


class Pairs(StrEnum):
    """Where the pairs of activations stand."""

    AROUND = "around"  # behind every tensor between quantized nodes: all its readers read the pair
    BEFORE = "before"  # before quantized nodes alone: all others read the tensor itself


class Support(msgspec.Struct, frozen=True):
    """How one operator runs, and why it is better left float where it is.

    Attributes:
        kernel: How it runs.
        why: For ``Kernel.FLOAT``: the rest of the sentence "stays float: ...".
        float_output: It has an int8 kernel with float output too, so that it needs no pair behind
            it where nothing wants int8.
        merges_with: An operator that the runtime merges with it into a float one when no pair
            stands between the two, and the other operand is constant.
    """

    kernel: Kernel
    why: str = ""
    float_output: bool = False
    merges_with: str = ""


class Target(msgspec.Struct, frozen=True):
    """An execution provider on a kind of processor.

    Attributes:
        name: What ``--target`` takes.
        provider: ONNX Runtime's name of the execution provider.
        operators: How each operator runs; an operator that is missing runs as float.
        source: Where these facts come from.
        activation: Type of quantized activations.
        activation16: Their type where 16 bits are wanted.
        symmetric_activations: Whether their zero point is the middle of the type.
        weight: Type of quantized weights, symmetric.
        weight_headroom: Weights use 1/headroom of their type's range. 2 (7-bit weights) where
            products of uint8 and int8 are added in pairs in saturating 16 bits.
        integer_bias: Whether biases are int32 with the scale ``s_x * s_w``; else they stay float.
        conv_channels: A Conv on integers runs fastest when it reads a multiple of so many channels;
            1 where that makes no difference.
        matrix_units: The processor multiplies matrices of integers, and the provider's kernel for a
            Conv on integers does not make use of it where zero points of weights are 0.
        folds_bias_scales: The provider's runtime folds constants before it looks for what fuses, so
            that the scales of an int32 bias may be written as the product that they are.
        pairs: Where the pairs of activations stand.
        requantizes_float_layers: The provider quantizes the weights of a float Conv or Gemm
            by itself when its input comes from a DequantizeLinear with one scale.
        scales_at_run: The provider dequantizes the stored weights of a float layer anew at every
            run. Written as Cast and Mul they are scaled once, when the model is loaded.
        runs_as_written: The provider calls one kernel after another, as the graph says; compilers
            arrange it by themselves.
        splits_norms: The provider's runtime fuses an Add and a LayerNormalization behind it into a
            kernel that is slower than the two.
        float_type: What the float part of a model runs fastest in.
        refuses: Precisions that are a loss there, and why.
    """

    name: str
    provider: str
    operators: dict[str, Support]
    source: str
    activation: QType = QType.UINT8
    activation16: QType = QType.UINT16
    symmetric_activations: bool = False
    weight: QType = QType.INT8
    weight_headroom: float = 1.0
    integer_bias: bool = True
    folds_bias_scales: bool = False
    conv_channels: int = 1
    matrix_units: bool = False
    pairs: Pairs = Pairs.AROUND
    requantizes_float_layers: bool = False
    scales_at_run: bool = False
    runs_as_written: bool = False
    splits_norms: bool = False
    float_type: Precision = Precision.FLOAT
    refuses: dict[Precision, str] = {}

    @property
    def activation_grid(self) -> Grid:
        """The integers of quantized activations."""
        return Grid(self.activation.bits, self.symmetric_activations)

    def support(self, op: str) -> Support:
        """How an operator runs on this target."""
        default = self.refuses.get(Precision.INT8, f"{self.name} has no int8 kernel for it")
        return self.operators.get(op, Support(Kernel.FLOAT, default))
