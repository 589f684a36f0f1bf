"""What sensitivity analysis finds, as plain, serialisable values."""

from __future__ import annotations

import msgspec

from onnxq.types import Precision


class Loss(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a model's answers are from those of the float model, on the same samples.

    Attributes:
        sqnr_db: Signal-to-quantization-noise ratio of the worst float output, in dB; 200 means
            identical. None when no output is float.
        kl: Mean Kullback-Leibler divergence, in nats, of the worst output that looks like class
            scores; scores that are no probabilities go through a softmax first. None without one.
        agreement: Share of samples with the same largest score, of the worst such output; of an
            output of integers the share of equal entries.
        metric: The metric on these samples; None without labels.
        typical_db: As ``sqnr_db``, of the sample in the middle and not of all together: a few
            samples that are much larger than the others do not move it.
    """

    sqnr_db: float | None = None
    kl: float | None = None
    agreement: float | None = None
    metric: float | None = None
    typical_db: float | None = None


class Histogram(msgspec.Struct, frozen=True):
    """How often values occur: equal bins from ``lo`` to ``hi``."""

    lo: float
    hi: float
    counts: tuple[int, ...]


class LayerSensitivity(msgspec.Struct, frozen=True):
    """What one layer costs at one precision.

    Attributes:
        name: Name of the node.
        op: Operator type.
        precision: The precision that it was tried in.
        only: The loss when this layer alone has that precision.
        weights: The loss when its weights alone are quantized; None where it has none.
        activations: The loss when its activations alone are; None where they stay float.
        rest: The loss when every layer but this one has that precision; None for a screen.
        float_ms: Milliseconds per run in the float model; None when not measured.
        quantized_ms: The same in the model that is quantized everywhere.
        parameters: Values in its constants.
        macs: Multiply-adds per sample; None when a shape is not known.
    """

    name: str
    op: str
    precision: Precision
    only: Loss
    weights: Loss | None = None
    activations: Loss | None = None
    rest: Loss | None = None
    float_ms: float | None = None
    quantized_ms: float | None = None
    parameters: int = 0
    macs: int | None = None


class FrontPoint(msgspec.Struct, frozen=True):
    """One plan of the Pareto front: no other is both faster and more accurate.

    Attributes:
        kept_float: The layers that it leaves in float.
        predicted_ms: Latency by the model of costs.
        loss: What it lost on the evaluation samples; None when it was not built.
        ms: Measured latency; None when it was not.
    """

    kept_float: tuple[str, ...]
    predicted_ms: float
    loss: Loss | None = None
    ms: float | None = None


class SensitivityReport(msgspec.Struct, frozen=True):
    """What every layer costs in accuracy and in time.

    Attributes:
        model: Path of the model as given.
        sha256: Of the model.
        data: SHA-256 of the evaluation samples.
        method: ``exact`` or ``screen``.
        samples: Evaluation samples.
        metric: Name of the metric; None without labels.
        float_metric: Its value for the float model.
        layers: One entry per layer and precision, the most sensitive first.
        everything: By precision, the loss when every layer has it.
        front: The Pareto front of latency against accuracy; empty when not asked for.
        weight_histograms: By layer.
        activation_histograms: By layer: of what it reads.
        environment: Versions and machine.
        notes: What a reader must know.
        schema: Version of this structure.
    """

    model: str
    sha256: str
    data: str
    method: str
    samples: int
    metric: str | None
    float_metric: float | None
    layers: tuple[LayerSensitivity, ...]
    everything: dict[str, Loss]
    front: tuple[FrontPoint, ...] = ()
    weight_histograms: dict[str, Histogram] = {}
    activation_histograms: dict[str, Histogram] = {}
    environment: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    schema: int = 1
