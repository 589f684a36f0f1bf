"""The library's front door: the stages, one after the other, and ``quantize``, which runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.calibrate import Ranges, calibrate, make_observer
from onnxq.data import Reader, open_data
from onnxq.errors import ModelError, UsageError
from onnxq.graph import (
    MINIMUM_OPSET,
    Model,
    check_writable,
    copy_model,
    data_path,
    encoded_size,
    files_of,
    forget_inferred,
    load,
    move_model,
    save,
    sha256,
    staging,
    write_bytes,
)
from onnxq.ops import Census, classify, refuse_quantized
from onnxq.plan import QuantPlan, Recipe, find_recipe, keep_float, load_recipe, make_plan
from onnxq.rewrite import rewrite
from onnxq.runtime import default_target, environment, prepare
from onnxq.targets import get_target
from onnxq.types import TensorSpec
from onnxq.verify import (
    FileFacts,
    MetricChoice,
    Receipt,
    RunFacts,
    Subjects,
    check_gates,
    load_metric,
    verify,
)

__all__ = [
    "Draft",
    "Job",
    "Origin",
    "Result",
    "draft",
    "load",
    "make_job",
    "quantize",
    "receipt_path",
    "run",
    "save",
    "with_data",
    "with_metric",
    "with_test_data",
]

# stage, samples done, samples in all
Progress = Callable[[str, int, int], None]
RECEIPT_SCHEMA = 1
# Fewer samples than this seldom show a tensor's whole range.
FEW_SAMPLES = 16


@dataclass(frozen=True)
class Origin:
    """Where data or a metric were named, which tells what their names mean.

    Attributes:
        base: Folder that relative paths start from; the working directory if None.
        allow_code: Whether they may be Python code. A recipe that was merely found beside a model
            may not name any: an unknown folder must not run code.
    """

    base: Path | None = None
    allow_code: bool = True


@dataclass(frozen=True)
class Job:
    """One run, complete: what ``quantize`` makes out of its arguments and the recipe.

    Attributes:
        recipe: What to do.
        data_from: Where its calibration data were named.
        test_from: Where its test data were named.
        metric_from: Where its metric was named.
        prepare: Fold, name and raise the opset first; without it the graph stays as it is.
        seed: Draws the calibration samples.
        progress: Called with (stage, done, total).
    """

    recipe: Recipe = field(default_factory=Recipe)
    data_from: Origin = Origin()
    test_from: Origin = Origin()
    metric_from: Origin = Origin()
    prepare: bool = True
    seed: int = 0
    progress: Progress | None = None


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


@dataclass(frozen=True)
class Result:
    """What ``quantize`` made.

    Attributes:
        model: The quantized model.
        plan: What became of each node.
        receipt: What was measured.
        path: Where the model was written; None when it was not.
    """

    model: Model
    plan: QuantPlan
    receipt: Receipt
    path: Path | None


def quantize(
    model: str | Path | Model,
    *,
    data: str | None = None,
    test_data: str | None = None,
    recipe: Recipe | str | Path | None = None,
    output: str | Path | None = None,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model and measure what came out.

    Args:
        model: A path, or a model that was loaded.
        data: Calibration data in any form that ``onnxq.data.open_data`` takes. Wins over the
            recipe's. The tail is held back to verify with, unless there are test data.
        test_data: Test data, in the same forms. Wins over the recipe's.
        recipe: A recipe, or the path of one; without it, the one beside the model, if any.
        output: Where to write the model; its receipt goes beside it. Without it nothing is
            written.
        force: Whether an existing output may be overwritten.
        seed: Draws the calibration samples.
        progress: Called with (stage, done, total).

    Returns:
        The quantized model, the plan and the receipt.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Example:
        >>> result = onnxq.quantize("model.onnx", data="samples.npz")  # doctest: +SKIP
        >>> result.receipt.measured.size_ratio  # doctest: +SKIP
        0.27
    """
    path = model.path if isinstance(model, Model) else Path(model)
    job = replace(make_job(path, recipe), seed=seed, progress=progress)
    if data is not None:
        job = with_data(job, data)
    if test_data is not None:
        job = with_test_data(job, test_data)
    return run(model, job, output=output, force=force)


def make_job(model: Path | None, recipe: Recipe | str | Path | None) -> Job:
    """A job for a recipe that is given as a value or a file, or found beside the model.

    Raises:
        RecipeError: The recipe cannot be read or holds an unknown key.
    """
    if isinstance(recipe, Recipe):
        return Job(recipe)
    if recipe is not None:
        path, origin = Path(recipe), Origin(Path(recipe).parent)
    elif model is not None and model.is_file() and (found := find_recipe(model)) is not None:
        path, origin = found, Origin(found.parent, allow_code=False)
    else:
        return Job()
    return Job(load_recipe(path), data_from=origin, test_from=origin, metric_from=origin)


