"""Recipes: what is wrong is told with the path of its key and the nearest name."""

from __future__ import annotations

import pytest

from onnxq.errors import RecipeError
from onnxq.plan import Recipe, find_recipe, load_recipe

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
[verify]
seconds = 0
[budgets]
max_drop = 0.005
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
    assert found.budgets.max_drop == 0.005
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
