"""Presets: complete recipes with a name, whose text is what it says."""

from __future__ import annotations

import re

import pytest

from onnxq.errors import UsageError
from onnxq.plan import (
    CalibrationSettings,
    Recipe,
    WeightSettings,
    load_preset,
    preset_text,
    presets,
)
from onnxq.plan.recipe import parse_recipe

MEANT = {
    "default": Recipe(),
    "mobile": Recipe(precision="int8", calibration=CalibrationSettings(method="mse")),
    "int4-aggressive": Recipe(
        precision="int4-weights",
        weights=WeightSettings(block_size=128, symmetric=False, method="hqq"),
        calibration=CalibrationSettings(method="percentile"),
    ),
    "transformer": Recipe(precision="int8-dynamic"),
    "gpu": Recipe(precision="fp16"),
    "llm": Recipe(precision="int4-weights", weights=WeightSettings(block_size=32, method="hqq")),
}


def test_every_preset_is_known_here() -> None:
    assert set(presets()) == set(MEANT)


@pytest.mark.parametrize("name", MEANT)
def test_preset(name) -> None:
    assert load_preset(name) == MEANT[name]
    purpose, *rest = preset_text(name).splitlines()
    assert purpose == f"# {presets()[name]}"
    assert purpose.endswith(".")
    assert all(len(line) <= 100 for line in rest)


@pytest.mark.parametrize("name", MEANT)
def test_what_is_commented_out_can_be_said(name) -> None:
    """Lines such as ``# max_drop = 0.005`` and ``# [budgets]`` hold when the sign is taken out."""
    text = re.sub(r"^# (?=\[|\w+ = )", "", preset_text(name), flags=re.MULTILINE)
    parse_recipe(text, name)


def test_unknown_preset_is_told() -> None:
    with pytest.raises(UsageError, match="unknown preset 'mobil'; did you mean 'mobile'"):
        load_preset("mobil")
    with pytest.raises(UsageError, match="known: default, gpu, int4-aggressive, llm, mobile"):
        preset_text("../recipe")
