"""``onnxq``: the group of commands, loaded when they are called."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

import click

from onnxq.cli.group import Commands
from onnxq.cli.outline import outlined
from onnxq.errors import OnnxqError, printable, printable_lines

# Name and one line of help; the module of a command is imported when it is called.
COMMANDS = {
    "quantize": "Quantize a model, and measure what came out.",
    "qat": "Train a model for quantization, and measure what that was worth.",
    "check": "Hold a new export against a baseline, for CI.",
    "calibrate": "Observe the activations of a model, and save what was seen.",
    "sensitivity": "Measure what every layer costs in accuracy and in time.",
    "compare": "Compare a model with another form of it, and tell where the error enters.",
    "diff": "Tell what changed from one receipt to another.",
    "bench": "Compare the latency of models, and of their nodes.",
    "backends": "Show which execution providers run here, and which suits a model.",
    "inspect": "Show every node, and whether it can run as int8.",
    "recipe": "Write a first recipe for a model; show ready ones, and what a recipe can say.",
    "completion": "Print the script by which a shell completes onnxq.",
}
# What shells say of a program that Ctrl-C ended: 128 + SIGINT. Click says 1: a missed budget here.
INTERRUPTED = 130
EPILOG = """\b
Examples:
  onnxq quantize model.onnx --data samples.npz
  onnxq inspect model.onnx
  onnxq recipe init model.onnx
  onnxq completion bash
"""


class LazyGroup(Commands):
    """A group whose commands are imported when they are called, so that ``--help`` is instant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse names that receipts, pages and JSON cannot hold, before the work."""
        for arg in args if not ctx.resilient_parsing else ():
            if re.search("[\ud800-\udfff]", arg):  # what stands for bytes that are not UTF-8
                raise click.UsageError(f"'{printable(arg)}' is not UTF-8; rename the file", ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        if ctx.resilient_parsing:  # a shell completes
            return outlined(cmd_name)
        module = importlib.import_module(f"onnxq.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; what went wrong becomes one line and an exit code."""
        try:
            return super().invoke(ctx)
        except OnnxqError as error:
            click.echo(f"{_error_sign()} {error}", err=True)
            sys.exit(error.exit_code)
        except click.UsageError as error:  # its words are of the call: names of files
            if (shown := printable_lines(error.format_message())) == error.format_message():
                raise
            raise click.UsageError(shown, error.ctx) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


def _error_sign() -> str:
    plain = "error:"  # click knows of terminals, and not of no-color.org
    return plain if os.environ.get("NO_COLOR") else click.style(plain, fg="red", bold=True)


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="onnxq", message="onnxq %(version)s")
def main() -> None:
    """Turn an ONNX model into a smaller, faster one, and prove it.

    Exit codes: 0 done; 1 a budget was missed; 2 wrong usage; 3 the model, the data or the
    environment is unusable; 4 a self-check failed, which is a bug in onnxq.
    """
