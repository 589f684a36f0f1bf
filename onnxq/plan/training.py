"""The recipe's table of quantization-aware training."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from onnxq.plan.settings import Positive, Section

PositiveNumber = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class QATSettings(Section, frozen=True):
    """How the weights of a graph are trained while quantization is simulated.

    Attributes:
        epochs: Passes over the training samples.
        batch_size: Samples per step; the model's own where its first axis is fixed.
        samples: The most samples to train with, drawn at random with the run's seed; all if
            missing.
        optimizer: ``adamw`` or ``sgd`` (Nesterov momentum of 0.9).
        learning_rate: Of the first step; of AdamW about what a weight moves in one.
        scale_rate: Learning rate of the logarithms of scales, as a multiple of that.
        weight_decay: Of weights alone.
        schedule: ``cosine`` (to zero at the end) or ``constant``.
        clip_norm: The most that the norm of all gradients may be; 0 for no limit.
        patience: Epochs without a better result until training stops; never if missing.
        loss: ``auto`` (``cross-entropy`` where there are labels, else ``distill``),
            ``cross-entropy``, ``mse`` (labels are what the output should be), ``distill`` (the
            float model is the teacher, and labels are not looked at), or a function of yours,
            ``module:function(outputs, labels)``.
        teacher: The teacher's share of the loss where there are labels as well.
        temperature: Of class scores, where they are distilled.
        match: Names of inner tensors, or globs, that are matched to the teacher's as well.
        layerwise: Match the output of every layer with quantized weights to the float model's, and
            train each layer for its own match alone. For few samples.
        quantize_weights: Whether weights are rounded while training.
        quantize_activations: Whether activations are.
        weight_bits: Train weights for fewer bits than their type has.
        learn_scales: Whether scales are trained too (learned step size quantization); without it
            those of weights follow the weights, and those of activations stay.
        observer: Where ranges of activations come from: ``calibrated`` (as of quantization without
            training), or what the first ``warmup`` batches show, ``minmax`` or
            ``moving-average``.
        warmup: Batches that are observed before ranges are frozen.
        keep_zeros: Whether weights that are 0 stay 0, so that what was pruned stays so.
        augment: What is done to image batches: ``flip``, ``shift`` (by up to an eighth of each
            side), ``flip-shift``, or a function of yours, ``module:function(feed, generator)``.
        validation: The share of the training samples that is held back to choose the best epoch
            by.
        threads: Threads of PyTorch; its own choice if missing.
    """

    epochs: Positive = 5
    batch_size: Positive = 64
    samples: Positive | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveNumber = 1e-4
    scale_rate: NotNegative = 1.0
    weight_decay: NotNegative = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: NotNegative = 1.0
    patience: Positive | None = None
    loss: str = "auto"
    teacher: Share = 0.0
    temperature: PositiveNumber = 1.0
    match: tuple[str, ...] = ()
    layerwise: bool = False
    quantize_weights: bool = True
    quantize_activations: bool = True
    weight_bits: Annotated[int, msgspec.Meta(ge=2, le=8)] | None = None
    learn_scales: bool = True
    observer: Literal["calibrated", "minmax", "moving-average"] = "calibrated"
    warmup: Positive = 16
    keep_zeros: bool = False
    augment: str | None = None
    validation: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.1
    threads: Positive | None = None

    def __post_init__(self) -> None:
        known = ("auto", "cross-entropy", "mse", "distill")
        if self.loss not in known and ":" not in self.loss:
            raise ValueError(
                f"unknown loss '{self.loss}'; known: {', '.join(known)}, module:function"
            )
        ways = ("flip", "shift", "flip-shift")
        if self.augment is not None and self.augment not in ways and ":" not in self.augment:
            raise ValueError(
                f"unknown augmentation '{self.augment}'; known: {', '.join(ways)}, module:function"
            )
