"""``check_model``: planted regressions fail, and what did not change passes each time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from onnxq.api import check_model, load_receipt
from onnxq.graph import save
from onnxq.plan import (
    CalibrationSettings,
    CheckSettings,
    DataSettings,
    LayerRule,
    Recipe,
)
from onnxq.verify import Check, LatencyFacts

MODELS = Path(__file__).parents[2] / "models"
Edit = Callable[[onnx.ModelProto], None]


def gates(check: Check) -> dict[str, str]:
    return {gate.name: gate.status for gate in check.gates}


def failed(check: Check) -> set[str]:
    return {name for name, status in gates(check).items() if status == "failed"}


def told(check: Check) -> set[tuple[str, str]]:
    """Kind and place of what changed in the graph."""
    return {(change.kind, change.where) for change in check.changes.graph}


@pytest.fixture
def export(digits: Path) -> Callable[..., Check]:
    """Check a new export: the model with an edit."""

    def run(edit: Edit, **options: object) -> Check:
        proto = onnx.load("digits_cnn.onnx")
        edit(proto)
        onnx.save(proto, "digits_cnn.onnx")
        return check_model("digits_cnn.onnx", **options).check

    return run


def node_of(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.name == name)


def weight(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


class TestUnchanged:
    def test_passes_and_says_that_nothing_changed(self, digits: Path) -> None:
        found = check_model("digits_cnn.onnx")
        assert found.check.passed
        assert found.check.changes.none
        assert gates(found.check) == {
            "metric": "passed", "agreement": "passed", "sqnr": "passed", "size": "passed",
            "latency": "skipped", "coverage": "passed", "ranges": "passed",
        }  # fmt: skip
        assert [gate.worse for gate in found.check.gates if gate.status == "passed"] == [0.0] * 6
        before = load_receipt("digits_cnn.baseline.json")
        assert found.receipt.plan == before.plan
        assert found.receipt.output.bytes == before.output.bytes

    @pytest.mark.parametrize("seed", range(5))
    def test_passes_whatever_samples_are_drawn(
        self, digits: Path, seed: int, quick: Recipe
    ) -> None:
        """Half of the calibration data, other ones each time: the luck of the draw is no fault."""
        few = replace(quick, calibration=CalibrationSettings(samples=100))
        found = check_model("digits_cnn.onnx", recipe=few, seed=seed)
        assert found.check.passed, found.check.gates
        assert found.check.changes.ranges  # the draw did move something

    def test_searched_plan_is_applied_again(self, digits: Path, quick: Recipe) -> None:
        """A mix that rules alone would not make: its floats stay float, with their reasons."""
        before = load_receipt("digits_cnn.baseline.json")
        recipe = replace(quick, keep_float=("/conv1/Conv",))
        check_model("digits_cnn.onnx", recipe=recipe, update=True, search=True)
        mixed = load_receipt("digits_cnn.baseline.json")
        assert mixed.plan.precision() != before.plan.precision()
        # as a search would have left it: in the plan, and not in the recipe
        mixed = replace(mixed, recipe=replace(mixed.recipe, keep_float=()))
        Path("digits_cnn.baseline.json").write_bytes(mixed.to_json())
        found = check_model("digits_cnn.onnx")
        assert found.check.passed
        assert found.receipt.plan.nodes == mixed.plan.nodes
        assert "12 of 12 nodes" in found.check.plan

    @pytest.mark.parametrize(
        "changes",
        [
            {"precision": None, "objective": "size"},
            {"precision": "int8-dynamic"},
            {"precision": "int8-weights", "float_type": "fp16"},
            {"precision": "int4-weights", "keep_float_op": ("Conv",)},
            {"format": "qoperator", "per_channel": False},
            {"layers": (LayerRule(position="last", bits=16),)},
        ],
        ids=" ".join,
    )
    def test_any_plan_is_applied_again(
        self, digits: Path, changes: dict[str, object], quick: Recipe
    ) -> None:
        recipe = replace(quick, **changes)
        first = check_model("digits_cnn.onnx", recipe=recipe, update=True).receipt
        assert not first.plan.empty
        for given in (recipe, None):  # by the same recipe, and by what the baseline kept of it
            found = check_model("digits_cnn.onnx", recipe=given)
            assert "12 of 12 nodes" in found.check.plan
            assert found.check.passed
            assert found.check.changes.none
            assert found.receipt.plan == first.plan
            assert found.receipt.output.bytes == first.output.bytes

    def test_another_folder_and_name_are_no_change(self, digits: Path, tmp_path: Path) -> None:
        """Data of the baseline's recipe start from the baseline's folder."""
        (tmp_path / "new").mkdir()
        shutil.copy("digits_cnn.onnx", "new/export.onnx")
        found = check_model("new/export.onnx", "digits_cnn.baseline.json").check
        assert found.passed
        assert found.changes.none

    def test_metadata_and_renamed_graph_are_no_change(self, export: Callable[..., Check]) -> None:
        def edit(proto: onnx.ModelProto) -> None:
            proto.graph.name = "another"
            proto.doc_string = "exported on another day"

        assert export(edit).changes.none

    def test_newer_exporter_is_told(self, export: Callable[..., Check]) -> None:
        def edit(proto: onnx.ModelProto) -> None:
            proto.producer_version = "9.9"

        found = export(edit)
        assert found.passed
        assert told(found) == {("producer", "")}


class TestPlanted:
    def test_weights_of_one_layer_disturbed(self, export: Callable[..., Check]) -> None:
        """One output channel a hundred times too large, as by a broken export."""

        def edit(proto: onnx.ModelProto) -> None:
            tensor = weight(proto, "conv3.weight")
            values = numpy_helper.to_array(tensor).copy()
            values[:4] *= 100
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

        found = export(edit)
        assert {"metric", "ranges"} <= failed(found)
        (where,) = {place for kind, place in told(found) if kind == "weights"}
        assert "conv3" in where
        gate = next(gate for gate in found.gates if gate.name == "metric")
        assert "the float model lost most of it" in gate.note

    def test_weights_that_quantize_badly(self, export: Callable[..., Check]) -> None:
        """The float model computes the same: one channel up, and down again in the next layer.

        The ranges of a tensor then hold one channel a thousand times larger than all others, which
        8 bits cannot tell apart any more. Metrics of the float model see nothing of that.
        """

        def edit(proto: onnx.ModelProto) -> None:
            for name, axis, factor in (
                ("conv2.weight", 0, 1000.0), ("conv2.bias", 0, 1000.0), ("conv3.weight", 1, 1e-3)
            ):  # fmt: skip
                tensor = weight(proto, name)
                values = numpy_helper.to_array(tensor).copy()
                values[(slice(None),) * axis + (0,)] *= factor
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

        found = export(edit)
        assert {"sqnr", "ranges"} <= failed(found)
        metric = next(gate for gate in found.gates if gate.name == "metric")
        assert "float model lost" not in metric.note

    def test_relu_as_max(self, export: Callable[..., Check]) -> None:
        """An exporter that writes clamps otherwise: same outputs, and a broken integer path."""

        def edit(proto: onnx.ModelProto) -> None:
            proto.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
            for node in proto.graph.node:
                if node.op_type == "Relu":
                    node.op_type = "Max"
                    node.input.append("zero")

        found = export(edit)
        assert "coverage" in failed(found)
        assert {"metric", "agreement", "size"}.isdisjoint(failed(found))
        operators = [change for change in found.changes.graph if change.kind == "operator"]
        assert {(c.before, c.after) for c in operators} == {("Relu", "Max")}

    def test_batch_norm_that_cannot_be_folded(self, digits: Path, quick: Recipe) -> None:
        """A debug output is left in the export: the Conv before a BatchNorm has another reader."""
        proto = onnx.load("digits_cnn.onnx")
        conv = node_of(proto, "/conv2/Conv")
        made, channels = conv.output[0], numpy_helper.to_array(weight(proto, "conv2.bias")).size
        conv.output[0] = "before_norm"
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        for name, values in (("s", ones), ("b", zeros), ("m", zeros), ("v", ones)):
            proto.graph.initializer.append(numpy_helper.from_array(values, f"norm.{name}"))
        norm = helper.make_node(
            "BatchNormalization", ["before_norm", "norm.s", "norm.b", "norm.m", "norm.v"], [made],
            name="/norm",
        )  # fmt: skip
        proto.graph.node.insert(list(proto.graph.node).index(conv) + 1, norm)
        onnx.save(proto, "digits_cnn.onnx")
        first = check_model("digits_cnn.onnx", recipe=quick, update=True)
        assert "/norm" not in first.receipt.plan.precision()  # folded
        proto.graph.output.append(
            helper.make_tensor_value_info("before_norm", TensorProto.FLOAT, None)
        )
        onnx.save(proto, "digits_cnn.onnx")
        found = check_model("digits_cnn.onnx").check
        assert "coverage" in failed(found)
        assert {("added", "/norm"), ("output", "before_norm")} <= told(found)

    def test_hard_swish_decomposed(
        self, tmp_path: Path, build: Callable[..., object], quick: Recipe
    ) -> None:
        """x * clip(x + 3, 0, 6) / 6, as exporters of an opset without HardSwish write it."""
        head = "net (float[N,8,8,8] x) => (float[N,8,8,8] y) <float[8,8,3,3] w = seeded, "
        head += "float[8,8,3,3] v = seeded, float three = {3.0}, float six = {6.0}, "
        head += "float nought = {0.0}> { [c1] a = Conv <pads = [1,1,1,1]> (x, w) "
        tail = " [c2] y = Conv <pads = [1,1,1,1]> (h, v) }"
        whole = "[hs] h = HardSwish (a)"
        parts = "[add] s = Add (a, three) [cut] c = Clip (s, nought, six) "
        parts += "[div] d = Div (c, six) [mul] h = Mul (a, d)"
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "x.npz", x=rng.standard_normal((40, 8, 8, 8)).astype(np.float32))
        recipe = replace(quick, data=DataSettings(calibration=str(tmp_path / "x.npz")))
        path = tmp_path / "m.onnx"
        save(build(head + whole + tail), path)
        check_model(path, recipe=recipe, update=True)
        save(build(head + parts + tail), path)
        found = check_model(path).check
        assert "coverage" in failed(found)
        # preparing writes HardSwish as x * HardSigmoid (x), so that it is this one that is gone
        assert {(c.kind, c.before or c.after) for c in found.changes.graph} == {
            ("removed", "HardSigmoid"), ("removed", "Mul"), ("added", "Add"), ("added", "Clip"),
            ("added", "Div"), ("added", "Mul"),
        }  # fmt: skip

    def test_calibration_data_replaced(self, digits: Path) -> None:
        """Raw bytes instead of 0..1."""
        with np.load("digits_calibration.npz") as arrays:
            np.savez("raw.npz", **{k: v * 255 if k == "image" else v for k, v in arrays.items()})
        found = check_model("digits_cnn.onnx", data="raw.npz").check
        assert {"ranges", "sqnr"} <= failed(found)
        assert ("data", "calibration") in {(c.kind, c.where) for c in found.changes.setting}
        assert found.changes.ranges[0].change > 100

    def test_layers_forced_float(self, digits: Path, quick: Recipe) -> None:
        found = check_model("digits_cnn.onnx", recipe=replace(quick, keep_float_op=("Conv",)))
        assert {"coverage", "size"} <= failed(found.check)
        assert "planned anew" in found.check.plan
        kinds = {(c.kind, c.where) for c in found.check.changes.plan}
        assert ("precision", "/conv1/Conv") in kinds

    def test_opset_alone(self, export: Callable[..., Check]) -> None:

        def edit(proto: onnx.ModelProto) -> None:
            proto.opset_import[0].version = 18

        found = export(edit)
        assert ("opset", "") in told(found)
        assert found.passed

    def test_labels_are_gone(self, digits: Path) -> None:
        """A figure that the baseline has, and the run has not, is no pass."""
        with np.load("digits_test.npz") as arrays:
            np.savez("unlabelled.npz", image=arrays["image"])
        found = check_model("digits_cnn.onnx", test_data="unlabelled.npz").check
        assert failed(found) == {"metric"}

    def test_other_test_samples_are_compared_by_their_number(self, digits: Path) -> None:
        with np.load("digits_test.npz") as arrays:
            np.savez("half.npz", **{name: values[::2] for name, values in arrays.items()})
        found = check_model("digits_cnn.onnx", test_data="half.npz").check
        assert found.passed
        metric = next(gate for gate in found.gates if gate.name == "metric")
        assert "299 samples, others than the baseline's 597" in metric.note

    def test_attribute(self, export: Callable[..., Check]) -> None:
        """Padding on one side, as TensorFlow pads: told, although the digits stand it."""

        def edit(proto: onnx.ModelProto) -> None:
            (pads,) = (a for a in node_of(proto, "/conv1/Conv").attribute if a.name == "pads")
            pads.ints[:] = [2, 2, 0, 0]

        found = export(edit)
        changes = [c for c in found.changes.graph if c.kind == "attribute"]
        assert [(c.where, c.before, c.after) for c in changes] == [
            ("/conv1/Conv pads", "1, 1, 1, 1", "2, 2, 0, 0")
        ]
        assert found.passed


class TestLatencyAgain:
    """A miss is measured twice more; what was measured is made up here."""

    @pytest.fixture
    def checked(self, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
        """Check against a baseline of ten times float's speed, measuring these speeds in turn."""

        def latency(speed: float) -> LatencyFacts:
            return LatencyFacts(
                1.0, 1 / speed, speed, speed, 0.0, 0.0, 9, 64, 1, "CPUExecutionProvider", speed
            )

        def run(*speeds: float) -> tuple[str, int]:
            known = load_receipt("digits_cnn.baseline.json")
            timed = replace(known, measured=replace(known.measured, latency=latency(10.0)))
            Path("timed.json").write_bytes(timed.to_json())
            left = [latency(speed) for speed in speeds]

            def measured(*_args: object, **_options: object) -> object:
                return left.pop(0), (1.0, 1.0, 1.0)

            for module in ("onnxq.verify.verify", "onnxq.api.check"):
                monkeypatch.setattr(sys.modules[module], "measure_speed", measured)
            found = check_model("digits_cnn.onnx", "timed.json").check
            return gates(found)["latency"], len(left)

        return run

    def test_good_one_is_not_measured_again(self, checked: Callable[..., object]) -> None:
        assert checked(9.0, 1.0, 1.0) == ("passed", 2)

    def test_better_one_counts(self, checked: Callable[..., object]) -> None:
        assert checked(3.0, 9.0, 1.0) == ("passed", 1)

    def test_slow_each_time_is_slow(self, checked: Callable[..., object]) -> None:
        assert checked(3.0, 4.0, 2.0) == ("failed", 0)