def with_data(job: Job, data: str) -> Job:
    """The job on other calibration data, whose paths start from the working directory.

    Data that the caller names may be Python code, whatever the recipe may name.
    """
    settings = with_fields(job.recipe.data, calibration=data)
    return replace(job, recipe=with_fields(job.recipe, data=settings), data_from=Origin())


def with_test_data(job: Job, data: str) -> Job:
    """The job on other test data, named by the caller as in ``with_data``."""
    settings = with_fields(job.recipe.data, test=data)
    return replace(job, recipe=with_fields(job.recipe, data=settings), test_from=Origin())


def with_metric(job: Job, metric: str) -> Job:
    """The job with another metric, named by the caller as in ``with_data``."""
    recipe = with_fields(job.recipe, verify=with_fields(job.recipe.verify, metric=metric))
    return replace(job, recipe=recipe, metric_from=Origin())


def run(
    model: str | Path | Model,
    job: Job,
    *,
    output: str | Path | None = None,
    force: bool = False,
) -> Result:
    """Run a job to its end: draft, rewrite, verify, write.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree. Nothing is written then.
    """
    source = model if isinstance(model, Model) else load(model)
    path = Path(output) if output is not None else None
    if path is not None:
        targets = [path, receipt_path(path)]
        targets += [] if source.fits_one_file else [data_path(path)]
        for target in targets:
            check_writable(target, [*files_of(source), *_read_files(job)], force=force)
    named = job.metric_from
    metric = load_metric(job.recipe.verify.metric, allow_code=named.allow_code, base=named.base)
    drafted = draft(source, job)
    made = source if drafted.plan.empty else _rewrite(drafted)
    receipt = _verify(drafted, made, path, job, metric)
    if path is not None:
        receipt = _write(made, path, receipt)
    return Result(made, drafted.plan, receipt, path)


def _read_files(job: Job) -> list[Path]:
    """Data files that the job names: no output may take their place."""
    data = job.recipe.data
    named = ((data.calibration, job.data_from), (data.test, job.test_from))
    return [(origin.base or Path()) / spec for spec, origin in named if spec is not None]


def _write(made: Model, path: Path, receipt: Receipt) -> Receipt:
    """Write the model and its receipt, which then knows the file.

    Both are whole before either gets its name. A kill in between leaves a model without a
    receipt, never a receipt beside another model.
    """
    beside = receipt_path(path)
    with staging(path) as part:
        if receipt.plan.empty:
            copy_model(made, part)
        else:
            save(made, part)
        facts = with_fields(_facts(load(part)), path=str(path))
        receipt = with_fields(receipt, output=facts)
        write_bytes(receipt.to_json(), receipt_path(part))
        beside.unlink(missing_ok=True)
        move_model(part, path)
        receipt_path(part).replace(beside)
    return receipt


def receipt_path(output: Path) -> Path:
    """Where the receipt of a model goes: ``m.receipt.json`` for ``m.onnx``."""
    return output.with_suffix(".receipt.json")


def draft(model: str | Path | Model, job: Job) -> Draft:
    """Load, prepare, classify, calibrate and plan; write nothing.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    source = model if isinstance(model, Model) else load(model)
    refuse_quantized(source)
    recipe, notes = _complete(job.recipe)
    inputs = source.view().inputs
    calibration, test, data_notes = _open_readers(recipe, job, inputs)
    notes += data_notes
    samples = calibration or test
    feed = next(samples.batches(1)).feed if samples else None  # one is enough to compare with
    prepared = prepare(source, feed) if job.prepare else source
    if prepared.opset < MINIMUM_OPSET:
        raise ModelError(
            f"model '{source.path}' has opset {source.opset}, and per-channel QDQ needs "
            f"{MINIMUM_OPSET}",
            "leave out --no-prepare",
        )
    target = get_target(recipe.target or default_target())
    census = classify(prepared.view(), target)
    keep_float(census, recipe.keep_float, recipe.keep_float_op)  # a typo fails before the data run
    ranges = Ranges(0, {})
    if recipe.precision == "int8" and calibration is not None:
        ranges = _calibrate(prepared, census, calibration, recipe, job)
        notes += _note_few(ranges.samples)
    plan = make_plan(prepared.view(), census, ranges.tensors, recipe, target)
    return Draft(
        source, prepared, census, ranges, plan, recipe, calibration, test, notes
    )  # fmt: skip


def _complete(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Fill in what the recipe leaves open."""
    has_data = recipe.data.calibration is not None
    if recipe.precision == "int8" and not has_data:
        raise UsageError(
            "precision int8 needs samples to find the activations' ranges with",
            "give --data, or use --precision int8-weights",
        )
    recipe = with_fields(recipe, target=recipe.target or default_target())
    if recipe.precision is None and not has_data:
        note = "no data: only weights are int8; with --data, activations are quantized too"
        return with_fields(recipe, precision="int8-weights"), (note,)
    return with_fields(recipe, precision=recipe.precision or "int8"), ()


