"""The command line in outline, by which shells complete: a file, so that nothing is imported.

``outline.json`` is written by ``scripts/write_cli_docs.py`` from the commands themselves. What it
describes is built as commands of click that do nothing, and click's own machinery completes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from onnxq.cli.group import WithDefault

FILE = "outline.json"


@add_completion_class
class Bash(BashComplete):
    """Click's completion for bash, where folders go on behind their slash.

    Click's script knows files or folders, but no files beside folders, and lets the shell expand
    what is completed.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o plusdirs -o filenames ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
%(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before, without the ``=`` that bash parts them at, and the unfinished one."""
        args, incomplete = super().get_completion_args()
        return [arg for arg in args if arg != "="], "" if incomplete == "=" else incomplete


@cache
def described() -> dict[str, Any]:
    """All commands by name."""
    text = files("onnxq.cli").joinpath(FILE).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def outlined(name: str) -> click.Command | None:
    """A command that completes as the one of this name does, and does nothing; None without one."""
    return _command(name, described()[name]) if name in described() else None


def _command(name: str, about: dict[str, Any]) -> click.Command:
    params = [_parameter(param) for param in about["params"]]
    if "commands" not in about:
        return click.Command(
            name, params=params, help=about["help"], hidden=about.get("hidden", False)
        )
    inner = [_command(inner, said) for inner, said in about["commands"].items()]
    kind = WithDefault if about["default"] else click.Group
    return kind(name, commands=inner, params=params, help=about["help"])


def _parameter(about: dict[str, Any]) -> click.Parameter:
    words, suffixes = about.get("words", []), about.get("files")

    def complete(
        _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        found = [CompletionItem(word) for word in words if word.startswith(incomplete)]
        return found if suffixes is None else [*found, *_paths(incomplete, suffixes)]

    if "flags" not in about:
        many = -1 if about["many"] else 1
        return click.Argument([about["name"]], nargs=many, required=False, shell_complete=complete)
    return click.Option(
        [about["name"], *about["flags"]],
        is_flag=about["takes"] == 0,
        multiple=about["many"],
        help=about["help"],
        shell_complete=complete,
    )


def _paths(incomplete: str, suffixes: Sequence[str]) -> list[CompletionItem[str]]:
    """Files that end so, all if nothing is said; of folders the shell itself knows the names."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    begun = incomplete.removeprefix(folder)
    try:
        names = [
            path.name
            for path in sorted(Path(folder or ".").expanduser().iterdir())
            if path.name.endswith(tuple(suffixes) or "")
            and path.name.isprintable()
            and path.is_file()
        ]
    except (OSError, RuntimeError):  # no folder, none to look into, or no such user's home
        names = []
    found = [name for name in names if name.startswith(begun) and (begun or name[0] != ".")]
    return [
        CompletionItem(incomplete, type="dir"),
        *(CompletionItem(f"{folder}{name}") for name in found),
    ]
