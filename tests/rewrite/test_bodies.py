"""Weights that the bodies of If, Loop and Scan read are stored as integers, outside of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.errors import SelfCheckError
from onnxq.graph import load, serialize, strip
from onnxq.numerics import sqnr_db
from onnxq.ops import classify
from onnxq.plan import LayerRule, Recipe, WeightSettings, make_plan
from onnxq.rewrite import rewrite
from onnxq.rewrite.check import check
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session
from onnxq.targets import get_target
from onnxq.types import Form, Precision

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
LOOP = """g (float[2,64] x) => (float[2,64] y)
  <float[64,64] w = seeded, int64 n = {3}, bool go = {1}> {
  [loop] y = Loop (n, go, x) <body = b (int64 k, bool more, float[2,64] h)
    => (bool again, float[2,64] after) {
      again = Identity (more) [inside] m = MatMul (h, w) after = Tanh (m) }> }"""
SCAN = """g (float[3,2,64] x) => (float[3,2,64] y) <float[64,64] w = seeded, float[64] b = seeded> {
  [scan] y = Scan <num_scan_inputs = 1, body = s (float[2,64] row) => (float[2,64] made) {
      made = Gemm <transB = 1> (row, w, b) }> (x) }"""
NESTED = """g (bool c, float[2,64] x) => (float[2,64] y) <float[64,64] w = seeded> {
  [outer] y = If (c) <
    then_branch = t () => (float[2,64] p) {
      p = If (c) <
        then_branch = tt () => (float[2,64] r) { r = MatMul (x, w) },
        else_branch = ee () => (float[2,64] s) { s = Identity (x) }> },
    else_branch = e () => (float[2,64] q) <float[64,64] w = seeded> {
      n = Neg (w) q = MatMul (x, n) }> }"""
SHARED = """g (bool c, float[2,64] x) => (float[2,64] y) <float[64,64] w = seeded> {
  [outside] t = MatMul (x, w)
  [choose] y = If (c) <
    then_branch = a () => (float[2,64] p) { p = MatMul (t, w) },
    else_branch = b () => (float[2,64] q) { q = Neg (t) }> }"""
STATE = """g (float[64,64] x) => (float[64,64] y)
  <float[64,64] w = seeded, int64 n = {2}, bool go = {1}> {
  [product] t = MatMul (x, w)
  [loop] s = Loop (n, go, w) <body = b (int64 k, bool more, float[64,64] h)
    => (bool again, float[64,64] after) {
      again = Identity (more) m = MatMul (h, w) after = Tanh (m) }>
  y = Add (s, t) }"""
TABLE = """g (bool c, int64[3] i) => (float[3,64] y) <float[64,64] w = seeded> {
  [rows] t = Gather (w, i)
  [choose] y = If (c) <
    then_branch = a () => (float[3,64] p) { r = Gather (w, i) p = Add (r, t) },
    else_branch = b () => (float[3,64] q) { q = Neg (t) }> }"""
NETS = {"loop": LOOP, "scan": SCAN, "nested": NESTED, "shared": SHARED, "state": STATE}


def feed_of(model) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    return {
        spec.name: np.array(True)
        if spec.dtype == "bool"
        else rng.standard_normal(spec.shape).astype(np.float32)
        for spec in model.view().inputs
    }


def outputs(model, level="all") -> dict[str, np.ndarray]:
    return Session(model, level=level).run(feed_of(model))


def rounded(values: np.ndarray, axis: int) -> np.ndarray:
    """A weight as 254 symmetric steps per channel hold it."""
    scale = np.abs(values).max(1 - axis, keepdims=True) / np.float32(127)
    return (np.round(values / scale) * scale).astype(np.float32)


def with_constant(model, name: str, values: np.ndarray):
    copy = model.copy()
    copy.ir.graph.initializers[name].const_value = ir.tensor(values, name=name)
    return copy


def inner_operators(model) -> Counter[str]:
    outer = Counter(node.op for node in model.view().nodes)
    return Counter(op for _, _, op in model.operators()) - outer


def to_pairs(made):
    """The model as the self-check sees it, before it is brought into other forms."""
    return to_qdq(made.source, made.plan)


@pytest.mark.parametrize("precision", ["int8-weights", "int8-dynamic"])
@pytest.mark.parametrize(("name", "axis"), [("loop", 1), ("scan", 0), ("nested", 1)])
def test_body_computes_with_the_rounded_weight(build, quantize, name, axis, precision) -> None:
    """Oracle: the float model with the weight rounded by hand."""
    source = build(HEAD + NETS[name])
    made = quantize(source, Recipe(precision=precision))
    by_hand = with_constant(source, "w", rounded(source.view().constant("w"), axis))
    for tensor, expected in outputs(by_hand).items():
        found = outputs(made.model)[tensor]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        # what rounding does to the output is far more: the float model would not pass
        assert np.abs(found - outputs(source)[tensor]).max() > 1e-4
    assert [v.dtype.name for v in stored_weights(made.model)] == ["INT8"]
    onnx.checker.check_model(onnx.ModelProto.FromString(serialize(made.model)), full_check=True)


def stored_weights(model) -> list[ir.Value]:
    return [v for v in model.ir.graph.initializers.values() if v.const_value.size == 64 * 64]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_are_stored_outside_and_strip_back(build, quantize, name, bits, form) -> None:
    """Along the axis that the operator inside sums."""
    source = build(HEAD + NETS[name])
    recipe = Recipe(precision=f"int{bits}-weights", weights=WeightSettings(block_size=32))
    made = quantize(source, recipe)
    pairs = to_pairs(made)
    (node,) = (n for n in pairs.view().nodes if n.op == "DequantizeLinear")
    assert node.attrs["axis"] == (1 if name == "scan" else 0)
    assert inner_operators(rewrite(source, made.plan, form)) == inner_operators(source)
    values = source.view().constant("w")
    back = strip(pairs).view().constant(node.outputs[0])
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    assert 0 < np.abs(back - values).max() <= step / 2 * (1 + 1e-6)
    for tensor, expected in outputs(strip(pairs), "none").items():
        np.testing.assert_allclose(outputs(pairs, "none")[tensor], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8-weights", "int8-dynamic"])
def test_weight_is_scaled_when_the_model_is_loaded(build, quantize, tmp_path, precision) -> None:
    """Neither in every iteration nor in every run."""
    made = quantize(build(HEAD + LOOP), Recipe(precision=precision))
    Session(made.model, write_optimized=tmp_path / "optimized.onnx")
    ran = load(tmp_path / "optimized.onnx")
    assert not {op for _, _, op in ran.operators()} & {"DequantizeLinear", "Cast", "Mul"}


def test_weight_of_a_body_and_of_the_main_graph_is_stored_once(build, quantize) -> None:
    source = build(HEAD + SHARED)
    made = quantize(source, Recipe(precision="int8-weights"))
    assert [v.dtype.name for v in stored_weights(made.model)] == ["INT8"]
    by_hand = with_constant(source, "w", rounded(source.view().constant("w"), 1))
    np.testing.assert_allclose(
        outputs(made.model)["y"], outputs(by_hand)["y"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("pinned", "float_reader"), [("outside", "choose"), ("choose", "outside")])
def test_one_of_the_readers_may_stay_float(build, quantize, pinned, float_reader) -> None:
    rule = LayerRule(name=pinned, precision="float")
    made = quantize(build(HEAD + SHARED), Recipe(precision="int8-weights", layers=(rule,)))
    view = made.model.view()
    outside = view.by_name["outside"].inputs[1]
    (inside,) = (t for t in view.by_name["choose"].captures if t not in ("t", "x"))
    assert {outside, inside} > {"w"}
    assert (outside == "w") == (pinned == "outside")


def test_state_that_starts_as_the_weight_starts_exact(build, quantize) -> None:
    """Only what the body reads as a weight is rounded, and not the Loop's own input."""
    source = build(HEAD + STATE)
    made = quantize(source, Recipe(precision="int8-weights"))
    assert made.model.view().by_name["loop"].inputs[2] == "w"


