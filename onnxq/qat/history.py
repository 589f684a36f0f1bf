"""What a training showed, epoch by epoch."""

from __future__ import annotations

import msgspec


class EpochFacts(msgspec.Struct, frozen=True):
    """One pass over the training samples.

    Attributes:
        epoch: Its number; 0 is the state before training.
        loss: Mean loss of its steps; None for epoch 0.
        validation_loss: The loss on the samples that were held back.
        metric: Top-1 on these; None without labels or class scores.
        scale_drift: The most that any scale of activations has changed since the start: 0.1 is by
            a tenth.
        seconds: How long it took.
    """

    epoch: int
    loss: float | None
    validation_loss: float
    metric: float | None
    scale_drift: float
    seconds: float

    @property
    def rank(self) -> tuple[float, float]:
        """What makes one epoch better than another, higher is better: the metric, then the loss."""
        return (self.metric or 0.0, -self.validation_loss)


class History(msgspec.Struct, frozen=True):
    """A whole training.

    Attributes:
        loss: The name of what was made small.
        samples: Samples per epoch.
        validation: Samples that were held back to choose the best epoch by.
        weights: How many constants were trained.
        values: How many numbers these hold.
        scales: How many scales were trained.
        steps: Steps in all.
        epochs: Every epoch, the state before training first.
        best: The epoch whose weights were taken.
        stopped: Why training ended early; empty when it did not.
        seconds: How long it took.
        device: Where it ran.
    """

    loss: str
    samples: int
    validation: int
    weights: int
    values: int
    scales: int
    steps: int
    epochs: tuple[EpochFacts, ...]
    best: int
    stopped: str
    seconds: float
    device: str
