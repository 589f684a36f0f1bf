"""``onnxq diff``: what changed from one receipt to another."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.api import diff_receipts
from onnxq.cli.results import show
from onnxq.report import diff_view

EPILOG = """\b
Examples:
  onnxq diff old.receipt.json model.int8.receipt.json
  onnxq diff old.receipt.json model.int8.receipt.json --json | jq '.plan[].where'
"""
TOP = 20


@click.command(epilog=EPILOG)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--top",
    type=click.IntRange(1),
    default=TOP,
    show_default=True,
    help="The most changes, ranges and scales to show of each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON and no more.")
def diff(before: Path, after: Path, top: int, *, as_json: bool) -> None:
    """Tell what changed from receipt BEFORE to receipt AFTER.

    What became of the figures, what the graph has otherwise, which nodes have another precision
    and why, which ranges and scales moved, and what differs of recipe, data and versions. Plans
    will do as well, as `onnxq quantize --dry-run --json` prints them.
    """
    found = diff_receipts(before, after)
    show(found, diff_view(found, top=top), {"as_json": as_json, "quiet": False})