def test_static_and_dynamic_leave_what_bodies_compute_float(build, quantize) -> None:
    source = build(HEAD + SHARED)
    static = quantize(source)
    assert static.reasons()["choose"] == "control-flow"
    assert "w" in static.model.view().by_name["choose"].captures
    dynamic = quantize(source, Recipe(precision="int8-dynamic"))
    assert dynamic.plan.precision()["choose"] is Precision.INT8_WEIGHTS
    assert inner_operators(dynamic.model) == inner_operators(source)


def test_bodies_read_float32_beside_float16(build, quantize) -> None:
    recipe = Recipe(precision="int8-weights", float_type="fp16")
    source = build(HEAD + SHARED)
    made = quantize(source, recipe)
    for tensor, expected in outputs(source).items():
        np.testing.assert_allclose(outputs(made.model)[tensor], expected, atol=0.05)


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_table_of_a_body_and_of_the_main_graph(build, quantize, precision) -> None:
    """Outside, rows are gathered as integers, and inside from the whole table."""
    source = build(HEAD + TABLE)
    made = quantize(source, Recipe(precision=precision))
    feed = {"c": np.array(True), "i": np.array([0, 2, 1])}
    expected = Session(strip(to_pairs(made)), level="none").run(feed)["y"]
    np.testing.assert_allclose(Session(made.model).run(feed)["y"], expected, rtol=1e-6, atol=1e-6)
    assert [v.dtype.name for v in stored_weights(made.model)] == [precision[:4].upper()]


