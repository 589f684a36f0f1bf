"""``compare_models`` and ``diff_receipts``: two models side by side, and two receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.api.backends import settled
from onnxq.api.job import Job, Progress, make_job, with_metric, with_test_data
from onnxq.api.replay import load_receipt
from onnxq.api.stages import draw, open_reader
from onnxq.data import Data, Reader
from onnxq.errors import ModelError, RuntimeFailure, UsageError
from onnxq.graph import (
    GraphView,
    Model,
    encoded_size,
    files_of,
    load,
    normalize,
    restore_identity,
    sha256,
)
from onnxq.numerics import ErrorSums
from onnxq.plan import QuantPlan, Recipe
from onnxq.runtime import Session, StateLoop, environment, measure_models, prepare
from onnxq.targets import Provider
from onnxq.types import Feed, TensorSpec
from onnxq.verify import (
    Changes,
    Comparison,
    FileFacts,
    Growth,
    Judging,
    MetricChoice,
    ModelComparison,
    Receipt,
    Run,
    Speed,
    changes_of,
    compare_layers,
    load_metric,
    placement_notes,
    scores_outputs,
)

# Layers are compared on this many of the samples: noise is much alike from sample to sample.
LAYER_SAMPLES = 64


@dataclass(frozen=True)
class Comparing:
    """What is wanted of a comparison, beside the job.

    Attributes:
        samples: The most samples to compare on; all if None.
        seconds: About how long to measure latency; 0 leaves it out.
        layers: Whether to tell where the error enters.
        metric: A metric that is a function; the job's if None.
    """

    samples: int | None = None
    seconds: float = 5.0
    layers: bool = True
    metric: MetricChoice | None = None


def compare_models(
    reference: str | Path | Model,
    other: str | Path | Model,
    data: Data | None = None,
    metric: str | Callable[..., float] | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    samples: int | None = None,
    seconds: float = 5.0,
    layers: bool = True,
    seed: int = 0,
    provider: Provider | None = None,
    progress: Progress | None = None,
) -> ModelComparison:
    """Compare a model with another form of it, whichever tool made that.

    Args:
        reference: A path, or a model that was loaded: what the other is held against.
        other: The other form, with the same inputs.
        data: Samples, in any form that ``onnxq.data.open_data`` takes; the recipe's if None.
        metric: ``top1``, ``module:function``, or a function of your own: it takes outputs by name
            and labels, over all samples. Used where samples have labels. The recipe's if None.
        recipe: Says how data are read: preprocessing, batch size, threads, states. A recipe, the
            path of one, or ``preset:NAME``; without it, the one beside the reference, if any.
        samples: The most samples to compare on, drawn at random; all if None.
        seconds: About how long to measure latency; 0 leaves it out.
        layers: Whether to tell where the error enters and how it grows.
        seed: Draws the samples.
        provider: Where both models run; the recipe's if None.
        progress: Called with (stage, done, total).

    Raises:
        UsageError: The models do not read the same inputs, or do not make the same outputs.
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> found = onnxq.compare_models("m.onnx", "m.int8.onnx", "samples.npz")  # doctest: +SKIP
        >>> found.growth.worst.node, found.growth.worst.new_db  # doctest: +SKIP
        ('/features/conv3/Conv', 14.2)
    """
    path = reference.path if isinstance(reference, Model) else Path(reference)
    job = replace(make_job(path, recipe), seed=seed, progress=progress)
    if provider is not None:
        job = replace(job, recipe=with_fields(job.recipe, provider=provider))
    job = with_test_data(job, data) if data is not None else job
    choice = None
    if isinstance(metric, str):
        job = with_metric(job, metric)
    elif metric is not None:
        choice = MetricChoice(getattr(metric, "__name__", "metric"), metric)
    return run_comparison(reference, other, job, Comparing(samples, seconds, layers, choice))


def run_comparison(
    reference: str | Path | Model, other: str | Path | Model, job: Job, wanted: Comparing
) -> ModelComparison:
    """Run a job as a comparison; see ``compare_models``.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    first, second = (m if isinstance(m, Model) else load(m) for m in (reference, other))
    job = settled(job, first)
    recipe, named = job.recipe, job.metric_from
    metric = wanted.metric or load_metric(
        recipe.verify.metric, allow_code=named.allow_code, base=named.base
    )
    reader = _reader(job, _shared_inputs(first, second))
    if wanted.samples is not None:
        reader = draw(reader, wanted.samples, recipe, job.seed)
    judged = _judge(first, second, reader, job, metric)
    speed = None
    if wanted.seconds > 0:
        speed = _speed((first, second), judged.feed, job, wanted.seconds)
    growth, notes = None, judged.notes
    if wanted.layers:
        try:
            growth = _growth(first, second, draw(reader, LAYER_SAMPLES, recipe, job.seed), job)
        except (RuntimeFailure, ModelError) as error:
            notes += (f"layers were not compared: {error}",)
    return ModelComparison(
        reference=_facts(first),
        other=_facts(second),
        data=reader.digest(),
        samples=judged.comparison.samples,
        outputs=judged.comparison.facts(),
        max_errors=judged.max_errors(),
        metric=judged.judging.facts(judged.comparison.samples),
        speed=speed,
        growth=growth,
        environment=environment(recipe.provider),
        notes=notes,
    )


