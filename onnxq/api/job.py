"""``Job``: everything that a run needs to know, complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from msgspec.structs import replace as with_fields

from onnxq.calibrate import Calibration, Workers
from onnxq.data import Data
from onnxq.errors import UsageError
from onnxq.plan import Recipe, checked, find_recipe, load_preset, load_recipe

# stage, samples done, samples in all
Progress = Callable[[str, int, int], None]
# What a recipe's name starts with that is a preset, and no file.
PRESET = "preset:"


@dataclass(frozen=True)
class Origin:
    """Where data, a metric or an observer were named, which tells what their names mean.

    Attributes:
        base: Folder that relative paths start from; the working directory if None.
        allow_code: Whether they may be Python code. A recipe that was merely found beside a model
            may not name any: an unknown folder must not run code.
        file: The recipe that named them; None if the caller did.
    """

    base: Path | None = None
    allow_code: bool = True
    file: Path | None = None


@dataclass(frozen=True)
class Job:
    """One run, complete: what ``quantize`` makes out of its arguments and the recipe.

    Attributes:
        recipe: What to do.
        data: Calibration data that are Python objects; they win over the recipe's.
        test_data: Test data that are Python objects; they win over the recipe's.
        data_from: Where its calibration data were named.
        test_from: Where its test data were named.
        metric_from: Where its metric was named.
        observer_from: Where its observer was named.
        recipe_from: Where the recipe itself lies.
        ranges: What was observed before; then nothing is calibrated.
        workers: Who calibrates.
        prepare: Fold, name and raise the opset first; without it the graph stays as it is.
        seed: Draws the calibration samples.
        cache: A folder to keep in what was measured, so that the same run makes the same plan at
            once and a killed one goes on; nothing is kept if None.
        progress: Called with (stage, done, total).
    """

    recipe: Recipe = field(default_factory=Recipe)
    data: Data | None = None
    test_data: Data | None = None
    data_from: Origin = Origin()
    test_from: Origin = Origin()
    metric_from: Origin = Origin()
    observer_from: Origin = Origin()
    recipe_from: Origin = Origin()
    ranges: Calibration | None = None
    workers: Workers = field(default_factory=Workers)
    prepare: bool = True
    seed: int = 0
    cache: Path | None = None
    progress: Progress | None = None

    @property
    def calibration_data(self) -> Data | None:
        """The calibration data, wherever they were named."""
        return self.data if self.data is not None else self.recipe.data.calibration

    @property
    def testing_data(self) -> Data | None:
        """The test data, wherever they were named."""
        return self.test_data if self.test_data is not None else self.recipe.data.test


def make_job(model: Path | None, recipe: Recipe | str | Path | None) -> Job:
    """A job for a recipe that is given as a value, a file or ``preset:NAME``, or found.

    One that lies beside the model is read only where no other is given.

    Raises:
        RecipeError: The recipe cannot be read or holds an unknown key.
        UsageError: There is no such preset.
    """
    if isinstance(recipe, Recipe):
        return Job(checked(recipe))
    if isinstance(recipe, str) and recipe.startswith(PRESET):
        return Job(load_preset(recipe.removeprefix(PRESET)))
    if recipe is not None:
        path = Path(recipe)
        origin = Origin(path.parent, file=path)
    elif model is not None and model.is_file() and (found := find_recipe(model)) is not None:
        path, origin = found, Origin(found.parent, allow_code=False, file=found)
    else:
        return Job()
    loaded = load_recipe(path)
    if not origin.allow_code:
        refuse_libraries(loaded, path)
    return Job(
        loaded,
        data_from=origin,
        test_from=origin,
        metric_from=origin,
        observer_from=origin,
        recipe_from=origin,
    )


def refuse_libraries(recipe: Recipe, where: Path) -> None:
    """Refuse a provider's library, or an option that may name one, in a recipe nobody vouches for.

    Raises:
        UsageError: There is one.
    """
    if key := recipe.provider.may_run_code:
        raise UsageError(
            f"'{where}' was merely found, and its [provider] {key} may load code",
            "pass a recipe of yours with --recipe, or the option with --ep-library or --ep-option",
        )


def with_data(job: Job, data: Data) -> Job:
    """The job on other calibration data, whose paths start from the working directory.

    Data that the caller names may be Python code, whatever the recipe may name.
    """
    if not isinstance(data, str | PathLike):
        return replace(job, data=data)
    settings = with_fields(job.recipe.data, calibration=str(data))
    recipe = with_fields(job.recipe, data=settings)
    return replace(job, recipe=recipe, data=None, data_from=Origin())


def with_test_data(job: Job, data: Data) -> Job:
    """The job on other test data, named by the caller as in ``with_data``."""
    if not isinstance(data, str | PathLike):
        return replace(job, test_data=data)
    settings = with_fields(job.recipe.data, test=str(data))
    recipe = with_fields(job.recipe, data=settings)
    return replace(job, recipe=recipe, test_data=None, test_from=Origin())


def with_metric(job: Job, metric: str) -> Job:
    """The job with another metric, named by the caller as in ``with_data``."""
    recipe = with_fields(job.recipe, verify=with_fields(job.recipe.verify, metric=metric))
    return replace(job, recipe=recipe, metric_from=Origin())


def with_observer(job: Job, method: str) -> Job:
    """The job with another observer, named by the caller as in ``with_data``.

    Raises:
        UsageError: The method is not known.
    """
    settings = job.recipe.calibration.with_method(method)
    return replace(
        job, recipe=with_fields(job.recipe, calibration=settings), observer_from=Origin()
    )
