"""``analyze_sensitivity``: what every layer costs in accuracy and in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.api.backends import settled
from onnxq.api.job import Job, Progress, make_job, with_data, with_metric, with_test_data
from onnxq.api.shelf import Shelf
from onnxq.api.stages import Draft, draft, draw, open_reader, usual_precision
from onnxq.calibrate import Workers
from onnxq.data import Data
from onnxq.errors import UsageError, nearest
from onnxq.graph import Model, load, sha256
from onnxq.ops import refuse_quantized
from onnxq.plan import Recipe, needed_opset
from onnxq.runtime import StateLoop, default_target, environment, prepare
from onnxq.sensitivity import Evaluator, SensitivityReport, analyze, recipe_for
from onnxq.sensitivity.analyze import Method
from onnxq.sensitivity.costs import measure_times
from onnxq.sensitivity.front import Stopwatch, measured_front
from onnxq.sensitivity.maker import Maker
from onnxq.sensitivity.plans import Subject
from onnxq.targets import get_target
from onnxq.types import Precision
from onnxq.verify import MetricChoice, load_metric

# Evaluation samples: every layer is run on them, and noise is much alike from sample to sample.
SAMPLES = 64


@dataclass(frozen=True)
class Analysis:
    """What is wanted of an analysis, beside the job.

    Attributes:
        precisions: What to try; the job's usual one if empty.
        method: ``exact`` or ``screen``.
        samples: The most samples to judge with.
        metric: A metric that is a function; the job's if None.
        cache: A folder to keep findings in; nothing is kept if None.
        fresh: Whether to measure anew what lies there.
    """

    precisions: tuple[Precision, ...] = ()
    method: Method = "exact"
    samples: int = SAMPLES
    metric: MetricChoice | None = None
    cache: Path | None = None
    fresh: bool = False


def analyze_sensitivity(
    model: str | Path | Model,
    data: Data | None = None,
    metric: str | Callable[..., float] | None = None,
    *,
    test_data: Data | None = None,
    recipe: Recipe | str | Path | None = None,
    precisions: Sequence[Precision | str] = (),
    method: Method = "exact",
    samples: int = SAMPLES,
    workers: Workers | None = None,
    cache: str | Path | None = None,
    fresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measure what every layer costs when it is quantized.

    Args:
        model: A path, or a model that was loaded.
        data: Calibration data, in any form that ``onnxq.data.open_data`` takes; the recipe's if
            None. The tail is held back to judge with, unless there are test data.
        metric: ``top1``, ``module:function``, or a function of your own: it takes outputs by name
            and labels, over all samples, and returns a number that is higher where it is better.
            Used where samples have labels. The recipe's if None.
        test_data: Test data, in the same forms.
        recipe: A recipe, the path of one, or ``preset:NAME``; without it, the one beside the
            model, if any. Layers that it keeps float are left out.
        precisions: What to try, such as ``["int8", "int4-weights"]``; the recipe's if empty.
        method: ``exact`` runs every layer through to the outputs, alone quantized and alone float,
            and its parts; ``screen`` runs it alone as a whole, on fewer samples.
        samples: The most samples to judge with, drawn at random.
        workers: Who runs it; this process alone if None. A function of your own then has to be
            one that can be pickled.
        cache: A folder to keep findings in: a killed run goes on where it stopped, and the same
            call again is answered at once. The command line uses ``onnxq.runtime.cache_folder()``.
        fresh: Measure anew what lies there.
        seed: Draws the samples.
        progress: Called with (stage, done, total).

    Returns:
        One entry per layer and precision, the most sensitive first; and where latency is
        measured, the Pareto front of latency against accuracy.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> found = onnxq.analyze_sensitivity("model.onnx", "samples.npz")  # doctest: +SKIP
        >>> found.layers[0].name, found.layers[0].only.sqnr_db  # doctest: +SKIP
        ('/stem/conv', 21.4)
    """
    path = model.path if isinstance(model, Model) else Path(model)
    job = replace(
        make_job(path, recipe), seed=seed, progress=progress, workers=workers or Workers()
    )
    job = with_data(job, data) if data is not None else job
    job = with_test_data(job, test_data) if test_data is not None else job
    choice = None
    if isinstance(metric, str):
        job = with_metric(job, metric)
    elif metric is not None:
        choice = MetricChoice(getattr(metric, "__name__", "metric"), metric)
    wanted = Analysis(
        tuple(known_precision(p) for p in precisions), method, samples, choice,
        Path(cache) if cache is not None else None, fresh,
    )  # fmt: skip
    return run_sensitivity(model, job, wanted)


def known_precision(name: str) -> Precision:
    """A precision that layers can be tried in, by its name.

    Raises:
        UsageError: There is none of this name.
    """
    tried = [precision.value for precision in Precision if precision is not Precision.FLOAT]
    if name not in tried:
        raise UsageError(f"layers cannot be tried in precision '{name}'", nearest(name, tried))
    return Precision(name)