class TestSettings:
    def test_skipped_gate_does_not_count(self, digits: Path, quick: Recipe) -> None:
        float_again = replace(quick, keep_float=("*",))
        settings = CheckSettings(skip=("coverage", "size", "sqnr", "ranges", "latency"))
        found = check_model("digits_cnn.onnx", recipe=float_again, settings=settings).check
        assert found.passed
        assert gates(found)["coverage"] == "skipped"

    def test_tolerance_of_the_recipe_counts(self, digits: Path, quick: Recipe) -> None:
        loose = CheckSettings(max_coverage_drop=1, max_size_growth=10, max_range_change=1e6)
        recipe = replace(quick, keep_float=("*",), check=loose)
        found = check_model("digits_cnn.onnx", recipe=recipe).check
        assert {"coverage", "size"}.isdisjoint(failed(found))

    def test_recipe_beside_the_model_wins_over_the_baselines(self, digits: Path) -> None:
        beside = '[data]\ncalibration = "digits_calibration.npz"\ntest = "digits_test.npz"\n'
        beside += "batch_size = 64\n[verify]\nseconds = 0\n[check]\nskip = ['size']\n"
        Path("digits_cnn.onnxq.toml").write_text(beside)
        found = check_model("digits_cnn.onnx")
        assert found.check.passed
        assert gates(found.check)["size"] == "skipped"
        # it leaves the target open, and the baseline's plan is for one
        assert found.receipt.plan.target == "cpu-x86-avx2"
        assert "baseline's" in found.check.plan
