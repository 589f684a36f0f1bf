"""Sensitivity: which layers hurt, and by how much.

The figures are those that one gets by quantizing one layer at a time and running the files; a layer
that was made fragile on purpose is found; and the search for a plan keeps what it promises.
"""

from __future__ import annotations

import numpy as np
import pytest

import onnxq
from onnxq.plan import Budgets
from onnxq.rewrite import rewrite

LAYERS = ["/conv1/Conv", "/conv2/Conv", "/conv3/Conv", "/fc1/Gemm", "/fc2/Gemm"]
SAMPLES = 64


@pytest.fixture(scope="module")
def report(shipped, quick, digits, digits_test):
    """Every layer of the digits model, judged on 64 images."""
    return onnxq.analyze_sensitivity(
        shipped / "digits_cnn.onnx",
        digits,
        test_data={"image": digits_test.images[:SAMPLES]},
        recipe=quick(precision="int8"),
        samples=SAMPLES,
    )


@pytest.fixture
def measured(shipped, opened, quick, digits, digits_test, sqnr, tmp_path):
    """SQNR of the digits model with some layers in float, by the files alone."""

    def measure(*floats: str) -> float:
        source, output = opened(shipped / "digits_cnn.onnx"), tmp_path / "made.onnx"
        recipe = quick(precision="int8", keep_float=floats)
        onnxq.quantize(source.path, data=digits, test_data=digits, recipe=recipe, output=output)
        images = digits_test.images[:SAMPLES]
        return sqnr(source.scores(images), opened(output).scores(images))

    return measure


def test_the_most_sensitive_layer_comes_first(report) -> None:
    noise = [layer.only.sqnr_db for layer in report.layers]
    assert noise == sorted(noise)
    assert set(LAYERS) <= {layer.name for layer in report.layers}


# Kernels of other batches sum float32 in another order: far less than a tenth of a dB.
NEAR = 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_alone_makes_the_noise_that_is_told(name, report, measured) -> None:
    others = [layer.name for layer in report.layers if layer.name != name]
    (told,) = (layer for layer in report.layers if layer.name == name)
    # in the report a layer keeps the scale that it shares with a pooling behind it, in a file of
    # its own it has one for itself
    assert told.only.sqnr_db == pytest.approx(measured(*others), abs=0.5)


def test_without_the_worst_layer_noise_falls_to_what_is_told(report, measured) -> None:
    worst = report.layers[0]
    assert worst.rest.sqnr_db == pytest.approx(measured(worst.name), abs=NEAR)
    assert worst.rest.sqnr_db > report.everything["int8"].sqnr_db


def test_everything_is_what_quantize_makes(report, measured) -> None:
    assert report.everything["int8"].sqnr_db == pytest.approx(measured(), abs=NEAR)


def test_a_layer_that_was_made_fragile_is_found(cli, fragile, shipped, quick_file) -> None:
    """What makes, moves and reads the tensor that 8 bits cannot hold: far before all others."""
    data = ("--data", shipped / "digits_calibration.npz", "--precision", "int8")
    run = cli("sensitivity", "report", fragile, "--recipe", quick_file, *data, "--json")
    assert run.code == 0, run.err
    layers = run.json["layers"]
    assert {layer["name"] for layer in layers[:3]} == {"/conv2/Conv", "/MaxPool", "/conv3/Conv"}
    noise = [layer["only"]["sqnr_db"] for layer in layers]
    assert noise[3] > noise[2] + 10


def test_the_plan_of_a_search_keeps_its_budget_in_the_file(
    fragile, opened, quick, digits, digits_test, sqnr, tmp_path
) -> None:
    """And keeps no more layers float than those that hurt."""
    found = onnxq.search_plan(
        fragile,
        digits,
        test_data={"image": digits_test.images},
        budgets=Budgets(min_sqnr=35.0),
        objective="int8-everywhere",
        recipe=quick(precision="int8"),
    )
    assert found.within
    onnxq.save(rewrite(found.prepared, found.plan), tmp_path / "made.onnx")
    source, made = opened(fragile), opened(tmp_path / "made.onnx")
    assert sqnr(source.scores(digits_test.images), made.scores(digits_test.images)) >= 35
    types = made.weight_types
    assert {name for name, kind in types.items() if kind == "FLOAT"} <= {LAYERS[1], LAYERS[2]}
    assert [types[name] for name in (LAYERS[0], *LAYERS[3:])] == ["INT8"] * 3


def test_the_worst_layer_of_a_model_of_others(real, opened, quick, sqnr, tmp_path) -> None:
    """A residual network on its own images: the file without that layer loses what is told."""
    model, output = real("tiny_resnet8"), tmp_path / "made.onnx"
    images = {"data": model.calibration, "test_data": model.test[:4]}
    recipe = quick(precision="int8")
    found = onnxq.analyze_sensitivity(model.path, **images, recipe=recipe)
    worst = max(found.layers, key=lambda layer: layer.rest.sqnr_db)
    assert worst.rest.sqnr_db > found.everything["int8"].sqnr_db + 0.5
    recipe = quick(precision="int8", keep_float=(worst.name,))
    onnxq.quantize(model.path, **images, recipe=recipe, output=output)
    source, made = opened(model.path), opened(output)
    (tensor,) = source.run(model.test[0])
    signal, value = (
        np.concatenate([one.run(feed)[tensor] for feed in images["test_data"]])
        for one in (source, made)
    )
    assert sqnr(signal, value) == pytest.approx(worst.rest.sqnr_db, abs=NEAR)
