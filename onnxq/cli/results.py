"""What a run ends with: the receipt as a table or as JSON, files, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from onnxq.api import receipt_path
from onnxq.cli.terminal import Terminal, echo_json, echo_line
from onnxq.data import check_output
from onnxq.errors import UsageError
from onnxq.graph import files_at
from onnxq.verify import Receipt


def show(
    value: object, view: RenderableType, options: Mapping[str, Any], *, soft_wrap: bool = False
) -> None:
    """Print a value as JSON, or its view, or nothing, as ``--json`` and ``--quiet`` say.

    With ``soft_wrap`` long lines of the view are left whole.
    """
    if options["as_json"]:
        echo_json(value)
    elif not options["quiet"]:
        Terminal().print(view, soft_wrap=soft_wrap)


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
        echo_line(f"wrote {output} and {receipt_path(output)}{how}")
    sys.exit(0 if receipt.passed else 1)


def files_to_write(
    kinds: Sequence[str],
    options: Mapping[str, Any],
    models: Sequence[Path],
    read: Sequence[Path],
    *,
    force: bool,
) -> dict[str, Path]:
    """The reports that options name, by kind: refused before the work where they would do harm.

    Args:
        kinds: Options that name a file each.
        options: What was said.
        models: Models that are read, and their external data with them.
        read: Data, recipes and receipts that are read.
        force: Whether other files may be overwritten.

    Raises:
        OutputError: One cannot be written, is read, or would be one of the data.
        UsageError: Two are the same file.
    """
    files = {kind: options[kind] for kind in kinds if options[kind] is not None}
    sources = [*(file for model in models for file in files_at(model)), *read] if files else []
    for path in files.values():
        check_output(path, sources, force=force)
    if len({path.resolve() for path in files.values()}) < len(files):
        raise UsageError("two outputs have the same name", "give each file another")
    return files


def say_written(*paths: Path) -> None:
    """Say which files were written."""
    for path in paths:
        echo_line(f"wrote {path}")
