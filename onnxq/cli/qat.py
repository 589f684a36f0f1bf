"""``onnxq qat``: training for what quantization rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace as with_fields

from onnxq.api import Job, checkpoint_path, train_model
from onnxq.cli.numbers import Number, Share
from onnxq.cli.options import Overrides, check_weight_options, job_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import finish
from onnxq.cli.shared import budgets, plan_of_layers, runs_on, samples_and_recipe
from onnxq.cli.terminal import echo_line
from onnxq.cli.training import TrainingLog
from onnxq.cli.words import Word
from onnxq.errors import UsageError
from onnxq.plan import QATSettings
from onnxq.qat import require_torch
from onnxq.report import training_view
from onnxq.types import Precision

EPILOG = """\b
Examples:
  onnxq qat model.onnx --data train.npz --test-data test.npz --epochs 10
  onnxq qat model.onnx --data train.npz --distill --precision int4-weights
  onnxq qat model.onnx --data few.npz --distill --layerwise --batch-size 8
  onnxq qat model.onnx --data train.npz --labels --teacher 50% --per-tensor --augment flip-shift
  onnxq qat model.onnx --recipe model.onnxq.toml --max-drop 0.5% --json > receipt.json
"""
PRECISIONS = ("int8", "int8-weights", "int4-weights", "int8-dynamic", "int16")
# Options that are keys of the recipe's [qat], by the same names.
KEYS = (
    "epochs", "batch_size", "samples", "teacher", "temperature", "learning_rate", "optimizer",
    "schedule", "patience", "observer", "warmup", "weight_bits", "augment", "threads",
)  # fmt: skip


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@samples_and_recipe("Training")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Output; else MODEL.qat.PRECISION.onnx."
)
@click.option(
    "--precision",
    type=Word(PRECISIONS),
    help="What to train for; else the recipe's, or int8.",
)
@click.option("--labels", is_flag=True, help="Learn from labels, by cross-entropy.")
@click.option("--distill", is_flag=True, help="Learn from the float model; labels are ignored.")
@click.option("--teacher", type=Share(), help="The float model's share, beside labels.")
@click.option("--temperature", type=Number(0), help="Of class scores, where they are distilled.")
@click.option(
    "--layerwise", is_flag=True, help="Train each layer for its own output, with few samples."
)
@click.option("--match", metavar="GLOB", multiple=True, help="Inner tensors to match to float's.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the samples; 5 is the default.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per step; 64 is the default.")
@click.option("--samples", type=click.IntRange(1), help="The most samples to train with.")
@click.option("--learning-rate", type=Number(0), help="Of the first step; 1e-4 is the default.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="adamw is the default.")
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "constant"]),
    help="Of the learning rate; cosine, to zero, is the default.",
)
@click.option(
    "--patience", type=click.IntRange(1), help="Stop after so many epochs without a better one."
)
@click.option(
    "--observer",
    type=click.Choice(["calibrated", "minmax", "moving-average"]),
    help="Ranges of activations: calibrated, the default, or of the first batches.",
)
@click.option("--warmup", type=click.IntRange(1), help="How many first batches; 16 is the default.")
@click.option("--fixed-scales", is_flag=True, help="Do not train scales, weights alone.")
@click.option("--weight-bits", type=click.IntRange(2, 8), help="Use fewer bits of stored weights.")
@click.option(
    "--simulate",
    type=click.Choice(["all", "weights", "activations"]),
    help="What is rounded while training; all is the default.",
)
@click.option("--keep-zeros", is_flag=True, help="Weights that are 0 stay 0.")
@click.option(
    "--augment",
    type=click.Choice(["flip", "shift", "flip-shift"]),
    help="Mirror images, or move them, at random.",
)
@budgets
@plan_of_layers
@runs_on
@click.option(
    "--threads", type=click.IntRange(1), help="Of training, and inside an operator when timing."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Draws the samples, and decides their order.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Else a GPU where there is one.")
@click.option("--fresh", is_flag=True, help="Do not go on from a checkpoint.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt and no more.")
def qat(model: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any type
    """Train MODEL while its quantization is simulated, and measure what that was worth.

    Quantization-aware training, of the ONNX graph itself: weights, biases and scales learn from
    labels, or from the float model where there are none. What comes out is held against float
    and against quantization without training, on samples that training never saw. A run that
    was killed goes on from OUTPUT's .checkpoint.npz when the same command is run again. It
    takes `pip install 'onnxq[qat]'`.
    """
    require_torch()
    from onnxq.qat.checkpoint import kept_so_far
    from onnxq.qat.device import choose_device
    from onnxq.qat.run import Watch

    job = _job(model, options)
    device = choose_device(options["device"])
    output = options["output"] or model.parent / f"{model.stem}.qat.{job.recipe.usual}.onnx"
    checkpoint = checkpoint_path(output)
    kept = None if options["fresh"] else kept_so_far(checkpoint)
    bars = StageBars(quiet=options["quiet"] or options["as_json"])
    log = TrainingLog(bars, checkpoint, kept)
    with _going_on_from(checkpoint), bars:
        receipt = train_model(
            model, replace(job, progress=bars), output=output, device=device,
            force=options["force"], fresh=options["fresh"],
            watch=Watch(log.step, log.epoch, log.warm), compared=log.compared,
        ).result.receipt  # fmt: skip
        log.finish()
    finish(receipt, training_view(receipt), output, options)


@contextmanager
def _going_on_from(checkpoint: Path) -> Iterator[None]:
    """Tell who interrupts a training that it is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.is_file():
            echo_line(f"the same command goes on from {checkpoint}", err=True)
        raise


