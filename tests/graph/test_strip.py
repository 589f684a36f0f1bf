"""Taking quantization out again, and telling two graphs apart."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import difference, from_text, strip

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
CONV = """g (float[1,2,4,4] x) => (float[1,2,4,4] y)
<float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {0.5, 1}>
{ [conv] c = Conv (x, w, b) [relu] y = Relu (c) }"""


def ops(model) -> list[str]:
    return [n.op for n in model.view().nodes]


def test_pair_on_an_inner_tensor_vanishes() -> None:
    model = from_text(f"""{HEAD} g (float[2] x) => (float[2] y)
        <float s = {{0.5}}, uint8 z = {{3}}>
        {{ [neg] t = Neg (x) q = QuantizeLinear (t, s, z) d = DequantizeLinear (q, s, z)
           [abs] y = Abs (d) }}""")
    view = strip(model).view()
    assert [(n.name, n.inputs) for n in view.nodes] == [("neg", ("x",)), ("abs", ("t",))]
    assert ops(model) == ["Neg", "QuantizeLinear", "DequantizeLinear", "Abs"], "the source changed"


def test_pair_that_makes_an_output_gives_its_name_back() -> None:
    model = from_text(f"""{HEAD} g (float[2] x) => (float[2] y)
        <float s = {{0.5}}, uint8 z = {{3}}>
        {{ [neg] t = Neg (x) q = QuantizeLinear (t, s, z) y = DequantizeLinear (q, s, z) }}""")
    stripped = strip(model).view()
    assert [(n.op, n.outputs) for n in stripped.nodes] == [("Neg", ("y",))]
    assert stripped.outputs == model.view().outputs


def test_stored_constants_are_dequantized() -> None:
    """Per tensor with a zero point, and per channel on axis 1."""
    model = from_text(f"""{HEAD} g (float[2,2] x) => (float[2,2] y)
        <uint8[2,2] a = {{0, 1, 2, 3}}, float s = {{0.5}}, uint8 z = {{1}},
         int8[2,2] b = {{1, 2, 3, 4}}, float[2] t = {{10, 100}}, int8[2] n = {{0, 1}}>
        {{ u = DequantizeLinear (a, s, z) v = DequantizeLinear <axis = 1> (b, t, n)
           [first] p = Mul (x, u) [second] y = Mul (p, v) }}""")
    view = strip(model).view()
    first, second = view.nodes
    np.testing.assert_array_equal(view.constant(first.inputs[1]), [[-0.5, 0], [0.5, 1]])
    np.testing.assert_array_equal(view.constant(second.inputs[1]), [[10, 100], [30, 300]])


FOREIGN = {
    "dequantized input": """g (uint8[2] x) => (float[2] y) <float s = {0.5}>
        { y = DequantizeLinear (x, s) }""",
    "quantized output": """g (float[2] x) => (uint8[2] y) <float s = {0.5}, uint8 z = {3}>
        { y = QuantizeLinear (x, s, z) }""",
    "moved between": """g (float[2] x) => (float[2,1] y)
        <float s = {0.5}, uint8 z = {3}, int64[2] n = {2, 1}>
        { q = QuantizeLinear (x, s, z) r = Reshape (q, n) y = DequantizeLinear (r, s, z) }""",
    "constant through a pair": """g (float[2] x) => (float[2] y)
        <float[2] w = {1, 2}, float s = {0.5}, uint8 z = {3}>
        { q = QuantizeLinear (w, s, z) d = DequantizeLinear (q, s, z) y = Add (x, d) }""",
    "computed scale": """g (float[2] x, float s) => (float[2] y) <uint8[2] w = {1, 2}>
        { d = DequantizeLinear (w, s) y = Add (x, d) }""",
    "input straight to output": """g (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}>
        { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }""",
    "two readers of one Q": """g (float[2] x) => (float[2] y) <float s = {0.5}, uint8 z = {3}>
        { t = Neg (x) q = QuantizeLinear (t, s, z) d = DequantizeLinear (q, s, z)
          e = DequantizeLinear (q, s, z) y = Add (d, e) }""",
    "qlinear": """g (uint8[1,2] x) => (uint8[1,2] y)
        <float s = {0.5}, uint8 z = {3}, uint8[2,2] w = {1, 2, 3, 4}>
        { y = QLinearMatMul (x, s, z, w, s, z, s, z) }""",
    "output of a constant": """g (float[2] x) => (float[2] y, float[2] v)
        <uint8[2] w = {1, 2}, float s = {0.5}>
        { v = DequantizeLinear (w, s) y = Add (x, v) }""",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_quantized_models_of_other_tools_are_survived(name) -> None:
    """What cannot be taken out stays, and inputs and outputs keep their names."""
    model = from_text(f"{HEAD} {FOREIGN[name]}")
    stripped = strip(model).view()
    assert [s.name for s in stripped.outputs] == [s.name for s in model.view().outputs]
    assert [s.name for s in stripped.inputs] == [s.name for s in model.view().inputs]


def test_graph_equals_itself(build) -> None:
    assert difference(build(CONV).view(), build(CONV).view(), {}) == ""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Relu (c)", "Neg (c)", "node 'relu': Relu became Neg"),
        ("[relu]", "[other]", "nodes were added or lost: other, relu"),
        ("Conv (", "Conv <strides = [1, 1]> (", "its attributes changed"),
        ("{1, 2, 3, 4}", "{1, 2, 3, 4.5}", "node 'conv': constant input 1 is off"),
        ("(x, w, b)", "(x, w)", "its edges changed"),
        ("[1,2,4,4] x", "[N,2,4,4] x", "inputs or outputs differ"),
        ("Relu (c)", "Relu (x)", "input 0 reads 'x' instead of 'c'"),
        ("{0.5, 1}", "{0.5, 1.25}", "constant input 2"),
    ],
)
def test_difference_is_told(build, old, new, told) -> None:
    assert told in difference(build(CONV).view(), build(CONV.replace(old, new)).view(), {})


def test_tolerance_is_one_side_or_the_other(build) -> None:
    reference = build(CONV).view()
    other = build(CONV.replace("{1, 2, 3, 4}", "{1, 2, 3, 4.5}")).view()
    per_channel = np.array([0.0, 0.5]).reshape(2, 1, 1, 1)
    assert difference(reference, other, {("conv", 1): per_channel}) == ""
    assert "off by more" in difference(reference, other, {("conv", 1): per_channel[::-1]})
    assert "off by more" in difference(reference, other, {("conv", 1): per_channel * 0.99})


def test_a_constant_takes_its_own_name_back() -> None:
    """Whatever other constants are called."""
    model = from_text(f"""{HEAD} g (float[1,2] x) => (float[1,2] y)
        <int8[2,2] w_q = {{1, 2, 3, 4}}, float w_s = {{0.5}}, float[2] w_value = {{1, 2}}>
        {{ w = DequantizeLinear (w_q, w_s) h = MatMul (x, w) y = Pow (h, w_value) }}""")
    stripped = strip(model).view()
    np.testing.assert_array_equal(stripped.constant("w"), np.float32([[0.5, 1], [1.5, 2]]))
    np.testing.assert_array_equal(stripped.constant("w_value"), np.float32([1, 2]))
    assert ops(strip(model)) == ["MatMul", "Pow"]
