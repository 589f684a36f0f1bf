"""``calibrate_model``: observe a model, save what was seen, go on later, and merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

from msgspec import to_builtins

from onnxq.api.backends import settled
from onnxq.api.job import Job, Progress, make_job, with_data
from onnxq.api.stages import begin, draw, observe, open_reader
from onnxq.calibrate import Calibration, Workers, decode, describe, encode
from onnxq.data import Data
from onnxq.errors import DataError, UsageError
from onnxq.graph import Model, load, write_bytes
from onnxq.ops import refuse_quantized
from onnxq.plan import Recipe
from onnxq.runtime import default_target
from onnxq.targets import get_target
from onnxq.types import Grid


def calibrate_model(
    model: str | Path | Model,
    data: Data | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    earlier: Calibration | None = None,
    samples: int | None = None,
    workers: Workers | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Observe the tensors of a model that a plan may quantize.

    Args:
        model: A path, or a model that was loaded.
        data: Samples, in any form that ``onnxq.data.open_data`` takes; the recipe's if None.
        recipe: A recipe, the path of one, or ``preset:NAME``; without it, the one beside the
            model, if any.
        earlier: What was observed before, to go on from.
        samples: The most samples, drawn at random; all if None.
        workers: Who calibrates; this process alone if None.
        output: Where to save the outcome; a journal lies beside it while the run lasts, so that a
            killed run goes on where it stopped when it is called again.
        seed: Draws the samples.
        progress: Called with (stage, done, total).

    Returns:
        What was observed: for ``quantize(ranges=...)``, ``save_ranges`` and ``merge_ranges``.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.

    Examples:
        >>> seen = onnxq.calibrate_model("model.onnx", "samples.npz")  # doctest: +SKIP
        >>> onnxq.quantize("model.onnx", ranges=seen)  # doctest: +SKIP
    """
    path = model.path if isinstance(model, Model) else Path(model)
    job = replace(
        make_job(path, recipe), seed=seed, progress=progress, workers=workers or Workers()
    )
    if data is not None:
        job = with_data(job, data)
    return run_calibration(model, job, earlier=earlier, samples=samples, output=output)


def run_calibration(
    model: str | Path | Model,
    job: Job,
    *,
    earlier: Calibration | None = None,
    samples: int | None = None,
    output: str | Path | None = None,
) -> Calibration:
    """Run a job as far as its calibration; see ``calibrate_model``.

    Raises:
        OnnxqError: See ``onnxq.errors`` for the tree.
    """
    source = model if isinstance(model, Model) else load(model)
    refuse_quantized(source)
    data = job.calibration_data
    if data is None:
        raise UsageError("there are no samples to calibrate with", "give --data")
    job = settled(job, source)
    reader = open_reader(data, job.data_from, source.view().inputs, job.recipe)
    if samples is not None:
        reader = draw(reader, samples, job.recipe, job.seed)
    start = begin(source, job, reader)
    journal = journal_path(Path(output)) if output is not None else None
    found = observe(start, reader, job, earlier=earlier, keep_histogram=True, journal=journal)
    if output is not None and journal is not None:
        save_ranges(
            found, output, get_target(job.recipe.target or default_target()).activation_grid
        )
        journal.unlink(missing_ok=True)  # what it kept is safe
    return found


def journal_path(output: Path) -> Path:
    """Where a run keeps what is finished: beside its output."""
    return output.with_name(f"{output.name}.journal")


def save_ranges(calibration: Calibration, path: str | Path, grid: Grid | None = None) -> None:
    """Save what was observed: whole or not at all.

    Args:
        calibration: What was observed.
        path: Where to.
        grid: The integers that the ranges in the file, which are for people, were chosen for.

    Raises:
        OutputError: The file cannot be written.
    """
    facts = to_builtins(describe(calibration, grid or Grid()))
    write_bytes(encode(calibration, facts), Path(path))


def load_ranges(path: str | Path, *, code: str = "", base: Path | None = None) -> Calibration:
    """Load what ``save_ranges`` saved.

    Args:
        path: The file.
        code: The observer that it was made by, if that is Python code (``module:Class``); a file
            by itself never makes code run.
        base: Folder that a ``file.py`` of the observer starts from.

    Raises:
        DataError: The file cannot be read, or holds something else.
        UsageError: Its observer is Python code that was not named.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read: {error.strerror}", "make ranges with `onnxq calibrate`"
        ) from error
    return decode(content, str(path), base, code=code)


def merge_ranges(calibrations: Sequence[Calibration]) -> Calibration:
    """All together, in any order.

    Raises:
        UsageError: There are none, or they do not fit together.
    """
    if not calibrations:
        raise UsageError("there is nothing to merge", "give two files or more")
    return reduce(Calibration.merge, calibrations)
