"""``quantize``: all stages, one after the other, and the files that are written at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.api.backends import settled
from onnxq.api.job import Job, Progress, make_job, with_data, with_test_data
from onnxq.api.search import (
    Searched,
    keeps_limits,
    searched,
    searched_nearer,
    wants_search,
    with_search,
)
from onnxq.api.stages import Draft, draft
from onnxq.calibrate import Calibration, Workers
from onnxq.data import Data, check_output
from onnxq.graph import (
    Model,
    compact,
    copy_model,
    data_path,
    encoded_size,
    files_of,
    load,
    move_model,
    save,
    sha256,
    staging,
    write_bytes,
)
from onnxq.ops import Census
from onnxq.plan import Budgets, QuantPlan, Recipe
from onnxq.rewrite import rewrite
from onnxq.runtime import environment
from onnxq.targets import Provider
from onnxq.types import Form
from onnxq.verify import (
    Demands,
    FileFacts,
    MetricChoice,
    Receipt,
    RunFacts,
    Subjects,
    check_gates,
    graph_facts,
    load_metric,
    verify,
)

RECEIPT_SCHEMA = 1
# How often a search is told to lose less, until the proof holds.
RETRIES = 2


@dataclass(frozen=True)
class Result:
    """What ``quantize`` made.

    Attributes:
        model: The quantized model.
        draft: What it was made of: the prepared model, its plan, the samples.
        receipt: What was measured.
        path: Where the model was written; None when it was not.
    """

    model: Model
    draft: Draft
    receipt: Receipt
    path: Path | None

    @property
    def plan(self) -> QuantPlan:
        """What became of each node."""
        return self.draft.plan

    @property
    def census(self) -> Census:
        """What each node of the prepared model is."""
        return self.draft.census


def quantize(
    model: str | Path | Model,
    *,
    data: Data | None = None,
    test_data: Data | None = None,
    recipe: Recipe | str | Path | None = None,
    ranges: Calibration | None = None,
    workers: Workers | None = None,
    output: str | Path | None = None,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model and measure what came out.

    Args:
        model: A path, or a model that was loaded.
        data: Calibration data: a path, or Python objects, in any form that
            ``onnxq.data.open_data`` takes. Wins over the recipe's. The tail is held back to verify
            with, unless there are test data.
        test_data: Test data, in the same forms. Wins over the recipe's.
        recipe: A recipe, the path of one, or ``preset:NAME``; without it, the one beside the
            model, if any.
        ranges: What was observed before (``calibrate_model``, ``load_ranges``); then nothing is
            calibrated, and all data are there to verify with.
        workers: Who calibrates; this process alone if None.
        output: Where to write the model; its receipt goes beside it. Without it nothing is
            written.
        force: Whether an existing output may be overwritten.
        seed: Draws the calibration samples.
        progress: Called with (stage, done, total).

    Returns:
        The quantized model, the plan and the receipt.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> result = onnxq.quantize("model.onnx", data="samples.npz")  # doctest: +SKIP
        >>> result.receipt.measured.size_ratio  # doctest: +SKIP
        0.27
    """
    path = model.path if isinstance(model, Model) else Path(model)
    job = replace(
        make_job(path, recipe),
        seed=seed,
        progress=progress,
        ranges=ranges,
        workers=workers or Workers(),
    )
    if data is not None:
        job = with_data(job, data)
    if test_data is not None:
        job = with_test_data(job, test_data)
    return run(model, job, output=output, force=force)


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
    job = settled(job, source)
    path = Path(output) if output is not None else None
    if path is not None:
        check_targets(path, source, read_files(job), force=force)
    drafted, made, receipt = made_by(source, job, path)
    if path is not None:
        receipt = write_result(made, path, receipt, large=not source.fits_one_file)
    return Result(made, drafted, receipt, path)


def made_by(source: Model, job: Job, path: Path | None = None) -> tuple[Draft, Model, Receipt]:
    """Draft, rewrite and verify: what ``run`` does before it writes to ``path``.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    metric = metric_of(job)
    drafted = draft(source, job)
    if wants_search(job.recipe, drafted):
        return _search(drafted, path, job, metric)
    made = source if drafted.plan.empty else apply_plan(drafted)
    return drafted, made, make_receipt(drafted, made, path, job, metric)


def metric_of(job: Job) -> MetricChoice:
    """The metric that a job names.

    Raises:
        OnnxqError: There is none of that name, or it is code that may not run.
    """
    named = job.metric_from
    return load_metric(job.recipe.verify.metric, allow_code=named.allow_code, base=named.base)


def planned(model: str | Path | Model, job: Job) -> QuantPlan:
    """The plan of a job, found by a search where the job wants one; nothing is made of it.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    source = model if isinstance(model, Model) else load(model)
    job = settled(job, source)
    drafted = draft(source, job)
    if not wants_search(job.recipe, drafted):
        return drafted.plan
    return searched(drafted, job, metric_of(job)).draft.plan


