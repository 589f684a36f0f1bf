"""A model against another form of it: a fault that is planted is found, whoever made that form.

A finished model file is taken, the integers of one layer's weights are disturbed or their scale is
changed, and the comparison has to name that layer. Expected is only where the fault is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import onnxq
from onnxq.errors import UsageError
from onnxq.graph import Model, with_constants
from onnxq.plan import Recipe, VerifySettings
from onnxq.report.compare import headline

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits_cnn.onnx"
LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
# A quarter of the weights' own size: rounding to int8 is a hundredth of it.
DISTURBANCE = 0.25
WRONG_SCALE = 1.3


class Feeds(CalibrationDataReader):
    def __init__(self, name: str, x: np.ndarray) -> None:
        self._feeds = iter([{name: x[i : i + 1]} for i in range(len(x))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def by_onnxruntime(source: Path, form: str, folder: Path, name: str, x: np.ndarray) -> Path:
    """The model quantized by ONNX Runtime's own tool."""
    path = folder / f"{source.stem}.{form}.onnx"
    if form == "dynamic":
        quantize_dynamic(source, path)
        return path
    quantize_static(
        source, path, Feeds(name, x), quant_format=QuantFormat[form], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def by_onnxq(source: Path, form: str, folder: Path, x: np.ndarray) -> Path:
    recipe = Recipe(
        precision="int8", format=form, objective="int8-everywhere", allow_slower=True,
        target="cpu-x86", verify=VerifySettings(seconds=0),
    )  # fmt: skip
    path = folder / f"{source.stem}.onnxq.{form}.onnx"
    onnxq.quantize(source, data=x, recipe=recipe, output=path)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.load(MODELS / "digits_calibration.npz")["image"][:32]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> dict[str, Path]:
    """The digits model, quantized in five ways by two tools."""
    folder = tmp_path_factory.mktemp("forms")
    found = {form: by_onnxq(DIGITS, form, folder, images) for form in ("qdq", "qoperator")}
    for form in ("QDQ", "QOperator", "dynamic"):
        found[form] = by_onnxruntime(DIGITS, form, folder, "image", images)
    return found


def plant(path: Path, weight: str, fault: str, folder: Path) -> Path:
    """The model file with a fault in the layer of a weight."""
    model = onnx.load(path)
    named = f"{weight}_s" if fault == "scale" else f"{weight}_q"
    # A first layer's are laid out anew: w_q_wide, w_scale_x4.
    (tensor,) = (t for t in model.graph.initializer if t.name.startswith(named))
    values = numpy_helper.to_array(tensor)
    if fault == "scale":
        changed = values * np.float32(WRONG_SCALE)
    else:
        ends, spread = np.iinfo(values.dtype), values.astype(float).std()
        noise = np.random.default_rng(0).normal(0, DISTURBANCE * spread, values.shape)
        changed = np.clip(np.round(values + noise), ends.min, ends.max).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    planted = folder / "planted.onnx"
    onnx.save(model, planted)
    return planted


@pytest.mark.parametrize("fault", ["weights", "scale"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", ["qdq", "qoperator", "QDQ", "QOperator", "dynamic"])
def test_a_planted_fault_is_found(
    form: str, layer: str, fault: str, forms: dict[str, Path], images: np.ndarray, tmp_path: Path
) -> None:
    other = plant(forms[form], f"{layer}.weight", fault, tmp_path)
    growth = onnxq.compare_models(DIGITS, other, images, seconds=0).growth
    assert growth.worst.node in (f"/{layer}/Conv", f"/{layer}/Gemm")
    assert growth.unmatched == 0
    # a fault of a quarter of the weights, or 30 % of what they make, leaves 10 to 21 dB here
    assert growth.worst.sqnr_db < 25 < growth.worst.before_db


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_deep_model_of_another_tool(form: str, tmp_path: Path) -> None:
    """Depthwise convolutions, residual sums and Clip, which the other tool leaves out."""
    source = MODELS / "cifar10_mobilenet.onnx"
    graph = onnxq.load(source).view()
    x = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    made = by_onnxruntime(source, form, tmp_path, graph.inputs[0].name, x)
    convs = [node for node in graph.nodes if node.op == "Conv"]
    for node in (convs[1], convs[len(convs) // 2], convs[-1]):
        other = plant(made, node.inputs[1], "weights", tmp_path)
        growth = onnxq.compare_models(source, other, x, recipe=Recipe(), seconds=0).growth
        assert growth.worst.node == node.name
        assert growth.unmatched == 0


def test_a_transformer_of_another_tool(tmp_path: Path) -> None:
    source = MODELS / "mnist_transformer.onnx"
    graph = onnxq.load(source).view()
    x = np.random.default_rng(0).standard_normal((8, 28, 28)).astype(np.float32)
    made = by_onnxruntime(source, "dynamic", tmp_path, graph.inputs[0].name, x)
    names = ("/layers/layers.0/fc1/MatMul", "/layers/layers.1/fc2/MatMul")
    for node in (graph.by_name[name] for name in names):
        other = plant(made, node.inputs[1], "weights", tmp_path)
        assert (
            onnxq.compare_models(source, other, x, recipe=Recipe(), seconds=0).growth.worst.node
            == node.name
        )


def test_a_pair_that_contradicts_itself(
    forms: dict[str, Path], images: np.ndarray, tmp_path: Path
) -> None:
    """Quantized with one scale and read with another: told of the layer whose result that is."""
    model = onnx.load(forms["QDQ"])
    readers = {name: node for node in model.graph.node for name in node.input}
    pair = next(node for node in model.graph.node if node.name == "/conv2/Conv")
    while pair.op_type != "DequantizeLinear":
        pair = readers[pair.output[0]]
    (scale,) = (t for t in model.graph.initializer if t.name == pair.input[1])
    wrong = numpy_helper.to_array(scale) * np.float32(WRONG_SCALE)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(wrong), "wrong"))
    pair.input[1] = "wrong"
    onnx.save(model, tmp_path / "planted.onnx")
    growth = onnxq.compare_models(DIGITS, tmp_path / "planted.onnx", images, seconds=0).growth
    assert growth.worst.node == "/conv2/Conv"
    # 30 % more of everything, and nothing else: 20 log10(1 / 0.3), with the rounding below it
    assert growth.worst.new_db == pytest.approx(10.46, abs=0.1)


def test_a_fault_without_harm_is_not_named() -> None:
    """Softmax takes out what all keys have in common: their bias has no effect on anything."""
    source = onnxq.load(MODELS / "mnist_transformer.onnx")
    view = source.view()
    add = view.by_name["/layers/layers.0/attention/key/Add"]
    bias = next(name for name in add.inputs if view.is_constant(name))
    other = with_constants(source, {bias: np.asarray(view.constant(bias)) + np.float32(1)})
    x = np.random.default_rng(0).standard_normal((8, 28, 28)).astype(np.float32)
    found = onnxq.compare_models(source, other, x, recipe=Recipe(), seconds=0)
    layers = {layer.node: layer for layer in found.growth.layers}
    told = layers["/layers/layers.0/attention/key/MatMul"]
    assert found.growth.output_db > 90  # float32 rounds to about 1e-6 of a signal: 120 dB
    assert told.new_db < 20  # and yet the column of new error shows it
    assert told.new_db == min(layer.new_db for layer in found.growth.layers)


def test_the_same_model(images: np.ndarray) -> None:
    found = onnxq.compare_models(DIGITS, DIGITS, images, seconds=0)
    assert found.outputs["logits"].sqnr_db == 200
    assert found.max_errors == {"logits": 0}
    assert found.growth.worst is None
    assert found.size_ratio == 1


def test_outputs_metric_and_speed(forms: dict[str, Path]) -> None:
    """Figures as NumPy finds them in the outputs that ONNX Runtime gives."""
    import onnxruntime as ort

    data = np.load(MODELS / "digits_test.npz")
    image, labels = data["image"][:50], data["labels"][:50]
    found = onnxq.compare_models(
        DIGITS, forms["QDQ"], {"image": image, "labels": labels}, seconds=0.01, layers=False
    )
    y, z = (
        ort.InferenceSession(path).run(None, {"image": image})[0].astype(float)
        for path in (DIGITS, forms["QDQ"])
    )
    facts = found.outputs["logits"]
    # float32 sums in batches of other sizes: a rounding may cross a step of the int8 output
    expected = 10 * np.log10((y**2).sum() / ((y - z) ** 2).sum())
    assert facts.sqnr_db == pytest.approx(expected, abs=0.1)
    assert found.max_errors["logits"] == pytest.approx(np.abs(y - z).max(), rel=0.05)
    assert facts.top1_agreement == np.mean(y.argmax(1) == z.argmax(1))
    assert found.metric.source == np.mean(y.argmax(1) == labels)
    assert found.metric.output == np.mean(z.argmax(1) == labels)
    assert found.samples == 50
    assert found.growth is None
    assert found.speed.ratio > 0
    assert found.other.bytes == forms["QDQ"].stat().st_size
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_samples_are_drawn(images: np.ndarray) -> None:
    found = onnxq.compare_models(DIGITS, DIGITS, images, seconds=0, samples=5, layers=False)
    assert found.samples == 5


def test_a_function_of_the_users_judges(forms: dict[str, Path]) -> None:
    def answer(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
        return float(outputs["logits"].shape[0] == len(labels))

    data = np.load(MODELS / "digits_test.npz")
    found = onnxq.compare_models(
        DIGITS, forms["QDQ"], {"image": data["image"][:9], "labels": data["labels"][:9]},
        metric=answer, seconds=0, layers=False,
    )  # fmt: skip
    assert (found.metric.name, found.metric.source) == ("answer", 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(float[N,1,8,8] picture) => (float[N,1,8,8] logits) { logits = Abs (picture) }",
         "reads picture, and .* reads image; compare forms of one model"),
        ("(float[N,1,9,9] image) => (float[N,1,9,9] logits) { logits = Abs (image) }",
         "input 'image' is float32 Nx1x9x9 in .*, and float32 batchx1x8x8"),
        ("(double[N,1,8,8] image) => (double[N,1,8,8] logits) { logits = Abs (image) }",
         "input 'image' is float64"),
        ("(float[N,1,8,8] image) => (float[N,1,8,8] z) { z = Abs (image) }",
         "has no output 'logits', which"),
    ],
)  # fmt: skip
def test_models_that_are_no_forms_of_one(
    text: str, message: str, build: Callable[..., Model], images: np.ndarray
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        onnxq.compare_models(DIGITS, build(f"other {text}"), images, seconds=0)
    assert "\n" not in str(caught.value)


def test_without_samples(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(DIGITS.read_bytes())
    with pytest.raises(UsageError, match="there are no samples to compare on; give --data"):
        onnxq.compare_models(model, model)


def test_a_fixed_batch_of_the_other(build: Callable[..., Model]) -> None:
    """The other was exported for two samples at a time: samples come in twos."""
    text = "net (float[{n},4] x) => (float[{n},4] y) {{ y = Sin (x) }}"
    one, two = build(text.format(n="N")), build(text.format(n=2))
    x = np.ones((6, 4), np.float32)
    assert onnxq.compare_models(one, two, x, seconds=0).outputs["y"].sqnr_db == 200


@pytest.mark.parametrize("judged", [None, "y"])
def test_scores_of_another_shape(judged: str | None, build: Callable[..., Model]) -> None:
    """Transposed scores: labels cannot be held against their rows, but a function may judge."""
    text = "net (float[N,4] x) => ({}) <float[4,3] w = seeded> {{ {} }}"
    one = build(text.format("float[N,3] y", "y = MatMul (x, w)"))
    other = build(text.format("float[3,N] y", "t = MatMul (x, w) y = Transpose (t)"))
    x, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int64)
    data = {"x": x, "labels": labels}
    recipe = Recipe(verify=VerifySettings(output=judged))
    message = r"output 'y' is \(3, 5\) in .*, and \(5, 3\) in .*; compare forms of one model"
    with pytest.raises(UsageError, match=message):
        onnxq.compare_models(one, other, data, recipe=recipe, seconds=0)
    found = onnxq.compare_models(
        one, other, data, lambda outputs, labels: outputs["y"].size, recipe=recipe, seconds=0
    )
    assert (found.metric.source, found.metric.output) == (15, 15)


def test_answers_without_scores(build: Callable[..., Model]) -> None:
    """Outputs of integers tell no harm: named is the layer with the most new error."""
    text = (
        "net (float[N,4] x) => (int64[N,1] y) {{ a = {} (x) b = Abs (a) y = ArgMax <axis=1> (b) }}"
    )
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    one, other = (build(text.format(op)) for op in ("Sin", "Cos"))
    found = onnxq.compare_models(one, other, x, recipe=Recipe(), seconds=0)
    assert (found.growth.worst.tensor, found.growth.worst.alone_db) == ("a", None)
    assert found.growth.output_db is None
    assert headline(found).startswith("The most new error by its signal is at 'Sin_0'")
    same = onnxq.compare_models(one, one, x, recipe=Recipe(), seconds=0)
    assert same.growth.worst is None


def test_an_output_more(build: Callable[..., Model]) -> None:
    text = "net (float[N,4] x) => ({}) {{ a = Sin (x) y = Neg (a) }}"
    one, other = (build(text.format(f"float[N,4] y{more}")) for more in ("", ", float[N,4] a"))
    x = np.ones((5, 4), np.float32)
    found = onnxq.compare_models(one, other, x, recipe=Recipe(), seconds=0)
    assert found.notes == ("output 'a' is not compared: the second model alone has it",)
    with pytest.raises(UsageError, match="the second model has no output 'a', which the first"):
        onnxq.compare_models(other, one, x, recipe=Recipe(), seconds=0)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("size", [6, 8])  # of 6 pixels the first layer is written in another way
def test_layers_that_lost_their_dead_channels(
    size: int, form: str, build: Callable[..., Model]
) -> None:
    """Held against the same channels of the float model, whatever else was left of it."""
    sparse = with_constants(
        build(f"""net (float[N,3,{size},{size}] x) => (float[N,4,{size - 4},{size - 4}] y)
            <float[40,3,3,3] w = seeded, float[40] b = seeded, float[4,40,3,3] v = seeded>
            {{ [one] a = Conv (x, w, b) r = Relu (a) [two] y = Conv (r, v) }}"""),
        {"w": _planted((40, 3, 3, 3), 10), "b": _planted((40,), 10)},
    )
    x = np.random.default_rng(0).standard_normal((20, 3, size, size)).astype(np.float32)
    recipe = Recipe(
        precision="int8", format=form, objective="int8-everywhere", allow_slower=True,
        target="cpu-x86", verify=VerifySettings(seconds=0),
    )  # fmt: skip
    made = onnxq.quantize(sparse, data=x, recipe=recipe).model
    stored = {made.view().shape(name) for name in made.view().constant_names}
    assert (4, 16, 3, 3) in stored  # 16 of 40
    found = onnxq.compare_models(sparse, made, x, recipe=Recipe(), seconds=0)
    assert found.growth.unmatched == 0
    assert all(layer.new_db > 30 for layer in found.growth.layers)


def _planted(shape: tuple[int, ...], alive: int) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    values[alive:] = 0
    return values
