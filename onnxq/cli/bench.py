"""``onnxq bench``: latency of models, and of their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.api import bench_models
from onnxq.cli.numbers import Number, Numbers
from onnxq.cli.options import provider_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import files_to_write, say_written, show
from onnxq.cli.shared import runs_on
from onnxq.graph import write_bytes
from onnxq.report import bench_page, bench_view, load_extra
from onnxq.targets import CPU, Provider

EPILOG = """\b
Examples:
  onnxq bench model.onnx model.int8.onnx
  onnxq bench model.onnx model.int8.onnx --data samples.npz --batch-size 1,8 --seconds 20
  onnxq bench model.onnx model.int8.onnx --ep cpu,openvino --threads 1,2 --memory
  onnxq bench model.onnx model.int8.onnx --per-layer --sort gain --top 10
  onnxq bench model.onnx model.int8.onnx --per-layer --html bench.html
  onnxq bench model.onnx --per-layer --json | jq '.nodes[] | [.name, .us[0]]'
"""


@click.command(epilog=EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path())
@click.option("--data", metavar="DATA", help="Samples, of which one batch is fed; else made up.")
@click.option("--batch-size", type=Numbers(), help="Samples per run, such as 8 or 1,8; else 1.")
@click.option(
    "--threads",
    type=Numbers(),
    default="1",
    show_default=True,
    help="Threads inside an operator, such as 1,2.",
)
@runs_on
@click.option(
    "--seconds",
    type=Number(0),
    default=5.0,
    show_default=True,
    help="About how long to measure, for each batch size and number of threads.",
)
@click.option("--memory", is_flag=True, help="Tell what each model takes, in a process of its own.")
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
@click.option("--html", type=click.Path(path_type=Path), help="Write one page with charts.")
@click.option("--force", is_flag=True, help="Overwrite this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON and no more.")
def bench(models: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click hands over any
    """Compare the latency of MODELs, the first of which is the reference.

    All of them run on one feed, in turn, so that what disturbs the machine disturbs all alike;
    told are ratios, medians, and how far speeds may be off. --ep cpu,openvino runs every model on
    several execution providers, the first of which is the reference's.
    """
    paths = [Path(model) for model in models]
    read = [Path(options["data"])] if options["data"] is not None else []
    files = files_to_write(("html",), options, paths, read, force=options["force"])
    if files:
        load_extra()  # what is missing is told before the work
    with StageBars(quiet=options["as_json"]) as bars:
        report = bench_models(
            paths,
            options["data"],
            providers=_providers(options),
            batch_size=options["batch_size"],
            threads=options["threads"],
            seconds=options["seconds"],
            per_layer=options["per_layer"],
            memory=options["memory"],
            progress=bars,
        )
    for path in files.values():
        write_bytes(bench_page(report).encode(), path)
    view = bench_view(report, sort=options["sort"], top=options["top"])
    show(report, view, {**options, "quiet": False})
    if not options["as_json"]:
        say_written(*files.values())


def _providers(options: dict[str, Any]) -> list[Provider]:
    """One provider for each name; options and a plugin's library are for those that take them."""
    names = [name.strip() for name in (options["ep"] or "").split(",") if name.strip()]
    plugin = (options["ep_library"] or "").partition("=")[0]
    found = []
    for name in names or [plugin or "cpu"]:
        said = {**options, "ep": name}
        if name != plugin:
            said["ep_library"] = None
        if name == "cpu":
            said["ep_option"] = ()
        found.append(provider_of(CPU, said))
    return found
