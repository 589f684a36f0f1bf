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
