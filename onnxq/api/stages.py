"""The stages up to the plan: load, prepare, classify, calibrate, plan. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.api.backends import settled
from onnxq.api.job import Job, Origin
from onnxq.calibrate import (
    AUTO,
    OBSERVERS,
    Calibration,
    ObserverSpec,
    Ranges,
    Setup,
    calibrate,
    movements,
)
from onnxq.data import Data, Reader, open_data
from onnxq.errors import ModelError, UsageError
from onnxq.graph import Model, load, sha256
from onnxq.ops import Census, classify, refuse_quantized
from onnxq.plan import (
    QuantPlan,
    Reading,
    Recipe,
    make_plan,
    needed_opset,
    readings,
    tensors_to_observe,
)
from onnxq.runtime import StateLoop, default_target, prepare
from onnxq.targets import Pairs, Target, get_target
from onnxq.types import Feed, Grid, Precision, TensorRange, TensorSpec

# Fewer samples than this seldom show a tensor's whole range.
FEW_SAMPLES = 16
# A range that still moved by more than this share of its width deserves a word.
MOVED = 0.1
# The method that leaves outliers out, and the share of a range that they hold at least.
_TRIMMED, _OF_OUTLIERS = "trimmed", 0.5


@dataclass(frozen=True)
class Start:
    """A model that is ready to be calibrated.

    Attributes:
        source: The model as given.
        prepared: The float model that everything is about.
        census: What each node is.
        taps: The tensors that a plan may quantize.
        readings: How the range of each of them is read.
        recipe: What was asked for, complete.
    """

    source: Model
    prepared: Model
    census: Census
    taps: tuple[str, ...]
    readings: dict[str, Reading]
    recipe: Recipe


@dataclass(frozen=True)
class Draft:
    """A run up to its plan: everything is decided, nothing is written.

    Attributes:
        source: The model as given.
        prepared: The float model that the plan is about.
        census: What each node is.
        ranges: What calibration observed; empty for weights alone.
        plan: What becomes of each node.
        recipe: What was asked for, complete.
        calibration: The calibration samples, if any.
        test: The test samples, if any.
        notes: What a reader must know to judge the figures.
        judging: Samples that a search may judge plans by, apart from the test samples; if any.
        trimmed: The ranges without outliers, where these hold most of one; None where they do not,
            or values were not counted.
        leaves_out: Whether ``ranges`` are those without outliers.
    """

    source: Model
    prepared: Model
    census: Census
    ranges: Ranges
    plan: QuantPlan
    recipe: Recipe
    calibration: Reader | None
    test: Reader | None
    notes: tuple[str, ...]
    judging: Reader | None = None
    trimmed: Ranges | None = None
    leaves_out: bool = False


def draft(model: str | Path | Model, job: Job) -> Draft:
    """Load, prepare, classify, calibrate and plan; write nothing.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    source = model if isinstance(model, Model) else load(model)
    refuse_quantized(source)
    job = settled(job, source)
    recipe, notes = _complete(job)
    job = replace(job, recipe=recipe)
    calibration, test, judging, data_notes = _open_readers(job, source.view().inputs)
    start = begin(source, job, calibration or test)
    ranges, trimmed = Ranges(0, {}), None
    if recipe.static:
        # several methods read what is observed once
        counted = bool(recipe.observers() or recipe.budgets.of_accuracy)
        observed = job.ranges or observe(start, calibration, job, keep_histogram=counted)
        found, range_notes = _ranges(start, observed, job)
        ranges, data_notes = found, data_notes + range_notes
        trimmed = _without_outliers(start, observed, ranges)
    target = get_target(recipe.target or default_target())
    plan = make_plan(start.prepared.view(), start.census, ranges.tensors, recipe, target)
    return Draft(
        source, start.prepared, start.census, ranges, plan, recipe, calibration, test,
        notes + data_notes, judging, trimmed,
    )  # fmt: skip


def begin(source: Model, job: Job, samples: Reader | None) -> Start:
    """Prepare and classify; the samples are there to compare the prepared model on.

    Raises:
        ModelError: The opset is too old, and preparing is forbidden.
        UsageError: A pattern of the recipe matches no node.
    """
    recipe = job.recipe
    feed = _first_feed(samples, source, recipe)
    opset = needed_opset(recipe)
    target = get_target(recipe.target or default_target())
    prepared = prepare(source, feed, opset, target) if job.prepare else source
    if prepared.opset < opset:
        raise ModelError(
            f"model '{source.path}' has opset {source.opset}, and what is wanted needs {opset}",
            "leave out --no-prepare",
        )
    view = prepared.view()
    census = classify(view, target)
    # a typo in a pattern fails before the data run
    taps = tensors_to_observe(view, census, recipe)
    return Start(source, prepared, census, taps, readings(view, census, recipe), recipe)