def run_sensitivity(
    model: str | Path | Model, job: Job, wanted: Analysis | None = None
) -> SensitivityReport:
    """Run a job as an analysis; see ``analyze_sensitivity``.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    source = model if isinstance(model, Model) else load(model)
    refuse_quantized(source)
    wanted, job = wanted or Analysis(), settled(job, source)
    precisions = tuple(dict.fromkeys(wanted.precisions)) or (usual_precision(job),)
    wanted, job = replace(wanted, precisions=precisions), _job_for(job, precisions)
    named = job.metric_from
    metric = wanted.metric or load_metric(
        job.recipe.verify.metric, allow_code=named.allow_code, base=named.base
    )
    shelf = _shelf(source, job, wanted, metric)
    known = shelf.get(SensitivityReport) if shelf is not None else None
    if known is None:
        journal = shelf.journal if shelf is not None else None
        known = _measure(_draft(source, job, precisions), job, wanted, metric, journal)
        if shelf is not None:
            shelf.put(known)
    return with_fields(known, model=str(source.path or ""))


def _job_for(job: Job, precisions: tuple[Precision, ...]) -> Job:
    """The job that finds what all precisions need: ranges, if one is static."""
    target = get_target(job.recipe.target or default_target())
    static = [precision for precision in precisions if precision.static]
    if len(static) > 1:
        raise UsageError(
            f"{static[0]} and {static[1]} choose ranges for different widths", "try one at a time"
        )
    for precision in precisions:
        if why := target.refuses.get(precision):
            raise UsageError(f"precision {precision} is a loss on target {target.name}: {why}")
    base = static[0] if static else precisions[0]
    return replace(job, recipe=with_fields(job.recipe, precision=base.value, target=target.name))


def _draft(source: Model, job: Job, precisions: tuple[Precision, ...]) -> Draft:
    """Prepare and calibrate once, at an opset that can say all precisions."""
    opset = max(needed_opset(recipe_for(job.recipe, precision)) for precision in precisions)
    if opset <= max(source.opset, needed_opset(job.recipe)):
        return draft(source, job)
    target = get_target(job.recipe.target or default_target())
    raised = draft(prepare(source, opset=opset, target=target), replace(job, prepare=False))
    return replace(raised, source=source)


def _measure(
    drafted: Draft, job: Job, wanted: Analysis, metric: MetricChoice, journal: Path | None
) -> SensitivityReport:
    recipe, model = drafted.recipe, drafted.prepared
    if drafted.test is None:
        raise UsageError("there are no samples to judge layers with", "give --data or --test-data")
    reader = draw(drafted.test, wanted.samples, recipe, job.seed)
    evaluator = Evaluator(
        model,
        list(reader.batches(recipe.data.batch_size)),
        metric=metric,
        judge=recipe.verify.output,
        state=recipe.data.state,
        threads=recipe.verify.threads,
        provider=recipe.provider,
    )
    target = get_target(recipe.target or default_target())
    ranges = drafted.ranges.tensors
    report = analyze(
        model,
        drafted.census,
        ranges,
        recipe,
        target,
        evaluator,
        wanted.precisions,
        method=wanted.method,
        source=drafted.source,
        workers=job.workers,
        journal=journal,
        progress=job.progress,
    )
    report = with_fields(report, notes=drafted.notes + report.notes)
    if not recipe.verify.seconds:
        return report
    if not recipe.provider.is_cpu or target.provider != recipe.provider.runtime_name:
        note = "times are not known: only the CPU provider tells those of nodes, for its targets"
        return with_fields(report, notes=(*report.notes, note))
    subject = Subject(model.view(), drafted.census, ranges, recipe, target)
    return _timed(report, Maker(model, subject), evaluator, wanted.precisions, job.progress)


def _timed(
    report: SensitivityReport,
    maker: Maker,
    evaluator: Evaluator,
    precisions: tuple[Precision, ...],
    progress: Progress | None,
) -> SensitivityReport:
    """The report with the time of every layer, in float and quantized, and with the front."""
    recipe = maker.subject.recipe
    batch, view = evaluator.batches[0], maker.view
    feed = StateLoop(recipe.data.state, view.inputs, view.output_names).complete(batch.feed)
    plans = {precision: maker.subject.plan(precision) for precision in precisions}
    seconds, threads = recipe.verify.seconds, recipe.verify.threads
    times = measure_times(maker, plans, feed, threads=threads, seconds=seconds)
    layers = tuple(
        with_fields(
            layer,
            float_ms=_ms(times.floating.get(layer.name)),
            quantized_ms=_ms(times.quantized[layer.precision].get(layer.name)),
        )
        for layer in report.layers
    )
    on = "1 thread" if threads == 1 else f"{threads} threads"
    note = f"times are of a run of {batch.count} samples on {on}, profiled on this machine"
    watch = Stopwatch(feed, threads, seconds)
    told = partial(progress, "front") if progress is not None else None
    front = measured_front(maker, evaluator, layers, times, watch, told)
    return with_fields(report, layers=layers, front=front, notes=(*report.notes, note))


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1000


def _shelf(source: Model, job: Job, wanted: Analysis, metric: MetricChoice) -> Shelf | None:
    """Where the run keeps what it finds; None where it keeps nothing."""
    if wanted.cache is None:
        return None
    data = _digests(source, job)
    facts = (
        sha256(source), job.recipe.digest(), data, job.seed, wanted.precisions, wanted.method,
        wanted.samples, metric.name, metric.code, environment(job.recipe.provider),
    )  # fmt: skip
    shelf = Shelf.of(wanted.cache / "sensitivity", facts, certain=data is not None)
    if shelf is not None and wanted.fresh:
        shelf.clear()
    return shelf


def _digests(source: Model, job: Job) -> list[str] | None:
    """What tells the samples apart; None for Python objects, of which some are read only once."""
    named = ((job.calibration_data, job.data_from), (job.testing_data, job.test_from))
    found = []
    for data, origin in named:
        if isinstance(data, str | PathLike):
            reader = open_reader(data, origin, source.view().inputs, job.recipe)
            found.append(reader.digest())
        elif data is not None:
            return None
    return found
