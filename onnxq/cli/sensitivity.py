"""``onnxq sensitivity report``: which layers hurt, and what they cost to keep float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxq.api import Analysis, known_precision, run_sensitivity
from onnxq.api.pipeline import read_files
from onnxq.api.sensitivity import SAMPLES
from onnxq.cli.group import Commands
from onnxq.cli.options import Overrides, job_of, workers_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import files_to_write, say_written
from onnxq.cli.shared import runs_on
from onnxq.cli.terminal import Terminal, echo_json
from onnxq.cli.words import Word
from onnxq.data import FORMS
from onnxq.graph import write_bytes
from onnxq.report import load_extra, sensitivity_page, sensitivity_view, to_csv, to_markdown
from onnxq.runtime import cache_folder
from onnxq.sensitivity import SensitivityReport
from onnxq.targets import TARGETS

EPILOG = """\b
Examples:
  onnxq sensitivity report model.onnx --data samples.npz
  onnxq sensitivity report model.onnx --data samples.npz --html sensitivity.html
  onnxq sensitivity report model.onnx --data samples.npz --precision int8,int4-weights --top 10
  onnxq sensitivity report model.onnx --data samples.npz --metric my_metrics.py:ap50 --csv out.csv
"""
TOP = 20
FILES = ("csv", "markdown", "html")


@click.group(cls=Commands, epilog=EPILOG)
def sensitivity() -> None:
    """Measure what every layer costs in accuracy and in time."""


@sensitivity.command("report", epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", metavar="DATA", help=f"Calibration {FORMS}.")
@click.option("--test-data", metavar="DATA", help="Samples to judge with; else the tail of --data.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Recipe; else MODEL.onnxq.toml.")
@click.option("--preset", metavar="NAME", help="A recipe of onnxq's, see `onnxq recipe list`.")
@click.option("--precision", metavar="NAMES", help="What to try, such as int8,int4-weights,fp16.")
@click.option(
    "--method",
    type=click.Choice(["exact", "screen"]),
    default="exact",
    show_default=True,
    help="Every layer alone, its parts, and all but it; or each alone, on at most 96 samples.",
)
@click.option("--metric", metavar="NAME", help="top1, or module:function(outputs, labels).")
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=SAMPLES,
    show_default=True,
    help="The most samples to judge with.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator.")
@click.option("--target", type=Word(TARGETS), help="Provider; else this machine's.")
@runs_on
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--cluster", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the samples."
)
@click.option("--top", type=click.IntRange(1), help=f"The most layers to show; else {TOP}.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write all layers as CSV.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table as Markdown.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one page with charts.")
@click.option("--force", is_flag=True, help="Overwrite these files.")
@click.option("--fresh", is_flag=True, help="Measure anew what an earlier run found.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON and no more.")
def report(model: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any type
    """Tell which layers of MODEL hurt when they are quantized.

    Every layer is quantized alone, with its weights and activations apart, and kept float alone.
    What is found stays in the cache ($ONNXQ_CACHE, or the user's): a killed run goes on where it
    stopped, and the same run again is answered at once.
    """
    said = {name: options[name] for name in Overrides.__dataclass_fields__ if name in options}
    said |= {"samples": None, "precision": None}  # of the judging, and of several
    job = job_of(model, Overrides(**said))
    files = files_to_write(FILES, options, [model], read_files(job), force=options["force"])
    if options["html"] is not None:
        load_extra()  # what is missing is told before the work
    silent = options["quiet"] or options["as_json"]
    names = (options["precision"] or "").split(",")
    wanted = Analysis(
        precisions=tuple(known_precision(name.strip()) for name in names if name.strip()),
        method=options["method"],
        samples=options["samples"],
        cache=cache_folder(),
        fresh=options["fresh"],
    )
    with StageBars(quiet=silent) as bars, workers_of(options) as workers:
        job = replace(job, seed=options["seed"], workers=workers, progress=bars)
        found = run_sensitivity(model, job, wanted)
    for kind, path in files.items():
        write_bytes(_writers(options["top"])[kind](found).encode(), path)
    _tell(found, list(files.values()), options, silent=silent)


def _writers(top: int | None) -> dict[str, Callable[[SensitivityReport], str]]:
    return {
        "csv": to_csv,
        "markdown": lambda found: to_markdown(found, top=top),
        "html": sensitivity_page,
    }


def _tell(
    found: SensitivityReport, written: list[Path], options: dict[str, Any], *, silent: bool
) -> None:
    if options["as_json"]:
        echo_json(found)
    if silent:
        return
    console = Terminal()
    console.print(sensitivity_view(found, top=options["top"] or TOP, width=console.width))
    say_written(*written)
