"""``onnxq check``: the gate for CI."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from msgspec.structs import replace as with_fields

from onnxq.api import (
    Job,
    baseline_path,
    check_job,
    run_check,
    with_data,
    with_metric,
    with_test_data,
)
from onnxq.api.pipeline import read_files
from onnxq.cli.numbers import Number, Share
from onnxq.cli.options import provider_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import files_to_write, show
from onnxq.cli.shared import runs_on
from onnxq.cli.terminal import echo_line
from onnxq.cli.words import Word
from onnxq.data import FORMS
from onnxq.graph import load, write_bytes
from onnxq.plan import CheckSettings
from onnxq.plan.checking import CheckName
from onnxq.report import (
    check_markdown,
    check_page,
    check_view,
    load_extra,
    to_annotations,
    to_junit,
)
from onnxq.targets import TARGETS
from onnxq.verify import Check

EPILOG = """\b
Examples:
  onnxq check model.onnx --baseline model.int8.receipt.json
  onnxq check model.onnx --update
  onnxq check model.onnx --data samples.npz --max-metric-drop 1% --skip latency
  onnxq check model.onnx --junit check.xml --markdown check.md --html check.html --github
"""
# Options that are keys of the recipe's [check], by the same names.
KEYS = (
    "max_metric_drop", "max_agreement_drop", "max_sqnr_loss", "max_size_growth", "max_slowdown",
    "max_coverage_drop", "max_range_change",
)  # fmt: skip
# Files to write by the options that name them.
REPORTS = {"junit": to_junit, "markdown": check_markdown, "html": check_page}


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="A receipt; else MODEL.baseline.json."
)
@click.option("--data", metavar="DATA", help=f"Calibration {FORMS}.")
@click.option("--test-data", metavar="DATA", help="Test data; else the tail of --data.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="Recipe; else MODEL.onnxq.toml, else the baseline's.",
)
@click.option("--target", type=Word(TARGETS), help="Provider; else the recipe's or baseline's.")
@runs_on
@click.option("--metric", metavar="NAME", help="top1, or module:function(outputs, labels).")
@click.option("--max-metric-drop", type=Share(bare=0.2), help="0.5% is the default.")
@click.option("--max-agreement-drop", type=Share(bare=0.2), help="1% is the default.")
@click.option("--max-sqnr-loss", type=Number(0), help="In dB; 3 is the default.")
@click.option("--max-size-growth", type=Share(10, bare=10), help="5% is the default.")
@click.option("--max-slowdown", type=Share(10, bare=10), help="25% is the default.")
@click.option("--max-coverage-drop", type=Share(), help="2% is the default.")
@click.option("--max-range-change", type=Share(100, bare=100), help="50% is the default.")
@click.option(
    "--skip",
    type=Word(get_args(CheckName)),
    multiple=True,
    help="A gate that is not looked at.",
)
@click.option("--search", is_flag=True, help="Search a plan anew; else the baseline's is applied.")
@click.option("--update", is_flag=True, help="Make this run the baseline.")
@click.option("--seed", type=click.IntRange(0), help="Draws the samples; else the baseline's.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML there.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write Markdown there.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one page there.")
@click.option("--github", is_flag=True, help="Print annotations for GitHub Actions.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors and annotations.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(model: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any type
    """Quantize MODEL as its baseline was, and fail where it got worse.

    The baseline is the receipt of an earlier export. Its plan is applied again, node by node,
    with scales of the new weights and data; so the same model passes each time. Exit code 1
    says that a figure is worse by more than its tolerance, which the recipe's [check] or an
    option tells; what chance explains is no failure. What changed since is told beside it.
    """
    baseline = options["baseline"] or baseline_path(model)
    source = load(model)
    job = _job(model, baseline, options)
    files_to_write(tuple(REPORTS), options, [model], [baseline, *read_files(job)], force=True)
    if options["html"] is not None:
        load_extra()  # what is missing is told before the work
    with StageBars(quiet=options["quiet"] or options["as_json"]) as bars:
        found = run_check(
            source, replace(job, progress=bars), baseline,
            search=options["search"], update=options["update"],
        ).check  # fmt: skip
    _report(found, options)
    sys.exit(0 if found.passed or found.updated else 1)


def _job(model: Path, baseline: Path, options: Mapping[str, Any]) -> Job:
    job = check_job(model, baseline, options["recipe"])
    job = with_data(job, options["data"]) if options["data"] is not None else job
    job = with_test_data(job, options["test_data"]) if options["test_data"] is not None else job
    job = with_metric(job, options["metric"]) if options["metric"] is not None else job
    job = replace(job, seed=options["seed"]) if options["seed"] is not None else job
    target = options["target"] or job.recipe.target
    recipe = with_fields(
        job.recipe,
        target=target,
        provider=provider_of(job.recipe.provider, options),
        check=_settings(job.recipe.check, options),
    )
    return replace(job, recipe=recipe)


def _settings(settings: CheckSettings, options: Mapping[str, Any]) -> CheckSettings:
    """The recipe's table ``[check]``, with the options on top."""
    said = {name: options[name] for name in KEYS if options[name] is not None}
    skip = dict.fromkeys((*settings.skip, *options["skip"]))
    return with_fields(settings, **said, skip=tuple(skip))


def _report(found: Check, options: Mapping[str, Any]) -> None:
    _show(found, options)
    for kind, write in REPORTS.items():
        if options[kind] is not None:
            write_bytes(write(found).encode(), options[kind])
    if options["github"]:  # the runner reads both streams, and JSON is to stay alone on its own
        click.echo(to_annotations(found), err=options["as_json"])
    if found.updated and not (options["quiet"] or options["as_json"]):
        echo_line(f"wrote {found.baseline}")


def _show(found: Check, options: Mapping[str, Any]) -> None:
    """Print the view, of which GitHub's runner is to obey no line: models bring the names in it."""
    guarded = options["github"] and not (options["quiet"] or options["as_json"])
    token = secrets.token_hex(16)
    if guarded:
        click.echo(f"::stop-commands::{token}")
    show(found, check_view(found), options, soft_wrap=True)
    if guarded:
        click.echo(f"::{token}::")
