"""Groups of commands: what is no command is told the nearest."""

from __future__ import annotations

from pathlib import PurePath

import click
from click.shell_completion import CompletionItem

from onnxq.errors import nearest


class Commands(click.Group):
    """A group that suggests a command where there is none of a name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or suggest the nearest."""
        known = self.list_commands(ctx)
        asked = args[0] if args and not ctx.resilient_parsing else ""
        if asked and self.get_command(ctx, asked) is None and not asked.startswith("-"):
            raise click.UsageError(f"no such command '{asked}'; {nearest(asked, known)}", ctx)
        return super().resolve_command(ctx, args)


class WithDefault(Commands):
    """A group that takes a model as well as the name of a command: that is for its default one."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of what is no command and no misspelt one."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            misspelt = nearest(args[0], self.list_commands(ctx), otherwise="")
            if not (misspelt and PurePath(args[0]).suffix == ""):
                args = [self.default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands with a name of their own."""
        return [name for name in self.commands if name != self.default]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Usage is that of the default command."""
        return ["[OPTIONS] MODEL"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options are those of the default command."""
        self.commands[self.default].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """What may come first: a command, or what the default one begins with."""
        command = self.commands[self.default]
        inner = click.Context(command, ctx, self.default, resilient_parsing=True)
        if incomplete.startswith("-"):
            return command.shell_complete(inner, incomplete)
        first = command.params[0].shell_complete(inner, incomplete)
        return [*super().shell_complete(ctx, incomplete), *first]
