"""The metric of two models on labelled samples."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.errors import UsageError, nearest
from onnxq.types import Array, Feed
from onnxq.verify.bitmap import to_bitmap
from onnxq.verify.bootstrap import ROUNDS, Indices, function_bound, share_bound
from onnxq.verify.compare import scores_outputs
from onnxq.verify.metric import FunctionMetric, Metric, MetricChoice, Top1
from onnxq.verify.receipt import MetricFacts


class Judging:
    """The metric of the source and of the output model, where the samples have labels."""

    def __init__(self, choice: MetricChoice, judge: str | None) -> None:
        self._choice, self._judged = choice, judge
        self._metrics: tuple[Metric, Metric] | None = None
        self._started = False
        self.notes: tuple[str, ...] = ()

    def update(
        self, feed: Feed, labels: Array, expected: dict[str, Array], found: dict[str, Array]
    ) -> None:
        """Take one labelled batch in; the first one shows what can be judged."""
        if not self._started:
            self._start(feed, labels, expected)
        if self._metrics is not None:
            self._metrics[0].update(expected, labels)
            self._metrics[1].update(found, labels)

    def _start(self, feed: Feed, labels: Array, outputs: dict[str, Array]) -> None:
        self._started = True
        if self._judged is not None and self._judged not in outputs:
            raise UsageError(
                f"there is no output '{self._judged}' to judge", nearest(self._judged, outputs)
            )
        if self._choice.function is None:
            self._choose(feed, labels, outputs)
        source, output = self._choice.make(self._judged), self._choice.make(self._judged)
        if source is not None and output is not None:
            self._metrics = source, output

    def _choose(self, feed: Feed, labels: Array, outputs: dict[str, Array]) -> None:
        """Find the output that ``top1`` is taken of."""
        looks = scores_outputs(outputs, feed) if self._judged is None else [self._judged]
        fits = [n for n in looks if labels.ndim == 1 and outputs[n].shape[:1] == labels.shape]
        self._judged = fits[0] if fits and outputs[fits[0]].ndim == 2 else None
        if self._judged is None:
            shapes = ", ".join(f"'{name}' {value.shape}" for name, value in outputs.items())
            self.notes += (
                f"no metric: 'top1' needs one row of scores per label; labels are {labels.shape}, "
                f"outputs {shapes}; name another with --metric module:function",
            )
        elif len(fits) > 1:
            self.notes += (
                f"top1 was taken of '{self._judged}', the first of {len(fits)} outputs that look "
                "like class scores; name another with 'output' in the recipe's [verify]",
            )

    def facts(self, samples: int, seed: int | None = None) -> MetricFacts | None:
        """The metric of both models; None without labels.

        Args:
            samples: How many there were.
            seed: Draws samples anew for the bound of the drop; without it there is none.
        """
        if self._metrics is None:
            return None
        source, output = (metric.result() for metric in self._metrics)
        judging = self._metrics[1]
        judged = self._judged if self._choice.function is None else None
        hits = to_bitmap(judging.hits) if isinstance(judging, Top1) else ""
        found = MetricFacts(self._choice.name, source, output, samples, judged, hits=hits)
        if seed is None:
            return found
        bound, draws = self._bound(source, output, seed)
        return with_fields(found, drop_bound=bound, draws=draws)

    def _bound(self, source: float, output: float, seed: int) -> tuple[float | None, int]:
        """The most that the metric falls, and how often samples were drawn for that."""
        match self._metrics:
            case Top1() as first, Top1() as second if len(first.hits) > 1:
                lost, won = first.hits & ~second.hits, second.hits & ~first.hits
                return share_bound(lost, won, np.ones(len(lost)), seed), ROUNDS
            case FunctionMetric() as first, FunctionMetric() as second:
                return _function_bound(first, second, source, output, seed)
        return None, 0


def _function_bound(
    first: FunctionMetric, second: FunctionMetric, source: float, output: float, seed: int
) -> tuple[float | None, int]:
    (units, of_source), (_, of_output) = first.resampler(), second.resampler()

    def drop(drawn: Indices) -> float | None:
        before, after = of_source(drawn), of_output(drawn)
        return None if before is None or after is None else before - after

    return function_bound(source - output, drop, units, source, seed) or (None, 0)
