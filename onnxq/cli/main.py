"""``onnxq``: the group of commands, loaded when they are called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from onnxq.errors import OnnxqError

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
    "recipe": "Show ready recipes, and what a recipe can say.",
}
# What shells say of a program that Ctrl-C ended: 128 + SIGINT. Click says 1: a missed budget here.
INTERRUPTED = 130
EPILOG = """\b
Examples:
  onnxq quantize model.onnx --data samples.npz
  onnxq calibrate model.onnx --data samples.npz --show
  onnxq inspect model.onnx
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that ``--help`` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"onnxq.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or suggest the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; an error of onnxq's becomes one line and its exit code."""
        try:
            return super().invoke(ctx)
        except OnnxqError as error:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


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
