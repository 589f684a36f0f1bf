"""``onnxq quantize``: the main job."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from onnxq.api import draft, receipt_path, run, usual_precision
from onnxq.calibrate import OBSERVERS
from onnxq.cli.options import Overrides, check_weight_options, job_of, ranges_of, workers_of
from onnxq.cli.progress import StageBars
from onnxq.data import FORMS
from onnxq.errors import UsageError
from onnxq.graph import check_writable
from onnxq.report import plan_table, receipt_view
from onnxq.targets import TARGETS
from onnxq.types import Form, Precision

EPILOG = """\b
Examples:
  onnxq quantize model.onnx --data samples.npz
  onnxq quantize model.onnx --data train.npz --test-data test.npz --keep-float 'head.*'
  onnxq quantize model.onnx --ranges model.ranges.json --calibrator entropy
  onnxq quantize model.onnx --precision int4-weights --block-size 64 --weight-method hqq
  onnxq quantize model.onnx --preset transformer --test-data test.npz
  onnxq quantize model.onnx --recipe model.onnxq.toml --json > receipt.json
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", metavar="DATA", help=f"Calibration {FORMS}.")
@click.option("--test-data", metavar="DATA", help="Test data; else the tail of --data.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Recipe; else MODEL.onnxq.toml.")
@click.option("--preset", metavar="NAME", help="A recipe of onnxq's, see `onnxq recipe list`.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Output; else MODEL.PRECISION.onnx."
)
@click.option("--precision", type=click.Choice([p.value for p in Precision]), help="What to make.")
@click.option("--float-type", type=click.Choice(["float32", "fp16"]), help="Of what stays float.")
@click.option(
    "--format",
    type=click.Choice([f.value for f in Form]),
    help="Q/DQ pairs, or operators on integers.",
)
@click.option(
    "--block-size",
    type=click.Choice(["16", "32", "64", "128", "256"]),
    help="Values that share a scale, for weights alone.",
)
@click.option(
    "--weight-method",
    type=click.Choice(["rtn", "hqq"]),
    help="How these scales are chosen: by rounding alone, or by half-quadratic optimisation.",
)
@click.option(
    "--asymmetric-weights", is_flag=True, help="Blocks have a zero point, for weights alone."
)
@click.option("--target", type=click.Choice(list(TARGETS)), help="Provider; else this machine's.")
@click.option("--calibrator", metavar="NAME", help=f"{', '.join(OBSERVERS)}, or module:Class.")
@click.option("--exact", is_flag=True, help="Count every value, not a sample of large tensors.")
@click.option(
    "--ranges", type=click.Path(path_type=Path), help="Ranges by `onnxq calibrate`, not new ones."
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--cluster", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786.")
@click.option("--per-tensor", is_flag=True, help="One scale per weight, not one per channel.")
@click.option("--keep-float", metavar="GLOB", multiple=True, help="Nodes that stay float.")
@click.option("--keep-float-op", metavar="OP", multiple=True, help="Operators that stay float.")
@click.option("--metric", metavar="NAME", help="top1, or module:function(outputs, labels).")
@click.option("--samples", type=click.IntRange(1), help="The most samples to calibrate with.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the samples."
)
@click.option("--no-prepare", is_flag=True, help="Leave the float graph as it is.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--dry-run", is_flag=True, help="Show the plan; write nothing.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt (or plan) and no more.")
def quantize(model: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any type
    """Quantize MODEL, and measure what came out.

    Without data only the weights become int8. With data, activations do too, wherever the
    target runs them as int8, and accuracy is measured on samples that calibration never saw.
    Other precisions take --precision or a recipe. The receipt lies beside the output.
    """
    said = Overrides(**{name: options[name] for name in Overrides.__dataclass_fields__})
    silent = options["quiet"] or options["as_json"]
    ranges = options["ranges"]
    idle = [name for name in ("exact", "samples", "cluster") if options[name]]
    idle += ["jobs"] if options["jobs"] > 1 else []
    if ranges is not None and idle:
        raise UsageError(
            f"--{idle[0]} is about calibrating, and with --ranges nothing is calibrated",
            "give it to `onnxq calibrate`",
        )
    with StageBars(quiet=silent) as bars, workers_of(options) as workers:
        job = job_of(model, said)
        precision = usual_precision(job) if ranges is None else job.recipe.usual
        output = options["output"] or model.parent / f"{model.stem}.{precision}.onnx"
        if ranges is not None and not options["dry_run"]:
            check_writable(output, [ranges], force=options["force"])
        job = replace(
            job,
            ranges=ranges_of(ranges, job) if ranges is not None else None,
            workers=workers,
            seed=options["seed"],
            prepare=not options["no_prepare"],
            progress=bars,
        )
        check_weight_options(job, said)
        if options["dry_run"]:
            plan = draft(model, job).plan
        else:
            receipt = run(model, job, output=output, force=options["force"]).receipt
    if options["dry_run"]:
        _show(plan, None if silent else plan_table(plan), as_json=options["as_json"])
        return
    _show(receipt, None if silent else receipt_view(receipt), as_json=options["as_json"])
    if not silent:
        click.echo(f"wrote {output} and {receipt_path(output)}")
    sys.exit(0 if receipt.passed else 1)


def _show(value: Any, view: Any, *, as_json: bool) -> None:  # noqa: ANN401 - any result and view
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
    elif view is not None:
        Console().print(view)