def test_weight_of_a_body_and_of_a_static_layer(build, quantize) -> None:
    source = build(HEAD + SHARED)
    rule = LayerRule(name="choose", precision="int8-weights")
    made = quantize(source, Recipe(precision="int8", layers=(rule,)))
    assert set(made.plan.precision().values()) == {Precision.INT8, Precision.INT8_WEIGHTS}
    assert [v.dtype.name for v in stored_weights(made.model)] == ["INT8"]
    # 8 bit activations and weights, twice
    assert sqnr_db(outputs(source)["y"], outputs(made.model)["y"]) > 28


REFUSED = {
    ("int8-weights", "MatMul (x, x)", "no-weight"),
    ("int8-dynamic", "MatMul (x, x)", "no-dynamic-kernel"),
    ("int8-weights", "MatMul (x, small)", "small-weight"),
    ("int8-dynamic", "MatMul (x, small)", "small-weight"),
    ("int4-weights", "com.microsoft.Attention <num_heads = 2> (x, w, b)", "no-int4"),
    ("int8", "MatMul (x, middle)", "control-flow"),
    ("fp16", "MatMul (x, middle)", "control-flow"),
}


@pytest.mark.parametrize(("precision", "body", "reason"), sorted(REFUSED))
def test_node_says_why_its_bodies_stay_float(build, precision, body, reason) -> None:
    source = build(f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (bool c, float[4,4,4] x) => (float y)
    <float[4,4] small = seeded, float[4,64] middle = seeded, float[4,12] w = seeded,
     float[12] b = seeded> {{
      [it] y = If (c) <then_branch = t () => (float p) {{ p = {body} }},
                       else_branch = e () => (float q) {{ q = Neg (x) }}> }}""")
    view, target = source.view(), get_target("cpu-x86")
    plan = make_plan(view, classify(view, target), {}, Recipe(precision=precision), target)
    assert [n.reason.code for n in plan.nodes] == [reason]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["loop", "nested"])
@pytest.mark.parametrize("constant", ["w_q", "w_s"])
def test_self_check_sees_a_wrong_weight_of_a_body(build, quantize, name, constant, bits) -> None:
    made = quantize(build(HEAD + NETS[name]), Recipe(precision=f"int{bits}-weights"))
    pairs = to_pairs(made)
    check(made.source, pairs, made.plan, {})
    values = pairs.view().constant(constant)
    wrong = values[::-1] if constant == "w_q" else values * np.float32(1.1)
    with pytest.raises(SelfCheckError, match="constant 'w' in its bodies is off by more"):
        check(made.source, with_constant(pairs, constant, wrong), made.plan, {})


@pytest.fixture
def inside_shared(build, quantize):
    """A quantized model, its pairs, and the node inside its body that reads t and the weight."""
    made = quantize(build(HEAD + SHARED), Recipe(precision="int8-weights"))
    pairs = to_pairs(made)
    (choose,) = (n for n in pairs.ir.graph if n.name == "choose")
    (inner,) = choose.attributes["then_branch"].as_graph()
    return made, pairs, inner


def test_self_check_sees_a_body_that_reads_something_else(inside_shared) -> None:
    made, pairs, inner = inside_shared
    (x,) = (v for v in pairs.ir.graph.inputs if v.name == "x")
    inner.replace_input_with(0, x)
    with pytest.raises(SelfCheckError, match="'t' in its bodies reads 'x' instead of 't'"):
        check(made.source, pairs, made.plan, {})


def test_self_check_sees_another_operator_in_a_body(inside_shared) -> None:
    made, pairs, inner = inside_shared
    inner.op_type = "Sub"
    with pytest.raises(SelfCheckError, match="its subgraphs read other tensors"):
        check(made.source, pairs, made.plan, {})
