"""Static quantization: ranges are known beforehand, and the model runs on integers throughout.

A model, its recipe and some unlabelled samples go in. Out come a model that any ONNX Runtime loads,
and a receipt that says what plain ONNX Runtime finds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import onnxq

MODEL, MADE, RECEIPT = "digits_cnn.onnx", "digits_cnn.int8.onnx", "digits_cnn.int8.receipt.json"


@dataclass(frozen=True)
class Made:
    source: Any
    output: Any
    receipt: dict[str, Any]


@pytest.fixture(scope="module")
def made(shipped, opened, process, tmp_path_factory) -> Made:
    """What `onnxq quantize` leaves in a folder with the digits model, its recipe and its data."""
    folder = tmp_path_factory.mktemp("static")
    for name in (MODEL, "digits_calibration.npz", "digits_test.npz"):
        shutil.copy(shipped / name, folder)
    recipe = (shipped / "digits_cnn.onnxq.toml").read_text()
    quick = recipe.replace("[verify]\n", "[verify]\nseconds = 0\n")
    (folder / "digits_cnn.onnxq.toml").write_text(quick)
    before = {path.name for path in folder.iterdir()}
    run = process("quantize", MODEL, "--target", "cpu-x86", cwd=folder)
    assert (run.code, run.err) == (0, "")
    assert {path.name for path in folder.iterdir()} - before == {MADE, RECEIPT}
    receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    return Made(opened(folder / MODEL), opened(folder / MADE), receipt)


class TestReceipt:
    """Every figure in it can be found again without onnxq."""

    def test_knows_the_files_by_their_bytes(self, made) -> None:
        for facts, file in (
            (made.receipt["source"], made.source),
            (made.receipt["output"], made.output),
        ):
            content = file.path.read_bytes()
            assert facts["bytes"] == len(content)
            assert facts["sha256"] == hashlib.sha256(content).hexdigest()

    def test_knows_the_accuracy_of_both_models(self, made, digits_test) -> None:
        metric = made.receipt["measured"]["metric"]
        assert (metric["name"], metric["samples"]) == ("top1", 597)
        assert metric["source"] == pytest.approx(made.source.top1(digits_test))
        assert metric["output"] == pytest.approx(made.output.top1(digits_test))

    def test_knows_the_noise_at_the_output(self, made, digits_test, sqnr) -> None:
        images = digits_test.images
        told = made.receipt["measured"]["outputs"]["logits"]["sqnr_db"]
        # float32 sums of other batches differ in the seventh digit: far below the noise
        found = sqnr(made.source.scores(images), made.output.scores(images))
        assert told == pytest.approx(found, abs=0.01)

    def test_counts_the_layers_that_run_on_integers(self, made) -> None:
        coverage = made.receipt["measured"]["int8_coverage"]
        assert coverage["int8"] == coverage["wanted"] == len(made.source.proto.graph.node)
        assert coverage["float_nodes"] == []


class TestFile:
    """What is in the model that was written."""

    def test_inputs_and_outputs_are_those_of_the_source(self, made) -> None:
        assert made.output.signature == made.source.signature

    def test_weights_are_int8(self, made) -> None:
        assert made.output.weight_types == dict.fromkeys(made.source.weight_types, "INT8")

    def test_weights_have_a_scale_for_every_output_channel(self, made) -> None:
        """The first layer makes four pixels at once: 32 channels of each."""
        scales = {
            name: value for name, value in made.output.constants.items() if "weight_s" in name
        }
        assert {name: scale.size for name, scale in scales.items()} == {
            "conv1.weight_s_x4": 4 * 32,
            "conv2.weight_s": 64,
            "conv3.weight_s": 64,
            "fc1.weight_s": 64,
            "fc2.weight_s": 10,
        }

    def test_activations_are_uint8(self, made) -> None:
        zero_points = [zero_point for _, zero_point in made.output.activations.values()]
        assert {zero_point.dtype for zero_point in zero_points} == {np.dtype(np.uint8)}

    def test_pairs_are_all_that_was_added(self, made) -> None:
        """And other layouts of the image and of what the first layer makes, which is faster so."""
        added = made.output.operators - made.source.operators
        pairs, layouts = {"QuantizeLinear", "DequantizeLinear", "Mul"}, {"Transpose", "Reshape"}
        assert set(added) == pairs | layouts
        assert made.source.operators - made.output.operators == Counter()


class TestRuntime:
    """What ONNX Runtime makes of it."""

    def test_every_layer_is_a_kernel_on_integers(self, made) -> None:
        source, kernels = made.source.operators, made.output.kernels
        assert kernels["QLinearConv"] == source["Conv"]
        assert kernels["QGemm"] == source["Gemm"]
        assert set(kernels) & {"Conv", "Gemm", "FusedConv", "FusedGemm", "Relu"} == set()

    def test_it_converts_at_the_edges_alone(self, made) -> None:
        assert made.output.kernels["QuantizeLinear"] == 1  # of the image
        assert made.output.kernels["DequantizeLinear"] == 0  # the last layer makes floats

    def test_any_batch_size_gives_the_same_answers(self, made, digits_test) -> None:
        images = digits_test.images[:60]
        assert np.array_equal(made.output.scores(images, 1), made.output.scores(images, 60))


class TestForms:
    def test_integer_operators_give_the_answers_of_pairs(
        self, made, opened, quick, digits, digits_test, tmp_path
    ) -> None:
        recipe = quick(precision="int8", format="qoperator")
        output = tmp_path / "made.onnx"
        onnxq.quantize(made.source.path, data=digits, recipe=recipe, output=output)
        operators = opened(output)
        assert operators.operators["QLinearConv"] == 3
        assert operators.operators["QGemm"] == 2
        assert operators.operators["DequantizeLinear"] == 0
        assert opened(output).top1(digits_test) == pytest.approx(made.output.top1(digits_test))

    def test_16_bits_for_activations_keep_more(
        self, made, opened, quick, digits, digits_test, sqnr, tmp_path
    ) -> None:
        output = tmp_path / "made.onnx"
        recipe = quick(precision="int16")
        onnxq.quantize(made.source.path, data=digits, recipe=recipe, output=output)
        wide = opened(output)
        assert {z.dtype for _, z in wide.activations.values()} == {np.dtype(np.uint16)}
        signal, eight, sixteen = (
            one.scores(digits_test.images) for one in (made.source, made.output, wide)
        )
        assert sqnr(signal, sixteen) > sqnr(signal, eight) + 1


@pytest.mark.parametrize("name", ["tiny_resnet8", "cifar_resnet20_op9_bn"])
def test_residual_networks_of_others_run_on_integers(
    name, real, opened, quick, sqnr, tmp_path
) -> None:
    """One of them has opset 9, and BatchNorm behind each layer."""
    model = real(name)
    output = tmp_path / "made.onnx"
    onnxq.quantize(
        model.path, data=model.calibration, recipe=quick(precision="int8"), output=output
    )
    source, made = opened(model.path), opened(output)
    assert made.kernels["QLinearConv"] == source.operators["Conv"] > 0
    assert {"Conv", "FusedConv", "BatchNormalization", "Add"} & set(made.kernels) == set()
    (tensor,) = source.run(model.test[0])
    signal, found = (
        np.concatenate([one.run(feed)[tensor] for feed in model.test]) for one in (source, made)
    )
    assert sqnr(signal, found) > 20  # an error of a tenth
