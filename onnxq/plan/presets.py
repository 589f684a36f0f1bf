"""Presets: recipes with a name, which lie in ``recipes/`` beside this file."""

from __future__ import annotations

from importlib.resources import files

from onnxq.errors import UsageError, nearest
from onnxq.plan.recipe import Recipe, parse_recipe

_SUFFIX = ".toml"


def presets() -> dict[str, str]:
    """What each preset is for, the first line of its recipe, by name."""
    found = sorted(p.name for p in files("onnxq.plan").joinpath("recipes").iterdir())
    names = [name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)]
    return {name: _read(name).splitlines()[0].lstrip("# ") for name in names}


def preset_text(name: str) -> str:
    """The recipe of a preset: TOML, with comments.

    Raises:
        UsageError: There is no such preset; the nearest name is told.
    """
    known = presets()
    if name not in known:
        raise UsageError(f"unknown preset '{name}'", nearest(name, known))
    return _read(name)


def load_preset(name: str) -> Recipe:
    """The recipe of a preset.

    Raises:
        UsageError: There is no such preset; the nearest name is told.
    """
    return parse_recipe(preset_text(name), f"preset {name}")


def _read(name: str) -> str:
    path = files("onnxq.plan").joinpath("recipes", f"{name}{_SUFFIX}")
    return path.read_text(encoding="utf-8")
