"""``analyze``: what every layer costs when it is quantized."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from onnxq.calibrate import Workers
from onnxq.data.sources import update_digest
from onnxq.graph import Model, sha256
from onnxq.ops import Census
from onnxq.plan import Recipe
from onnxq.runtime import environment
from onnxq.sensitivity.evaluate import Evaluator
from onnxq.sensitivity.facts import LayerFacts, facts_of, look
from onnxq.sensitivity.frontier import Part, build
from onnxq.sensitivity.journal import Journal
from onnxq.sensitivity.plans import Subject
from onnxq.sensitivity.spread import run
from onnxq.sensitivity.values import LayerSensitivity, Loss, SensitivityReport
from onnxq.sensitivity.work import Work, finding
from onnxq.targets import Target
from onnxq.types import Precision, TensorRange

# Bytes of activations that are kept at a time.
KEPT_BYTES = 512_000_000
# Samples of a screen. It runs every layer through to the outputs, on fewer samples and without the
# parts of layers: what 96 of 256 samples lose ranks int8 layers of the shipped models with a median
# Spearman correlation of 0.95 to 1.0 with what all lose, and above 0.8 in nine of ten draws (32
# samples: medians of 0.81 to 0.94). The noise at the outputs of the layers themselves ranks badly,
# on networks of convolutions with -0.1 to 0.5, and so does that 1 to 8 nodes later (0.3 to 0.8).
# Gains that are measured node by node on the noise of the wholly quantized model do not tell either
# (0.0 on residual networks): one layer's noise fades otherwise than the sum of all.
SCREEN_SAMPLES = 96

Method = Literal["exact", "screen"]
# stage, done, total
Progress = Callable[[str, int, int], None]
_WEIGHTS = (Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS)


def analyze(
    model: Model,
    census: Census,
    ranges: Mapping[str, TensorRange],
    recipe: Recipe,
    target: Target,
    evaluator: Evaluator,
    precisions: Sequence[Precision],
    *,
    method: Method = "exact",
    rest: bool = True,
    layers: Collection[str] | None = None,
    latency: Mapping[str, tuple[float | None, float | None]] | None = None,
    source: Model | None = None,
    workers: Workers | None = None,
    journal: Path | None = None,
    kept_bytes: int = KEPT_BYTES,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measure what every layer costs in accuracy.

    A layer is a node that the whole plan of a precision gives that precision to, together with the
    Relu or Clip that vanishes into it.

    Args:
        model: The prepared float model; of an opset that can say what the precisions need
            (``needed_opset(recipe_for(recipe, precision))``).
        census: What ``classify`` said of it.
        ranges: Observed ranges by tensor; needed for static precisions.
        recipe: What is wanted of each node; the layers that it keeps float are no layers here.
        target: The provider to plan for.
        evaluator: The samples, and what the float model makes of them.
        precisions: What to try.
        method: ``exact``, or ``screen``: the same for each layer alone and as a whole, on at most
            ``SCREEN_SAMPLES`` of the samples.
        rest: Whether to measure also what is lost when every layer but one is quantized; never for
            a screen.
        layers: Names of the layers to look at; all if None.
        latency: Milliseconds of layers in float and quantized, by name.
        source: The model as given, for the report; ``model`` when None.
        workers: Who runs it; this process when None. The findings do not depend on it.
        journal: A file that findings are added to as they come. One of the same run that is there
            is continued; a complete one is only read. It stays.
        kept_bytes: The most bytes of activations to keep between two layers.
        progress: Called with (``sensitivity``, done, total).

    Returns:
        The report, without a Pareto front.

    Raises:
        RuntimeFailure: ONNX Runtime fails, or a worker dies.
        UsageError: A pattern of the recipe matches no node, or the metric cannot be sent to
            workers.
        OutputError: The journal cannot be written.
    """
    subject = Subject(model.view(), census, ranges, recipe, target)
    screen = method == "screen"
    if screen:
        evaluator = evaluator.few(SCREEN_SAMPLES)
    work = Work(subject, precisions, screen=screen, rest=rest, wanted=layers)
    data = _data_digest(evaluator)
    key = _key(subject, model, work, data, evaluator, method, kept_bytes)
    book = _Book(Journal(journal, key), work, progress)
    if not book.complete:
        _measure(model, work, evaluator, book, workers or Workers(), kept_bytes)
    facts = book.journal.get("facts", dict[str, LayerFacts])
    metric = book.journal.get("metric", float | None)
    given = source or model
    return SensitivityReport(
        model=str(given.path or ""),
        sha256=sha256(given),
        data=data,
        method=method,
        samples=evaluator.samples,
        metric=evaluator.metric_name if metric is not None else None,
        float_metric=metric,
        layers=_layers(work, book, facts, latency or {}),
        everything={p.value: book.loss(_whole(p)) for p in work.plans},
        weight_histograms={n: f.weights for n, f in facts.items() if f.weights},
        activation_histograms={n: f.activations for n, f in facts.items() if f.activations},
        environment=environment(evaluator.provider),
        notes=_notes(work, evaluator),
    )


