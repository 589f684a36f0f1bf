"""The first recipe of a model: it says nothing as it is, and each of its lines can be said."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxq.api import load_preset, starter_recipe
from onnxq.errors import ModelError, UsageError
from onnxq.graph import Model
from onnxq.ops import classify
from onnxq.plan import Recipe, layer_settings
from onnxq.plan.recipe import parse_recipe
from onnxq.plan.starter import Subject, family, scores, starter_text, states
from onnxq.targets import get_target
from onnxq.types import Precision, TensorSpec

SHIPPED = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))
OUTER = os.environ.get("ONNXQ_MODELS")
OTHERS = sorted(Path(OUTER).glob("*.onnx")) if OUTER else []
Build = Callable[[str], Model]

NET = """
net (float[N,3,32,32] image) => (float[N,10] logits)
<float[8,3,3,3] w1 = seeded, float[8,8,3,3] w2 = seeded, float[8,8,3,3] w3 = seeded,
 float[8,10] w4 = seeded>
{
  [stem] a = Conv (image, w1)
  ["block.1/conv"] b = Conv (a, w2)
  ["block.2/conv"] c = Conv (b, w3)
  [soft] s = Softmax (c)
  [pool] p = GlobalAveragePool (s)
  [flat] f = Flatten (p)
  [head] logits = MatMul (f, w4)
}
"""
EVIL = """
net (float[N,8] x) => (float[N,40] y) <float[8,40] w = seeded>
{ [mul] y = MatMul (x, w) }
"""


def settings(text: str) -> list[int]:
    """The lines that hold a setting as a comment."""
    pattern = re.compile(r"\s*# (\{|[a-z_0-9]+ = )")
    return [i for i, line in enumerate(text.splitlines()) if pattern.match(line)]


def said(text: str, *chosen: int) -> str:
    """The text with some of its settings uncommented."""
    lines = text.splitlines()
    for i in chosen:
        lines[i] = re.sub(r"^(\s*)# ", r"\1", lines[i])
    return "\n".join(lines)


def flat(text: str) -> str:
    """The text with its comments on one line each."""
    return re.sub(r"\n#  +", " ", text)


def check(text: str) -> Recipe:
    """It says nothing as it is; every setting can be said alone, and all of them together."""
    assert parse_recipe(text, "as it is") == Recipe()
    found = settings(text)
    for i in found:
        assert parse_recipe(said(text, i), "one") != Recipe() or _is_default(text.splitlines()[i])
    return parse_recipe(said(text, *found), "all")


def _is_default(line: str) -> bool:
    """Whether a setting says what holds without it."""
    return re.match(r"# (batch_size = 8|holdout|threads = 1|seconds = 5|samples = 200|"
                    r'percentile = 99.99|metric = "top1")', line) is not None  # fmt: skip


class TestModels:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_shipped(self, path: Path) -> None:
        recipe = check(starter_recipe(path))
        assert recipe.verify.output == "logits"
        assert recipe.keep_float

    @pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
    def test_of_others(self, path: Path) -> None:
        try:
            text = starter_recipe(path)
        except ModelError as error:  # what `onnxq quantize` refuses in the same words
            assert "already quantized" in str(error) or "custom operator" in str(error)
            return
        check(text)

    @pytest.mark.parametrize("target", ["cpu-x86", "cuda", "tensorrt"])
    def test_fits_its_target(self, target: str) -> None:
        recipe = check(starter_recipe(SHIPPED[0], target))
        assert recipe.target == target
        assert Precision(recipe.precision or "") not in get_target(target).refuses

    def test_unknown_target(self) -> None:
        with pytest.raises(UsageError, match="did you mean 'cpu-arm'"):
            starter_recipe(SHIPPED[0], "cpu-amr")


class TestText:
    @pytest.fixture
    def subject(self, build: Build) -> Subject:
        view, target = build(NET).view(), get_target("cpu-x86")
        return Subject("net.onnx", view, view, classify(view, target), target)

    def test_layers_are_of_this_model(self, subject: Subject) -> None:
        """Patterns match what the comments beside them say."""
        text = starter_text(subject)
        recipe = check(text)
        assert [str(rule) for rule in recipe.layers] == [
            "position 'first'", "position 'last'", "name 'block.*/conv'",
        ]  # fmt: skip
        assert 'position = "first", precision = "float" }, # stem (Conv)' in text
        assert 'position = "last", precision = "float" }, # head (MatMul)' in text
        assert 'name = "block.*/conv", precision = "float" }, # 2 nodes' in text
        found = layer_settings(subject.census, recipe)
        kept = {name for name, one in found.items() if one.precision is Precision.FLOAT}
        assert kept == {"stem", "block.1/conv", "block.2/conv", "head"}

    def test_tells_what_stays_float_and_why(self, subject: Subject) -> None:
        text = starter_text(subject)
        assert "1 Softmax: Softmax stays float: the int8 kernel is slower" in text
        assert "#   image  float32 [N, 3, 32, 32]\n" in text
        assert "Batches may have any size. Free axes: N." in text
        assert "and 'labels' int64 [samples]" in flat(text)

    def test_images(self, subject: Subject) -> None:
        preprocess = check(starter_text(subject)).data.preprocess
        assert preprocess is not None
        assert preprocess.layout == "NHWC->NCHW"
        assert preprocess.mean is not None
        assert len(preprocess.mean) == 3

    def test_names_cannot_say_anything(self, build: Build) -> None:
        """Names of a model are data: they neither end a comment nor leave a string."""
        model = build(EVIL)
        evil = 'a"\n[budgets]\nmin_sqnr = 1\n#\x1b[31m\u2028é'
        model.ir.graph[0].name = evil
        for value in (*model.ir.graph.inputs, *model.ir.graph.outputs):
            value.name = f"{evil}{value.name}"
        model = Model(model.ir)
        view, target = model.view(), get_target("cpu-x86")
        subject = Subject(f"{evil}.onnx", view, view, classify(view, target), target)
        text = starter_text(subject)
        recipe = check(text)
        assert recipe.budgets.min_sqnr == 30
        assert recipe.keep_float == (evil.replace("[", "[[]"),)
        assert all(char.isprintable() for char in text if char != "\n")
        assert layer_settings(subject.census, recipe)[evil].precision is Precision.FLOAT

    def test_nothing_to_name(self, build: Build) -> None:
        view = build("net (float[N,8] x) => (float[N,8] y) { [relu] y = Relu (x) }").view()
        target = get_target("cpu-x86")
        recipe = check(starter_text(Subject("n.onnx", view, view, classify(view, target), target)))
        assert recipe.layers == recipe.keep_float == ()


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


class TestStates:
    @pytest.mark.parametrize(
        ("read", "made"),
        [
            ("h_in", "h_out"), ("state", "stateN"), ("conv_cache", "conv_cache_out"), ("h0", "hn"),
            ("hiddenIn", "hiddenOut"), ("prev.state", "next.state"), ("input_c", "output_c"),
        ],
    )  # fmt: skip
    def test_by_name(self, read: str, made: str) -> None:
        inputs, outputs = [spec("x", "N", 8), spec(read, 2, "N")], [spec(made, "A", "B")]
        assert states(inputs, [spec("y", "N", 8), *outputs]) == {made: read}

    @pytest.mark.parametrize(
        ("read", "made"),
        [
            (spec("h_in", 2, 8), spec("h_out", 2, 9)),
            (spec("h_in", 2, 8), spec("h_out", 2, 8, 1)),
            (spec("h_in", 2, 8), spec("h_out", 2, 8, dtype="int64")),
            (spec("h_in", 2, 8), spec("c_out", 2, 8)),
            (spec("input", 2, 8), spec("output", 2, 8)),
        ],
    )
    def test_others_are_none(self, read: TensorSpec, made: TensorSpec) -> None:
        assert states([spec("x", "N", 8), read], [made]) == {}

    def test_two_states(self) -> None:
        inputs = [spec("x", 1), spec("h_in", 2), spec("c_in", 2)]
        outputs = [spec("c_out", 2), spec("h_out", 2)]
        assert states(inputs, outputs) == {"c_out": "c_in", "h_out": "h_in"}

    def test_a_model_that_reads_nothing_else(self) -> None:
        assert states([spec("image", "n")], [spec("image_out", "m")]) == {}


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (spec("y", "N", 10), "y"),
        (spec("y", "N", 1), None),  # one number is no choice
        (spec("y", "N", 8), None),  # a reconstruction of the input
        (spec("y", "N", 10, dtype="int64"), None),
        (spec("y", "N", 10, 4), None),
    ],
)
def test_scores(made: TensorSpec, found: str | None) -> None:
    assert scores([spec("x", "batch", 8)], [spec("z", "N", 3, 3), made]) == found


def test_family_escapes_globs(build: Build) -> None:
    text = """
    net (float[N,8] x) => (float[N,8] y) <float[8,8] w = seeded, float[8,8] v = seeded>
    { ["fc[1]"] a = MatMul (x, w) ["fc[2]"] y = MatMul (a, v) }
    """
    census = classify(build(text).view(), get_target("cpu-x86"))
    names = [node.name for node in census.nodes]
    assert family(census.nodes, [*names, "fc1"]) == ("fc[[]*]", 2)
    assert family(census.nodes[:1], names) is None


@pytest.mark.parametrize(
    ("stem", "target", "found"),
    [
        ("cifar10_resnet", "cpu-x86", "mobile"),
        ("mnist_transformer", "cpu-x86", "transformer"),
        ("mnist_gru", "cpu-x86", "transformer"),
        ("cifar10_resnet", "cuda", "gpu"),
    ],
)
def test_presets_that_fit(stem: str, target: str, found: str) -> None:
    """The one that is told is there, and makes what the target takes."""
    text = starter_recipe(next(path for path in SHIPPED if path.stem == stem), target)
    assert f"with --preset: {found} (" in flat(text)
    assert load_preset(found).usual not in get_target(target).refuses
