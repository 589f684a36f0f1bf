"""Write docs/cli.md, what --help says of every command: python scripts/write_cli_docs.py."""

from __future__ import annotations

from pathlib import Path

import click

from onnxq.cli import main

PATH = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """\
# Command line

Written by `python scripts/write_cli_docs.py` from what `--help` says. What a recipe can say is in
[recipe.md](recipe.md); what a receipt holds, in [receipt.schema.json](receipt.schema.json).
"""
WIDTH = 100


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


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
