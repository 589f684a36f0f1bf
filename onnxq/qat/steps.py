"""``Stepper``: one step of an optimizer after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxq.errors import UnusableError
from onnxq.plan import QATSettings
from onnxq.qat.batches import Step
from onnxq.qat.evaluator import Tensors
from onnxq.qat.losses import Loss
from onnxq.qat.operators.values import to_tensor
from onnxq.qat.student import Student


class Stepper:
    """Makes the loss of a student smaller, batch by batch.

    Args:
        student: What is trained.
        settings: Optimizer, learning rate, schedule.
        loss: What to make small.
        steps: Steps of the whole training, for the schedule.

    Attributes:
        parameters: All that is trained: weights, then logarithms of the growth of scales.
        optimizer: Its state belongs to a checkpoint.
    """

    def __init__(self, student: Student, settings: QATSettings, loss: Loss, steps: int) -> None:
        self._student, self._settings, self._loss, self._steps = student, settings, loss, steps
        self.parameters = [*student.weights.values(), *student.scales.values()]
        self.optimizer = _optimizer(student.weights, student.scales, settings)

    def step(self, made: Step, done: int) -> float:
        """Train on one batch.

        Args:
            made: The batch.
            done: Steps that were done before.

        Returns:
            Its loss, before the step.

        Raises:
            UnusableError: The loss is no number any more.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(done) * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of(made)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UnusableError(
                f"the loss became {value} in step {done + 1}",
                "lower learning_rate or clip_norm in the recipe's [qat]",
            )
        try:
            torch.autograd.backward(loss)
        except torch.OutOfMemoryError as error:
            raise UnusableError(
                f"{self._student.device} has not enough memory for a step", "lower batch_size"
            ) from error
        if self._settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._settings.clip_norm)
        self.optimizer.step()
        self._student.project()
        return value

    def judge(self, made: Step) -> tuple[float, Tensor | None, Tensor | None]:
        """The loss of the outputs for a batch that is not trained on, its scores and labels."""
        feed = self._student.tensors(made.feed)
        taught = self._student.teach(feed) if self._loss.teacher else None
        with torch.no_grad():
            found, labels = self._student.forward(feed), self._labels(made)
            loss = float(self._loss.judged(found, taught, labels))
        return loss, found.get(self._loss.outputs.scores or ""), labels

    def _loss_of(self, made: Step) -> Tensor:
        feed, keep = self._student.tensors(made.feed), self._loss.matched
        taught = self._student.teach(feed, keep) if self._loss.wants_teacher else None
        found = self._student.forward(feed, keep, keep if self._settings.layerwise else ())
        return self._loss(found, taught, self._labels(made))

    def _labels(self, made: Step) -> Tensor | None:
        if made.labels is None or not self._loss.wants_labels:
            return None
        return to_tensor(made.labels).to(self._student.device)

    def _rate(self, done: int) -> float:
        if self._settings.schedule == "constant":
            return self._settings.learning_rate
        return self._settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done / self._steps))


def _optimizer(weights: Tensors, scales: Tensors, settings: QATSettings) -> torch.optim.Optimizer:
    groups = [
        {"params": list(weights.values()), "weight_decay": settings.weight_decay, "factor": 1.0},
        {"params": list(scales.values()), "weight_decay": 0.0, "factor": settings.scale_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)
