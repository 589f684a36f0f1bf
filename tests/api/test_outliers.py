"""Outliers in the calibration data: which ranges leave them out, and who is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import onnxq
from onnxq.api.stages import draft
from onnxq.calibrate import Ranges
from onnxq.plan import Budgets, CalibrationSettings, LayerRule, Recipe, VerifySettings

MODELS = Path(__file__).parents[2] / "models"
OUTLIERS = (3, 36, 70, 124)
BUDGET = Budgets(max_drop=0.02)
RECIPE = Recipe(
    precision="int8",
    calibration=CalibrationSettings(method="minmax"),
    verify=VerifySettings(seconds=0.0),
    target="cpu-x86-avx2",
    budgets=BUDGET,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model without its recipe."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    shutil.copy(MODELS / "digits_cnn.onnx", path)
    return path


def images(factor: float) -> np.ndarray:
    """Calibration samples, some of which are so many times too large."""
    with np.load(MODELS / "digits_calibration.npz") as arrays:
        found = arrays["image"].copy()
    found[list(OUTLIERS)] *= np.float32(factor)
    return found


def drafted(model: Path, recipe: Recipe, factor: float = 100.0):
    job = onnxq.make_job(model, recipe)
    data, test = images(factor), MODELS / "digits_test.npz"
    return draft(model, onnxq.Job(recipe=job.recipe, data=data, test_data=test))


def narrower(ranges: Ranges, trimmed: Ranges) -> set[str]:
    return {t for t, r in trimmed.tensors.items() if r != ranges.tensors[t]}


def test_ranges_that_outliers_hold_are_read_without_them(model: Path) -> None:
    found, clean = drafted(model, RECIPE), drafted(model, RECIPE, factor=1.0)
    assert clean.trimmed is None
    assert "image" in narrower(found.ranges, found.trimmed)
    for tensor in narrower(found.ranges, found.trimmed):
        wide, less, true = (
            ranges.tensors[tensor] for ranges in (found.ranges, found.trimmed, clean.ranges)
        )
        assert (wide.hi - wide.lo) > 20 * (true.hi - true.lo)
        # ten deviations hold the values of ordinary samples, and some of what is left of outliers
        assert 0.9 * (true.hi - true.lo) <= less.hi - less.lo <= 4 * (true.hi - true.lo)


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, budgets=Budgets()),  # nobody asks for ranges other than these
        replace(RECIPE, calibration=CalibrationSettings(method="moving-average")),
        replace(RECIPE, calibration=CalibrationSettings(method="trimmed")),
        replace(RECIPE, precision="int8-weights"),
    ],
    ids=["ends alone", "averages", "trimmed already", "no ranges"],
)
def test_where_values_were_not_counted_ranges_stay(model: Path, recipe: Recipe) -> None:
    assert drafted(model, recipe).trimmed is None


def test_a_layer_that_has_its_own_method_keeps_it(model: Path) -> None:
    own = LayerRule(name="/conv1/Conv", observer="minmax")
    found = drafted(model, replace(RECIPE, layers=(own,)))
    plain = drafted(model, RECIPE)
    both = narrower(plain.ranges, plain.trimmed), narrower(found.ranges, found.trimmed)
    assert both[0] - both[1] == {"image", "/Relu_output_0"}  # what it reads, and makes
    assert both[1] <= both[0]


def test_who_asks_for_a_budget_is_told_which_samples_to_look_at(model: Path) -> None:
    found = onnxq.quantize(
        model, data=images(100.0), test_data=MODELS / "digits_test.npz", recipe=RECIPE
    )
    (gate,) = found.receipt.gates
    assert gate.passed
    assert not [n for n in found.plan.nodes if not n.precision.static]
    assert found.receipt.ranges["image"].hi < 2  # pixels are from 0 to 1
    (note,) = [n for n in found.receipt.measured.notes if "far outside" in n]
    assert "('image' is 100 times as wide by them)" in note
    assert note.endswith(f"(samples {', '.join(map(str, OUTLIERS))})")


def test_without_outliers_nothing_is_said(model: Path) -> None:
    found = onnxq.quantize(
        model, data=images(1.0), test_data=MODELS / "digits_test.npz", recipe=RECIPE
    )
    assert found.receipt.ranges["image"].hi == 1.0
    assert not [n for n in found.receipt.measured.notes if "far outside" in n]
