"""Recipes: what is wrong is told with the path of its key and the nearest name."""

from __future__ import annotations

import tomllib

import jsonschema
import msgspec
import pytest

from onnxq.data import Preprocess
from onnxq.errors import RecipeError
from onnxq.plan import (
    Budgets,
    CalibrationSettings,
    DataSettings,
    LayerRule,
    Recipe,
    WeightSettings,
    checked,
    find_recipe,
    load_recipe,
    recipe_schema,
)
from onnxq.plan.recipe import parse_recipe
from onnxq.types import Precision

WHOLE = """
precision = "int8"
target = "cpu-x86"
per_channel = false
keep_float = ["head*"]
keep_float_op = ["Softmax"]
[data]
calibration = "calibration.npz"
batch_size = 8
[data.preprocess]
scale = 0.00392
mean = [0.5]
[calibration]
method = "percentile"
percentile = 99.9
[weights]
block_size = 64
[verify]
seconds = 0
[budgets]
max_drop = 0.005
[[layers]]
name = "stem"
bits = 8
[[layers]]
op = "Gemm"
precision = "int4-weights"
method = "hqq"
"""


@pytest.fixture
def recipe(tmp_path):
    def read(text: str) -> Recipe:
        path = tmp_path / "model.onnxq.toml"
        path.write_text(text)
        return load_recipe(path)

    return read


def test_every_section_is_read(recipe) -> None:
    found = recipe(WHOLE)
    assert (found.precision, found.per_channel, found.keep_float) == ("int8", False, ("head*",))
    assert (found.data.batch_size, found.data.preprocess.mean) == (8, (0.5,))
    assert (found.calibration.percentile, found.verify.seconds) == (99.9, 0)
    assert (found.budgets.max_drop, found.weights.block_size) == (0.005, 64)
    assert found.layers == (
        LayerRule(name="stem", bits=8),
        LayerRule(op="Gemm", precision="int4-weights", method="hqq"),
    )
    assert recipe("") == Recipe()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("keepfloat = []", "unknown key 'keepfloat'; did you mean 'keep_float'?"),
        ("[data]\nbatchsize = 8", "unknown key 'data.batchsize'; did you mean 'batch_size'?"),
        (
            "[data.preprocess]\nsacle = 1",
            "unknown key 'data.preprocess.sacle'; did you mean 'scale'",
        ),
        (
            "[calibration]\nqq = 1",
            "unknown key 'calibration.qq'; known: method, percentile, momentum, warmup, sigmas, "
            "options, samples, exact",
        ),
        ("[budgets]\nmax_dorp = 1", "unknown key 'budgets.max_dorp'; did you mean 'max_drop'?"),
        ("[verify]\nthread = 1", "unknown key 'verify.thread'; did you mean 'threads'?"),
        ("per_channel = 1", "Expected `bool`, got `int` at 'per_channel'"),
        ("keep_float = 'head'", "Expected `array`, got `str` at 'keep_float'"),
        ("keep_float = [1]", "at 'keep_float[0]'"),
        ("[data]\nbatch_size = 0", "Expected `int` >= 1 at 'data.batch_size'"),
        ("[data]\nholdout = 1.0", "at 'data.holdout'"),
        (
            "[calibration]\nmethod = 'entrpy'",
            "unknown method 'entrpy'; did you mean 'entropy'? at 'calibration'",
        ),
        ("[calibration]\npercentile = 100.1", "at 'calibration.percentile'"),
        ("[budgets]\nmax_drop = 'low'", "Expected `float | null`, got `str` at 'budgets.max_drop'"),
        ("precision = 'int4'", "Invalid enum value 'int4' at 'precision'"),
        ("data = 3", "Expected `object`, got `int` at 'data'"),
        ("[data.preprocess]\nstd = [0.0]", "mean and std need at least one value"),
        ("[data.preprocess]\nscale = inf", "must be finite numbers"),
        ("[data.preprocess]\nadd_channel = true\nlayout = 'NHWC->NCHW'", "leave out layout"),
        ("precision = ", "is not TOML"),
        ("[layers]\nop = 'Conv'", "Expected `array`, got `object` at 'layers'"),
        ("[[layers]]\nnmae = 'x'", "unknown key 'layers[0].nmae'; did you mean 'name'?"),
        ("[[layers]]\nbits = 8", "chosen by one of name, regex, op, position, and not by none"),
        ("[[layers]]\nname = 'x'\nop = 'y'\nbits = 8", "not by name and op at 'layers[0]'"),
        ("[[layers]]\nop = 'Conv'", "nothing is said of the layers of op 'Conv'"),
        ("[[layers]]\nregex = '('\nbits = 8", "'(' is no regular expression: missing )"),
        ("[[layers]]\nposition = '2nd'\nbits = 8", "'2nd' at 'layers[0].position'"),
        ("[[layers]]\nop = 'x'\nbits = 3", "Invalid enum value 3 at 'layers[0].bits'"),
        ("[[layers]]\nop = 'x'\nblock_size = 48", "value 48 at 'layers[0].block_size'"),
        (
            "[[layers]]\nop = 'x'\nbits = 4\nprecision = 'int8'",
            "precision int8 is not of 4 bits at 'layers[0]'",
        ),
        (
            "[[layers]]\nop = 'x'\nbits = 16\nprecision = 'float'",
            "precision float is not of 16 bits",
        ),
        (
            "[[layers]]\nop = 'x'\nobserver = 'entrpy'",
            "unknown observer of layers 'entrpy'; did you mean 'entropy'?",
        ),
        ("[[layers]]\nop = 'x'\nobserver = 'own:Class'", "known: mse, percentile, entropy"),
    ],
)
def test_mistake_is_told(recipe, text, told) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(text)
    assert told in str(error.value)
    assert "model.onnxq.toml" in str(error.value)
    assert "$" not in str(error.value)


