"""``Evaluator``: what models lose against the float model, on samples that stay the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Batch
from onnxq.graph import GraphView, Model
from onnxq.runtime import Session, StateLoop
from onnxq.sensitivity.values import Loss
from onnxq.targets import CPU, Provider
from onnxq.types import Array, TensorRange
from onnxq.verify import Comparison, Judging, MetricChoice, scores_outputs

Outputs = dict[str, Array]
# The most samples that may be left out, as a share; and how far beyond a range a value is no
# outlier yet, as a share of its width.
_FEW, _BEYOND = 0.1, 0.1


class Evaluator:
    """Holds samples and the float model's answers; judges other models by them.

    Memory holds the samples and their outputs, and does not grow with what is judged.

    Args:
        model: The prepared float model.
        batches: The evaluation samples.
        metric: The metric for labelled samples.
        judge: The output that ``top1`` is taken of; found when None.
        state: Input by output that is fed back; batches are then steps of one sequence.
        threads: Threads inside an operator.
        provider: Where models run.

    Attributes:
        batches: The evaluation samples, as given.
        samples: How many samples there are.
        threads: Threads inside an operator.
        provider: Where models run.
        state: Input by output that is fed back.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        metric: MetricChoice | None = None,
        judge: str | None = None,
        state: Mapping[str, str] | None = None,
        threads: int = 1,
        provider: Provider = CPU,
    ) -> None:
        self.batches = tuple(batches)
        self.samples = sum(batch.count for batch in self.batches)
        self._metric, self._judge = metric or MetricChoice(), judge
        self.state, self.threads, self.provider = dict(state or {}), threads, provider
        self._model: Model | None = model

    def few(self, samples: int) -> Evaluator:
        """An evaluator of some of the samples, taken evenly from all batches.

        Of a sequence they are the first ones. Batches whose size the model fixes stay whole.
        """
        if self.samples <= samples:
            return self
        assert self._model is not None
        view = self._model.view()
        each = max(1, samples // len(self.batches))
        step = 1 if self.stateful else max(1, len(self.batches) // samples)
        chosen: list[Batch] = []
        for batch in self.batches[::step]:
            if sum(one.count for one in chosen) < samples:
                chosen.append(batch if self.stateful else rows_of(view, batch, range(each)))
        return self._of(self._model, chosen)

    def inside(self, ranges: Mapping[str, TensorRange]) -> Evaluator:
        """An evaluator of the samples that lie inside of ranges of inputs.

        It has all of them where they are the steps of a sequence, and where those outside are more
        than a few. A batch that cannot be divided stays whole if any of its samples lies inside.
        """
        assert self._model is not None
        if self.stateful or not ranges:
            return self
        view = self._model.view()
        inside = ((batch, _rows_inside(batch, ranges)) for batch in self.batches)
        found = self._of(
            self._model, [rows_of(view, batch, rows) for batch, rows in inside if rows]
        )
        return found if found.samples >= (1 - _FEW) * self.samples else self

    def _of(self, model: Model, batches: Sequence[Batch]) -> Evaluator:
        return Evaluator(
            model,
            batches,
            metric=self._metric,
            judge=self._judge,
            state=self.state,
            threads=self.threads,
            provider=self.provider,
        )

    @property
    def metric_name(self) -> str:
        """Name of the metric, whether samples have labels or not."""
        return self._metric.name

    def __getstate__(self) -> dict[str, object]:
        """For a worker process: the float model's answers instead of the model."""
        expected = self.expected
        return {**self.__dict__, "_model": None, "expected": expected}

    @cached_property
    def expected(self) -> tuple[Outputs, ...]:
        """What the float model answers, batch by batch; it runs when this is first asked for.

        Raises:
            RuntimeFailure: It fails on a sample.
        """
        assert self._model is not None
        return tuple(self.answers(self._model))

    @property
    def stateful(self) -> bool:
        """Whether samples are the steps of a sequence whose states are fed back."""
        return bool(self.state)

    def answers(self, model: Model, *, fuse_pairs: bool = True) -> Iterable[Outputs]:
        """What a model answers, batch by batch; its states, if any, are fed back."""
        session = Session(
            model, provider=self.provider, threads=self.threads, fuse_pairs=fuse_pairs
        )
        view = model.view()
        loop = StateLoop(self.state, view.inputs, view.output_names)
        for batch in self.batches:
            outputs = session.run(loop.complete(batch.feed))
            loop.keep(outputs)
            yield outputs

    def loss(self, model: Model, *, fuse_pairs: bool = True) -> Loss:
        """What a model with the same inputs and outputs loses; see ``Session`` for the option."""
        return self.judge(self.answers(model, fuse_pairs=fuse_pairs))

    def judge(self, found: Iterable[Outputs]) -> Loss:
        """What answers lose that were computed elsewhere, batch by batch in order."""
        comparison, judging = Comparison(), Judging(self._metric, self._judge)
        divergence: dict[str, list[float]] = {}
        for batch, expected, outputs in zip(self.batches, self.expected, found, strict=True):
            comparison.add(batch.feed, expected, outputs, batch.count)
            if batch.labels is not None:
                judging.update(batch.feed, batch.labels, expected, outputs)
            for name in scores_outputs(expected, batch.feed):
                rows = kl_divergence(expected[name], outputs[name])
                divergence.setdefault(name, []).extend(rows.tolist())
        facts = comparison.facts().values()
        metric = judging.facts(self.samples)
        ratios = [f.sqnr_db for f in facts if f.sqnr_db is not None]
        # an output of integers is an answer itself: the class, the tokens
        answers = (f.top1_agreement if f.equal is None else f.equal for f in facts)
        agreements = [share for share in answers if share is not None]
        return Loss(
            sqnr_db=min(ratios, default=None),
            kl=max((float(np.mean(rows)) for rows in divergence.values()), default=None),
            agreement=min(agreements, default=None),
            metric=metric.output if metric is not None else None,
            typical_db=comparison.typical_db(),
        )

    @cached_property
    def floating(self) -> Loss:
        """What the float model itself loses: nothing, but it shows what can be measured."""
        return self.judge(self.expected)

    def float_metric(self) -> float | None:
        """The metric of the float model itself; None without labels."""
        return self.floating.metric


def rows_of(view: GraphView, batch: Batch, rows: Sequence[int]) -> Batch:
    """Some samples of a batch; all of it where they cannot be told apart."""
    free = all(spec.shape and not isinstance(spec.shape[0], int) for spec in view.inputs)
    rows = [row for row in rows if row < batch.count]
    if len(rows) == batch.count or not (free and _by_row(batch)):
        return batch
    feed = {name: array[rows] for name, array in batch.feed.items()}
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(feed, labels, len(rows), batch.numbers[rows])


def _by_row(batch: Batch) -> bool:
    return all(array.shape[:1] == (batch.count,) for array in batch.feed.values())


def _rows_inside(batch: Batch, ranges: Mapping[str, TensorRange]) -> list[int]:
    """The samples of a batch with no value far outside of the ranges of inputs."""
    inside = np.ones(batch.count, bool)
    for name in ranges if _by_row(batch) else ():
        values: NDArray[Any] = batch.feed[name].reshape(batch.count, -1)
        lo, hi = ranges[name].lo, ranges[name].hi
        beyond = _BEYOND * (hi - lo)
        inside &= ((values >= lo - beyond) & (values <= hi + beyond)).all(1)
    return np.flatnonzero(inside).tolist()


def kl_divergence(expected: Array, found: Array) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of every row, in nats.

    Args:
        expected: Scores or probabilities, float, of shape (samples, classes).
        found: The same of another model.

    Returns:
        float64 of shape (samples,): ``sum p log(p / q)``, with p of ``expected``.
    """
    log_p, log_q = _log_probabilities(expected), _log_probabilities(found)
    divergence: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return np.maximum(divergence, 0.0)


def _log_probabilities(scores: Array) -> NDArray[np.float64]:
    values: NDArray[np.float64] = scores.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(1), 1.0, atol=1e-2):
        values = np.log(np.maximum(values, 1e-12))
    shifted = values - values.max(1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