def diff_receipts(
    before: str | Path | Receipt | QuantPlan, after: str | Path | Receipt | QuantPlan
) -> Changes:
    """What changed from one receipt to another.

    Args:
        before: A receipt, a plan, or the path of either.
        after: The other one.

    Raises:
        UnusableError: A file cannot be read, or holds something else.
    """
    return changes_of(_plan_or_receipt(before), _plan_or_receipt(after))


def _plan_or_receipt(given: str | Path | Receipt | QuantPlan) -> Receipt | QuantPlan:
    if isinstance(given, Receipt | QuantPlan):
        return given
    try:  # what `onnxq quantize --dry-run --json` prints
        return msgspec.json.decode(Path(given).read_bytes(), type=QuantPlan)
    except (OSError, msgspec.DecodeError, RecursionError):
        return load_receipt(given)


def _shared_inputs(first: Model, second: Model) -> tuple[TensorSpec, ...]:
    """What both models read: with the sizes that either of them fixes.

    Raises:
        UsageError: They read different things.
    """
    ones, others = ({s.name: s for s in model.view().inputs} for model in (first, second))
    one_name, other_name = _names(first, second)
    if set(ones) != set(others):
        raise UsageError(
            f"{other_name} reads {', '.join(sorted(others))}, and {one_name} reads "
            f"{', '.join(sorted(ones))}",
            "compare forms of one model",
        )
    found = []
    for name, one in ones.items():
        shapes = one.shape, others[name].shape
        if one.dtype != others[name].dtype or not _compatible(*shapes):
            raise UsageError(
                f"input '{name}' is {_kind(others[name])} in {other_name}, and {_kind(one)} in "
                f"{one_name}",
                "compare forms of one model",
            )
        known = zip(*shapes, strict=True) if None not in shapes else ()  # type: ignore[arg-type]
        fixed = tuple(b if isinstance(b, int) else a for a, b in known)
        found.append(with_fields(one, shape=fixed if fixed else shapes[0] or shapes[1]))
    return tuple(found)


Shape = tuple[int | str | None, ...] | None


def _compatible(one: Shape, other: Shape) -> bool:
    if one is None or other is None:
        return True
    pairs = zip(one, other, strict=False)
    clash = any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return len(one) == len(other) and not clash


def _kind(spec: TensorSpec) -> str:
    axes = "x".join("?" if axis is None else str(axis) for axis in spec.shape or ())
    return f"{spec.dtype} {axes}".strip()


def _reader(job: Job, inputs: tuple[TensorSpec, ...]) -> Reader:
    if job.testing_data is not None:
        return open_reader(job.testing_data, job.test_from, inputs, job.recipe)
    if job.calibration_data is not None:
        return open_reader(job.calibration_data, job.data_from, inputs, job.recipe)
    raise UsageError("there are no samples to compare on", "give --data")


