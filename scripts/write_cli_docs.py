"""Write docs/cli.md, what --help says of every command, and the outline that shells complete by.

Run: python scripts/write_cli_docs.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxq.calibrate import OBSERVERS
from onnxq.cli import main, outline
from onnxq.cli.group import WithDefault
from onnxq.data.datasets import NAMES
from onnxq.ops import OPERATORS
from onnxq.plan import presets
from onnxq.targets import AUTO, PROVIDERS
from onnxq.types import Precision

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "cli.md"
OUTLINE = ROOT / "onnxq" / "cli" / outline.FILE
HEAD = """\
# Command line

Written by `python scripts/write_cli_docs.py` from what `--help` says. What a recipe can say is in
[recipe.md](recipe.md); what a receipt holds, in [receipt.schema.json](receipt.schema.json).
"""
WIDTH = 100
_DATA = tuple(f"dataset:{name}" for name in NAMES)
# What parameters take that may be something else as well, by their names.
WORDS = {
    "preset": tuple(presets()),
    "ep": (*PROVIDERS, AUTO),
    "calibrator": tuple(OBSERVERS),
    "metric": ("top1",),
    "precision": tuple(Precision),
    "keep_float_op": tuple(OPERATORS),
    "data": _DATA,
    "test_data": _DATA,
    "name": tuple(presets()),
}
# How the files end that parameters take, by their names; others that are paths take any.
SUFFIXES = {
    ".onnx": ("model", "models", "reference", "other", "output"),
    ".toml": ("recipe", "output"),
    ".json": (
        "from_receipt", "baseline", "before", "after", "ranges", "resume", "file", "files",
        "output",
    ),
    ".npz": ("data", "test_data"),
    ".npy": ("data", "test_data"),
    ".html": ("html",),
    ".md": ("markdown",),
    ".csv": ("csv",),
    ".xml": ("junit",),
}  # fmt: skip


def _section(name: str, command: click.Command, parent: click.Context | None = None) -> str:
    context = click.Context(
        command,
        parent,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    title = f"## {context.command_path}"
    parts = [f"{title}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            parts.append(_section(inner, found, context))
    return "\n".join(parts)


def text() -> str:
    return f"{HEAD}\n{_section('onnxq', main)}"


def _described(command: click.Command) -> dict[str, Any]:
    """A command as its outline says it."""
    found: dict[str, Any] = {
        "help": command.get_short_help_str(WIDTH),
        "params": [_parameter(param) for param in command.params],
    }
    if command.hidden:
        found["hidden"] = True
    if isinstance(command, click.Group):
        found["default"] = isinstance(command, WithDefault)
        found["commands"] = {name: _described(inner) for name, inner in command.commands.items()}
    return found


def _parameter(param: click.Parameter) -> dict[str, Any]:
    name = str(param.name)
    many = param.multiple if isinstance(param, click.Option) else param.nargs == -1
    found: dict[str, Any] = {"name": name, "many": many}
    if isinstance(param, click.Option):
        found |= {"flags": param.opts, "takes": int(not param.is_flag), "help": param.help}
    suffixes = [suffix for suffix, names in SUFFIXES.items() if name in names]
    if isinstance(param.type, click.Choice):
        found["words"] = list(param.type.choices)
    elif name in WORDS:
        found["words"] = list(WORDS[name])
    if isinstance(param.type, click.Path) or suffixes:
        found["files"] = suffixes
    return found


def outline_text() -> str:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    found = {name: _described(command) for name, command in commands.items() if command is not None}
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
    OUTLINE.write_text(outline_text(), encoding="utf-8")
