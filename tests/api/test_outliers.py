"""Outliers in the calibration data: which ranges leave them out, and who is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime as ort
import pytest
from msgspec.structs import replace

import onnxq
from onnxq.api.stages import draft
from onnxq.calibrate import Ranges
from onnxq.plan import Budgets, CalibrationSettings, LayerRule, Recipe, VerifySettings
from onnxq.types import Precision

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
def test_where_nothing_is_read_without_outliers_ranges_stay(model: Path, recipe: Recipe) -> None:
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
    assert note.endswith(f"(numbers {', '.join(map(str, OUTLIERS))})")


def test_without_outliers_nothing_is_said(model: Path) -> None:
    found = onnxq.quantize(
        model, data=images(1.0), test_data=MODELS / "digits_test.npz", recipe=RECIPE
    )
    assert found.receipt.ranges["image"].hi == 1.0
    assert not [n for n in found.receipt.measured.notes if "far outside" in n]


def test_a_check_applies_the_plan_with_ranges_like_the_baselines(model: Path, tmp_path) -> None:
    """They were found by the search, and are no setting of the recipe's."""
    data = {"data": images(100.0), "test_data": MODELS / "digits_test.npz", "recipe": RECIPE}
    baseline = tmp_path / "baseline.json"
    first = onnxq.check_model(model, baseline, update=True, **data)
    assert first.receipt.run.leaves_out
    again = onnxq.check_model(model, baseline, **data)
    assert again.check.passed
    assert again.receipt.ranges == first.receipt.ranges
    assert again.receipt.plan.tensors == first.receipt.plan.tensors
    replayed = onnxq.replay(model, baseline, output=tmp_path / "again.onnx")
    assert replayed.receipt.run.leaves_out


def test_a_search_from_python_tells_of_the_ranges(model: Path) -> None:
    found = onnxq.search_plan(
        model, images(100.0), test_data=images(1.0), recipe=RECIPE, budgets=Budgets(min_sqnr=20)
    )
    assert found.within
    assert any("far outside" in note for note in found.notes)


def net(folder: Path, build_from: str, **weights: np.ndarray) -> Path:
    """A model of some text, with weights by name."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {build_from}')
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_dead_branch_beside_outliers(tmp_path: Path, method: str) -> None:
    """Its range has no width, with outliers or without."""
    rng = np.random.default_rng(0)
    path = net(
        tmp_path,
        """g (float[N,8] x) => (float[N,6] y)
          <float[8,16] w, float[8,16] u, float[16] b, float[32,6] v> {
          [m1] a = MatMul (x, w) [r1] r = Relu (a)
          [m2] c = MatMul (x, u) [a2] d = Add (c, b) [r2] s = Relu (d)
          [cat] t = Concat <axis = 1> (r, s) [m3] y = MatMul (t, v) }""",
        w=rng.normal(size=(8, 16)).astype(np.float32),
        u=(1e-3 * rng.normal(size=(8, 16))).astype(np.float32),
        b=np.full(16, -1e3, np.float32),
        v=rng.normal(size=(32, 6)).astype(np.float32),
    )
    x, test = (rng.normal(size=(n, 8)).astype(np.float32) for n in (300, 500))
    x[list(OUTLIERS)] *= 1000
    recipe = replace(
        RECIPE, calibration=CalibrationSettings(method=method), budgets=Budgets(min_sqnr=20.0)
    )
    found = onnxq.quantize(path, data={"x": x}, test_data={"x": test}, recipe=recipe)
    assert found.receipt.gates[0].passed
    assert found.receipt.run.leaves_out
    assert found.receipt.ranges["s"].hi == 0


@pytest.mark.parametrize(
    ("share", "method", "budget", "stays"),
    [
        (0.4, "minmax", {"max_drop": 0.02}, True),
        (0.05, "minmax", {"max_drop": 0.02}, True),
        # the layer that reads them goes to float, and the others keep narrow ranges
        (0.4, "auto", {"min_sqnr": 20.0}, False),
        (0.1, "auto", {"min_agreement": 0.95}, False),
    ],
)
def test_large_values_that_are_signal_keep_the_budget(
    tmp_path: Path, share: float, method: str, budget: dict[str, float], *, stays: bool
) -> None:
    """A feature is large in some samples, of other samples too, and decides their class.

    Without these values the typical sample loses less, and the others their answers. Where no plan
    is within the limits so, or the proof says that it is not, the search goes back to the ranges as
    they were observed.
    """
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 32)) / 8
    w[0] = rng.normal(size=32) / 100
    weights = {
        "w": w, "b": rng.normal(size=32), "u": rng.normal(size=(32, 32)) / 6,
        "v": rng.normal(size=(32, 6)),
    }  # fmt: skip
    path = net(
        tmp_path,
        """g (float[N,64] x) => (float[N,6] y)
          <float[64,32] w, float[32] b, float[32,32] u, float[32,6] v> {
          [m1] a = MatMul (x, w) [a1] c = Add (a, b) [r1] r = Relu (c)
          [m2] d = MatMul (r, u) [r2] s = Relu (d) [m3] y = MatMul (s, v) }""",
        **{name: values.astype(np.float32) for name, values in weights.items()},
    )
    session = ort.InferenceSession(path)

    def samples(count: int, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(count, 64)).astype(np.float32)
        large = rng.random(count) < share
        x[large, 0] = rng.uniform(-1500, 1500, large.sum())
        file = tmp_path / f"{seed}.npz"
        np.savez(file, x=x, labels=session.run(None, {"x": x})[0].argmax(1))
        return file

    recipe = replace(
        RECIPE, calibration=CalibrationSettings(method=method), budgets=Budgets(**budget)
    )
    found = onnxq.quantize(path, data=samples(512, 1), test_data=samples(2000, 2), recipe=recipe)
    assert found.receipt.gates[0].passed
    assert found.receipt.run.leaves_out != stays
    assert (found.receipt.ranges["x"].hi > 1000) == stays
    assert sum(c.chosen for c in found.receipt.measured.candidates) == 1
    assert found.plan.count(Precision.INT8) > 0