class _Judged:
    """What both models made of all samples, and what a reader must know of their sessions."""

    def __init__(self, judging: Judging, notes: tuple[str, ...]) -> None:
        self.comparison, self.judging, self._notes = Comparison(), judging, notes
        self._errors: dict[str, ErrorSums] = {}
        self.feed: Feed = {}

    def add(self, feed: Feed, expected: Feed, found: Feed) -> None:
        """Take in what the comparison does not: the first feed, and the largest errors."""
        self.feed = self.feed or feed
        for name, value in expected.items():
            if np.issubdtype(value.dtype, np.floating) and value.shape == found[name].shape:
                self._errors.setdefault(name, ErrorSums()).add(value, found[name])

    def max_errors(self) -> dict[str, float | None]:
        """JSON has no infinity: None stands for it."""
        errors = {name: sums.max_abs_error for name, sums in self._errors.items()}
        return {name: error if np.isfinite(error) else None for name, error in errors.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes + self.judging.notes + self.comparison.notes()


def _judge(first: Model, second: Model, reader: Reader, job: Job, metric: MetricChoice) -> _Judged:
    recipe, models = job.recipe, (first, second)
    provider, threads = recipe.provider, recipe.verify.threads
    sessions = [Session(model, provider=provider, threads=threads) for model in models]
    wanted = [spec.name for spec in sessions[0].outputs]
    one_name, other_name = _names(first, second)
    if missing := [name for name in wanted if name not in second.view().output_names]:
        raise UsageError(
            f"{other_name} has no output '{missing[0]}', which {one_name} has",
            "compare forms of one model",
        )
    views = [model.view() for model in models]
    loops = [StateLoop(recipe.data.state, view.inputs, view.output_names) for view in views]
    judging = Judging(metric, recipe.verify.output)
    notes: tuple[str, ...] = ()
    if not provider.is_cpu:
        notes = (f"both models ran on {provider.name}",)
    names = ("the first model", "the second model")
    notes += placement_notes(dict(zip(names, sessions, strict=True)), provider)
    notes += tuple(
        f"output '{spec.name}' is not compared: the second model alone has it"
        for spec in sessions[1].outputs
        if spec.name not in wanted
    )
    judged = _Judged(judging, notes)
    for batch in reader.batches(1 if recipe.data.state else recipe.data.batch_size):
        feeds = [loop.complete(batch.feed) for loop in loops]
        expected, found = (session.run(feed) for session, feed in zip(sessions, feeds, strict=True))
        for loop, outputs in zip(loops, (expected, found), strict=True):
            loop.keep(outputs)
        judged.add(feeds[0], expected, found)
        judged.comparison.add(batch.feed, expected, found, batch.count)
        if batch.labels is not None:
            if metric.function is None:  # a function may take outputs whose size depends on values
                named = recipe.verify.output
                scores = [named] if named else scores_outputs(expected, batch.feed)
                _require_same_shapes(first, second, scores, expected, found)
            judging.update(batch.feed, batch.labels, expected, found)
        if job.progress is not None:
            job.progress("outputs", judged.comparison.samples, reader.size)
    return judged


def _require_same_shapes(
    first: Model, second: Model, names: Iterable[str], expected: Feed, found: Feed
) -> None:
    """Labels are held against rows of scores, which both models have to make alike.

    Raises:
        UsageError: An output has another shape in the second model.
    """
    one_name, other_name = _names(first, second)
    for name in names:
        if name in expected and found[name].shape != expected[name].shape:
            raise UsageError(
                f"output '{name}' is {found[name].shape} in {other_name}, and "
                f"{expected[name].shape} in {one_name}",
                "compare forms of one model",
            )


def _speed(models: tuple[Model, Model], feed: Feed, job: Job, seconds: float) -> Speed:
    threads = job.recipe.verify.threads
    shown = partial(job.progress, "latency") if job.progress is not None else None
    found = measure_models(
        models, feed, provider=job.recipe.provider, threads=threads, seconds=seconds, progress=shown
    )
    first = next(iter(feed.values()), np.zeros(1))
    return Speed(
        found.ms[0], found.ms[1], found.ratio(0, 1), found.noise(0, 1), found.rounds,
        int(first.shape[0]) if first.ndim else 1, threads,
    )  # fmt: skip


def _growth(first: Model, second: Model, reader: Reader, job: Job) -> Growth:
    normal = normalize(first, first.opset)
    run = Run(
        job.recipe.data.batch_size,
        job.recipe.verify.threads,
        job.recipe.data.state,
        partial(job.progress, "layers") if job.progress is not None else None,
        job.recipe.provider,
    )
    reference = restore_identity(normal.copy(), normal)
    found = compare_layers(reference, second, reader, run)
    cut = _without_dead_channels(first, reference) if found.unmatched else None
    if cut is None:
        return found
    return min(found, compare_layers(cut, second, reader, run), key=lambda made: made.unmatched)


def _without_dead_channels(first: Model, reference: Model) -> Model | None:
    """What ``quantize`` made of a model that has channels to lose; None where it has none."""
    try:
        prepared = prepare(first)
    except (ModelError, RuntimeFailure):
        return None
    return prepared if _has_lost_channels(reference.view(), prepared.view()) else None


def _has_lost_channels(first: GraphView, second: GraphView) -> bool:
    """Whether tensors of the second model have fewer channels than in the first."""
    for tensor in (tensor for node in second.nodes for tensor in node.outputs):
        before, after = (view.shape(tensor) or () for view in (first, second))
        if len(before) == len(after) > 1:
            count, left = before[1], after[1]
            if isinstance(count, int) and isinstance(left, int) and left < count:
                return True
    return False


def _facts(model: Model) -> FileFacts:
    size = sum(file.stat().st_size for file in files_of(model)) or encoded_size(model)
    return FileFacts(str(model.path or ""), sha256(model), size)


def _names(first: Model, second: Model) -> tuple[str, str]:
    """What messages call the models by."""
    one, other = (f"'{model.path}'" if model.path else "" for model in (first, second))
    return one or "the first model", other or "the second model"
