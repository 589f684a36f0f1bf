"""``check_model``: where baselines come from, when they are renewed, and what is not believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from onnxq.api import Checked, baseline_path, check_model, load_receipt, quantize
from onnxq.errors import DataError, OnnxqError, UnusableError, UsageError
from onnxq.plan import Recipe
from onnxq.types import Precision


class TestUpdate:
    def test_first_baseline_is_a_receipt(self, digits: Path, quick: Recipe) -> None:
        baseline = baseline_path(Path("digits_cnn.onnx"))
        baseline.unlink()
        found = check_model("digits_cnn.onnx", recipe=quick, update=True)
        assert found.check.passed
        assert found.check.gates == ()
        assert load_receipt(baseline) == found.receipt

    def test_regression_is_taken_over(self, digits: Path, quick: Recipe) -> None:
        slow = replace(quick, keep_float=("*",))
        found = check_model("digits_cnn.onnx", recipe=slow, update=True).check
        assert not found.passed
        assert found.updated
        assert check_model("digits_cnn.onnx").check.passed

    def test_nothing_is_written_without_it(self, digits: Path) -> None:
        before = {path.name: path.read_bytes() for path in digits.iterdir()}
        check_model("digits_cnn.onnx")
        assert {path.name: path.read_bytes() for path in digits.iterdir()} == before

    def test_baseline_in_the_place_of_an_input_is_refused(
        self, digits: Path, quick: Recipe
    ) -> None:
        with pytest.raises(OnnxqError):
            check_model("digits_cnn.onnx", "digits_test.npz", recipe=quick, update=True)

    def test_failed_run_leaves_the_baseline(self, digits: Path) -> None:
        before = Path("digits_cnn.baseline.json").read_bytes()
        with pytest.raises(DataError):
            check_model("digits_cnn.onnx", data="nowhere.npz", update=True)
        assert Path("digits_cnn.baseline.json").read_bytes() == before


class TestBaselines:
    def test_receipt_of_quantize_is_one(self, digits: Path, quick: Recipe) -> None:
        data = {"data": "digits_calibration.npz", "test_data": "digits_test.npz"}
        quantize("digits_cnn.onnx", **data, recipe=quick, output="q.onnx")
        found = check_model("digits_cnn.onnx", "q.receipt.json").check
        assert found.passed
        assert found.changes.none

    def test_missing_one_is_told(self, digits: Path, quick: Recipe) -> None:
        with pytest.raises(UnusableError, match="cannot read receipt"):
            check_model("digits_cnn.onnx", "nothing.json", recipe=quick)

    def test_model_in_memory_needs_a_name(self, build: Callable[..., object]) -> None:
        model = build("net (float[N,4] x) => (float[N,4] y) { [r] y = Relu (x) }")
        with pytest.raises(UsageError, match="no baseline beside it"):
            check_model(model)

    def test_older_one_without_a_graph_tells_nodes_alone(self, digits: Path) -> None:
        before = load_receipt("digits_cnn.baseline.json")
        Path("old.json").write_bytes(replace(before, graph=None).to_json())
        found: Checked = check_model("digits_cnn.onnx", "old.json")
        assert found.check.passed
        assert found.check.changes.none


class TestUntrusted:
    """A baseline, or a recipe that was merely found, is data."""

    def edited(self, change: Callable[[dict], None]) -> None:
        path = Path("digits_cnn.baseline.json")
        receipt = json.loads(path.read_text())
        change(receipt)
        path.write_text(json.dumps(receipt))

    @pytest.mark.parametrize("key", ["library", "options"])
    def test_no_library_out_of_a_baseline(self, digits: Path, key: str) -> None:
        value = {"library": "./evil.so", "options": {"trt_extra_plugin_lib_paths": "./evil.so"}}

        def plant(receipt: dict) -> None:
            receipt["recipe"]["provider"] = {"name": "evil", key: value[key]}

        self.edited(plant)
        with pytest.raises(
            UsageError, match=r"was merely found, and its .provider. .* may load code"
        ):
            check_model("digits_cnn.onnx")

    def test_no_library_out_of_a_recipe_that_was_found(self, digits: Path) -> None:
        Path("digits_cnn.onnxq.toml").write_text('[provider]\nname = "evil"\nlibrary = "./e.so"\n')
        with pytest.raises(UsageError, match="library may load code"):
            check_model("digits_cnn.onnx")

    @pytest.mark.parametrize(
        ("place", "value"),
        [(("output", "bytes"), 0), (("run", "seed"), -1),
         (("measured", "metric", "samples"), -5)],
    )  # fmt: skip
    def test_impossible_figures_are_no_receipt(self, digits: Path, place, value) -> None:
        def plant(receipt: dict) -> None:
            for key in place[:-1]:
                receipt = receipt[key]
            receipt[place[-1]] = value

        self.edited(plant)
        with pytest.raises(UnusableError, match="is no receipt"):
            check_model("digits_cnn.onnx")

    @pytest.mark.parametrize("precision", ["int4-weights", "int16"])
    def test_a_plan_that_needs_another_opset_is_planned_anew(self, digits, precision) -> None:
        def plant(receipt: dict) -> None:
            for node in receipt["plan"]["nodes"]:
                node["precision"] = precision

        self.edited(plant)
        assert check_model("digits_cnn.onnx").receipt.plan.count(Precision.INT8) > 0