def _job(model: Path, options: Mapping[str, Any]) -> Job:
    """The job that the recipe and the options describe."""
    said = {name: options[name] for name in Overrides.__dataclass_fields__ if name in options}
    said |= {"samples": None, "batch_size": None}  # of training, not of calibrating
    overrides = Overrides(**said)
    job = replace(job_of(model, overrides), seed=options["seed"])
    recipe = with_fields(job.recipe, precision=job.recipe.usual.value)
    job = replace(job, recipe=with_fields(recipe, qat=_settings(recipe.qat, options)))
    check_weight_options(job, overrides)
    if options["weight_bits"] is not None and recipe.usual is Precision.INT4_WEIGHTS:
        raise UsageError(
            "--weight-bits does not reach weights in blocks, which int4-weights makes",
            "leave one of them out",
        )
    if recipe.precision not in PRECISIONS and not recipe.layers:
        raise UsageError(
            f"the precision is {recipe.precision}, which rounds to no integers to train for",
            f"say --precision {', '.join(PRECISIONS)}",
        )
    return job


def _settings(qat: QATSettings, options: Mapping[str, Any]) -> QATSettings:
    """The recipe's table ``[qat]``, with the options on top."""
    if options["labels"] and options["distill"]:
        raise UsageError("--labels and --distill: learn from one of them", "see --teacher for both")
    if options["distill"] and options["teacher"] is not None:
        raise UsageError("--teacher shares with labels, which --distill ignores", "leave one out")
    said = {name: options[name] for name in KEYS if options[name] is not None}
    if options["labels"] or options["distill"]:
        said["loss"] = "cross-entropy" if options["labels"] else "distill"
    if options["simulate"] is not None:
        said["quantize_weights"] = options["simulate"] != "activations"
        said["quantize_activations"] = options["simulate"] != "weights"
    if options["warmup"] is not None and said.get("observer", qat.observer) == "calibrated":
        raise UsageError(
            "--warmup is about observing the first batches, and ranges are calibrated",
            "add --observer minmax or moving-average",
        )
    return with_fields(
        qat,
        **said,
        match=qat.match + options["match"],
        layerwise=qat.layerwise or options["layerwise"],
        learn_scales=qat.learn_scales and not options["fixed_scales"],
        keep_zeros=qat.keep_zeros or options["keep_zeros"],
    )
