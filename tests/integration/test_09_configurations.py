"""Configurations: what can be said to ``onnxq quantize``, and what is then in the file.

Every precision in both forms, every target, every preset. What is said on the command line wins
over a recipe; a preset is a recipe that can be printed, and makes the same model when read again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxq.plan import presets

# Type of the stored weights, the most bytes per byte of the source, and what top-1 may lose of
# the 597 test images, by precision. docs/precisions.md tells the measured figures.
PRECISIONS = {
    "int8": ({"INT8"}, 0.30, 0.005),
    "int16": ({"INT8"}, 0.29, 0.005),
    "int8-weights": ({"INT8"}, 0.27, 0.005),
    "int4-weights": ({"INT4"}, 0.15, 0.01),
    "fp16": ({"FLOAT16"}, 0.51, 0.002),
}
# MatMulNBits and its kin hold packed bytes.
PACKED = {"int8-weights": {"INT8", "UINT8"}, "int4-weights": {"INT4", "UINT8"}}
# By target: type of activations, whether their zero points are the middle, type of biases. From
# the table of docs/architecture.md.
TARGETS = {
    "cpu-x86": (np.uint8, False, np.int32),
    "cpu-x86-amx": (np.uint8, False, np.int32),
    "cpu-x86-avx2": (np.uint8, False, np.int32),
    "cpu-arm": (np.int8, False, np.int32),
    "openvino": (np.uint8, False, np.float32),
    "directml": (np.uint8, False, np.int32),
    "tensorrt": (np.int8, True, np.float32),
}


@pytest.fixture
def quantize(cli, shipped, opened, quick_file, tmp_path) -> Callable[..., Any]:
    """Quantize the digits model with options: the file that comes out."""
    output = tmp_path / "made.onnx"

    def run(*said: object, recipe: object = quick_file) -> Any:
        data = ("--data", shipped / "digits_calibration.npz", "-o", output, "--force")
        from_recipe = ("--recipe", recipe) if recipe is not None else ()
        done = cli("quantize", shipped / "digits_cnn.onnx", *data, *from_recipe, *said)
        assert done.code == 0, done.err
        return opened(output)

    return run


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_in_both_forms(
    precision, form, quantize, shipped, opened, digits_test
) -> None:
    types, size, drop = PRECISIONS[precision]
    source = opened(shipped / "digits_cnn.onnx")
    made = quantize("--precision", precision, "--format", form)
    expected = PACKED.get(precision, types) if form == "qoperator" else types
    assert set(made.weight_types.values()) == expected
    assert made.path.stat().st_size < size * source.path.stat().st_size
    assert made.top1(digits_test) >= source.top1(digits_test) - drop
    assert made.signature == source.signature


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gets_its_types(target, quantize, digits_test) -> None:
    """And any of them runs on this machine's CPU provider, if not as fast."""
    activation, symmetric, bias = TARGETS[target]
    made = quantize("--precision", "int8", "--target", target)
    zero_points = [zero_point for _, zero_point in made.activations.values()]
    assert {zero_point.dtype for zero_point in zero_points} == {np.dtype(activation)}
    if symmetric:
        assert set(map(int, zero_points)) == {0}
    # of convolutions, which all of them run as int8
    names = [f"conv{n}.bias" for n in (1, 2, 3)]
    biases = {c.dtype for n, c in made.constants.items() if n.removesuffix("_q") in names}
    assert biases == {np.dtype(bias)}
    assert made.top1(digits_test) > 0.98


@pytest.mark.parametrize("preset", presets())
def test_a_preset_plans_what_its_printed_recipe_plans(preset, cli, shipped, tmp_path) -> None:
    """Print it, change what is to be different, and go on from there."""
    printed, path = cli("recipe", "show", preset), tmp_path / f"{preset}.toml"
    assert printed.code == 0
    path.write_text(printed.out, encoding="utf-8")
    data = ("--data", shipped / "digits_calibration.npz", "--objective", "int8-everywhere")
    plan = ("quantize", shipped / "digits_cnn.onnx", *data, "--dry-run", "--json")
    by_name, by_file = cli(*plan, "--preset", preset), cli(*plan, "--recipe", path)
    assert (by_name.code, by_file.code) == (0, 0)
    assert by_name.json == by_file.json
    assert {node["precision"] for node in by_name.json["nodes"]} != {"float"}


def test_options_win_over_the_recipe(quantize, tmp_path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('precision = "fp16"\n[verify]\nseconds = 0\n')
    assert set(quantize(recipe=recipe).weight_types.values()) == {"FLOAT16"}
    made = quantize("--precision", "int8", recipe=recipe)
    assert set(made.weight_types.values()) == {"INT8"}


def test_one_scale_for_a_whole_weight(quantize) -> None:
    """For devices that have no others."""
    made = quantize("--precision", "int8", "--per-tensor")
    scales = [c.size for name, c in made.constants.items() if name.endswith("weight_s")]
    assert scales == [1] * 5


@pytest.mark.parametrize("size", [16, 32, 64])
def test_weights_in_blocks(size, quantize) -> None:
    """Of a Gemm: as many scales as there are blocks along its 256 inputs."""
    made = quantize("--precision", "int4-weights", "--block-size", size)
    shapes = [c.shape for name, c in made.constants.items() if name.startswith("fc1.weight")]
    assert (256 // size, 64) in shapes


def test_what_stays_float_can_be_float16(quantize) -> None:
    made = quantize("--precision", "int8", "--float-type", "fp16", "--keep-float-op", "Conv")
    assert sorted(made.weight_types.values()) == ["FLOAT"] * 3 + ["INT8"] * 2
    made = quantize("--precision", "int8-dynamic", "--float-type", "fp16")
    assert made.weight_types["/conv3/Conv"] == "FLOAT16"


def test_the_smallest_model_inside_the_usual_limits(quantize, shipped, digits_test) -> None:
    """``--objective size``: smaller than int8, and as good."""
    whole = shipped / "digits_cnn.onnx"
    made = quantize("--objective", "size", "--test-data", shipped / "digits_test.npz")
    assert made.path.stat().st_size < 0.26 * whole.stat().st_size
    assert made.top1(digits_test) > 0.985


def test_layers_of_their_own(quantize, tmp_path) -> None:
    """Five layers, five ways to store them, in one recipe."""
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(
        """
precision = "int8"
[verify]
seconds = 0
[[layers]]
position = "first"
precision = "float"
[[layers]]
regex = "/conv2/.*"
precision = "fp16"
[[layers]]
name = "/fc1/*"
bits = 4
block_size = 64
"""
    )
    assert quantize(recipe=recipe).weight_types == {
        "/conv1/Conv": "FLOAT",
        "/conv2/Conv": "FLOAT16",
        "/conv3/Conv": "INT8",
        "/fc1/Gemm": "INT4",
        "/fc2/Gemm": "INT8",
    }
