"""``onnxq completion``: what makes a shell complete."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from onnxq.cli.words import Word

EPILOG = """\b
Examples:
  onnxq completion bash > ~/.local/share/bash-completion/completions/onnxq
  onnxq completion zsh > "${fpath[1]}/_onnxq"
  onnxq completion fish > ~/.config/fish/completions/onnxq.fish
"""
SHELLS = ("bash", "zsh", "fish")
PROGRAM = "onnxq"
VARIABLE = "_ONNXQ_COMPLETE"


@click.command(epilog=EPILOG)
@click.argument("shell", type=Word(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes onnxq: bash, zsh or fish.

    Completed are commands, options, and what options take: presets, targets, precisions,
    providers, and files that end as they should. Put the script where the shell looks for such
    ones, or say `eval "$(onnxq completion bash)"` in the file that it starts with.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}", context)
    script = kind(context.find_root().command, {}, PROGRAM, VARIABLE).source()
    click.echo(script, nl=False)
