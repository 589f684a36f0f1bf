"""``onnxq calibrate``: observe a model, save what was seen, go on later, merge, and show."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxq.api import load_ranges, merge_ranges, run_calibration, save_ranges
from onnxq.api.pipeline import read_files
from onnxq.calibrate import OBSERVERS, Calibration, describe
from onnxq.cli.group import WithDefault
from onnxq.cli.options import Overrides, job_of, ranges_of, workers_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import say_written
from onnxq.cli.shared import runs_on
from onnxq.cli.terminal import Terminal, echo_json
from onnxq.cli.words import Word
from onnxq.data import FORMS, check_output
from onnxq.graph import files_at
from onnxq.plan import CalibrationSettings
from onnxq.report import calibration_table, calibration_verdict
from onnxq.runtime import default_target
from onnxq.targets import TARGETS, get_target
from onnxq.types import Grid

EPILOG = """\b
Examples:
  onnxq calibrate model.onnx --data samples.npz --show
  onnxq calibrate model.onnx --data more.npz --resume model.ranges.json -o model.ranges.json
  onnxq calibrate merge a.json b.json -o ranges.json
  onnxq calibrate show ranges.json
  onnxq quantize model.onnx --ranges model.ranges.json
"""
MERGE_EPILOG = """\b
Examples:
  onnxq calibrate merge a.json b.json -o ranges.json
"""
SHOW_EPILOG = """\b
Examples:
  onnxq calibrate show ranges.json
  onnxq calibrate show ranges.json --calibrator entropy --bits 8
"""


@click.group(cls=WithDefault, epilog=EPILOG)
def calibrate() -> None:
    """Observe the activations of MODEL, and save what was seen.

    The file holds a histogram of every tensor, so that ranges can be chosen again, by another
    method, without the data. A run that was killed goes on where it stopped.
    """


@calibrate.command(WithDefault.default, hidden=True)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", metavar="DATA", help=f"Samples; all are used. {FORMS[0].upper()}{FORMS[1:]}."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="Recipe; else MODEL.onnxq.toml.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Output; else MODEL.ranges.json."
)
@click.option("--resume", type=click.Path(path_type=Path), help="Ranges to go on from.")
@click.option("--calibrator", metavar="NAME", help=f"{', '.join(OBSERVERS)}, or module:Class.")
@click.option("--exact", is_flag=True, help="Count every value, not a sample of large tensors.")
@click.option("--samples", type=click.IntRange(1), help="The most samples, drawn at random.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--cluster", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786.")
@click.option("--keep-float", metavar="GLOB", multiple=True, help="Nodes that stay float.")
@click.option("--keep-float-op", metavar="OP", multiple=True, help="Operators that stay float.")
@click.option("--target", type=Word(TARGETS), help="Provider; else this machine's.")
@runs_on
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the samples."
)
@click.option("--no-prepare", is_flag=True, help="Leave the float graph as it is.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--show", is_flag=True, help="Print a line for every tensor.")
@click.option("--bits", type=click.IntRange(2, 16), help="Width that ranges are shown for.")
@click.option("--symmetric", is_flag=True, help="Show ranges for a symmetric grid.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def run(model: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any type
    """Calibrate MODEL."""
    output = options["output"] or model.parent / f"{model.stem}.ranges.json"
    resume = options["resume"]
    overwrites = options["force"] or (resume is not None and resume.resolve() == output.resolve())
    said = {name: options[name] for name in Overrides.__dataclass_fields__ if name in options}
    said.pop("samples")  # of the whole data, and not the recipe's limit for quantize
    job = job_of(model, Overrides(**said))
    check_output(output, [*files_at(model), *read_files(job)], force=overwrites)
    silent = options["quiet"] or options["as_json"]
    with StageBars(quiet=silent) as bars, workers_of(options) as workers:
        job = replace(
            job,
            seed=options["seed"],
            prepare=not options["no_prepare"],
            workers=workers,
            progress=bars,
        )
        earlier = ranges_of(resume, job) if resume is not None else None
        found = run_calibration(
            model, job, earlier=earlier, samples=options["samples"], output=output
        )
    target = get_target(job.recipe.target or default_target(job.recipe.provider))
    grid = _grid(target.activation_grid, options)
    _tell(found, grid, show=options["show"], silent=silent, as_json=options["as_json"])
    if not silent:
        say_written(output)


@calibrate.command("merge", epilog=MERGE_EPILOG)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write."
)
@click.option("--calibrator", metavar="NAME", help="Your own observer that the files are by.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def merge_files(
    files: tuple[Path, ...], output: Path, calibrator: str | None, force: bool, quiet: bool
) -> None:
    """Merge the ranges of several FILES, which saw different samples, in any order."""
    check_output(output, list(files), force=force)
    found = merge_ranges([load_ranges(path, code=calibrator or "") for path in files])
    save_ranges(found, output)
    if not quiet:
        Terminal().print(calibration_verdict(describe(found, Grid())))
        say_written(output)


@calibrate.command("show", epilog=SHOW_EPILOG)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--calibrator", metavar="NAME", help="Choose the ranges by another method.")
@click.option("--bits", type=click.IntRange(2, 16), help="Width that ranges are shown for.")
@click.option("--symmetric", is_flag=True, help="Show ranges for a symmetric grid.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def show_file(
    file: Path, calibrator: str | None, bits: int | None, symmetric: bool, as_json: bool
) -> None:
    """Show what FILE says of every tensor."""
    found = load_ranges(file, code=calibrator or "")
    if calibrator is not None and calibrator != found.observer.name:
        settings = CalibrationSettings().with_method(calibrator)
        found = found.with_observer(settings.observer())
    grid = _grid(Grid(), {"bits": bits, "symmetric": symmetric})
    _tell(found, grid, show=True, silent=as_json, as_json=as_json)


def _grid(default: Grid, options: dict[str, Any]) -> Grid:
    return Grid(options["bits"] or default.bits, options["symmetric"] or default.symmetric)


def _tell(found: Calibration, grid: Grid, *, show: bool, silent: bool, as_json: bool) -> None:
    statistics = describe(found, grid)
    if as_json:
        echo_json(statistics)
    if silent:
        return
    console = Terminal()
    if show:
        table = calibration_table(statistics, width=console.width, unicode=_speaks_unicode())
        console.print(table)
    console.print(calibration_verdict(statistics))


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")
