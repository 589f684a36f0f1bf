"""``onnxq bench``: latency of models, and of their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from onnxq.api import bench_models
from onnxq.cli.numbers import Number
from onnxq.cli.progress import StageBars
from onnxq.report import bench_view

EPILOG = """\b
Examples:
  onnxq bench model.onnx model.int8.onnx
  onnxq bench model.onnx model.int8.onnx --data samples.npz --batch-size 8 --seconds 20
  onnxq bench model.onnx model.int8.onnx --per-layer --sort gain --top 10
  onnxq bench model.onnx --per-layer --json | jq '.nodes[] | [.name, .us[0]]'
"""


@click.command(epilog=EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@click.option("--data", metavar="DATA", help="Samples, of which one batch is fed; else made up.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run; else 1.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Threads inside an operator.",
)
@click.option(
    "--seconds", type=Number(0), default=5.0, show_default=True, help="About how long to measure."
)
@click.option(
    "--per-layer", is_flag=True, help="Tell what nodes take, of one model or of two forms of it."
)
@click.option(
    "--sort",
    type=click.Choice(["time", "gain"]),
    default="time",
    show_default=True,
    help="Which nodes come first.",
)
@click.option("--top", type=click.IntRange(1), help="The most nodes to show; else all.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON and no more.")
def bench(models: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click hands over any
    """Compare the latency of MODELs, the first of which is the reference.

    All of them run on one feed, in turn, so that what disturbs the machine disturbs all alike;
    told are medians, and how far speeds may be off.
    """
    with StageBars(quiet=options["as_json"]) as bars:
        report = bench_models(
            [Path(model) for model in models],
            options["data"],
            batch_size=options["batch_size"],
            threads=options["threads"],
            seconds=options["seconds"],
            per_layer=options["per_layer"],
            progress=bars,
        )
    if options["as_json"]:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
        return
    Console().print(bench_view(report, sort=options["sort"], top=options["top"]))
