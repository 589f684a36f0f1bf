"""What ``onnxq qat`` tells while it trains, on standard error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from onnxq.cli.progress import StageBars
from onnxq.plan import QuantPlan
from onnxq.qat import EpochFacts
from onnxq.report import activations_table, better, epoch_line, epochs_head
from onnxq.verify import Receipt

if TYPE_CHECKING:
    from onnxq.qat.checkpoint import Header
    from onnxq.qat.run import Progress


class TrainingLog:
    """Tells of scales, steps and epochs; of those before a kill too.

    Args:
        bars: Where to tell it.
        checkpoint: The file that the training goes on from, if there is one.
        kept: What that file says.
    """

    def __init__(self, bars: StageBars, checkpoint: Path, kept: Header | None) -> None:
        self._bars, self._checkpoint, self._kept = bars, checkpoint, kept
        self._best: EpochFacts | None = None
        self._activations: frozenset[str] = frozenset()

    def compared(self, untrained: Receipt) -> None:
        """Remember which tensors are activations: those that were observed."""
        self._activations = frozenset(untrained.ranges)

    def warm(self, plan: QuantPlan) -> None:
        """Show the scales of activations, now that their ranges are frozen."""
        params = {name: qp for name, qp in plan.tensors.items() if name in self._activations}
        if params:
            self._bars.print(activations_table(params))

    def step(self, progress: Progress) -> None:
        """Move the bar."""
        self._begin()
        done = (progress.epoch - 1) * progress.steps + progress.step
        self._bars(
            "train", done, progress.epochs * progress.steps,
            f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:<9.4g}",
        )  # fmt: skip

    def epoch(self, facts: EpochFacts) -> None:
        """A line for an epoch."""
        self._begin()
        if self._best is None:
            self._bars.print(epochs_head(metric=facts.metric is not None))
        best = better(facts, self._best)
        if best:
            self._best = facts
        self._bars.print(epoch_line(facts, best=best))

    def finish(self) -> None:
        """Tell of a training that was killed behind its last epoch: nothing was left to train."""
        self._begin("all epochs were trained before")

    def _begin(self, how: str = "") -> None:
        """Before anything else, tell what was done before a kill."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        self._bars.print(Text(f"{how or f'goes on in epoch {kept.epoch}'}: {self._checkpoint}"))
        for facts in kept.epochs:
            self.epoch(facts)
