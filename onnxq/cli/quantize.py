"""``onnxq quantize``: the main job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxq.api import (
    Progress,
    Result,
    layer_figures,
    load_receipt,
    planned,
    receipt_path,
    replay,
    run,
    usual_precision,
)
from onnxq.api.pipeline import read_files
from onnxq.cli.options import (
    Overrides,
    check_weight_options,
    job_of,
    provider_of,
    ranges_of,
    workers_of,
)
from onnxq.cli.progress import StageBars
from onnxq.cli.results import files_to_write, finish, show
from onnxq.cli.shared import budgets, plan_of_layers, runs_on, samples_and_recipe
from onnxq.cli.words import Word
from onnxq.data import check_output
from onnxq.errors import UsageError
from onnxq.graph import data_path, write_bytes
from onnxq.report import load_extra, plan_table, quantize_page, receipt_view
from onnxq.runtime import cache_folder
from onnxq.targets import Provider
from onnxq.types import Precision
from onnxq.verify import Receipt

EPILOG = """\b
Examples:
  onnxq quantize model.onnx --data samples.npz
  onnxq quantize model.onnx --data train.npz --test-data test.npz --keep-float 'head.*'
  onnxq quantize model.onnx --ranges model.ranges.json --calibrator entropy
  onnxq quantize model.onnx --precision int4-weights --block-size 64 --weight-method hqq
  onnxq quantize model.onnx --preset transformer --test-data test.npz
  onnxq quantize model.onnx --data samples.npz --max-drop 0.5% --min-int8 90%
  onnxq quantize model.onnx --data samples.npz --html model.html
  onnxq quantize model.onnx --recipe model.onnxq.toml --json > receipt.json
  onnxq quantize model.onnx --from model.int8.receipt.json -o again.onnx
