"""Int8 coverage: what really runs as int8, on graphs that are quantized by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxq.graph import Model, from_text
from onnxq.runtime import int8_coverage

CONV = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,2,6,6] x) => (float[1,2,6,6] y)
<
  float s = {{0.02}}, uint8 zx = {{128}}, uint8 zy = {{{zero_point}}},
  float ws = {{0.01}}, int8 wz = {{0}},
  int8[2,2,1,1] w = {{10, -20, 30, 40}}
>
{{
  xq = QuantizeLinear (x, s, zx)
  xd = DequantizeLinear (xq, s, zx)
  wd = DequantizeLinear (w, ws, wz)
  [conv] c = Conv (xd, wd)
  {after}
  yq = QuantizeLinear ({last}, s, zy)
  y = DequantizeLinear (yq, s, zy)
}}
"""


def conv(zero_point: int, after: str = "", last: str = "c") -> Model:
    return from_text(CONV.format(zero_point=zero_point, after=after, last=last))


def test_conv_is_int8() -> None:
    found = int8_coverage(conv(128), ["conv"])
    assert (found.wanted, found.int8, found.float_nodes) == (1, 1, ())


def test_relu_vanishes_into_the_range() -> None:
    """A range that starts at zero makes the Relu redundant, and both run as one int8 kernel."""
    found = int8_coverage(conv(0, "[relu] r = Relu (c)", "r"), ["conv", "relu"])
    assert (found.wanted, found.int8, found.float_nodes) == (2, 2, ())


def test_relu_that_does_not_vanish() -> None:
    """A range with negative values does not cut them: the Relu, and with it the Conv, is float."""
    found = int8_coverage(conv(100, "[relu] r = Relu (c)", "r"), ["conv", "relu"])
    assert (found.wanted, found.int8) == (2, 0)
    assert [reason.node for reason in found.float_nodes] == ["conv", "relu"]
    reason = found.float_nodes[0]
    assert reason.code == "runs-as-float"
    assert "Conv" in reason.sentence
    assert "on float" in reason.sentence
    assert "the range behind 'relu' does not make that Relu redundant" in reason.sentence


def test_output_that_also_feeds_a_float_consumer() -> None:
    text = CONV.replace("(float[1,2,6,6] y)", "(float[1,2,6,6] y, float[1,2,6,6] f)")
    model = from_text(text.format(zero_point=128, after="[tanh] f = Tanh (c)", last="c"))
    found = int8_coverage(model, ["conv"])
    assert found.int8 == 0
    assert "its output also feeds a float consumer" in found.float_nodes[0].sentence


def test_float_conv_that_was_not_wanted() -> None:
    """Only the nodes of the plan count."""
    model = conv(100, "[relu] r = Relu (c)", "r")
    assert int8_coverage(model, []) == int8_coverage(conv(128), [])


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_float_output_kernels(op: str) -> None:
    """Matrix products have int8 kernels whose output is float."""
    model = from_text(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,4] x) => (float[1,2] y)
    <
      float s = {{0.02}}, uint8 z = {{128}}, float ws = {{0.01}}, int8 wz = {{0}},
      int8[4,2] w = {{1, -2, 3, -4, 5, -6, 7, -8}}
    >
    {{
      xq = QuantizeLinear (x, s, z)
      xd = DequantizeLinear (xq, s, z)
      wd = DequantizeLinear (w, ws, wz)
      [product] y = {op} (xd, wd)
    }}
    """)
    found = int8_coverage(model, ["product"])
    assert (found.int8, found.float_nodes) == (1, ())


def test_a_plan_of_onnxqs_runs_as_int8(
    build: Callable[[str], Model], quantize: Callable[..., object]
) -> None:
    source = build("""
    net (float[1,2,8,8] x) => (float[1,2,4,4] y)
    <float[4,2,3,3] a = seeded, float[2,4,3,3] b = seeded>
    { [one] c = Conv (x, a) [relu] r = Relu (c) [two] y = Conv (r, b) }
    """)
    made = quantize(source)
    names = [node.name for node in made.plan.nodes]
    assert names == ["one", "relu", "two"]
    assert int8_coverage(made.model, names).int8 == 3


QUANTIZED_GEMM = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2,4] x) => (float[4,2] y)
<
  float s = {{0.02}}, uint8 z = {{128}}, float ws = {{0.01}}, int8 wz = {{0}},
  int8[4,4] w = {{1, -2, 3, -4, 5, -6, 7, -8, 1, -2, 3, -4, 5, -6, 7, -8}},
  int64[2] shape = {{4, 2}}
>
{{
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear (w, ws, wz)
  [product] g = Gemm (xd, wd)
  {pair}
  [move] {moved}
}}
"""


