"""``PTQQuantizer``: the quantizer as an object, for programs that set it up layer by layer.

It says of every layer what the file holds. It keeps its settings from model to model and nothing
else, makes what the command line makes, and leaves its inputs alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import onnxq


@pytest.fixture
def quantizer(quick) -> onnxq.PTQQuantizer:
    return onnxq.PTQQuantizer(quick(precision="int8"))


def test_its_parameters_are_those_in_the_file(quantizer, shipped, opened, digits, tmp_path) -> None:
    """Scale and zero point of every activation, and the scales of every weight."""
    output = tmp_path / "made.onnx"
    quantizer.quantize(shipped / "digits_cnn.onnx", digits, output=output)
    made = opened(output)
    told = quantizer.quantization_parameters
    assert len(told) == 12
    activations = {
        tensor: (np.float32(params.scale[0]), params.zero_point[0])
        for layer in told.values()
        for tensor, params in (layer.inputs | layer.outputs).items()
    }
    assert activations == {
        tensor: (np.float32(scale), int(zero)) for tensor, (scale, zero) in made.activations.items()
    }
    weights = {
        tensor: params for layer in told.values() for tensor, params in layer.weights.items()
    }
    assert len(weights) == 5
    first = made.constants["conv1.weight_s_x4"].reshape(4, -1)  # of four pixels at once
    scales = made.constants | {"conv1.weight_s": first[0]}
    assert (first == first[0]).all()
    for tensor, params in weights.items():
        # float32 in the file
        assert np.array_equal(scales[f"{tensor}_s"], np.float32(params.scale))


def test_the_file_holds_the_weights_within_half_a_step(
    quantizer, shipped, opened, digits, tmp_path
) -> None:
    """By the definition of QuantizeLinear: value = scale * (integer - zero point)."""
    source, output = opened(shipped / "digits_cnn.onnx"), tmp_path / "made.onnx"
    quantizer.quantize(source.path, digits, output=output)
    made = opened(output)
    for name in ("conv2", "conv3", "fc1", "fc2"):
        weight = source.constants[f"{name}.weight"]
        scale = made.constants[f"{name}.weight_s"].reshape(-1, *[1] * (weight.ndim - 1))
        error = np.abs(made.constants[f"{name}.weight_q"] * scale - weight)
        # half a step, and the rounding of float32 itself
        assert (error <= scale / 2 + 1e-6 * np.abs(weight)).all()
        assert error.max() > 0


def test_settings_of_a_layer_are_seen_in_the_file(
    quantizer, shipped, opened, digits, tmp_path
) -> None:
    quantizer.configure_layer("/conv2/Conv", per_channel=False)
    quantizer.configure_layer("/fc1/Gemm", precision="int4-weights", block_size=32)
    output = tmp_path / "made.onnx"
    quantizer.quantize(shipped / "digits_cnn.onnx", digits, output=output)
    made = opened(output)
    assert made.weight_types == {
        "/conv1/Conv": "INT8",
        "/conv2/Conv": "INT8",
        "/conv3/Conv": "INT8",
        "/fc1/Gemm": "INT4",
        "/fc2/Gemm": "INT8",
    }
    assert made.constants["conv2.weight_s"].size == 1
    assert made.constants["conv3.weight_s"].size == 64
    # 4 bits have a scale for each block of 32 inputs
    blocks = [c.shape for name, c in made.constants.items() if name.startswith("fc1.weight")]
    assert blocks == [(256, 64), (256 // 32, 64)]


def test_models_one_after_the_other_do_not_disturb_each_other(
    quantizer, shipped, digits, mnist_images, tmp_path
) -> None:
    def made(name: str, data: np.ndarray) -> bytes:
        output = tmp_path / "made.onnx"
        quantizer.quantize(shipped / f"{name}.onnx", data, output=output, force=True)
        return output.read_bytes()

    first = made("digits_cnn", digits)
    assert made("mnist_cnn", mnist_images[:32]) != first
    assert made("digits_cnn", digits) == first


def test_it_makes_the_bytes_of_the_command_line(
    quantizer, shipped, cli, quick_file, digits, tmp_path
) -> None:
    samples = str(tmp_path / "samples.npz")
    np.savez(samples, image=digits)
    source, by_class, by_command = (
        shipped / "digits_cnn.onnx", tmp_path / "class.onnx", tmp_path / "command.onnx",
    )  # fmt: skip
    quantizer.quantize(source, samples, output=by_class)
    said = ("--recipe", quick_file, "--data", samples, "--precision", "int8")
    run = cli("quantize", source, *said, "-o", by_command)
    assert run.code == 0
    assert by_class.read_bytes() == by_command.read_bytes()


def test_the_source_is_left_as_it_is(quantizer, bare, digits) -> None:
    source = bare("digits_cnn")
    before, samples = source.read_bytes(), digits.copy()
    quantizer.quantize(source, digits)
    assert source.read_bytes() == before
    assert np.array_equal(samples, digits)
    assert [path.name for path in source.parent.iterdir()] == ["digits_cnn.onnx"]


def test_the_file_says_what_it_was_made_of(quantizer, shipped, opened, digits, tmp_path) -> None:
    source, output = shipped / "digits_cnn.onnx", tmp_path / "made.onnx"
    quantizer.quantize(source, digits, output=output)
    said = {entry.key: entry.value for entry in opened(output).proto.metadata_props}
    assert said["onnxq.version"] == onnxq.__version__
    assert said["onnxq.source"] == hashlib.sha256(source.read_bytes()).hexdigest()
