"""Times by source node: nothing is lost, nothing counted twice, fused kernels find their node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnxq.errors import RuntimeFailure
from onnxq.graph import NodeView, load
from onnxq.plan import Recipe
from onnxq.rewrite import rewrite
from onnxq.runtime import Session, prepare, profile_models, synthetic_feed
from onnxq.runtime.profile import _Names
from onnxq.types import Form

MODELS = Path(__file__).parents[2] / "models"
SECONDS = 0.2

CONVS = """g (float[4,16,32,32] x) => (float[4,10] y)
    <float[32,16,3,3] w = seeded, float[32] b = seeded, float[32,32,3,3] v = seeded,
     float[10,32] u = seeded>
    {
      [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      [relu] r = Relu (c)
      [conv2] d = Conv <pads = [1, 1, 1, 1]> (r, v)
      [relu2] s = Relu (d)
      [pool] p = GlobalAveragePool (s)
      [flat] f = Flatten (p)
      [fc] y = Gemm <transB = 1> (f, u)
    }"""
# 0.5 * h * (1 + erf(h / sqrt(2))) of a MatMul with its bias, as exporters write it.
GELU = """g (float[N,32,128] x) => (float[N,32,128] y)
    <float[128,128] w = seeded, float[128] b = seeded, float root = {1.4142135},
     float one = {1}, float half = {0.5}>
    {
      [mm] m = MatMul (x, w)
      [bias] h = Add (m, b)
      [div] d = Div (h, root)
      [erf] e = Erf (d)
      [plus] p = Add (e, one)
      [mul] t = Mul (h, p)
      [half] y = Mul (t, half)
    }"""
# Quantizing x takes longer than either product.
DYNAMIC = """g (float[512,1024] x) => (float[512,8] y, float[512,8] z)
    <float[1024,8] w = seeded, float[1024,8] v = seeded>
    {
      [first] y = MatMul (x, w)
      [second] z = MatMul (x, v)
    }"""
# The product inside and the one outside have the same name.
BRANCHES = """g (float[128,512] x, bool pick) => (float[128,512] z)
    <float[512,512] w = seeded>
    {
      [choice] y = If (pick) <
        then_branch = yes () => (float[128,512] a) { [mm] a = MatMul (x, w) },
        else_branch = no () => (float[128,512] b) { [id] b = Identity (x) }
      >
      [mm] z = Relu (y)
    }"""

# Tensors that are called like what onnxq adds: integers of attn, floats of x.
ENDINGS = """g (float[4,8] x) => (float[4,8] y)
    <float[8,8] w = seeded, float[8,8] v = seeded, float[8,8] u = seeded>
    {
      [one] attn = MatMul (x, w)
      [act] attn_q = Sigmoid (attn)
      [two] x_dq = MatMul (attn_q, v)
      [three] y = MatMul (x_dq, u)
    }"""


def profiled(model, source=None, feed=None):
    source = source or model
    feed = feed or synthetic_feed(source.view().inputs)
    return profile_models([model], source.view(), feed, seconds=SECONDS)[0]


def kernels_of(model, folder: Path) -> dict[str, str]:
    """Operators that ONNX Runtime really runs, by name."""
    Session(model, write_optimized=folder / "optimized.onnx")
    return {n.name: n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node}


@pytest.mark.parametrize("text", [CONVS, GELU, BRANCHES], ids=["convs", "gelu", "branches"])
def test_kernels_add_up_to_the_total(build, text: str) -> None:
    model = build(text)
    feed = synthetic_feed(model.view().inputs)
    if "pick" in feed:
        feed["pick"] = np.array(True)
    profile = profiled(model, feed=feed)
    assert profile.total == pytest.approx(sum(profile.nodes.values()) + profile.conversions)
    assert all(spent > 0 for spent in profile.nodes.values())


def test_every_kernel_with_a_name_of_the_source_is_told(tmp_path: Path) -> None:
    model = prepare(load(MODELS / "mnist_transformer.onnx"))
    source = model.view()
    own = {n: op for n, op in kernels_of(model, tmp_path).items() if n in source.by_name}
    assert len(own) >= 20
    profile = profiled(model)
    assert {name: profile.kernels.get(name) for name in own} == own
    assert set(profile.nodes) == set(profile.kernels) <= set(source.by_name)


def test_conv_and_relu_count_for_the_conv(build, tmp_path: Path) -> None:
    model = build(CONVS)
    assert "Relu" not in kernels_of(model, tmp_path).values()
    profile = profiled(model)
    assert {"conv", "conv2", "pool", "fc"} <= set(profile.nodes) <= set(model.view().by_name)
    assert not {"relu", "relu2"} & set(profile.nodes)
    assert {profile.kernels["conv"], profile.kernels["conv2"]} == {"Conv"}


def test_gelu_counts_for_one_node(build, tmp_path: Path) -> None:
    model = build(GELU)
    assert sorted(kernels_of(model, tmp_path).values()) == ["BiasGelu", "MatMul"]
    profile = profiled(model)
    assert sorted(profile.kernels.values()) == ["BiasGelu", "MatMul"]
    assert profile.kernels["mm"] == "MatMul"
    assert profile.conversions == 0


def test_integer_kernels_count_for_their_nodes(build, quantize) -> None:
    made = quantize(build(CONVS))
    profile = profiled(made.model, made.source, made.feed)
    assert profile.kernels["conv"] == profile.kernels["conv2"] == "QLinearConv"
    assert profile.kernels["fc"] == "QGemm"
    assert profile.conversions > 0
    assert set(profile.nodes) <= set(made.source.view().by_name)


@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_layers_that_another_tool_quantized_count_for_their_nodes(tmp_path: Path, form) -> None:
    """ONNX Runtime's tool calls a layer ``conv_quant``, and what it makes ``y_quantized``."""
    source, path = load(MODELS / "digits_cnn.onnx"), tmp_path / "quantized.onnx"
    images = np.load(MODELS / "digits_calibration.npz")["image"][:8]

    class Feeds(CalibrationDataReader):
        left = iter([{"image": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(MODELS / "digits_cnn.onnx", path, Feeds(), quant_format=form)
    profile = profiled(load(path), source, {"image": images})
    layers = {n.name for n in source.view().nodes if n.op in ("Conv", "Gemm")}
    assert len(layers) == 5
    assert layers <= set(profile.nodes)


def test_quantizing_at_run_time_counts_for_the_product(build, quantize) -> None:
    made = quantize(build(DYNAMIC), Recipe(precision="int8-dynamic"))
    assert "DynamicQuantizeLinear" in [n.op for n in made.model.view().nodes]
    profile = profiled(made.model, made.source, made.feed)
    assert set(profile.nodes) == {"first", "second"}
    assert set(profile.kernels.values()) == {"MatMulIntegerToFloat"}
    assert profile.conversions == 0
    assert profile.nodes["first"] > 2 * profile.nodes["second"]


@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
def test_integers_count_for_the_node_that_they_were_made_of(build, quantize, form) -> None:
    """Where ONNX Runtime turns them, say, whatever tensors of the source are called."""
    made = quantize(build(ENDINGS))
    names = _Names(made.source.view(), rewrite(made.source, made.plan, form).view())

    def owner(tensor: str) -> str | None:
        turned = NodeView("Transpose_token_7", "Transpose", "", (f"{tensor}_nhwc",), (tensor,), {})
        return names.source(turned)

    found = {t: owner(t) for t in ("x_q", "attn_q_", "attn_q", "attn_q_q", "x_dq", "x_dq_q", "y")}
    assert found == {
        "x_q": None, "attn_q_": "one", "attn_q": "act", "attn_q_q": "act", "x_dq": "two",
        "x_dq_q": "two", "y": "three",
    }  # fmt: skip
    assert {owner(f"{t}_token_3") for t in ("attn_q_q", "attn_q")} == {"act"}


def test_a_branch_counts_once_and_for_its_if(build) -> None:
    """A body's kernels are inside the If's time, whatever they are called."""
    model = build(BRANCHES)
    feed = synthetic_feed(model.view().inputs) | {"pick": np.array(True)}
    profile = profiled(model, feed=feed)
    assert set(profile.nodes) == {"choice", "mm"}
    assert profile.kernels["mm"] == "Relu"
    # the product inside takes many times as long as the Relu outside
    assert profile.nodes["choice"] > 4 * profile.nodes["mm"]


def test_forms_are_told_in_their_order(build, quantize) -> None:
    made = quantize(build(CONVS))
    models = [made.model, made.source, made.model]
    found = profile_models(models, made.source.view(), made.feed, seconds=SECONDS)
    assert [p.kernels["conv"] for p in found] == ["QLinearConv", "Conv", "QLinearConv"]


def test_a_feed_that_does_not_fit_is_refused(build) -> None:
    model = build(CONVS)
    with pytest.raises(RuntimeFailure, match="running"):
        profile_models([model], model.view(), {"x": np.zeros((1, 2), np.float32)}, seconds=SECONDS)
