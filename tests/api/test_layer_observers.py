"""Ranges of single layers: read by their own method, and for their own width."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import onnxq
from onnxq.errors import UsageError
from onnxq.plan import CalibrationSettings, LayerRule, Recipe, VerifySettings
from onnxq.types import Grid, TensorRange

MODELS = Path(__file__).parents[2] / "models"
CONV = "/conv1/Conv"
MSE = CalibrationSettings(method="mse")
RECIPE = Recipe(verify=VerifySettings(seconds=0.0), calibration=MSE, target="cpu-x86")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model without its recipe."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    shutil.copy(MODELS / "digits_cnn.onnx", path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(MODELS / "digits_calibration.npz") as arrays:
        return arrays["image"][:100]


def ranges(model: Path, images: np.ndarray, recipe: Recipe) -> dict[str, TensorRange]:
    """The ranges of a run in which the same samples calibrate whatever else happens."""
    return onnxq.quantize(model, data=images, test_data=images[:2], recipe=recipe).receipt.ranges


def with_layers(*rules: LayerRule, **changes: object) -> Recipe:
    return msgspec.structs.replace(RECIPE, layers=rules, **changes)


def by(method: str) -> Recipe:
    return with_layers(calibration=CalibrationSettings(method=method))


@pytest.mark.parametrize(
    ("usual", "own"), [("mse", "minmax"), ("minmax", "percentile"), ("auto", "sigma")]
)
def test_layer_has_its_own_method(model: Path, images: np.ndarray, usual: str, own: str) -> None:
    """Its tensors have the ranges of a run by that method alone, all others the usual ones."""
    recipe = with_layers(
        LayerRule(name=CONV, observer=own), calibration=CalibrationSettings(method=usual)
    )
    found = ranges(model, images, recipe)
    usually, owns = ranges(model, images, by(usual)), ranges(model, images, by(own))
    assert list(found) == list(usually)
    own_tensors = ("image", "/Relu_output_0")  # what the layer reads, and makes with its Relu
    assert found == usually | {tensor: owns[tensor] for tensor in own_tensors}
    assert found != usually


def test_observed_ranges_are_read_the_same_way(model: Path, images: np.ndarray) -> None:
    recipe = with_layers(LayerRule(op="Gemm", observer="minmax"))
    seen = onnxq.calibrate_model(model, images, recipe=recipe)
    again = onnxq.quantize(model, data=images[:2], ranges=seen, recipe=recipe).receipt.ranges
    assert again == ranges(model, images, recipe)
    assert again != ranges(model, images, RECIPE)


def test_16_bits_have_ranges_for_16_bits(model: Path, images: np.ndarray) -> None:
    """An error that 8 bits gain from clipping is one that 16 bits lose by it."""
    seen = onnxq.calibrate_model(model, images, recipe=RECIPE)
    narrow, wide = (seen.ranges(Grid(bits)).tensors for bits in (8, 16))
    assert narrow != wide
    assert ranges(model, images, RECIPE) == narrow
    assert ranges(model, images, with_layers(precision="int16")) == wide
    last = ranges(model, images, with_layers(LayerRule(position="last", bits=16)))
    assert {t for t in last if last[t] == wide[t] != narrow[t]} == {"logits"}


def test_method_that_cannot_read_fails_before_the_data_run(
    model: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("onnxq.api.stages.calibrate")
    averages = CalibrationSettings(method="moving-average")
    recipe = with_layers(LayerRule(name=CONV, observer="mse"), calibration=averages)
    with pytest.raises(UsageError, match="'moving-average' cannot be read by 'mse'"):
        onnxq.quantize(model, data=images, recipe=recipe)


def test_layers_that_need_ranges_need_samples(model: Path) -> None:
    recipe = with_layers(LayerRule(name=CONV, bits=16), precision="int8-weights")
    with pytest.raises(UsageError, match="precision int16 needs samples"):
        onnxq.quantize(model, recipe=recipe)


def test_without_samples_layers_of_8_bits_are_weights(model: Path) -> None:
    made = onnxq.quantize(model, recipe=with_layers(LayerRule(name=CONV, bits=8)))
    assert made.receipt.recipe.precision == "int8-weights"
    assert not made.receipt.ranges