def observe(
    start: Start,
    reader: Reader | None,
    job: Job,
    *,
    earlier: Calibration | None = None,
    keep_histogram: bool = False,
    journal: Path | None = None,
) -> Calibration:
    """Calibrate.

    Args:
        start: The model.
        reader: The samples.
        job: Observer, batch size, workers.
        earlier: What was observed before, to go on from.
        keep_histogram: Whether to count values even where only their ends are wanted.
        journal: A file to keep while the run lasts.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    if reader is None:
        raise UsageError("there are no samples to calibrate with", "give --data")
    recipe, origin = start.recipe, job.observer_from
    observer = observer_of(job)
    observer = with_fields(observer, keep_histogram=keep_histogram)
    model = sha256(start.source)
    if earlier is None:
        earlier = Calibration.empty(
            model, observer, start.taps, exact=recipe.calibration.exact, base=origin.base
        )
    _check_earlier(earlier, model, start)
    if recipe.calibration.exact and not earlier.exact:
        raise UsageError(
            "the ranges to go on from are of a sample of each tensor, and not exact",
            "leave out --exact, or calibrate anew",
        )
    if recipe.calibration.method not in (AUTO, earlier.observer.name):
        earlier = earlier.with_observer(observer)
    for method in recipe.observers():  # what cannot be read fails before the data run
        _read_by(earlier, method, recipe)
    setup = Setup.of(
        start.prepared.view(),
        start.taps,
        earlier.observer,
        base=origin.base,
        exact=earlier.exact,
        state=recipe.data.state,
        threads=recipe.verify.threads,
        provider=recipe.provider,
    )
    return calibrate(
        start.prepared,
        reader,
        setup,
        earlier,
        batch_size=recipe.data.batch_size,
        workers=job.workers,
        journal=journal,
        progress=partial(job.progress, "calibrate") if job.progress is not None else None,
    )


def observer_of(job: Job) -> ObserverSpec:
    """The observer of a job.

    Raises:
        UsageError: It is Python code, and was named where code is not allowed.
    """
    spec = job.recipe.calibration.observer()
    if spec.name not in OBSERVERS and ":" in spec.name and not job.observer_from.allow_code:
        raise UsageError(
            "a recipe that was merely found beside the model may not name Python code "
            f"('{spec.name}')",
            "pass it with --recipe or --calibrator",
        )
    return spec


def open_reader(
    data: Data, origin: Origin, inputs: tuple[TensorSpec, ...], recipe: Recipe
) -> Reader:
    """Open data; states that are fed back need not be in them.

    Raises:
        DataError: The data are unusable.
    """
    return open_data(
        data,
        inputs,
        preprocess=recipe.data.preprocess,
        base=origin.base,
        allow_code=origin.allow_code,
        optional=tuple(recipe.data.state.values()),
    )


def draw(reader: Reader, samples: int, recipe: Recipe, seed: int) -> Reader:
    """The most samples that are wanted: the first where they are steps of a sequence."""
    wanted = max(samples, reader.fixed_batch)
    return reader.take(wanted) if recipe.data.state else reader.sample(wanted, seed)


def usual_precision(job: Job) -> Precision:
    """The recipe's precision; where it says none, the best that the job's data allow."""
    if job.recipe.precision is None and not _has_ranges(job):
        return Precision.INT8_WEIGHTS
    return job.recipe.usual


def _has_ranges(job: Job) -> bool:
    return job.calibration_data is not None or job.ranges is not None


def _complete(job: Job) -> tuple[Recipe, tuple[str, ...]]:
    """Fill in what the recipe leaves open."""
    recipe = with_fields(
        job.recipe,
        target=job.recipe.target or default_target(job.recipe.provider),
        precision=usual_precision(job).value,
    )
    notes = _check_target(recipe)
    if recipe.static and not _has_ranges(job):
        wanted = next(precision for precision in recipe.precisions if precision.static)
        raise UsageError(
            f"precision {wanted} needs samples to find the activations' ranges with",
            "give --data, or use int8-weights or int8-dynamic, which need none",
        )
    if job.recipe.precision is None and not _has_ranges(job):
        note = "no data: only weights are int8; with --data, activations are quantized too"
        return recipe, (note, *notes)
    return recipe, notes


def _check_target(recipe: Recipe) -> tuple[str, ...]:
    """Refuse what is a loss on the target, before the data run; advise what would be a gain."""
    target = get_target(recipe.target or default_target())
    for wanted in recipe.precisions:
        if why := target.refuses.get(wanted):
            raise UsageError(f"precision {wanted} is a loss on target {target.name}: {why}")
    if recipe.format == "qoperator" and not (target.integer_bias and target.pairs is Pairs.AROUND):
        raise UsageError(
            f"target {target.name} reads pairs, and runs no integer operators of ONNX Runtime's",
            "use --format qdq",
        )
    if target.float_type is Precision.FP16 and "fp16" not in (recipe.float_type, recipe.precision):
        return (f"{target.name} runs what stays float faster in float16: --float-type fp16",)
    return ()


def _open_readers(
    job: Job, inputs: tuple[TensorSpec, ...]
) -> tuple[Reader | None, Reader | None, Reader | None, tuple[str, ...]]:
    """The samples to calibrate with, to verify with, and to judge plans by; and notes."""
    recipe = job.recipe
    test = None
    if job.testing_data is not None:
        test = open_reader(job.testing_data, job.test_from, inputs, recipe)
    if job.calibration_data is None:
        return None, test, None, ()
    given = open_reader(job.calibration_data, job.data_from, inputs, recipe)
    notes: tuple[str, ...] = ()
    if not recipe.static or job.ranges is not None:
        # nothing is calibrated: every sample can judge
        judging = draw(given, recipe.calibration.samples, recipe, job.seed) if test else None
        test = test or given
        if job.ranges is not None and test.identity() in job.ranges.seen:
            notes = ("the ranges are of these very samples: the figures flatter the model",)
        return None, test, judging, notes
    calibration = given
    if test is None:
        calibration, test = given.split(recipe.data.holdout)
        if test.shared:
            notes = ("there is only one sample: it was calibrated with and verified with",)
    elif test.digest() == calibration.digest():
        notes = ("calibration and test data are the same: the figures flatter the model",)
    drawn = draw(calibration, recipe.calibration.samples, recipe, job.seed)
    return drawn, test, drawn, notes


def _first_feed(samples: Reader | None, source: Model, recipe: Recipe) -> Feed | None:
    """One feed, complete with the states that a sequence starts with."""
    if samples is None:
        return None
    view = source.view()
    loop = StateLoop(recipe.data.state, view.inputs, view.output_names)
    return loop.complete(next(samples.batches(1)).feed)


def _check_earlier(earlier: Calibration, model: str, start: Start) -> None:
    if earlier.model != model:
        raise UsageError(
            "the ranges were observed on another model", "calibrate this one: `onnxq calibrate`"
        )
    if tuple(earlier.tensors) != start.taps:
        raise UsageError(
            "the ranges are of other tensors of this model",
            "were other nodes kept float, or was it another target? calibrate anew",
        )


def _ranges(start: Start, observed: Calibration, job: Job) -> tuple[Ranges, tuple[str, ...]]:
    """The ranges of what was observed, and what is to be said about them."""
    notes: tuple[str, ...] = ()
    if job.ranges is not None:
        if observed.model != sha256(start.source):
            raise UsageError(
                "the ranges were observed on another model",
                "make them for this one with `onnxq calibrate`",
            )
        if job.recipe.calibration.method != AUTO:
            observed = observed.with_observer(observer_of(job))
        if missing := [tensor for tensor in start.taps if tensor not in observed.tensors]:
            notes += (
                f"no ranges of {len(missing)} tensors ('{missing[0]}' is one): the nodes beside "
                "them stay float; calibrate again with these settings",
            )
    target = get_target(start.recipe.target or default_target())
    grid, ranges = target.activation_grid, _read(start, observed, target)
    if not start.taps:
        return ranges, notes
    if ranges.samples < FEW_SAMPLES:
        text = f"calibrated with {ranges.samples} samples: ranges may be too narrow for others"
        return ranges, (*notes, text)
    return ranges, notes + _unsettled(observed, grid)


def _read(start: Start, observed: Calibration, target: Target) -> Ranges:
    """The range of every tensor, by the method and for the width that its nodes want."""
    alike: dict[Reading, list[str]] = {}
    for tensor in observed.tensors:
        alike.setdefault(start.readings.get(tensor, Reading()), []).append(tensor)
    found: dict[str, TensorRange] = {}
    for reading, tensors in alike.items():
        part = replace(observed, tensors={t: observed.tensors[t] for t in tensors})
        if reading.observer is not None:
            part = _read_by(part, reading.observer, start.recipe)
        qtype = target.activation16 if reading.wide else target.activation
        found |= part.ranges(Grid(qtype.bits, target.symmetric_activations)).tensors
    return Ranges(observed.samples, {t: found[t] for t in observed.tensors if t in found})


def _without_outliers(start: Start, observed: Calibration, ranges: Ranges) -> Ranges | None:
    """The ranges, without outliers where these hold most of one."""
    if not observed.counted:
        return None
    target, less = get_target(start.recipe.target or default_target()), {}
    for tensor, wide in ranges.tensors.items():  # one by one: a copy of every histogram is large
        one = replace(observed, tensors={tensor: observed.tensors[tensor]})
        narrow = _read(start, _read_by(one, _TRIMMED, start.recipe), target).tensors[tensor]
        if _width(narrow) < _OF_OUTLIERS * _width(wide):
            less[tensor] = narrow
    return Ranges(ranges.samples, ranges.tensors | less) if less else None


def _width(found: TensorRange) -> float:
    return found.hi - found.lo


def _read_by(observed: Calibration, method: str, recipe: Recipe) -> Calibration:
    return observed.with_observer(recipe.calibration.with_method(method).observer())


def _unsettled(observed: Calibration, grid: Grid) -> tuple[str, ...]:
    late = {t: moved for t, moved in movements(observed, grid).items() if moved > MOVED}
    if not late:
        return ()
    most = max(late, key=lambda tensor: late[tensor])
    return (
        "the last tenth of the calibration samples still moved the range of "
        f"{len(late)} tensor{'s' if len(late) > 1 else ''} "
        f"by more than {MOVED:.0%} ('{most}' by {late[most]:.0%}): more samples may help",
    )
