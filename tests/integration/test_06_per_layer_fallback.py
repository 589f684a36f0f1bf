"""Per-layer fallback: a layer that int8 hurts stays float, and its neighbours stay int8.

Float means float: the stored weights are the source's to the bit, and ONNX Runtime does not
quantize them again when it loads the model. Who does not know which layer it is says what may be
lost.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import onnxq
from onnxq.plan import Budgets, LayerRule

LAYERS = {
    "/conv1/Conv": "conv1",
    "/conv2/Conv": "conv2",
    "/conv3/Conv": "conv3",
    "/fc1/Gemm": "fc1",
    "/fc2/Gemm": "fc2",
}
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm")


def integer_kernels(opened) -> int:
    return opened.kernels["QLinearConv"] + opened.kernels["QGemm"]


def float_kernels(opened) -> int:
    return sum(opened.kernels[kernel] for kernel in FLOAT_KERNELS)


class TestByHand:
    @pytest.mark.parametrize("layer", LAYERS)
    def test_any_layer_can_stay_float(
        self, layer, shipped, opened, quick, digits, tmp_path
    ) -> None:
        source, output = opened(shipped / "digits_cnn.onnx"), tmp_path / "made.onnx"
        quantizer = onnxq.PTQQuantizer(quick(precision="int8"))
        quantizer.set_per_layer_fallback(layer, True)
        quantizer.quantize(source.path, digits, output=output)
        made = opened(output)
        assert made.weight_types == {name: "FLOAT" if name == layer else "INT8" for name in LAYERS}
        weight = f"{LAYERS[layer]}.weight"
        assert np.array_equal(made.constants[weight], source.constants[weight])
        assert (integer_kernels(made), float_kernels(made)) == (4, 1)

    def test_it_ends_without_a_trace(self, shipped, quick, digits, tmp_path) -> None:
        quantizer = onnxq.PTQQuantizer(quick(precision="int8"))
        made = []
        for fallback in (None, True, False):
            if fallback is not None:
                quantizer.set_per_layer_fallback("/conv3/Conv", fallback)
            output = tmp_path / f"{fallback}.onnx"
            quantizer.quantize(shipped / "digits_cnn.onnx", digits, output=output)
            made.append(output.read_bytes())
        assert made[0] == made[2] != made[1]

    @pytest.mark.parametrize(
        ("said", "floats"),
        [
            (("--keep-float", "/conv[12]/*"), {"/conv1/Conv", "/conv2/Conv"}),
            (("--keep-float-op", "Gemm"), {"/fc1/Gemm", "/fc2/Gemm"}),
        ],
    )
    def test_by_pattern_and_by_operator(
        self, said, floats, cli, shipped, opened, quick_file, tmp_path
    ) -> None:
        output = tmp_path / "made.onnx"
        data = ("--data", shipped / "digits_calibration.npz", "--precision", "int8")
        args = ("--recipe", quick_file, *data, *said, "-o", output)
        assert cli("quantize", shipped / "digits_cnn.onnx", *args).code == 0
        types = opened(output).weight_types
        assert {name for name, type_ in types.items() if type_ == "FLOAT"} == floats

    def test_first_and_last_layer_by_recipe(self, shipped, opened, quick, digits, tmp_path) -> None:
        """The usual advice: the ends keep more bits."""
        rules = (
            LayerRule(position="first", precision="float"),
            LayerRule(position="last", precision="fp16"),
        )
        recipe, output = quick(precision="int8", layers=rules), tmp_path / "made.onnx"
        onnxq.quantize(shipped / "digits_cnn.onnx", data=digits, recipe=recipe, output=output)
        assert list(opened(output).weight_types.values()) == [
            "FLOAT", "INT8", "INT8", "INT8", "FLOAT16",
        ]  # fmt: skip

    def test_floats_beside_integers_lose_less(
        self, fragile, opened, quick, digits, digits_test, sqnr, tmp_path
    ) -> None:
        """Two layers share a tensor that 8 bits cannot hold; the others are as good as ever."""
        quantizer = onnxq.PTQQuantizer(quick(precision="int8"))
        source, noise = opened(fragile), []
        for fallback in (False, True):
            quantizer.set_per_layer_fallback("/conv[23]/Conv", fallback)
            output = tmp_path / f"{fallback}.onnx"
            quantizer.quantize(fragile, digits, output=output)
            images = digits_test.images
            noise.append(sqnr(source.scores(images), opened(output).scores(images)))
        assert noise[0] < 20
        assert noise[1] > 40


class TestByBudget:
    """Nobody names a layer: ``--min-sqnr`` does."""

    @pytest.fixture
    def run(self, cli, fragile, shipped, quick_file, tmp_path):
        def quantize(*said: object):
            data = ("--data", shipped / "digits_calibration.npz", "--precision", "int8")
            test = ("--test-data", shipped / "digits_test.npz", "-o", tmp_path / "made.onnx")
            return cli("quantize", fragile, "--recipe", quick_file, *data, *test, *said)

        return quantize

    def test_the_layers_that_hurt_stay_float_and_no_others(
        self, run, fragile, opened, digits_test, sqnr, tmp_path
    ) -> None:
        assert run("--min-sqnr", 35).code == 0
        source, made = opened(fragile), opened(tmp_path / "made.onnx")
        found = sqnr(source.scores(digits_test.images), made.scores(digits_test.images))
        assert found >= 35
        floats = {name for name, type_ in made.weight_types.items() if type_ == "FLOAT"}
        assert floats
        assert floats <= {"/conv2/Conv", "/conv3/Conv"}

    def test_the_receipt_says_what_each_would_have_cost(self, run, tmp_path) -> None:
        assert run("--min-sqnr", 35).code == 0
        receipt = json.loads((tmp_path / "made.receipt.json").read_text(encoding="utf-8"))
        floats = [n for n in receipt["plan"]["nodes"] if n["precision"] == "float"]
        sentences = [n["reason"]["sentence"] for n in floats if n["op"] == "Conv"]
        assert sentences
        assert all("int8 of this layer alone leaves" in sentence for sentence in sentences)
        (gate,) = receipt["gates"]
        assert (gate["name"], gate["limit"], gate["passed"]) == ("min_sqnr", 35, True)

    def test_what_cannot_be_kept_is_a_missed_gate(self, run, tmp_path) -> None:
        """Exit code 1, and the model is there to be looked at."""
        assert run("--min-sqnr", 150).code == 1
        receipt = json.loads((tmp_path / "made.receipt.json").read_text(encoding="utf-8"))
        (gate,) = receipt["gates"]
        assert (gate["name"], gate["passed"]) == ("min_sqnr", False)
        assert (tmp_path / "made.onnx").is_file()


def test_a_budget_on_a_model_of_others(real, opened, quick, sqnr, tmp_path) -> None:
    """A speech filter that int8 everywhere would leave 20 dB (docs/precisions.md)."""
    model, output = real("dtln_2"), tmp_path / "made.onnx"
    recipe = quick(precision="int8", budgets=Budgets(min_sqnr=30.0))
    result = onnxq.quantize(
        model.path, data=model.calibration, test_data=model.test, recipe=recipe, output=output
    )
    assert result.receipt.passed
    source, made = opened(model.path), opened(output)
    wanted, found = ([one.run(feed) for feed in model.test] for one in (source, made))
    for tensor in wanted[0]:
        signal, value = (
            np.concatenate([outputs[tensor].ravel() for outputs in part])
            for part in (wanted, found)
        )
        assert sqnr(signal, value) >= 30, tensor
    assert {"INT8", "FLOAT"} <= set(made.weight_types.values())
