"""``onnxq recipe``: presets, and the schema of recipes."""

from __future__ import annotations

import json

import click

from onnxq.plan import preset_text, presets, recipe_schema

EPILOG = """\b
Examples:
  onnxq recipe list
  onnxq recipe show mobile
  onnxq recipe show mobile > model.onnxq.toml
  onnxq quantize model.onnx --preset mobile --data samples.npz
"""


@click.group(epilog=EPILOG)
def recipe() -> None:
    """Show presets, which are ready recipes, and what a recipe can say.

    `onnxq quantize --preset NAME` takes one as it is; other options win over it. Save what `show`
    prints as MODEL.onnxq.toml beside a model to change it.
    """


@recipe.command("list")
def list_presets() -> None:
    """List the presets."""
    found = presets()
    width = max(map(len, found))
    for name, purpose in found.items():
        click.echo(f"{name:{width}}  {purpose}")


@recipe.command("show")
@click.argument("name")
def show_preset(name: str) -> None:
    """Print the preset NAME: a recipe in TOML, with comments."""
    click.echo(preset_text(name), nl=False)


@recipe.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of recipes, for editors that check and complete TOML by one."""
    click.echo(json.dumps(recipe_schema(), indent=2))