class _Book:
    """What is found, and what is still to be found."""

    def __init__(self, journal: Journal, work: Work, progress: Progress | None) -> None:
        self.journal, self._progress = journal, progress
        self._wanted = ["metric", "facts", *map(_whole, work.plans), *work.findings()]
        self._tell()

    @property
    def complete(self) -> bool:
        return all(name in self.journal for name in self._wanted)

    @property
    def done(self) -> frozenset[str]:
        """Names of what is found."""
        return frozenset(name for name in self._wanted if name in self.journal)

    def loss(self, name: str) -> Loss:
        """A loss that was found."""
        found: Loss = self.journal.get(name, Loss)
        return found

    def loss_or_none(self, name: str) -> Loss | None:
        """A loss; None where it is not among what is wanted."""
        return self.loss(name) if name in self.journal else None

    def put(self, name: str, value: object) -> None:
        """Write a finding down."""
        self.journal.put(name, value)
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress("sensitivity", len(self.done), len(self._wanted))


def _measure(
    model: Model,
    work: Work,
    evaluator: Evaluator,
    book: _Book,
    workers: Workers,
    kept_bytes: int,
) -> None:
    """Find what is not in the book."""
    sight = look(model, evaluator)
    if "metric" not in book.done:
        book.put("metric", evaluator.float_metric())
    if "facts" not in book.done:
        book.put("facts", facts_of(model, work.names, sight, evaluator))
    for precision, plan in work.plans.items():
        if _whole(precision) not in book.done:
            book.put(_whole(precision), evaluator.loss(build(model, plan)))
    budget = kept_bytes * sight.samples // evaluator.samples
    rolls = work.rolls(model, evaluator.expected[0], sight, book.done, budget)
    for variant, loss in run(model, rolls, evaluator, workers):
        book.put(finding(variant.precision, variant.part, variant.layer), loss)


def _whole(precision: Precision) -> str:
    return f"{precision} everything"


def _layers(
    work: Work,
    book: _Book,
    facts: Mapping[str, LayerFacts],
    latency: Mapping[str, tuple[float | None, float | None]],
) -> tuple[LayerSensitivity, ...]:
    """All layers at all precisions, the most sensitive first."""
    found = []
    for precision, names in work.layers.items():
        for name in names:
            only = book.loss(finding(precision, Part.ONLY, name))
            weights, activations, rest = (
                book.loss_or_none(finding(precision, part, name))
                for part in (Part.WEIGHTS, Part.ACTIVATIONS, Part.REST)
            )
            if precision in _WEIGHTS:
                weights = only
            elif precision.static and weights is None:
                activations = only
            float_ms, quantized_ms = latency.get(name, (None, None))
            node = facts[name]
            found.append(
                LayerSensitivity(
                    name, node.op, precision, only, weights, activations, rest,
                    float_ms, quantized_ms, node.parameters, node.macs,
                )
            )  # fmt: skip
    return tuple(sorted(found, key=severity))


def _notes(work: Work, evaluator: Evaluator) -> tuple[str, ...]:
    notes = [
        f"no layer can compute as {precision}"
        for precision, layers in work.layers.items()
        if not layers
    ]
    if evaluator.stateful:
        notes.append(
            "states are fed back from sample to sample, so that no activations can be kept: the "
            "whole model ran for every layer"
        )
    return tuple(notes)


def _data_digest(evaluator: Evaluator) -> str:
    digest = hashlib.sha256()
    for batch in evaluator.batches:
        for name in sorted(batch.feed):
            update_digest(digest, name, batch.feed[name])
        if batch.labels is not None:
            update_digest(digest, "labels", batch.labels)
    return digest.hexdigest()


def _key(
    subject: Subject,
    model: Model,
    work: Work,
    data: str,
    evaluator: Evaluator,
    method: str,
    kept_bytes: int,
) -> str:
    """Names a run: the same key, the same findings."""
    versions = environment()
    parts = (
        versions["onnxq"],
        versions["onnxruntime"],
        sha256(model),
        data,
        subject.recipe.digest(),
        subject.target.name,
        msgspec.json.encode(dict(subject.ranges), order="sorted"),
        [precision.value for precision in work.plans],
        work.findings(),
        evaluator.metric_name,
        sorted(evaluator.state.items()),
        method,
        kept_bytes,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def severity(layer: LayerSensitivity) -> tuple[float, float, float, str]:
    """What layers are sorted by: the noise at the outputs, or else divergence or the metric."""
    loss = layer.only
    sqnr, metric = (math.inf if x is None else x for x in (loss.sqnr_db, loss.metric))
    return sqnr, -(loss.kl or 0.0), metric, layer.name
