"""``calibrate_model`` and what is done with its outcome; data that are Python objects; states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.calibrate import ObserverSpec, describe
from onnxq.errors import DataError, UsageError
from onnxq.graph import Model, save
from onnxq.plan import CalibrationSettings, DataSettings, Recipe, VerifySettings
from onnxq.types import Feed, Grid

QUICK = VerifySettings(seconds=0)
MINMAX = CalibrationSettings("minmax")


@pytest.fixture
def net(build) -> Model:
    return build("""net (float[N,16] x) => (float[N,8] y) <float[16,8] w = seeded>
        { [product] p = MatMul (x, w) [act] y = Relu (p) }""")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)


def feeds(images: np.ndarray) -> Iterator[Feed]:
    for image in images:
        yield {"x": image[None]}


@pytest.mark.parametrize("form", ["array", "mapping", "list", "generator", "function"])
def test_data_may_be_python_objects(net: Model, images: np.ndarray, form: str) -> None:
    data = {
        "array": images,
        "mapping": {"x": images},
        "list": list(feeds(images)),
        "generator": feeds(images),
        "function": lambda: feeds(images),
    }[form]
    result = onnxq.quantize(net, data=data, recipe=Recipe(verify=QUICK, calibration=MINMAX))
    found = result.receipt.ranges["x"]
    # the last fifth is held back to verify with
    assert (found.min, found.max) == (images[:80].min(), images[:80].max())
    assert result.receipt.measured.samples == 20


def test_ranges_are_used_and_all_data_verify(
    net: Model, images: np.ndarray, tmp_path: Path
) -> None:
    seen = onnxq.calibrate_model(net, images, output=tmp_path / "r.json")
    loaded = onnxq.load_ranges(tmp_path / "r.json")
    recipe = Recipe(verify=QUICK, precision="int8")  # a search would judge by some of them
    made = [
        onnxq.quantize(net, data=images[:30], recipe=recipe, ranges=given)
        for given in (seen, loaded)
    ]
    assert made[0].plan == made[1].plan
    assert made[0].receipt.ranges == seen.ranges(Grid()).tensors
    assert made[0].receipt.measured.samples == 30
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]  # no journal is left


def test_calibrations_merge_and_go_on(net: Model, images: np.ndarray) -> None:
    first, second = (onnxq.calibrate_model(net, part) for part in (images[:70], images[70:]))
    merged = onnxq.merge_ranges([second, first])
    assert merged.samples == 100
    gone_on = onnxq.calibrate_model(net, images[70:], earlier=first)
    assert gone_on.ranges(Grid()) == merged.ranges(Grid())
    with pytest.raises(UsageError, match="nothing to merge"):
        onnxq.merge_ranges([])


def test_ranges_of_another_model_are_refused(net: Model, images: np.ndarray, build) -> None:
    seen = onnxq.calibrate_model(net, images)
    other = build("""net (float[N,16] x) => (float[N,8] y) <float[16,8] v = seeded>
        { [product] p = MatMul (x, v) [act] y = Relu (p) }""")
    with pytest.raises(UsageError, match="observed on another model"):
        onnxq.quantize(other, ranges=seen)


def test_a_layer_that_was_kept_float_has_no_ranges(net: Model, images: np.ndarray) -> None:
    kept = Recipe(keep_float=("product",), verify=QUICK)
    seen = onnxq.calibrate_model(net, images, recipe=kept)
    result = onnxq.quantize(net, recipe=Recipe(verify=QUICK), ranges=seen)
    assert result.plan.empty
    assert any("no ranges of" in note for note in result.receipt.measured.notes)


@pytest.mark.parametrize(("samples", "method"), [(63, "minmax"), (64, "mse")])
def test_auto_needs_enough_samples(
    net: Model, images: np.ndarray, samples: int, method: str
) -> None:
    seen = onnxq.calibrate_model(net, images[:samples])
    assert seen.observer.name == "auto"
    same = seen.with_observer(ObserverSpec(method))
    assert same.ranges(Grid()) == seen.ranges(Grid())
    assert describe(seen, Grid()).observer == method


def test_ranges_that_still_move_are_told(net: Model, images: np.ndarray) -> None:
    images = np.concatenate([images[:72], images[72:] * 9])
    recipe = Recipe(verify=QUICK, calibration=MINMAX, data=DataSettings(holdout=0.2))
    notes = onnxq.quantize(net, data=images, recipe=recipe).receipt.measured.notes
    assert any("still moved the range of 2 tensors" in note for note in notes)


def test_generator_that_raises_midway(net: Model, images: np.ndarray, tmp_path: Path) -> None:
    def broken() -> Iterator[Feed]:
        yield from feeds(images[:7])
        raise OSError("the disk is gone")

    with pytest.raises(DataError, match=r"feed 7.*OSError: the disk is gone"):
        onnxq.calibrate_model(net, broken(), output=tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


STATEFUL = """net (float[1,4] x, float[1,4] h) => (float[1,4] y, float[1,4] h_out)
    <float[4,4] w = seeded> { [sum] h_out = Add (x, h) [product] y = MatMul (h_out, w) }"""


def test_states_are_fed_back_to_the_end(build, tmp_path: Path) -> None:
    """Calibrated, verified and written: no state is in the data."""
    steps = np.random.default_rng(0).standard_normal((90, 1, 4)).astype(np.float32)
    model, path = build(STATEFUL), tmp_path / "net.onnx"
    save(model, path)
    recipe = Recipe(data=DataSettings(state={"h_out": "h"}), verify=QUICK, calibration=MINMAX)
    data = [{"x": step} for step in steps]
    result = onnxq.quantize(path, data=data, recipe=recipe)
    sums = np.cumsum(steps[:72], axis=0)
    found = result.receipt.ranges["h_out"]
    np.testing.assert_allclose([found.min, found.max], [sums.min(), sums.max()], rtol=1e-5)
    # the state of the int8 model is its own: it is float here, so that both states are alike
    outputs = result.receipt.measured.outputs
    assert outputs["h_out"].sqnr_db > 100
    assert outputs["y"].sqnr_db > 30
    assert result.receipt.measured.samples == 18


def test_state_that_is_no_input(net: Model, images: np.ndarray) -> None:
    recipe = Recipe(data=DataSettings(state={"y": "hidden"}), verify=QUICK)
    with pytest.raises(UsageError, match="hidden"):
        onnxq.quantize(net, data=images, recipe=recipe)


def test_ranges_of_the_test_data_flatter(net: Model, images: np.ndarray) -> None:
    seen = onnxq.calibrate_model(net, images)
    recipe = Recipe(verify=QUICK)
    for data, flatters in ((images, True), (images[:50], False)):
        result = onnxq.quantize(net, ranges=seen, data=data, recipe=recipe)
        assert any("flatter" in note for note in result.receipt.measured.notes) is flatters
