"""``onnxq recipe``: a first recipe for a model, presets, and the schema of recipes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxq.api import starter_recipe
from onnxq.cli.group import Commands
from onnxq.cli.results import say_written
from onnxq.cli.words import Word
from onnxq.graph import check_writable, write_bytes
from onnxq.plan import preset_text, presets, recipe_path, recipe_schema
from onnxq.targets import TARGETS

EPILOG = """\b
Examples:
  onnxq recipe init model.onnx
  onnxq recipe list
  onnxq recipe show mobile > model.onnxq.toml
  onnxq quantize model.onnx --preset mobile --data samples.npz
"""
INIT_EPILOG = """\b
Examples:
  onnxq recipe init model.onnx
  onnxq recipe init model.onnx --stdout --target tensorrt
"""
LIST_EPILOG = """\b
Examples:
  onnxq recipe list
"""
SHOW_EPILOG = """\b
Examples:
  onnxq recipe show mobile
  onnxq recipe show mobile > model.onnxq.toml
"""
SCHEMA_EPILOG = """\b
Examples:
  onnxq recipe schema > onnxq-recipe.schema.json
"""
STDOUT = Path("-")


@click.group(cls=Commands, epilog=EPILOG)
def recipe() -> None:
    """Write a first recipe for a model, and show presets, which are ready recipes.

    A recipe that lies beside its model as MODEL.onnxq.toml is found there by all commands.
    `onnxq quantize --preset NAME` takes a preset as it is; other options win over it.
    """


@recipe.command("init", epilog=INIT_EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Output, - to print it; else MODEL.onnxq.toml.",
)
@click.option("--stdout", is_flag=True, help="Print it, as -o - does.")
@click.option("--target", type=Word(TARGETS), help="Provider; else this machine's.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def init_recipe(
    model: Path, output: Path | None, stdout: bool, target: str | None, force: bool
) -> None:
    """Write a recipe for MODEL in which every setting is a comment.

    It tells inputs, outputs, and what cannot be int8 and why, and suggests settings that fit, with
    names of this model. Each of them can be uncommented alone, or with any others.
    """
    path = output or recipe_path(model)
    if stdout or path == STDOUT:
        click.echo(starter_recipe(model, target), nl=False)
        return
    check_writable(path, [model], force=force)
    write_bytes(starter_recipe(model, target).encode(), path)
    say_written(path)


@recipe.command("list", epilog=LIST_EPILOG)
def list_presets() -> None:
    """List the presets."""
    found = presets()
    width = max(map(len, found))
    for name, purpose in found.items():
        click.echo(f"{name:{width}}  {purpose}")


@recipe.command("show", epilog=SHOW_EPILOG)
@click.argument("name")
def show_preset(name: str) -> None:
    """Print the preset NAME: a recipe in TOML, with comments."""
    click.echo(preset_text(name), nl=False)


@recipe.command("schema", epilog=SCHEMA_EPILOG)
def print_schema() -> None:
    """Print the JSON Schema of recipes, for editors that check and complete TOML by one."""
    click.echo(json.dumps(recipe_schema(), indent=2))
