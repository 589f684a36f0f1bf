"""The calibration process: samples go through the float model, and every activation gets a range.

Ranges are a file of their own, which can be looked at and used again. Their ends are those that
plain ONNX Runtime finds; how much of the ends is kept is a choice, and rare outliers need not
spoil it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.plan import CalibrationSettings


def ends_of_all_tensors(source: Any, feeds: list[dict[str, Any]], folder: Path, opened) -> dict:
    """Smallest and largest value of every tensor: ONNX Runtime with all of them as outputs."""
    proto = onnx.shape_inference.infer_shapes(source.proto)
    proto.graph.output.extend(proto.graph.value_info)
    onnx.save(proto, folder / "all.onnx")
    wide = opened(folder / "all.onnx")
    ends: dict[str, tuple[float, float]] = {}
    for feed in feeds:
        for tensor, value in (wide.run(feed) | feed).items():
            lo, hi = ends.get(tensor, (math.inf, -math.inf))
            ends[tensor] = min(lo, float(value.min())), max(hi, float(value.max()))
    return ends


def test_the_ends_in_the_file_are_those_that_the_model_computes(
    cli, shipped, opened, digits, tmp_path
) -> None:
    written = tmp_path / "digits.ranges.json"
    data = ("--data", shipped / "digits_calibration.npz")
    run = cli("calibrate", shipped / "digits_cnn.onnx", *data, "-o", written)
    assert run.code == 0, run.err
    told = json.loads(written.read_text(encoding="utf-8"))["ranges"]["tensors"]
    source = opened(shipped / "digits_cnn.onnx")
    expected = ends_of_all_tensors(source, [{"image": digits}], tmp_path, opened)
    assert {"image", "/Relu_output_0", "logits"} <= set(told)
    for tensor, found in told.items():
        # kernels sum in another order where layers are fused: the seventh digit of float32
        assert (found["min"], found["max"]) == pytest.approx(expected[tensor], rel=1e-5)


@pytest.mark.parametrize("name", ["tiny_vww_mbv1", "tiny_ad_autoencoder"])
def test_the_ends_of_models_of_others(name, real, opened, tmp_path) -> None:
    """On their own data; tensors that folding makes are not in the source."""
    model = real(name)
    calibration = onnxq.calibrate_model(model.path, model.calibration)
    onnxq.save_ranges(calibration, tmp_path / "ranges.json")
    told = json.loads((tmp_path / "ranges.json").read_text(encoding="utf-8"))["ranges"]["tensors"]
    expected = ends_of_all_tensors(opened(model.path), model.calibration, tmp_path, opened)
    common = set(told) & set(expected)
    assert len(common) >= 8
    for tensor in common:
        found = (told[tensor]["min"], told[tensor]["max"])
        # sums over thousands of products, in another order
        assert found == pytest.approx(expected[tensor], rel=1e-4)


def test_minmax_makes_255_steps_between_the_ends(shipped, opened, quick, digits, tmp_path) -> None:
    """By the definition of uint8: scale = (max - min) / 255 of a range that holds 0."""
    source, output = opened(shipped / "digits_cnn.onnx"), tmp_path / "made.onnx"
    recipe = quick(precision="int8", calibration=CalibrationSettings("minmax"))
    onnxq.quantize(source.path, data=digits, test_data=digits, recipe=recipe, output=output)
    expected = ends_of_all_tensors(source, [{"image": digits}], tmp_path, opened)
    activations = opened(output).activations
    assert len(activations) == 8
    for tensor, (scale, zero_point) in activations.items():
        lo, hi = expected[tensor]
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        assert scale == pytest.approx((hi - lo) / 255, rel=1e-5), tensor
        assert zero_point == round(-lo / scale)


def test_ranges_of_a_file_make_the_model_that_samples_make(
    cli, shipped, opened, quick_file, tmp_path
) -> None:
    """Calibrate here, quantize there, without the samples: every stored value is the same."""
    source, samples = shipped / "digits_cnn.onnx", shipped / "digits_calibration.npz"
    ranges, later, at_once = (tmp_path / name for name in ("r.json", "later.onnx", "once.onnx"))
    assert cli("calibrate", source, "--data", samples, "-o", ranges).code == 0
    whole = ("--recipe", quick_file, "--precision", "int8")
    tested = ("--test-data", shipped / "digits_test.npz")
    assert cli("quantize", source, *whole, "--ranges", ranges, "-o", later).code == 0
    assert cli("quantize", source, *whole, *tested, "--data", samples, "-o", at_once).code == 0
    expected, found = opened(at_once).constants, opened(later).constants
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@pytest.fixture(scope="module")
def spoilt(shipped, opened, quick, digits, digits_test, tmp_path_factory) -> dict[str, float]:
    """Top-1 by method, where 4 of 200 samples are 300 times as bright as images are."""
    images = digits.copy()
    images[:4] *= 300
    source, folder = shipped / "digits_cnn.onnx", tmp_path_factory.mktemp("spoilt")
    found = {"float": opened(source).top1(digits_test)}
    for method in ("minmax", "percentile"):
        output = folder / f"{method}.onnx"
        settings = CalibrationSettings(method, percentile=97)  # 3 % at each end are left out
        recipe = quick(precision="int8", calibration=settings)
        onnxq.quantize(source, data=images, recipe=recipe, output=output)
        found[method] = opened(output).top1(digits_test)
    return found


def test_ends_alone_are_spoilt_by_outliers(spoilt) -> None:
    assert spoilt["minmax"] < spoilt["float"] - 0.02


def test_outliers_are_left_out_where_that_is_wanted(spoilt) -> None:
    assert spoilt["percentile"] > spoilt["float"] - 0.01


POWERS = """
import math


class Powers:
    wants_values = False

    def __init__(self):
        self.largest = 0.0

    def observe(self, tap):
        self.largest = max(self.largest, float(tap.highs.max()))

    def merge(self, other):
        self.largest = max(self.largest, other.largest)

    def range(self, grid):
        return 0.0, 2.0 ** math.ceil(math.log2(self.largest))
"""


def test_your_own_observer_decides(cli, shipped, opened, quick_file, digits, tmp_path) -> None:
    """Ranges that end at the next power of two, wider than what was seen: so do all in the file."""
    (tmp_path / "observer.py").write_text(POWERS)
    source, output = opened(shipped / "digits_cnn.onnx"), tmp_path / "made.onnx"
    samples = shipped / "digits_calibration.npz"
    data = ("--precision", "int8", "--data", samples, "--test-data", samples)
    own = ("--calibrator", f"{tmp_path / 'observer.py'}:Powers", "-o", output)
    run = cli("quantize", source.path, "--recipe", quick_file, *data, *own)
    assert run.code == 0, run.err
    expected = ends_of_all_tensors(source, [{"image": digits}], tmp_path, opened)
    for tensor, (scale, zero_point) in opened(output).activations.items():
        assert zero_point == 0
        end = 2 ** math.ceil(math.log2(expected[tensor][1]))
        assert scale == pytest.approx(end / 255, rel=1e-5), tensor
