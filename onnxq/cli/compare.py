"""``onnxq compare``: two models side by side, and where the error of the second enters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxq.api import Comparing, run_comparison
from onnxq.api.pipeline import read_files
from onnxq.cli.options import Overrides, job_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import files_to_write, say_written, show
from onnxq.cli.shared import runs_on
from onnxq.data import FORMS
from onnxq.graph import write_bytes
from onnxq.report import load_extra, models_markdown, models_page, models_view
from onnxq.verify import ModelComparison

EPILOG = """\b
Examples:
  onnxq compare model.onnx model.int8.onnx --data samples.npz
  onnxq compare model.onnx made_by_another_tool.onnx --data samples.npz --html compare.html
  onnxq compare model.onnx model.int8.onnx --data samples.npz --top 5 --seconds 0
"""
FILES = ("markdown", "html")
# What wins over the recipe, by the same names as of other commands.
SAID = (
    "recipe", "preset", "metric", "batch_size", "threads", "ep", "ep_option", "ep_library",
    "strict_ep",
)  # fmt: skip


@click.command(epilog=EPILOG)
@click.argument("reference", metavar="FLOAT", type=click.Path(path_type=Path))
@click.argument("other", metavar="OTHER", type=click.Path(path_type=Path))
@click.option("--data", metavar="DATA", help=f"Samples; {FORMS}.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Says how data are read; else FLOAT.onnxq.toml.",
)
@click.option("--preset", metavar="NAME", help="A recipe of onnxq's, see `onnxq recipe list`.")
@click.option("--metric", metavar="NAME", help="top1, or module:function(outputs, labels).")
@click.option("--samples", type=click.IntRange(1), help="The most samples to compare on; else all.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator.")
@runs_on
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="About how long to measure latency; 0 leaves it out.",
)
@click.option("--no-layers", is_flag=True, help="Compare the outputs alone.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the samples."
)
@click.option("--top", type=click.IntRange(1), help="Show the layers that do the most harm alone.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the tables as Markdown.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one page with a chart.")
@click.option("--force", is_flag=True, help="Overwrite these files.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON and no more.")
def compare(reference: Path, other: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any
    """Compare model FLOAT with OTHER, another form of it, whichever tool made that.

    Told are accuracy, size and latency, and layer by layer where the error enters and how it
    grows: every layer of FLOAT is run on what the same layer of OTHER reads, so that what it adds
    itself is told from what it was given.
    """
    said = {name: options[name] for name in SAID}
    job = job_of(reference, Overrides(test_data=options["data"], **said))
    models, read = [reference, other], read_files(job)
    files = files_to_write(FILES, options, models, read, force=options["force"])
    if options["html"] is not None:
        load_extra()  # what is missing is told before the work
    with StageBars(quiet=options["quiet"] or options["as_json"]) as bars:
        job = replace(job, seed=options["seed"], progress=bars)
        wanted = Comparing(options["samples"], options["seconds"], not options["no_layers"])
        found = run_comparison(reference, other, job, wanted)
    for kind, path in files.items():
        write_bytes(_writers(options["top"])[kind](found).encode(), path)
    show(found, models_view(found, top=options["top"]), options)
    if not (options["quiet"] or options["as_json"]):
        say_written(*files.values())


def _writers(top: int | None) -> dict[str, Callable[[ModelComparison], str]]:
    return {
        "markdown": lambda found: models_markdown(found, top=top),
        "html": models_page,
    }