def test_nodes_behind_an_integer_gemm() -> None:
    """QGemm gives integers when it knows their scale, and what moves them is int8 then."""
    text = QUANTIZED_GEMM.format(
        pair="gq = QuantizeLinear (g, s, z) gd = DequantizeLinear (gq, s, z)",
        moved="""t = Reshape (gd, shape)
        tq = QuantizeLinear (t, s, z) y = DequantizeLinear (tq, s, z)""",
    )
    assert int8_coverage(from_text(text), ["product", "move"]).float_nodes == ()


def test_nodes_behind_a_float_gemm() -> None:
    text = QUANTIZED_GEMM.format(pair="", moved="y = Reshape (g, shape)")
    found = int8_coverage(from_text(text), ["product", "move"])
    assert [reason.node for reason in found.float_nodes] == ["move"]


def test_gemm_that_fuses_with_a_float_clamp() -> None:
    text = QUANTIZED_GEMM.format(pair="[relu] r = Relu (g)", moved="y = Reshape (r, shape)")
    (reason,) = int8_coverage(from_text(text), ["product"]).float_nodes
    assert "it fuses with 'relu' behind it, which stays float" in reason.sentence


@pytest.mark.parametrize("name", ["conv_nchwc", "conv_token_1", "fused conv"])
def test_names_like_those_of_onnx_runtime(name: str) -> None:
    """A float node is not taken for the int8 node whose name its own would be shortened to."""
    text = CONV.format(zero_point=100, after="[relu] r = Relu (c)", last="r")
    text = text.replace("[conv]", f'["{name}"]').replace("float[1,2,6,6] y)", "float[1,2,6,6] e)")
    second = "[conv] e0 = Conv (y, wd) eq = QuantizeLinear (e0, s, zx)"
    text = text.rstrip().removesuffix("}") + f"{second} e = DequantizeLinear (eq, s, zx) }}"
    found = int8_coverage(from_text(text), [name, "conv"])
    assert [reason.node for reason in found.float_nodes] == [name]


AROUND_CONV = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,2,6,6] x) => (float[1,2,6,6] y)
<
  float s = {{0.02}}, uint8 z = {{128}}, float ws = {{0.01}}, int8 wz = {{0}},
  int8[2,2,1,1] w = {{10, -20, 30, 40}}
>
{{
  wd = DequantizeLinear (w, ws, wz)
  {body}
}}
"""


def test_node_without_a_trace_before_an_int8_kernel() -> None:
    body = """[move] r = Identity (x)
      rq = QuantizeLinear (r, s, z)
      rd = DequantizeLinear (rq, s, z)
      [conv] c = Conv (rd, wd)
      cq = QuantizeLinear (c, s, z)
      y = DequantizeLinear (cq, s, z)"""
    assert (
        int8_coverage(from_text(AROUND_CONV.format(body=body)), ["move", "conv"]).float_nodes == ()
    )


def test_node_without_a_trace_among_float_ones() -> None:
    body = """[one] t = Tanh (x)
      [move] r = Identity (t)
      [conv] y = Conv (r, wd)"""
    found = int8_coverage(from_text(AROUND_CONV.format(body=body)), ["move"])
    assert [reason.sentence for reason in found.float_nodes] == [
        "left no trace in what ONNX Runtime runs, and nothing around it is int8"
    ]
