"""``onnxq backends``: execution providers, and which one suits a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxq.api import available_backends, compare_backends, known_backends
from onnxq.cli.numbers import Number
from onnxq.cli.options import provider_of
from onnxq.cli.progress import StageBars
from onnxq.cli.results import show
from onnxq.errors import UsageError
from onnxq.report import backends_view, comparison_view
from onnxq.targets import CPU, Provider

EPILOG = """\b
Examples:
  onnxq backends
  onnxq backends model.onnx --data samples.npz
  onnxq backends model.onnx --json | jq .best
  onnxq backends --ep-library my_ep=/opt/my_ep/libmy_ep.so
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--data", metavar="DATA", help="Samples, of which one batch is fed; else made up.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples per run; else 1.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a CPU.")
@click.option(
    "--seconds", type=Number(0), default=5.0, show_default=True, help="About how long to measure."
)
@click.option(
    "--ep-library", metavar="NAME=PATH", multiple=True, help="Load a plugin: a provider's library."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON and no more.")
def backends(model: Path | None, **options: Any) -> None:  # noqa: ANN401 - click hands over any
    """Show which execution providers run here, and what to install for others.

    With MODEL, it runs on each of them in turn, and the fastest is told, with the nodes that
    fell back to the CPU provider.
    """
    given = _plugins(options)
    if model is None:
        if options["data"] is not None or options["batch_size"] is not None:
            raise UsageError("--data and --batch-size are about a model, and none is given")
        found = known_backends(given)
        show(found, backends_view(found), {**options, "quiet": False})
        return
    named = {plugin.name: plugin for plugin in given}
    here = [named.get(b.name, Provider(b.name)) for b in available_backends(given)]
    with StageBars(quiet=options["as_json"]) as bars:
        report = compare_backends(
            model,
            options["data"],
            providers=here,
            batch_size=options["batch_size"],
            threads=options["threads"],
            seconds=options["seconds"],
            progress=bars,
        )
    show(report, comparison_view(report), {**options, "quiet": False})


def _plugins(options: dict[str, Any]) -> list[Provider]:
    said = {"ep": None, "ep_option": (), "strict_ep": False}
    return [provider_of(CPU, said | {"ep_library": one}) for one in options["ep_library"]]
