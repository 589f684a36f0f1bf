"""Quantization-aware training: ``QATTrainer``, and ``train_model``, which proves what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec.structs import replace as with_fields

from onnxq.api.job import Job, Origin, make_job, with_data
from onnxq.api.pipeline import (
    Result,
    apply_plan,
    check_targets,
    make_receipt,
    read_files,
    write_result,
)
from onnxq.api.stages import Draft, draft, open_reader
from onnxq.data import Data, Reader, check_output, find_function, parse_code
from onnxq.errors import UsageError
from onnxq.graph import Model, files_of, load, sha256
from onnxq.plan import QuantPlan, Recipe
from onnxq.qat import History, require_torch
from onnxq.verify import Receipt, Training, load_metric

if TYPE_CHECKING:
    from onnxq.qat.batches import Augment
    from onnxq.qat.losses import Loss
    from onnxq.qat.run import Watch
    from onnxq.qat.student import Student


@dataclass(frozen=True)
class Trained:
    """What ``train_model`` made.

    Attributes:
        result: The quantized model with trained weights, its plan and receipt.
        untrained: The receipt of the same plan without training; it lies nowhere.
        history: What the training showed.
    """

    result: Result
    untrained: Receipt
    history: History


class QATTrainer:
    """Fine-tunes the weights of an ONNX graph while quantization is simulated.

    Args:
        config: A recipe, whose ``qat`` says how to train, or the name of a preset; the defaults if
            None. A recipe that lies beside a model is not read.
        seed: Draws samples, and decides their order.
        device: ``cpu`` or ``cuda``; a GPU where there is one if None.

    Raises:
        UsageError: There is no such preset.
        UnusableError: PyTorch is not installed.

    Examples:
        >>> trainer = onnxq.QATTrainer("mobile")  # doctest: +SKIP
        >>> trainer.prepare("model.onnx", "train.npz")  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> model, plan = trainer.convert()  # doctest: +SKIP
        >>> onnxq.save(onnxq.rewrite(model, plan), "model.int8.onnx")  # doctest: +SKIP
    """

    def __init__(
        self, config: Recipe | str | None = None, *, seed: int = 0, device: str | None = None
    ) -> None:
        require_torch()
        recipe = f"preset:{config}" if isinstance(config, str) else config
        job = make_job(None, recipe if recipe is not None else Recipe())
        self._session = _Session(replace(job, seed=seed), device)

    def prepare(self, model: str | Path | Model, data: Data) -> Draft:
        """Prepare a model, calibrate it, and make the plan that training starts from.

        Args:
            model: A path, or a model that was loaded.
            data: The samples to train with, in any form that ``onnxq.data.open_data`` takes; the
                recipe's number of them is calibrated with.

        Returns:
            What quantization without training would make: ``draft.plan``.

        Raises:
            OnnxqError: See ``onnxq.errors`` for the tree.
        """
        return self._session.prepare(model, data)

    def train(
        self,
        data: Data | None = None,
        *,
        checkpoint: str | Path | None = None,
        watch: Watch | None = None,
    ) -> History:
        """Train, and take the weights of the best epoch.

        Args:
            data: Other samples than those that were prepared with.
            checkpoint: A file to keep the state in: a killed training goes on from it.
            watch: Who is told of steps and epochs.

        Returns:
            What the training showed, epoch by epoch.

        Raises:
            UsageError: ``prepare`` was not called.
            OnnxqError: See ``onnxq.errors`` for the tree.
        """
        if data is not None:
            self._session.use(data)
        return self._session.train(Path(checkpoint) if checkpoint else None, watch)

    def convert(self) -> tuple[Model, QuantPlan]:
        """The float model with trained weights, and the plan with trained scales.

        ``onnxq.rewrite.rewrite`` makes the quantized model of them, in any form.

        Raises:
            UsageError: ``prepare`` was not called.
        """
        return self._session.student.convert()

    def simulate(self, feed: dict[str, Any]) -> dict[str, Any]:
        """The outputs for a feed with quantization simulated, as NumPy arrays.

        Raises:
            UsageError: ``prepare`` was not called.
        """
        found = self._session.student.simulate(feed)
        return {name: value.cpu().numpy() for name, value in found.items()}


class _Session:
    """One job of training: a model, its samples, and the trainer."""

    def __init__(self, job: Job, device: str | None) -> None:
        from onnxq.qat.device import choose_device

        self._job, self._device = job, choose_device(device)
        self.drafted: Draft | None = None
        self._student: Student | None = None
        self._samples: Reader | None = None

    @property
    def student(self) -> Student:
        if self._student is None:
            raise UsageError("nothing is prepared", "call prepare(model, data) first")
        return self._student

    def prepare(self, model: str | Path | Model, data: Data | None = None) -> Draft:
        from onnxq.qat.student import Student

        job = self._job if data is None else with_data(self._job, data)
        if job.calibration_data is None:
            raise UsageError("there are no samples to train with", "give --data")
        if job.recipe.precision is None:
            job = replace(job, recipe=with_fields(job.recipe, precision="int8"))
        self._job = job
        source = model if isinstance(model, Model) else load(model)
        drafted = draft(source, job)
        self._samples, test = _training_samples(source, job)
        self.drafted = replace(drafted, test=test)
        if drafted.plan.empty:
            raise UsageError(
                "the plan quantizes nothing, so that there is nothing to train for",
                "`onnxq quantize` says of each node why",
            )
        self._student = Student(
            drafted.prepared, drafted.census, drafted.plan, job.recipe.qat, self._device
        )
        return self.drafted

    def use(self, data: Data) -> None:
        """Train with other samples than those that were prepared with."""
        drafted = self._drafted()
        inputs = drafted.source.view().inputs
        self._samples = open_reader(data, Origin(), inputs, self._job.recipe)

    def check(self) -> None:
        """Refuse a loss or an augmentation that cannot be had, before anything takes long."""
        assert self._samples is not None
        _loss(self._drafted(), self._samples, self._job)
        _augment(self._job)

    def train(self, checkpoint: Path | None, watch: Watch | None) -> History:
        from onnxq.qat.run import Samples, train

        drafted, settings = self._drafted(), self._job.recipe.qat
        assert self._samples is not None
        samples = self._samples
        if settings.samples is not None:
            samples = samples.sample(settings.samples, self._job.seed)
        training, validation = _held_back(samples, settings.validation, self._job.seed)
        return train(
            self.student,
            settings,
            _loss(drafted, samples, self._job),
            Samples(training, validation, self._job.seed, _augment(self._job)),
            checkpoint=checkpoint,
            run=_digest(drafted, samples, self._job) if checkpoint is not None else "",
            watch=watch,
        )

    def _drafted(self) -> Draft:
        if self.drafted is None:
            raise UsageError("nothing is prepared", "call prepare(model, data) first")
        return self.drafted


def train_model(
    model: str | Path | Model,
    job: Job,
    *,
    output: str | Path | None = None,
    force: bool = False,
    fresh: bool = False,
    device: str | None = None,
    watch: Watch | None = None,
    compared: Callable[[Receipt], None] | None = None,
) -> Trained:
    """Quantize a model, train it, and measure both.

    The state of training is kept beside the output until it is done: the same call goes on after a
    kill.

    Args:
        model: A path, or a model that was loaded.
        job: The recipe and the samples.
        output: Where to write the model; its receipt goes beside it. Without it nothing is
            written.
        force: Whether an existing output may be overwritten.
        fresh: Whether a checkpoint of an earlier run is left alone, and overwritten.
        device: ``cpu`` or ``cuda``; a GPU where there is one if None.
        watch: Who is told of steps and epochs.
        compared: Told of the receipt of quantization without training.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree. No output is written then.
    """
    require_torch()
    source = model if isinstance(model, Model) else load(model)
    path = Path(output) if output is not None else None
    if path is not None:
        check_targets(path, source, read_files(job), force=force)
    named = job.metric_from
    metric = load_metric(job.recipe.verify.metric, allow_code=named.allow_code, base=named.base)
    session = _Session(job, device)
    drafted = session.prepare(source)
    session.check()
    checkpoint = checkpoint_path(path) if path is not None else None
    if checkpoint is not None:
        check_output(checkpoint, [*files_of(source), *read_files(job)], force=True)
    if checkpoint is not None and fresh:
        checkpoint.unlink(missing_ok=True)
    untrained = make_receipt(drafted, apply_plan(drafted), None, job, metric)
    if compared is not None:
        compared(untrained)
    history = session.train(checkpoint, watch)
    trained, plan = session.student.convert()
    drafted = replace(drafted, prepared=trained, plan=plan)
    made = apply_plan(drafted)
    receipt = make_receipt(drafted, made, path, job, metric)
    receipt = with_fields(receipt, training=Training(history, untrained.measured))
    if path is not None:
        receipt = write_result(made, path, receipt, large=not source.fits_one_file)
        assert checkpoint is not None
        checkpoint.unlink(missing_ok=True)
    return Trained(Result(made, drafted, receipt, path), untrained, history)


def checkpoint_path(output: Path) -> Path:
    """Where the state of a training is kept: ``m.checkpoint.npz`` for ``m.onnx``."""
    return output.with_suffix(".checkpoint.npz")


def _training_samples(source: Model, job: Job) -> tuple[Reader, Reader]:
    """All samples that may be trained with, and those to verify with."""
    inputs, recipe = source.view().inputs, job.recipe
    assert job.calibration_data is not None
    given = open_reader(job.calibration_data, job.data_from, inputs, recipe)
    if job.testing_data is not None:
        return given, open_reader(job.testing_data, job.test_from, inputs, recipe)
    return given.split(recipe.data.holdout)


def _held_back(samples: Reader, share: float, seed: int) -> tuple[Reader, Reader]:
    """Samples to train with, and others, drawn at random, to choose the best epoch by."""
    unit = samples.fixed_batch
    units = samples.size // unit
    held = min(max(1, round(units * share)), units - 1)
    if held < 1:
        raise UsageError(
            f"{samples.spec}: {samples.size} samples are too few to train with and to choose the "
            "best epoch by",
            "give more data",
        )
    order = np.random.default_rng(seed).permutation(units)
    rows = [
        (np.sort(part)[:, None] * unit + np.arange(unit)).ravel().tolist()
        for part in (order[held:], order[:held])
    ]
    return samples.select(rows[0]), samples.select(rows[1])


def _loss(drafted: Draft, samples: Reader, job: Job) -> Loss:
    from onnxq.qat.losses import choose_loss

    recipe = job.recipe
    return choose_loss(
        drafted.prepared.view(), drafted.plan, recipe.qat, labelled=samples.has_labels,
        judged=recipe.verify.output, function=_code(recipe.qat.loss, "loss", job),
    )  # fmt: skip


def _augment(job: Job) -> Augment | None:
    from onnxq.qat.batches import image_augment

    wanted = job.recipe.qat.augment
    if wanted is None:
        return None
    function = _code(wanted, "augment", job)
    return function or image_augment(flip="flip" in wanted, shift="shift" in wanted)


def _code(name: str, key: str, job: Job) -> Callable[..., Any] | None:
    """A function of the user's that the recipe names; None for a word of onnxq's own."""
    code = parse_code(name, job.recipe_from.base or Path())
    if code is None and ":" in name:
        raise UsageError(
            f"{key} '{name}' names no function", "write module:function or file.py:function"
        )
    if code is None:
        return None
    if not job.recipe_from.allow_code:
        raise UsageError(
            f"{key} '{name}' is Python code, which a recipe that was merely found beside the model "
            "may not name",
            "pass the recipe with --recipe",
        )
    return find_function(*code)


def _digest(drafted: Draft, samples: Reader, job: Job) -> str:
    """Everything that a training depends on."""
    plan, settings = msgspec.json.encode(drafted.plan).decode(), job.recipe.qat
    parts = [
        sha256(drafted.source), job.recipe.digest(), job.seed, samples.identity(), plan,
        version("torch"), *(_source(name, job) for name in (settings.loss, settings.augment)),
    ]  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _source(name: str | None, job: Job) -> str:
    """The text of the file of a user's function; empty for anything else."""
    code = parse_code(name, job.recipe_from.base or Path()) if name is not None else None
    file = code[0] if code is not None else None
    return file.read_text() if isinstance(file, Path) and file.is_file() else ""
