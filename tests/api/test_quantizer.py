"""``PTQQuantizer``: layer by layer as a recipe would say it, and what it tells afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.errors import RecipeError, UsageError
from onnxq.graph import Model, sha256
from onnxq.numerics import dequantize
from onnxq.plan import LayerRule, Recipe, VerifySettings
from onnxq.types import Precision, QParams, QType, WeightBlocks

MODELS = Path(__file__).parents[2] / "models"
QUICK = VerifySettings(seconds=0.0)
CONV, LATER = "/conv1/Conv", "/conv2/Conv"
GEMM, LAST = "/fc1/Gemm", "/fc2/Gemm"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The digits model without its recipe."""
    shutil.copy(MODELS / "digits_cnn.onnx", tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(MODELS / "digits_calibration.npz") as arrays:
        return arrays["image"][:40]


@pytest.fixture
def quantizer() -> onnxq.PTQQuantizer:
    return onnxq.PTQQuantizer(Recipe(verify=QUICK, target="cpu-x86"))


def precisions(quantizer: onnxq.PTQQuantizer) -> dict[str, Precision]:
    return {name: found.precision for name, found in quantizer.quantization_parameters.items()}


class TestQuantize:
    def test_is_a_quantizer(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        """Whoever needs a ``Quantizer`` can use it, by position too, and gets what the function
        makes."""
        any_quantizer: onnxq.Quantizer = quantizer
        config = Recipe(verify=QUICK, per_channel=False)
        found = any_quantizer.quantize(model, images, config)
        expected = onnxq.quantize(model, data=images, recipe=config)
        assert found.plan == expected.plan
        assert sha256(found.model) == sha256(expected.model)

    def test_config_is_for_one_run(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        once = quantizer.quantize(model, images, Recipe(precision="int8-weights", verify=QUICK))
        assert once.plan.count(Precision.INT8_WEIGHTS) == once.plan.count(
            *set(Precision) - {Precision.FLOAT}
        )
        assert quantizer.quantize(model, images).plan.count(Precision.INT8) == 12

    @pytest.mark.parametrize("name", ["transformer", "preset:transformer"])
    def test_preset(self, model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        def tell(_model: object, **options: Any) -> None:
            raise RuntimeError(options["recipe"].precision)

        monkeypatch.setattr("onnxq.api.quantizer.quantize", tell)
        with pytest.raises(RuntimeError, match="int8-dynamic"):
            onnxq.PTQQuantizer(name).quantize(model)
        with pytest.raises(RuntimeError, match="int8-dynamic"):
            onnxq.PTQQuantizer().quantize(model, config=name)

    def test_recipe_beside_the_model_is_not_read(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        model.with_suffix(".onnxq.toml").write_text("no TOML")
        quantizer.quantize(model, images)
        with pytest.raises(RecipeError, match="is not TOML"):
            onnxq.quantize(model, data=images)

    def test_output(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray, tmp_path: Path
    ) -> None:
        made = quantizer.quantize(
            model, images, test_data=images[:4], output=tmp_path / "made.onnx"
        )
        assert made.path == tmp_path / "made.onnx"
        assert made.receipt.measured.samples == 4
        assert (tmp_path / "made.receipt.json").is_file()

    def test_unknown_preset(self) -> None:
        with pytest.raises(UsageError, match="unknown preset 'mobil'"):
            onnxq.PTQQuantizer("mobil")


class TestFallback:
    def test_keeps_a_layer_float_until_it_ends(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.set_per_layer_fallback(LAST, True)
        quantizer.set_per_layer_fallback(LAST, True)
        plan = quantizer.quantize(model, images).plan
        assert {n.name for n in plan.nodes if n.reason and n.reason.code == "kept-float"} == {LAST}
        quantizer.set_per_layer_fallback(LAST, False)
        quantizer.set_per_layer_fallback("never set", False)
        assert quantizer.quantize(model, images).plan.count(Precision.INT8) == 12

    def test_layers_may_be_many(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.set_per_layer_fallback("/fc*/Gemm", True)
        quantizer.quantize(model, images)
        found = precisions(quantizer)
        assert (found[GEMM], found[LAST], found[CONV]) == ("float", "float", "int8")

    def test_wins_over_what_was_set_for_the_layer(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.configure_layer(GEMM, precision="int8-weights")
        quantizer.set_per_layer_fallback(GEMM, True)
        quantizer.quantize(model, images)
        assert precisions(quantizer)[GEMM] == "float"
        quantizer.set_per_layer_fallback(GEMM, False)
        quantizer.quantize(model, images)
        assert precisions(quantizer)[GEMM] == "int8-weights"

    def test_unknown_layer(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.set_per_layer_fallback("/fc2/Gem", True)
        with pytest.raises(UsageError, match="no node is called '/fc2/Gem'; did you mean '/fc2/"):
            quantizer.quantize(model, images)


class TestConfigureLayer:
    def test_settings_add_up(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.configure_layer(CONV, per_channel=False)
        quantizer.configure_layer(CONV, observer="minmax")
        found = quantizer.quantize(model, images)
        assert found.receipt.recipe.layers == (
            LayerRule(name=CONV, per_channel=False, observer="minmax"),
        )
        (conv,), (gemm,) = (
            quantizer.quantization_parameters[name].weights.values() for name in (CONV, GEMM)
        )
        assert (conv.axis, gemm.axis) == (None, 0)
        quantizer.configure_layer(CONV, per_channel=None, observer=None)
        assert quantizer.quantize(model, images).receipt.recipe.layers == ()

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"bits": 3}, "Invalid enum value 3 at `bits`"),
            ({"speed": 1}, "unknown field `speed`; its settings: precision, bits, symmetric"),
            ({"bits": 4, "precision": "int8"}, "precision int8 is not of 4 bits"),
            ({"op": "Conv"}, "and not by name and op"),
        ],
    )
    def test_mistake_is_told(
        self, quantizer: onnxq.PTQQuantizer, settings: dict[str, object], told: str
    ) -> None:
        with pytest.raises(UsageError) as error:
            quantizer.configure_layer(CONV, **settings)
        assert f"layer '{CONV}' cannot be set up so" in str(error.value)
        assert told in str(error.value)

    def test_contradiction_with_the_recipe(self, model: Path, images: np.ndarray) -> None:
        rule = LayerRule(op="Conv", precision="int8")
        quantizer = onnxq.PTQQuantizer(Recipe(verify=QUICK, layers=(rule,)))
        quantizer.configure_layer(CONV, precision="int8-weights")
        with pytest.raises(UsageError, match="op 'Conv' wants precision int8 of node '/conv1/Conv"):
            quantizer.quantize(model, images)


class TestParameters:
    def test_before_a_run(self, quantizer: onnxq.PTQQuantizer) -> None:
        with pytest.raises(UsageError, match="no model was quantized yet; call quantize first"):
            _ = quantizer.quantization_parameters

    def test_static_layer(
        self, quantizer: onnxq.PTQQuantizer, build: Callable[[str], Model]
    ) -> None:
        """Scales by hand: x is 0 to 2, y = relu(x) * 4, the weights' channels reach 1 and 4."""
        net = build("""
            net (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 0, 0, 4}, float[2] b = {0, 0}>
            { [layer] z = Gemm (x, w, b) [act] y = Relu (z) }""")
        data = np.linspace(0, 2, 40, dtype=np.float32).reshape(20, 2)
        recipe = Recipe(verify=QUICK, target="cpu-x86", layers=(LayerRule(op="Gemm", bits=8),))
        quantizer.configure_layer("*", observer="minmax")
        quantizer.quantize(net, data, recipe, test_data=data)
        found = quantizer.quantization_parameters["layer"]
        assert found.precision is Precision.INT8
        assert list(found.inputs) == ["x"]
        x = found.inputs["x"]
        assert (x.qtype, x.zero_point, x.axis) == (QType.UINT8, (0,), None)
        assert x.scale == pytest.approx((2 / 255,), rel=1e-6)  # float32
        assert list(found.weights) == ["w"]
        weight = found.weights["w"]
        assert isinstance(weight, QParams)
        assert (weight.qtype, weight.axis) == (QType.INT8, 1)
        assert weight.scale == pytest.approx((1 / 127, 4 / 127), rel=1e-6)
        # the Gemm vanishes into the range of its Relu: what comes out is y
        assert list(found.outputs) == ["y"]
        assert found.outputs["y"].scale == pytest.approx((8 / 255,), rel=1e-6)
        assert quantizer.quantization_parameters["act"].outputs == found.outputs

    def test_are_those_of_the_model(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        """The weight that the file holds is the one that these parameters make of the source's."""
        result = quantizer.quantize(model, images)
        ((name, weight),) = quantizer.quantization_parameters[LATER].weights.items()
        assert isinstance(weight, QParams)
        view, source = result.model.view(), onnxq.load(model).view()
        stored = view.constant(f"{name}_q")
        assert stored is not None
        assert stored.dtype == weight.qtype.dtype
        expected = next(source.constant(n.inputs[1]) for n in source.nodes if n.name == LATER)
        assert expected is not None
        step = max(weight.scale)
        np.testing.assert_allclose(dequantize(stored, weight), expected, atol=step / 2 * 1.001)

    def test_float_layers_have_none(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.set_per_layer_fallback(LAST, True)
        quantizer.quantize(model, images)
        found = quantizer.quantization_parameters[LAST]
        assert found == onnxq.LayerParameters(Precision.FLOAT, {}, {}, {})

    def test_weights_alone_have_only_these(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.configure_layer(GEMM, precision="int8-weights")
        quantizer.quantize(model, images)
        found = quantizer.quantization_parameters[GEMM]
        assert (found.precision, found.inputs, found.outputs) == ("int8-weights", {}, {})
        assert [type(params) for params in found.weights.values()] == [QParams]

    def test_weights_in_blocks(
        self, quantizer: onnxq.PTQQuantizer, model: Path, images: np.ndarray
    ) -> None:
        quantizer.configure_layer(GEMM, bits=4, block_size=32, symmetric=False)
        quantizer.quantize(model, images)
        (found,) = quantizer.quantization_parameters[GEMM].weights.values()
        assert isinstance(found, WeightBlocks)
        assert (found.qtype.bits, found.size, found.symmetric) == (4, 32, False)
