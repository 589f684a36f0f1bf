"""The tables of a recipe."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import msgspec

from onnxq.calibrate import AUTO, OBSERVERS, ObserverSpec
from onnxq.data import Preprocess
from onnxq.errors import UsageError, nearest
from onnxq.types import Precision

PrecisionName = Literal[
    "float", "fp16", "int8", "int16", "int8-dynamic", "int8-weights", "int4-weights"
]
BlockSize = Literal[16, 32, 64, 128, 256]
WeightMethod = Literal["rtn", "hqq"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the recipe: unknown keys are errors."""


class DataSettings(Section, frozen=True):
    """Where samples come from.

    Attributes:
        calibration: Data to calibrate with: a path, ``dataset:NAME`` or ``module:function``.
        test: Data to verify with; without it the tail of ``calibration`` is held back.
        batch_size: Samples per run; the model's own where its first axis is fixed.
        holdout: The part of ``calibration`` that is held back when there is no ``test``.
        preprocess: What is done to raw arrays.
        state: Input by output, for recurrent models: what an output holds after one run is fed to
            the input of the next. Samples are then the steps of a sequence, in order.
    """

    calibration: str | None = None
    test: str | None = None
    batch_size: Positive = 8
    holdout: Fraction = 0.2
    preprocess: Preprocess | None = None
    state: dict[str, str] = {}


class CalibrationSettings(Section, frozen=True):
    """How ranges are chosen.

    Attributes:
        method: ``auto`` (``mse``, or ``minmax`` with fewer than 64 samples), ``mse``,
            ``percentile``, ``entropy``, ``minmax``, ``moving-average``, ``sigma``, ``trimmed``, or
            a class of yours as ``module:Class``.
        percentile: The percentage of values inside the range, for ``percentile``.
        momentum: What an average keeps at each sample, for ``moving-average``.
        warmup: The first samples, which make a plain mean, for ``moving-average``.
        sigmas: Standard deviations on both sides of the mean, for ``sigma``.
        options: Keyword arguments of your own class.
        samples: The most samples to calibrate with, drawn at random with the run's seed.
        exact: Whether every value is counted, and not a sample of large tensors.
    """

    method: str = AUTO
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.95
    warmup: Positive = 8
    sigmas: Annotated[float, msgspec.Meta(gt=0)] = 6.0
    options: dict[str, Any] = {}
    samples: Positive = 200
    exact: bool = False

    def __post_init__(self) -> None:
        if self.method in OBSERVERS or ":" in self.method:
            return
        raise ValueError(_unknown("method", self.method, (*OBSERVERS, "module:Class")))

    def with_method(self, method: str) -> CalibrationSettings:
        """The same settings with another method.

        Raises:
            UsageError: The method is not known.
        """
        try:
            return msgspec.structs.replace(self, method=method)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def observer(self) -> ObserverSpec:
        """The observer, with its options.

        Raises:
            UsageError: Options are given for an observer that is onnxq's own.
        """
        name = self.method
        own = {
            "percentile": {"percentile": self.percentile},
            "moving-average": {"momentum": self.momentum, "warmup": self.warmup},
            "sigma": {"sigmas": self.sigmas},
        }
        if self.options and name in OBSERVERS:
            raise UsageError(
                f"[calibration.options] are for a class of yours, not for '{name}'",
                "its options are keys of [calibration]",
            )
        return ObserverSpec(name, own.get(name, self.options))


class WeightSettings(Section, frozen=True):
    """How weights are stored that are quantized alone.

    Attributes:
        block_size: Values that share a scale, a power of two from 16 to 256; without it 32 for
            4 bits, and a whole channel for 8.
        symmetric: Whether the zero point is the middle of the integers.
        method: ``rtn`` (round to nearest) or ``hqq`` (half-quadratic optimisation, which
            comes nearer to the weights, mostly to the outputs too, and takes longer).
    """

    block_size: BlockSize | None = None
    symmetric: bool = True
    method: WeightMethod = "rtn"


# What chooses the nodes of a table of [[layers]].
MATCHERS = ("name", "regex", "op", "position")
# Observers that read what any other has counted.
_READERS = ("mse", "percentile", "entropy", "minmax", "sigma", "trimmed")
_BITS: dict[Precision, int] = {
    Precision.FP16: 16,
    Precision.INT8: 8,
    Precision.INT16: 16,
    Precision.INT8_DYNAMIC: 8,
    Precision.INT8_WEIGHTS: 8,
    Precision.INT4_WEIGHTS: 4,
}
# What so many bits mean beside the precision of all other layers: as far as it goes, the same
# kind, so that a recipe which needs no samples goes on needing none.
_OF_BITS: dict[int, dict[Precision, Precision]] = {
    4: {},
    8: {
        Precision.INT8_DYNAMIC: Precision.INT8_DYNAMIC,
        Precision.INT8_WEIGHTS: Precision.INT8_WEIGHTS,
        Precision.INT4_WEIGHTS: Precision.INT8_WEIGHTS,
    },
    16: {Precision.FP16: Precision.FP16},
}
_USUALLY = {4: Precision.INT4_WEIGHTS, 8: Precision.INT8, 16: Precision.INT16}


