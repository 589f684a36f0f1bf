"""``onnxq inspect``: the census of a model."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from onnxq.cli.terminal import Terminal, echo_json
from onnxq.cli.words import Word
from onnxq.graph import load
from onnxq.ops import classify
from onnxq.report import census_table
from onnxq.runtime import default_target, prepare
from onnxq.targets import TARGETS, get_target

EPILOG = """\b
Examples:
  onnxq inspect model.onnx
  onnxq inspect model.onnx --json | jq '.nodes[] | select(.reason).reason.sentence'
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", type=Word(TARGETS), help="Provider; else this machine's.")
@click.option("--no-prepare", is_flag=True, help="Look at the graph as it is in the file.")
@click.option("--json", "as_json", is_flag=True, help="Print the census as JSON.")
def inspect(model: Path, target: str | None, no_prepare: bool, as_json: bool) -> None:
    """Show every node of MODEL, and whether it can run as int8.

    The names are those that --keep-float and recipes match; nodes without one get one.
    """
    graph, judged = load(model), get_target(target or default_target())
    if not no_prepare:
        graph = prepare(graph, target=judged)
    census = classify(graph.view(), judged)
    if as_json:
        echo_json(census)
        return
    console = Terminal()
    console.print(census_table(census))
    for note in graph.notes:
        console.print(f"[dim]prepared:[/] {escape(note)}", highlight=False)
