"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxq.calibrate import OBSERVERS
from onnxq.cli.numbers import Number, Share
from onnxq.cli.words import Word
from onnxq.data import FORMS
from onnxq.targets import AUTO, PROVIDERS, TARGETS
from onnxq.types import Form

Command = TypeVar("Command", bound=Callable[..., Any])


def _together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator for several, which are listed in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def samples_and_recipe(kind: str) -> Callable[[Command], Command]:
    """Where samples come from, with the word for what those of ``--data`` are, and the recipe."""
    return _together(
        click.option("--data", metavar="DATA", help=f"{kind} {FORMS}."),
        click.option("--test-data", metavar="DATA", help="Test data; else the tail of --data."),
        click.option(
            "--recipe", type=click.Path(path_type=Path), help="Recipe; else MODEL.onnxq.toml."
        ),
        click.option(
            "--preset", metavar="NAME", help="A recipe of onnxq's, see `onnxq recipe list`."
        ),
    )


budgets = _together(
    click.option("--max-drop", type=Share(bare=0.2), help="The most that the metric may fall."),
    click.option("--min-agreement", type=Share(), help="The least share with the same top class."),
    click.option("--min-sqnr", type=Number(), help="The least SQNR of any output, in dB."),
    click.option("--min-int8", type=Share(), help="The least share of layers that run as int8."),
    click.option(
        "--max-size", type=Share(10, bare=10), help="The most bytes, as a share of the model's."
    ),
    click.option("--min-speedup", type=Number(0), help="The least speed, in multiples of float."),
)
_PROVIDERS = ", ".join([*PROVIDERS, AUTO])
# Where models run; ``provider_of`` reads what was said.
runs_on = _together(
    click.option(
        "--ep", metavar="NAME", help=f"Execution provider: {_PROVIDERS}, or a plugin; else cpu."
    ),
    click.option(
        "--ep-option", metavar="KEY=VALUE", multiple=True, help="An option of the provider's own."
    ),
    click.option("--ep-library", metavar="NAME=PATH", help="Load a plugin: a provider's library."),
    click.option(
        "--strict-ep", is_flag=True, help="Fail where a node falls back to the CPU provider."
    ),
)
plan_of_layers = _together(
    click.option(
        "--format",
        type=Word(form.value for form in Form),
        help="Q/DQ pairs, or operators on integers.",
    ),
    click.option(
        "--target",
        type=Word(TARGETS),
        help="Provider to plan for; else that of --ep.",
    ),
    click.option("--calibrator", metavar="NAME", help=f"{', '.join(OBSERVERS)}, or module:Class."),
    click.option("--per-tensor", is_flag=True, help="One scale per weight, not one per channel."),
    click.option(
        "--block-size",
        type=click.Choice(["16", "32", "64", "128", "256"]),
        help="Values that share a scale, for weights alone.",
    ),
    click.option(
        "--asymmetric-weights", is_flag=True, help="Blocks have a zero point, for weights alone."
    ),
    click.option("--keep-float", metavar="GLOB", multiple=True, help="Nodes that stay float."),
    click.option("--keep-float-op", metavar="OP", multiple=True, help="Operators that stay float."),
    click.option("--metric", metavar="NAME", help="top1, or module:function(outputs, labels)."),
)