def _open_readers(
    recipe: Recipe, job: Job, inputs: tuple[TensorSpec, ...]
) -> tuple[Reader | None, Reader | None, tuple[str, ...]]:
    settings = recipe.data

    def reader(spec: str, origin: Origin) -> Reader:
        return open_data(
            spec,
            inputs,
            preprocess=settings.preprocess,
            base=origin.base,
            allow_code=origin.allow_code,
        )

    test = reader(settings.test, job.test_from) if settings.test is not None else None
    if settings.calibration is None:
        return None, test, ()
    calibration = reader(settings.calibration, job.data_from)
    notes: tuple[str, ...] = ()
    if recipe.precision == "int8-weights":
        return None, test or calibration, ()  # nothing is calibrated: every sample can judge
    if test is None:
        calibration, test = calibration.split(settings.holdout)
        if test.shared:
            notes = ("there is only one sample: it was calibrated with and verified with",)
    elif test.digest() == calibration.digest():
        notes = ("calibration and test data are the same: the figures flatter the model",)
    wanted = max(recipe.calibration.samples, calibration.fixed_batch)
    return calibration.sample(wanted, job.seed), test, notes


def _note_few(samples: int) -> tuple[str, ...]:
    if samples >= FEW_SAMPLES:
        return ()
    return (f"calibrated with {samples} samples: ranges may be too narrow for others",)


def _calibrate(prepared: Model, census: Census, reader: Reader, recipe: Recipe, job: Job) -> Ranges:
    settings = recipe.calibration
    options = {"percentile": settings.percentile} if settings.method == "percentile" else {}
    return calibrate(
        prepared,
        census.taps(),
        reader,
        lambda: make_observer(settings.method, **options),
        batch_size=recipe.data.batch_size,
        threads=recipe.verify.threads,
        progress=partial(job.progress, "calibrate") if job.progress is not None else None,
    )


def _rewrite(drafted: Draft) -> Model:
    made = forget_inferred(rewrite(drafted.prepared, drafted.plan), drafted.source)
    return made.with_metadata(
        {
            "onnxq.version": environment()["onnxq"],
            "onnxq.recipe": drafted.recipe.digest(),
            "onnxq.source": sha256(drafted.source),
        }
    )


def _verify(
    drafted: Draft, made: Model, output: Path | None, job: Job, metric: MetricChoice
) -> Receipt:
    recipe, source = drafted.recipe, drafted.source
    subjects = Subjects(
        source, drafted.prepared, made,
        source_bytes=_size(source), prepared_bytes=encoded_size(drafted.prepared),
        output_bytes=_size(source) if drafted.plan.empty else encoded_size(made),
    )  # fmt: skip
    measured = verify(
        subjects,
        drafted.plan,
        drafted.test,
        metric=metric,
        judge=recipe.verify.output,
        batch_size=recipe.data.batch_size,
        threads=recipe.verify.threads,
        seconds=recipe.verify.seconds,
        notes=drafted.notes,
        progress=job.progress,
    )
    readers = {"calibration": drafted.calibration, "test": drafted.test}
    return Receipt(
        schema=RECEIPT_SCHEMA,
        onnxq=environment()["onnxq"],
        source=_facts(source),
        output=FileFacts(str(output or ""), "", subjects.output_bytes),
        recipe=recipe,
        run=RunFacts(job.seed, job.prepare),
        data={name: reader.digest() for name, reader in readers.items() if reader is not None},
        plan=drafted.plan,
        ranges=drafted.ranges.tensors,
        measured=measured,
        gates=check_gates(recipe.budgets, measured),
        environment=environment(),
    )


def _facts(model: Model) -> FileFacts:
    return FileFacts(str(model.path or ""), sha256(model), _size(model))


def _size(model: Model) -> int:
    return sum(file.stat().st_size for file in files_of(model)) or encoded_size(model)