def test_recipe_that_is_no_text_is_told(tmp_path) -> None:
    path = tmp_path / "odd.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(path)


def test_missing_recipe_is_told(tmp_path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "nothing.toml")


def test_recipe_beside_the_model_is_found(tmp_path) -> None:
    assert find_recipe(tmp_path / "model.onnx") is None
    beside = tmp_path / "model.onnxq.toml"
    beside.write_text("")
    assert find_recipe(tmp_path / "model.onnx") == beside


def test_digest_depends_on_the_content_only(recipe) -> None:
    assert recipe("per_channel = true").digest() == Recipe().digest()
    assert recipe("per_channel = false").digest() != Recipe().digest()
    assert recipe("[data]\nbatch_size = 7").digest() != Recipe().digest()
    assert recipe("[[layers]]\nop = 'Conv'\nbits = 8").digest() != Recipe().digest()


@pytest.mark.parametrize(
    ("text", "static"),
    [
        ("", True),  # int8 when nothing is said
        ("precision = 'int8-dynamic'", False),
        ("precision = 'float'", False),
        ("precision = 'int8-weights'\n[[layers]]\nop = 'Conv'\nbits = 8", False),
        ("precision = 'int8-weights'\n[[layers]]\nop = 'Conv'\nbits = 16", True),
        ("precision = 'fp16'\n[[layers]]\nop = 'Conv'\nprecision = 'int8'", True),
        ("precision = 'int4-weights'\n[[layers]]\nop = 'Conv'\nprecision = 'float'", False),
    ],
)
def test_ranges_are_needed_when_any_layer_needs_them(recipe, text, static) -> None:
    assert recipe(text).static is static


def test_recipe_goes_into_a_receipt_and_back(recipe) -> None:
    """With what was said of layers, and no word more."""
    found = recipe(WHOLE)
    told = msgspec.json.encode(found)
    assert msgspec.json.decode(told, type=Recipe) == found
    assert msgspec.json.decode(told)["layers"][0] == {"name": "stem", "bits": 8}


def test_schema_judges_as_the_reader_does() -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(WHOLE), schema)
    for wrong in ("keepfloat = []", "[data]\nbatch_size = 0", "[[layers]]\nop = 'x'\nbits = 3"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(wrong), schema)
    assert schema["$defs"]["Recipe"]["description"] == "What to do with a model."


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (Recipe(precision="int9"), "precision"),
        (Recipe(format="foo"), "format"),
        (Recipe(float_type="foo"), "float_type"),
        (Recipe(weights=WeightSettings(block_size=7)), "weights.block_size"),
    ],
)
def test_values_made_in_python_are_checked_as_those_of_a_file(recipe: Recipe, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        checked(recipe)


def test_a_right_recipe_stays_as_it_is() -> None:
    recipe = Recipe(
        keep_float=("a",),
        calibration=CalibrationSettings("m:C", options={"any": object()}),
        data=DataSettings(preprocess=Preprocess(scale=2.0)),
    )
    assert checked(recipe) == recipe


class TestAuto:
    def test_means_that_nothing_is_said(self) -> None:
        """One form of it, so that both have the same digest."""
        said, silent = parse_recipe("precision = 'auto'", "r"), parse_recipe("", "r")
        assert said.precision is None
        assert said == silent
        assert said.digest() == silent.digest()
        assert (said.usual, said.precisions) == (Precision.INT8, (Precision.INT8,))
        assert checked(Recipe(precision="auto")).precision is None

    def test_is_no_precision_of_layers(self) -> None:
        with pytest.raises(RecipeError, match="'auto'"):
            parse_recipe("[[layers]]\nop = 'Conv'\nprecision = 'auto'", "r")


def test_limits_of_accuracy() -> None:
    budgets = Budgets(max_drop=0.0, min_agreement=0.9, max_size_ratio=0.5, min_int8=0.5)
    assert budgets.of_accuracy == {"max_drop": 0.0, "min_agreement": 0.9}
    assert Budgets(min_sqnr=25).of_accuracy == {"min_sqnr": 25}