def _search(
    drafted: Draft, path: Path | None, job: Job, metric: MetricChoice
) -> tuple[Draft, Model, Receipt]:
    """Find a plan, and prove it on samples that the search never saw.

    Where the proof fails, the search is told to lose less; what it measured is remembered.
    """
    found = searched(drafted, job, metric)
    made, receipt = _proved(found, path, job, metric)
    for _ in range(RETRIES):
        if keeps_limits(receipt) or not found.within:
            break
        found = searched_nearer(found, job, receipt)
        made, receipt = _proved(found, path, job, metric)
    return found.draft, made, receipt


def _proved(
    found: Searched, path: Path | None, job: Job, metric: MetricChoice
) -> tuple[Model, Receipt]:
    """The model of a plan that was found, and its receipt."""
    made = found.draft.source if found.draft.plan.empty else apply_plan(found.draft)
    receipt = make_receipt(found.draft, made, path, job, metric)
    return made, with_search(receipt, found, job.recipe)


def check_targets(path: Path, source: Model, read: list[Path], *, force: bool) -> None:
    """Refuse outputs that exist already, unless forced, or that would replace what is read.

    Raises:
        OutputError: An output cannot be written.
    """
    targets = [path, receipt_path(path)]
    targets += [] if source.fits_one_file else [data_path(path)]
    for target in targets:
        check_output(target, [*files_of(source), *read], force=force)


def read_files(job: Job) -> list[Path]:
    """The data and the recipe that the job names: no output may take their place."""
    named = ((job.calibration_data, job.data_from), (job.testing_data, job.test_from))
    data = [
        (origin.base or Path()) / spec for spec, origin in named if isinstance(spec, str | PathLike)
    ]
    return data + ([job.recipe_from.file] if job.recipe_from.file is not None else [])


def write_result(made: Model, path: Path, receipt: Receipt, *, large: bool) -> Receipt:
    """Write the model and its receipt, which then knows the file.

    Both are whole before either gets its name. A kill in between leaves a model without a
    receipt, never a receipt beside another model.
    """
    beside = receipt_path(path)
    with staging(path) as part:
        if receipt.plan.empty:
            copy_model(made, part)
        else:
            save(made, part, external=large)
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


def apply_plan(drafted: Draft) -> Model:
    """Rewrite the prepared model by its plan, and say in it what it was made of."""
    made = compact(
        rewrite(drafted.prepared, drafted.plan, Form(drafted.recipe.format)), drafted.source
    )
    return made.with_metadata(
        {
            "onnxq.version": environment()["onnxq"],
            "onnxq.recipe": drafted.recipe.digest(),
            "onnxq.source": sha256(drafted.source),
        }
    )


def make_receipt(
    drafted: Draft,
    made: Model,
    output: Path | None,
    job: Job,
    metric: MetricChoice,
    budgets: Budgets | None = None,
    provider: Provider | None = None,
) -> Receipt:
    """Verify what was made, where the recipe says and by its budgets, unless others are given."""
    recipe, source = drafted.recipe, drafted.source
    budgets, provider = budgets or recipe.budgets, provider or recipe.provider
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
        provider=provider,
        threads=recipe.verify.threads,
        seconds=recipe.verify.seconds,
        state=recipe.data.state,
        demands=Demands(budgets, drafted.census, job.seed),
        notes=drafted.notes,
        progress=job.progress,
    )
    readers = {"calibration": drafted.calibration, "test": drafted.test}
    digests = {name: reader.digest() for name, reader in readers.items() if reader is not None}
    if job.ranges is not None and len(job.ranges.seen) == 1:
        digests = {"calibration": next(iter(job.ranges.seen)), **digests}
    return Receipt(
        schema=RECEIPT_SCHEMA,
        onnxq=environment()["onnxq"],
        source=_facts(source),
        output=FileFacts(str(output or ""), "", subjects.output_bytes),
        recipe=recipe,
        run=RunFacts(job.seed, job.prepare, drafted.leaves_out),
        data=digests,
        plan=drafted.plan,
        ranges=drafted.ranges.tensors,
        measured=measured,
        gates=check_gates(budgets, measured),
        environment=environment(provider),
        graph=graph_facts(source, drafted.prepared),
    )


def _facts(model: Model) -> FileFacts:
    return FileFacts(str(model.path or ""), sha256(model), _size(model))


def _size(model: Model) -> int:
    return sum(file.stat().st_size for file in files_of(model)) or encoded_size(model)