"""
PROVIDER = ("ep", "ep_option", "ep_library", "strict_ep")
# What says how a receipt's plan is applied again; all else is decided by the receipt.
REPLAYED = (
    "from_receipt", "test_data", "metric", *PROVIDER, "output", "html", "force", "quiet", "as_json",
)  # fmt: skip


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@samples_and_recipe("Calibration")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Output; else MODEL.PRECISION.onnx."
)
@click.option(
    "--from",
    "from_receipt",
    metavar="RECEIPT",
    type=click.Path(path_type=Path),
    help="Apply the plan of this receipt again, without data; only --test-data, --metric, "
    "--ep and its kin, -o, --html, --force, --quiet and --json go with it.",
)
@click.option(
    "--precision",
    type=Word(["auto", *(p.value for p in Precision)]),
    help="What to make; auto is the default.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "size", "int8-everywhere"]),
    help="What the best model is; latency is the default.",
)
@click.option("--allow-slower", is_flag=True, help="A model slower than float will do.")
@budgets
@click.option("--float-type", type=click.Choice(["float32", "fp16"]), help="Of what stays float.")
@plan_of_layers
@runs_on
@click.option(
    "--weight-method",
    type=click.Choice(["rtn", "hqq"]),
    help="How scales of blocks are chosen: by rounding alone, or by half-quadratic optimisation.",
)
@click.option("--exact", is_flag=True, help="Count every value, not a sample of large tensors.")
@click.option(
    "--ranges", type=click.Path(path_type=Path), help="Ranges by `onnxq calibrate`, not new ones."
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--cluster", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786.")
@click.option("--samples", type=click.IntRange(1), help="The most samples to calibrate with.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", type=click.IntRange(1), help="Threads inside an operator.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the samples."
)
@click.option("--no-prepare", is_flag=True, help="Leave the float graph as it is.")
@click.option("--fresh", is_flag=True, help="Measure anew what was measured before.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one page about every node.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--dry-run", is_flag=True, help="Show the plan; write nothing.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt (or plan) and no more.")
def quantize(model: Path, **options: Any) -> None:  # noqa: ANN401 - click hands over any type
    """Quantize MODEL, and measure what came out.

    With data, the fastest mix of precisions inside the budgets on accuracy is found by
    measurement, and proven on samples that neither calibration nor the search saw. Without
    data only the weights become int8. --precision and --objective say otherwise. What was
    measured stays in the cache ($ONNXQ_CACHE, or the user's); --fresh leaves it alone. The
    receipt lies beside the output.
    """
    if options["from_receipt"] is not None:
        _replay(model, options)
        return
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
            check_output(output, [ranges], force=options["force"])
        _check_page(model, output, [*read_files(job), *([ranges] if ranges else [])], options)
        job = replace(
            job,
            ranges=ranges_of(ranges, job) if ranges is not None else None,
            workers=workers,
            seed=options["seed"],
            prepare=not options["no_prepare"],
            cache=None if options["fresh"] else cache_folder(),
            progress=bars,
        )
        check_weight_options(job, said)
        if options["dry_run"]:
            plan = planned(model, job)
        else:
            result = run(model, job, output=output, force=options["force"])
            written = _write_page(result, options, bars)
    if options["dry_run"]:
        show(plan, plan_table(plan), options)
        return
    finish(result.receipt, receipt_view(result.receipt), output, options, written)


def _check_page(
    model: Path, output: Path, read: Sequence[Path], options: Mapping[str, Any]
) -> None:
    """Refuse a page that cannot be written, before the work."""
    page = options["html"]
    if page is None:
        return
    if options["dry_run"]:
        raise UsageError("--html is about what was made, and --dry-run makes nothing")
    files_to_write(("html",), options, [model], read, force=options["force"])
    if page.resolve() in {p.resolve() for p in (output, receipt_path(output), data_path(output))}:
        raise UsageError("two outputs have the same name", "give each file another")
    load_extra()  # what is missing is told before the work


def _write_page(result: Result, options: Mapping[str, Any], progress: Progress) -> str:
    """Write the page that is wanted, if any, and say so."""
    page = options["html"]
    if page is None:
        return ""
    figures = layer_figures(result, progress=progress)
    write_bytes(quantize_page(result.receipt, figures).encode(), page)
    return f"; {page} shows every node"


def _replay(model: Path, options: Mapping[str, Any]) -> None:
    """Apply the plan of a receipt again."""
    context, given = click.get_current_context(), ParameterSource.COMMANDLINE
    said = [name for name in options if context.get_parameter_source(name) is given]
    if idle := [name for name in said if name not in REPLAYED]:
        raise UsageError(
            f"--{idle[0].replace('_', '-')} decides about a plan, and with --from the receipt's "
            "is applied as it is",
            "leave one of them out",
        )
    if options["metric"] is not None and options["test_data"] is None:
        raise UsageError("--metric judges test data, and there are none", "give --test-data")
    receipt = load_receipt(options["from_receipt"])
    output = options["output"] or model.parent / f"{model.stem}.{receipt.recipe.usual}.onnx"
    read = [options["from_receipt"], *(Path(p) for p in (options["test_data"],) if p)]
    _check_page(model, output, read, options)
    with StageBars(quiet=options["quiet"] or options["as_json"]) as bars:
        result = replay(
            model, options["from_receipt"], output=output, force=options["force"],
            test_data=options["test_data"], metric=options["metric"],
            provider=_provider(receipt, options), progress=bars,
        )  # fmt: skip
        written = _write_page(result, options, bars)
    made = result.receipt
    same = made.output.sha256 == receipt.output.sha256
    bytes_are = "the same bytes as" if same else "other bytes than"
    how = f"; the model has {bytes_are} the receipt's{written}"
    finish(made, receipt_view(made), output, options, how)


def _provider(receipt: Receipt, options: Mapping[str, Any]) -> Provider | None:
    """Where to measure, if that was said: no code is loaded that the receipt alone names."""
    if not any(options[name] for name in PROVIDER):
        return None
    known = receipt.recipe.provider
    return provider_of(Provider(known.name) if known.may_run_code else known, options)
