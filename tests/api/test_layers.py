"""``layer_figures``, held against the graph's own constants and the ranges of the receipt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.api import Result
from onnxq.plan import Recipe, VerifySettings
from onnxq.report import LayerFigures, ModelFigures
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_cnn.onnx"


def quantized(recipe: Recipe, *, data: bool = True) -> Result:
    return onnxq.quantize(
        DIGITS, data=MODELS / "digits_calibration.npz" if data else None, recipe=recipe
    )


@pytest.fixture(scope="module")
def result() -> Result:
    """The first layer stays float."""
    recipe = Recipe(
        precision="int8",
        objective="int8-everywhere",
        target="cpu-x86-avx2",  # no product of its weights saturates, whatever processor this is
        keep_float=("/conv1/Conv",),
        verify=VerifySettings(seconds=0.01),
    )
    return quantized(recipe)


@pytest.fixture(scope="module")
def figures(result: Result) -> ModelFigures:
    return onnxq.layer_figures(result)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """The constants of the layers in the file, by the names of their nodes."""
    graph = onnx.load(DIGITS).graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.name: known[node.input[1]] for node in graph.node if node.op_type in ("Conv", "Gemm")
    }


def layers(figures: ModelFigures) -> dict[str, LayerFigures]:
    return {layer.name: layer for layer in figures.layers}


def test_every_node_in_order(result: Result, figures: ModelFigures) -> None:
    assert [x.name for x in figures.layers] == [node.name for node in result.plan.nodes]
    assert figures.notes == ()


def test_weights(figures: ModelFigures, weights: dict[str, np.ndarray]) -> None:
    """All values are counted; the ends are those of the file's weight."""
    found = layers(figures)
    assert weights
    for name, values in weights.items():
        histogram = found[name].weights
        assert histogram is not None
        assert sum(histogram.counts) == values.size
        # preparing may scale a weight by no more than float32 rounds
        assert (histogram.lo, histogram.hi) == pytest.approx((values.min(), values.max()), rel=1e-6)
        assert (
            found[name].parameters
            == values.size
            + (
                values.shape[0]  # the bias
            )
        )


def test_ranges_of_weights_hold_them(
    result: Result, figures: ModelFigures, weights: dict[str, np.ndarray]
) -> None:
    """A symmetric range of 7 bits in int8 ends at twice the largest weight.

    At -128/127 of that on the other side.
    """
    for name, values in weights.items():
        layer = layers(figures)[name]
        if result.plan.precision()[name] is Precision.FLOAT:
            assert layer.weight_range is None
            continue
        assert layer.weight_range is not None
        end = 2 * float(np.abs(values).max())
        assert layer.weight_range == pytest.approx((-end * 128 / 127, end), rel=1e-5)


def test_activations_lie_in_what_calibration_saw(result: Result, figures: ModelFigures) -> None:
    for layer in figures.layers:
        static = result.plan.precision()[layer.name] is Precision.INT8
        assert (layer.activations is not None) == static
        known = result.receipt.ranges.get(layer.reads)
        if not static or known is None:  # between a layer and its Relu nothing is quantized
            continue
        assert layer.activation_range == (known.lo, known.hi)
        assert layer.activations is not None
        # other samples than those of calibration: digits of the same set
        width = known.max - known.min
        assert known.min - width / 2 <= layer.activations.lo
        assert layer.activations.hi <= known.max + width / 2


def test_times_and_errors(figures: ModelFigures) -> None:
    timed = {layer.name for layer in figures.layers if layer.time is not None}
    assert {"/conv1/Conv", "/conv2/Conv", "/fc1/Gemm"} <= timed
    assert figures.conversions is not None
    assert figures.conversions[1] > 0  # the output quantizes what the float layer makes
    assert figures.growth is not None
    grown = {layer.node: layer for layer in figures.growth.layers}
    assert grown["/conv1/Conv"].before_db == 200  # it is float, and reads the very samples
    assert 30 < grown["/conv2/Conv"].sqnr_db < 60  # 8 bits: about 6 dB each, and no more


def test_without_data_and_without_timing() -> None:
    made = quantized(Recipe(precision="int8-weights", verify=VerifySettings(seconds=0)), data=False)
    figures = onnxq.layer_figures(made)
    assert figures.growth is None
    assert figures.conversions is None
    assert all(layer.activations is None and layer.time is None for layer in figures.layers)
    assert any(layer.weights is not None for layer in figures.layers)