class LayerRule(Section, frozen=True, omit_defaults=True):
    """What is wanted of some nodes: one key that chooses them, and one setting or more.

    Attributes:
        name: A node's name, or a glob of names.
        regex: A regular expression that matches the whole name.
        op: An operator type.
        position: ``first`` or ``last`` of the nodes that multiply with constant weights.
        precision: How they compute; ``float`` keeps them as they are.
        bits: 4, 8 or 16, short for a precision: ``int4-weights``; ``int8``, or among weights alone
            ``int8-weights`` and among dynamic layers ``int8-dynamic``; ``int16``, or in a recipe
            of ``fp16`` that.
        symmetric: Whether weights in blocks have their zero point in the middle.
        per_channel: One weight scale per output channel instead of one per tensor.
        block_size: Values of a weight that share a scale.
        method: How scales of weights in blocks are chosen: ``rtn`` or ``hqq``.
        observer: The calibration method for the activations that these nodes make and read.
    """

    name: str | None = None
    regex: str | None = None
    op: str | None = None
    position: Literal["first", "last"] | None = None
    precision: PrecisionName | None = None
    bits: Literal[4, 8, 16] | None = None
    symmetric: bool | None = None
    per_channel: bool | None = None
    block_size: BlockSize | None = None
    method: WeightMethod | None = None
    observer: str | None = None

    def __post_init__(self) -> None:
        said = [key for key, value in msgspec.structs.asdict(self).items() if value is not None]
        matchers = [key for key in said if key in MATCHERS]
        if len(matchers) != 1:
            raise ValueError(
                f"layers are chosen by one of {', '.join(MATCHERS)}, and not by "
                f"{' and '.join(matchers) or 'none'}"
            )
        if said == matchers:
            raise ValueError(f"nothing is said of the layers of {self}")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(f"'{self.regex}' is no regular expression: {error}") from error
        if self.observer is not None and self.observer not in _READERS:
            raise ValueError(_unknown("observer of layers", self.observer, _READERS))
        if self.bits and self.precision and _BITS.get(Precision(self.precision)) != self.bits:
            raise ValueError(f"precision {self.precision} is not of {self.bits} bits")

    def __str__(self) -> str:
        return f"{self.matcher} '{self.pattern}'"

    @property
    def matcher(self) -> str:
        """The key that chooses nodes."""
        return next(key for key in MATCHERS if getattr(self, key) is not None)

    @property
    def pattern(self) -> str:
        """The value of that key."""
        return str(getattr(self, self.matcher))

    def wanted(self, usual: Precision) -> Precision | None:
        """The precision that is wanted; None for that of all other layers, which is ``usual``."""
        if self.precision is not None:
            return Precision(self.precision)
        return _OF_BITS[self.bits].get(usual, _USUALLY[self.bits]) if self.bits else None


class VerifySettings(Section, frozen=True):
    """How the output is judged.

    Attributes:
        metric: ``top1``, or ``module:function`` taking (outputs by name, labels).
        output: The output that ``top1`` is taken of; the first that looks like class scores
            when missing.
        threads: Threads inside an operator, in every run.
        seconds: About how long to measure latency; 0 leaves it out.
    """

    metric: str = "top1"
    output: str | None = None
    threads: Positive = 1
    seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0


class Budgets(Section, frozen=True):
    """Limits that turn into gates: a missed one ends the run with exit code 1.

    ``max_drop``, ``min_sqnr`` and ``min_agreement`` must be kept with 95 % confidence, so that a
    pass is not the luck of the samples.

    Attributes:
        max_drop: The most that the metric may fall, as a fraction (0.005: half a point).
        min_sqnr: The least signal-to-quantization-noise ratio of any float output, in dB.
        min_agreement: The least top-1 agreement with the source model, as a fraction.
        max_size_ratio: The most bytes of the output per byte of the source.
        min_speedup: The least latency ratio against the prepared float model.
        min_int8: The least fraction that really runs as int8 of the layers (Conv, Gemm, MatMul
            and their like) that the target can run so.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    min_agreement: float | None = None
    max_size_ratio: float | None = None
    min_speedup: float | None = None
    min_int8: float | None = None

    def __post_init__(self) -> None:
        for name, limit in msgspec.structs.asdict(self).items():
            if limit is not None and not math.isfinite(limit):
                raise ValueError(f"budget '{name}' is {limit}, not a number to keep to")

    @property
    def of_accuracy(self) -> dict[str, float]:
        """The limits that samples are needed for, by name."""
        limits = {"max_drop": self.max_drop, "min_sqnr": self.min_sqnr}
        limits["min_agreement"] = self.min_agreement
        return {name: limit for name, limit in limits.items() if limit is not None}


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    return f"unknown {what} '{name}'; {nearest(name, known)}"
