"""What a run ends with: the receipt as a table or as JSON, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console, RenderableType

from onnxq.api import receipt_path
from onnxq.verify import Receipt


def show(
    value: object, view: RenderableType, options: Mapping[str, Any], *, soft_wrap: bool = False
) -> None:
    """Print a value as JSON, or its view, or nothing, as ``--json`` and ``--quiet`` say.

    With ``soft_wrap`` long lines of the view are left whole.
    """
    if options["as_json"]:
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
    elif not options["quiet"]:
        Console().print(view, soft_wrap=soft_wrap)


def finish(
    receipt: Receipt,
    view: RenderableType,
    output: Path,
    options: Mapping[str, Any],
    how: str = "",
) -> None:
    """Show a receipt, say what was written and how, and exit by its gates."""
    show(receipt, view, options)
    if not (options["quiet"] or options["as_json"]):
        click.echo(f"wrote {output} and {receipt_path(output)}{how}")
    sys.exit(0 if receipt.passed else 1)
