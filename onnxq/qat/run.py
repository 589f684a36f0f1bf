"""``train``: the loop that makes a student better, keeps the best of it, and survives a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onnxq.data import Reader
from onnxq.plan import QATSettings, QuantPlan
from onnxq.qat.batches import Augment, Batches
from onnxq.qat.checkpoint import Checkpoint, Header, load_checkpoint, save_checkpoint, whole
from onnxq.qat.history import EpochFacts, History
from onnxq.qat.losses import Loss
from onnxq.qat.simulation import Observed
from onnxq.qat.steps import Stepper
from onnxq.qat.student import Student
from onnxq.types import QParams

# Seconds between checkpoints; one is also kept at the end of every epoch.
KEEP_EVERY = 60.0
# Samples that are looked at after every epoch, at most.
MOST_VALIDATION = 2000
# A loss that JSON can hold, for one that is no number.
LARGEST = 1e30


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Attributes:
        epoch: From 1.
        epochs: In all.
        step: Steps of the epoch that are done.
        steps: Steps of an epoch.
        loss: Mean loss of the epoch's steps.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Watch:
    """Who is told.

    Attributes:
        step: After every step.
        epoch: After every epoch, and before the first.
        warm: Told of the plan, when the ranges of activations are frozen: after the warm-up, or
            before the first step where there is none.
    """

    step: Callable[[Progress], None] | None = None
    epoch: Callable[[EpochFacts], None] | None = None
    warm: Callable[[QuantPlan], None] | None = None


@dataclass(frozen=True)
class Samples:
    """What a training reads.

    Attributes:
        training: The samples to train with.
        validation: Samples to choose the best epoch by.
        seed: Decides the order of samples, and how they are augmented.
        augment: What is done to each feed.
    """

    training: Reader
    validation: Reader
    seed: int = 0
    augment: Augment | None = None


def train(
    student: Student,
    settings: QATSettings,
    loss: Loss,
    samples: Samples,
    *,
    checkpoint: Path | None = None,
    run: str = "",
    watch: Watch | None = None,
) -> History:
    """Train, and leave the student with the weights of its best epoch.

    Args:
        student: What is trained.
        settings: How.
        loss: What to make small.
        samples: What to train with.
        checkpoint: A file to keep the state in, and to go on from; none if None.
        run: Digest of everything that the run depends on, for the checkpoint.
        watch: Who is told.

    Returns:
        What the training showed.

    Raises:
        UnusableError: The loss is no number any more.
        UsageError: The checkpoint is of another run.
        OutputError: The checkpoint is damaged, or cannot be written.
    """
    found = load_checkpoint(checkpoint, run) if checkpoint is not None else None
    with _threads(settings.threads):
        loop = _Loop(student, settings, loss, samples, watch or Watch())
        if found is not None:
            with whole(checkpoint):
                loop.restore(found)
        return loop.train(checkpoint, run)


@dataclass(frozen=True)
class _State:
    """All that is trained, and the scales and zero points that are not."""

    tensors: list[Tensor]
    params: tuple[QParams, ...]


class _Loop:
    """The state of one training, from its start or from a checkpoint to its end."""

    def __init__(
        self, student: Student, settings: QATSettings, loss: Loss, samples: Samples, watch: Watch
    ) -> None:
        self._student, self._settings, self._loss, self._watch = student, settings, loss, watch
        size, seed = settings.batch_size, samples.seed
        unit = samples.validation.fixed_batch
        few = samples.validation.take(max(MOST_VALIDATION // unit, 1) * unit)
        self._batches = Batches(samples.training, size, seed, samples.augment)
        self._held = Batches(few, size, seed)
        self._steps = self._batches.steps
        self._stepper = Stepper(student, settings, loss, settings.epochs * self._steps)
        self._epoch, self._step, self._sum = 1, 0, 0.0
        self._epochs: list[EpochFacts] = []
        self._best, self._best_state = 0, self._copy()
        self._seconds, self._started = 0.0, time.monotonic()
        self._kept = self._started

    def train(self, path: Path | None, run: str) -> History:
        if not self._epochs:
            self._tell_warm()
            self._finish_epoch(0)
        stopped = self._stopped()
        while self._epoch <= self._settings.epochs and not stopped:
            self._train_epoch(path, run)
            self._finish_epoch(self._epoch)
            self._epoch, self._step, self._sum = self._epoch + 1, 0, 0.0
            self._keep(path, run)
            stopped = self._stopped()
        self._load(self._best_state)
        return self._told(stopped)

    def _train_epoch(self, path: Path | None, run: str) -> None:
        for made in self._batches.epoch(self._epoch, self._step):
            done = (self._epoch - 1) * self._steps + self._step
            self._sum += self._stepper.step(made, done)
            self._step += 1
            self._warm_up(done + 1)
            if self._watch.step is not None:
                epochs, mean = self._settings.epochs, self._sum / self._step
                self._watch.step(Progress(self._epoch, epochs, self._step, self._steps, mean))
            if time.monotonic() - self._kept > KEEP_EVERY:
                self._keep(path, run)

    def _warm_up(self, done: int) -> None:
        """Freeze the ranges when enough batches were seen."""
        simulation = self._student.simulation
        if simulation.observed is not None and done >= self._settings.warmup:
            simulation.freeze()
            self._tell_warm()

    def _tell_warm(self) -> None:
        simulation = self._student.simulation
        if simulation.observed is None and self._watch.warm is not None:
            self._watch.warm(simulation.planned(self._student.weights))

    def _finish_epoch(self, number: int) -> None:
        """Look at the samples that were held back, and remember the best epoch."""
        loss, metric = self._validate()
        mean = self._sum / self._step if self._step else None
        seconds = self._elapsed() - sum(facts.seconds for facts in self._epochs)
        facts = EpochFacts(number, mean, loss, metric, self._student.drift(), seconds)
        best = self._epochs[self._best] if self._epochs else None
        self._epochs.append(facts)
        if best is None or facts.rank > best.rank:
            self._best, self._best_state = number, self._copy()
        if self._watch.epoch is not None:
            self._watch.epoch(facts)

    def _validate(self) -> tuple[float, float | None]:
        """The loss of the outputs, and top-1, on the samples that were held back."""
        sums, hits, count, judged = 0.0, 0, 0, True
        for made in self._held.epoch(0):
            loss, scores, labels = self._stepper.judge(made)
            sums, count = sums + loss * made.count, count + made.count
            if scores is None or labels is None or not _a_class_per_row(scores, labels):
                judged = False
            else:
                hits += int((scores.argmax(1) == labels).sum())
        mean = sums / count if math.isfinite(sums) else LARGEST
        return min(mean, LARGEST), hits / count if judged else None

    def _stopped(self) -> str:
        patience = self._settings.patience
        if patience is None or self._epoch - 1 - self._best < patience:
            return ""
        return f"no better result in {patience} epoch{'s' if patience > 1 else ''}"

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _told(self, stopped: str) -> History:
        student = self._student
        return History(
            loss=self._loss.name,
            samples=self._batches.samples,
            validation=self._held.samples,
            weights=len(student.weights),
            values=sum(weight.numel() for weight in student.weights.values()),
            scales=sum(scale.numel() for scale in student.scales.values()),
            steps=(self._epoch - 1) * self._steps,
            epochs=tuple(self._epochs),
            best=self._best,
            stopped=stopped,
            seconds=self._elapsed(),
            device=str(student.device),
        )

    def _copy(self) -> _State:
        return _State(
            [parameter.detach().clone() for parameter in self._stepper.parameters],
            tuple(quantizer.params for quantizer in self._student.simulation.quantizers()),
        )

    def _load(self, state: _State) -> None:
        quantizers = self._student.simulation.quantizers()
        for quantizer, params in zip(quantizers, state.params, strict=True):
            quantizer.set_params(params)
        with torch.no_grad():
            for parameter, value in zip(self._stepper.parameters, state.tensors, strict=True):
                if parameter.shape != value.shape:
                    raise ValueError(f"a tensor of shape {tuple(value.shape)}")
                parameter.copy_(value)
        self._student.project()

    def _keep(self, path: Path | None, run: str) -> None:
        """Write a checkpoint."""
        self._kept = time.monotonic()
        if path is None:
            return
        simulation = self._student.simulation
        quantizers = simulation.quantizers()
        places = {id(quantizer): index for index, quantizer in enumerate(quantizers)}
        observed = (simulation.observed or {}).items()
        header = Header(
            run=run,
            epoch=self._epoch,
            step=self._step,
            loss=self._sum,
            seconds=self._elapsed(),
            epochs=tuple(self._epochs),
            best=self._best,
            frozen=simulation.observed is None,
            observed={places[key]: (seen.lo, seen.hi, seen.batches) for key, seen in observed},
            params=tuple(quantizer.params for quantizer in quantizers),
            best_params=self._best_state.params,
        )
        arrays = {f"now:{index}": tensor for index, tensor in enumerate(self._copy().tensors)}
        arrays |= {f"best:{i}": tensor for i, tensor in enumerate(self._best_state.tensors)}
        for index, held in self._stepper.optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer:{index}:{k}": torch.as_tensor(v) for k, v in held.items()}
        save_checkpoint(Checkpoint(header, arrays), path)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was written."""
        header, arrays = checkpoint.header, checkpoint.arrays
        self._epoch, self._step, self._sum = header.epoch, header.step, header.loss
        self._epochs, self._best, self._seconds = list(header.epochs), header.best, header.seconds
        simulation = self._student.simulation
        quantizers = simulation.quantizers()
        seen = {id(quantizers[at]): Observed(*found) for at, found in header.observed.items()}
        simulation.observed = None if header.frozen else seen
        count, device = range(len(self._stepper.parameters)), self._student.device
        self._load(_State([arrays[f"now:{index}"] for index in count], header.params))
        best = [arrays[f"best:{index}"].to(device) for index in count]
        self._best_state = _State(best, header.best_params)
        optimizer = self._stepper.optimizer
        state = optimizer.state_dict()
        for name, tensor in arrays.items():
            if name.startswith("optimizer:"):
                _, index, key = name.split(":")
                state["state"].setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(state)


def _a_class_per_row(scores: Tensor, labels: Tensor) -> bool:
    rows = scores.ndim == 2 and labels.shape == scores.shape[:1]
    return rows and not labels.is_floating_point()


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
