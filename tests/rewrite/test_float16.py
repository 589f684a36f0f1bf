"""Nodes in float16: types, Casts at the borders, constants, and what comes out.

Rounding to float16 is off by at most 2^-11 of a value, 2^-11 / sqrt(3) of it in the mean of
squares: 71 dB. Roundings one after the other add up: 50 dB leaves room for a hundred of them.
onnx.reference rounds what every node makes, as a GPU does. ONNX Runtime's CPU provider mostly
computes in float32 between Casts of its own, some of which it takes out again.
"""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.graph import Model, encoded_size, serialize
from onnxq.numerics import sqnr_db
from onnxq.ops import classify
from onnxq.plan import Recipe
from onnxq.plan.half import refuse_half, worth_half
from onnxq.rewrite.float16 import to_float16
from onnxq.runtime import Session, synthetic_feed
from onnxq.targets import get_target

LEAST_DB = 50.0

CHAIN = """g (float[1,3,8,8] x) => (float[1,4] y)
    <float[8,3,3,3] w = seeded, float[8] b = seeded, float[8,4] v = seeded> {
        [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        [relu] r = Relu (c)
        [pool] p = GlobalAveragePool (r)
        [flat] f = Flatten (p)
        [gemm] y = Gemm (f, v)
    }"""


def all_nodes(model: Model) -> list[str]:
    return [node.name for node in model.view().nodes]


def casts(model: Model) -> Counter:
    """How often a Cast goes from one type to another."""
    view = model.view()
    return Counter(
        f"{view.dtype(n.inputs[0])}->{view.dtype(n.outputs[0])}"
        for n in view.nodes
        if n.op == "Cast"
    )


def check(source: Model, made: Model, least: float = LEAST_DB) -> None:
    """Valid, with the same inputs and outputs, and near the source, by two evaluators."""
    onnx.checker.check_model(serialize(made), full_check=True)
    assert made.view().inputs == source.view().inputs
    assert made.view().outputs == source.view().outputs
    feed = synthetic_feed(source.view().inputs)
    expected = Session(source).run(feed)
    found = Session(made).run(feed)
    proto = onnx.ModelProto.FromString(serialize(made))
    rounded = ReferenceEvaluator(proto).run(None, feed)
    for (name, value), other in zip(expected.items(), rounded, strict=True):
        assert found[name].dtype == other.dtype == value.dtype
        for result in (found[name], other):
            assert result.shape == value.shape
            assert sqnr_db(value, result) >= least, name


def test_chain_has_one_cast_at_each_end(build) -> None:
    source = build(CHAIN)
    made = to_float16(source, all_nodes(source))
    check(source, made)
    assert casts(made) == {"float32->float16": 1, "float16->float32": 1}
    view = made.view()
    assert {view.dtype(t) for t in "crpf"} == {"float16"}
    constants = [view.constant(t) for n in view.nodes for t in n.inputs if view.is_constant(t)]
    assert [c.dtype for c in constants] == [np.float16] * 3


def test_float16_is_really_computed_in(build) -> None:
    """The reference rounds to 11 bits: the outputs are float16 numbers, and not exact."""
    source = build(CHAIN)
    feed = synthetic_feed(source.view().inputs)
    proto = onnx.ModelProto.FromString(serialize(to_float16(source, all_nodes(source))))
    (found,) = ReferenceEvaluator(proto).run(None, feed)
    assert np.array_equal(found, found.astype(np.float16))
    assert not np.array_equal(found, Session(source).run(feed)["y"])


@pytest.mark.parametrize("count", range(6))
def test_any_first_nodes_need_two_casts_at_most(build, count) -> None:
    """A border in a chain is one Cast, wherever it lies."""
    source = build(CHAIN)
    made = to_float16(source, all_nodes(source)[:count])
    check(source, made)
    assert sum(casts(made).values()) == (2 if count else 0)


def test_readers_share_one_cast_per_direction(build) -> None:
    source = build("""g (float[2,4] x) => (float[2,4] y, float[2,4] z) {
        [a] a = Relu (x)
        [b] b = Neg (x)
        [c] c = Tanh (x)
        [d] d = Abs (a)
        [e] e = Add (a, b)
        [f] y = Add (d, e)
        [g] z = Mul (c, e)
    }""")
    made = to_float16(source, ["a", "b", "e"])
    check(source, made)
    # x goes to a and b; a is read by d, and e by both of the last.
    assert casts(made) == {"float32->float16": 1, "float16->float32": 2}
    by_name = made.view().by_name
    assert by_name["a"].inputs == by_name["b"].inputs == ("x_float16",)
    assert by_name["c"].inputs == ("x",)
    assert by_name["e"].inputs == ("a", "b")
    assert by_name["f"].inputs[1] == by_name["g"].inputs[1] == "e_float32"


def test_weights_are_half_the_file(build) -> None:
    source = build("""g (float[1,256] x) => (float[1,256] y)
        <float[256,256] w = seeded, float[256,256] v = seeded> {
        t = MatMul (x, w)
        r = Relu (t)
        y = MatMul (r, v)
    }""")
    made = to_float16(source, all_nodes(source))
    assert encoded_size(made) <= 0.51 * encoded_size(source)
    expected = source.view().constant("w").astype(np.float16)
    np.testing.assert_array_equal(made.view().constant("w_float16"), expected)


def test_shared_constant_is_kept_for_float32(build) -> None:
    source = build("""g (float[1,4] x) => (float[1,4] y) <float[4,4] w = seeded> {
        [a] t = MatMul (x, w)
        [b] s = MatMul (t, w)
        [c] y = MatMul (s, w)
    }""")
    made = to_float16(source, ["a", "c"])
    check(source, made)
    view = made.view()
    assert view.by_name["a"].inputs[1] == view.by_name["c"].inputs[1] == "w_float16"
    assert view.constant("w").dtype == np.float32
    assert view.constant("w_float16").dtype == np.float16


def test_output_that_is_read_inside_keeps_its_name_and_type(build) -> None:
    source = build("""g (float[1,4] x) => (float[1,4] y, float[1,4] z) {
        [a] y = Sigmoid (x)
        [b] h = Relu (y)
        [c] z = Tanh (h)
    }""")
    made = to_float16(source, ["a", "b"])
    check(source, made)
    view = made.view()
    assert view.by_name["b"].inputs == view.by_name["a"].outputs == ("y_float16",)
    assert casts(made) == {"float32->float16": 1, "float16->float32": 2}
    # A float32 reader of an output reads the output.
    made = to_float16(source, ["a"])
    check(source, made)
    assert made.view().by_name["b"].inputs == ("y",)


def test_inputs_and_outputs_become_float16_when_wanted(build) -> None:
    source = build("""g (float[1,4] x, float[1,4] u) => (float[1,4] y, float[1,4] z) {
        [a] y = Sigmoid (x)
        [b] t = Neg (x)
        [c] z = Add (t, u)
    }""")
    made = to_float16(source, ["a"], keep_io=False)
    onnx.checker.check_model(serialize(made), full_check=True)
    assert {s.dtype for s in (*made.view().inputs, *made.view().outputs)} == {"float16"}
    assert made.view().by_name["a"].inputs == ("x",)
    feed = synthetic_feed(source.view().inputs)
    expected = Session(source).run(feed)
    found = Session(made).run({name: value.astype(np.float16) for name, value in feed.items()})
    for name, value in expected.items():
        assert sqnr_db(value, found[name]) >= LEAST_DB


def test_bodies_read_float32(build) -> None:
    source = build("""g (bool k, float[1,4] x) => (float[1,4] y) <float[4] w = {1, 2, 3, 4}> {
        [a] t = Mul (x, w)
        [if] s = If (k) <
            then_branch = p () => (float[1,4] o) { o = Mul (t, w) },
            else_branch = q () => (float[1,4] i) { i = Identity (t) }
        >
        [b] y = Relu (s)
    }""")
    made = to_float16(source, ["a", "b", "if"])
    assert made.view().by_name["if"].captures == ("t_float32", "w")
    assert made.view().constant("w").dtype == np.float32
    check(source, made)


def test_attributes_that_say_the_type(build) -> None:
    source = build("""g (uint8[2,4] x) => (float[2,4] y, float[2,4] z, int64[2] n) {
        [cast] f = Cast <to = 1> (x)
        [const] k = Constant <value = float[4] {0.5, 1.0, 1.5, 2.0}> ()
        [scalar] e = Constant <value_float = 0.25> ()
        [mul] m = Mul (f, k)
        [shape] n = Shape (m)
        [fill] o = ConstantOfShape <value = float[1] {3.0}> (n)
        [zero] q = ConstantOfShape (n)
        [add] a = Add (m, o)
        [more] b = Add (a, q)
        [last] y = Mul (b, e)
        [int] i = Cast <to = 6> (b)
        [back] z = Cast <to = 1> (i)
    }""")
    made = to_float16(source, [n for n in all_nodes(source) if n != "back"])
    check(source, made)
    view = made.view()
    assert view.by_name["cast"].attrs["to"] == onnx.TensorProto.FLOAT16
    assert view.by_name["int"].attrs["to"] == onnx.TensorProto.INT32
    assert view.by_name["back"].attrs["to"] == onnx.TensorProto.FLOAT
    for name in ("const", "scalar", "fill", "zero"):
        assert view.by_name[name].attrs["value"].dtype == np.float16
    # What takes any type reads what is there: only y needs a Cast.
    assert casts(made)["float16->float32"] == 1
    assert view.by_name["int"].inputs == ("b",)


def test_scales_of_resize_stay_float32(build) -> None:
    source = build("""g (float[1,1,4,4] x) => (float[1,1,8,8] y)
        <float[0] roi = {}, float[4] scales = {1, 1, 2, 2}> {
        [a] t = Relu (x)
        [resize] y = Resize <mode = "linear"> (t, roi, scales)
    }""")
    made = to_float16(source, ["a", "resize"])
    check(source, made)
    assert made.view().by_name["resize"].inputs == ("t", "roi", "scales")


def test_casts_of_the_source_serve(build) -> None:
    """A float16 model that was widened gets its own types back, without a Cast."""
    source = build("""g (float16[1,4] x) => (float16[1,4] y) <float[4,4] w = seeded> {
        [in] wide = Cast <to = 1> (x)
        [mul] t = MatMul (wide, w)
        [relu] r = Relu (t)
        [out] y = Cast <to = 10> (r)
    }""")
    made = to_float16(source, all_nodes(source))
    check(source, made)
    assert [n.op for n in made.view().nodes] == ["MatMul", "Relu"]
    part = to_float16(source, ["relu"])
    check(source, part)
    assert casts(part) == {"float16->float32": 1, "float32->float16": 1}


def test_beside_int8(quantize, build) -> None:
    """Quantized nodes keep their pairs in float32; the others become float16."""
    source = build("""<ir_version: 9, opset_import: ["" : 19]>
        g (float[1,3,8,8] x) => (float[1,8] y)
        <float[8,3,3,3] w = seeded, float[8,8,3,3] v = seeded, float[8,8] u = seeded> {
        [first] a = Conv <pads = [1, 1, 1, 1]> (x, w)
        [relu] r = Relu (a)
        [second] b = Conv <pads = [1, 1, 1, 1]> (r, v)
        [tanh] t = Tanh (b)
        [pool] p = GlobalAveragePool (t)
        [flat] f = Flatten (p)
        [last] y = Gemm (f, u)
    }""")
    mixed = quantize(source, Recipe(keep_float=("second", "tanh", "pool", "flat", "last"))).model
    half = ["second", "tanh", "pool", "flat", "last"]
    made = to_float16(mixed, half)
    check(mixed, made)
    counts = Counter(node.op for node in mixed.view().nodes)
    assert counts["QuantizeLinear"] > 0
    later = Counter(node.op for node in made.view().nodes)
    assert later - counts == {"Cast": 2}
    for node in made.view().nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            assert "float16" not in {made.view().dtype(t) for t in (*node.inputs, *node.outputs)}


def test_taken_names_are_avoided(build) -> None:
    source = build("""g (float[1,4] x) => (float[1,4] y) {
        [x_float16] x_float16_ = Neg (x)
        [b] t = Relu (x)
        [c] y = Add (t, x_float16_)
    }""")
    made = to_float16(source, ["b"])
    check(source, made)
    assert made.view().by_name["b"].inputs == ("x_float16__",)


def test_nodes_without_such_a_form_are_left(build) -> None:
    source = build("""g (float[2,4] x, int64[2] i) => (float[2,4] y, int64[2] j) {
        [a] j = Add (i, i)
        [b] s = SequenceConstruct (x, x)
        [c] k = Constant <value = int64 {0}> ()
        [d] y = SequenceAt (s, k)
    }""")
    made = to_float16(source, all_nodes(source))
    assert [n.op for n in made.view().nodes] == [n.op for n in source.view().nodes]


def test_operators_of_the_runtime(build) -> None:
    """Their types are told by the file: shape inference does not know them."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2,8] x) => (float[2,8] y)
        <float[8,8] w = seeded, float[8] b = seeded, float[2,8] t, float[2,8] s> {
        [mul] t = com.microsoft.FusedMatMul (x, w)
        [gelu] s = com.microsoft.BiasGelu (t, b)
        [quick] y = com.microsoft.QuickGelu (s)
    }"""
    source = build(text)
    feed = synthetic_feed(source.view().inputs)
    made = to_float16(source, all_nodes(source))
    assert casts(made) == {"float32->float16": 1, "float16->float32": 1}
    expected, found = Session(source).run(feed)["y"], Session(made).run(feed)["y"]
    assert sqnr_db(expected, found) >= LEAST_DB


def test_bfloat16(build) -> None:
    """8 bits instead of 11 are 18 dB less."""
    source = build(f'<ir_version: 10, opset_import: ["" : 22]>\n{CHAIN}')
    made = to_float16(source, all_nodes(source), dtype="bfloat16")
    onnx.checker.check_model(serialize(made), full_check=True)
    view = made.view()
    assert view.dtype("r") == "bfloat16"
    np.testing.assert_array_equal(
        view.constant("w_bfloat16"), source.view().constant("w").astype(ml_dtypes.bfloat16)
    )
    feed = synthetic_feed(source.view().inputs)
    (found,) = ReferenceEvaluator(onnx.ModelProto.FromString(serialize(made))).run(None, feed)
    assert sqnr_db(Session(source).run(feed)["y"], found) >= LEAST_DB - 18


def test_bfloat16_only_where_the_opset_has_it(build) -> None:
    """Conv and GlobalAveragePool take it from opset 22 on."""
    source = build(CHAIN)
    made = to_float16(source, all_nodes(source), dtype="bfloat16")
    onnx.checker.check_model(serialize(made), full_check=True)
    types = {n.name: made.view().dtype(n.outputs[0]) for n in made.view().nodes}
    assert [types[name] for name in ("conv", "relu", "pool", "flat", "gemm")] == [
        "float32", "bfloat16", "float32", "bfloat16", "bfloat16",
    ]  # fmt: skip


def test_plan_and_rewrite_of_a_transformer_block(build) -> None:
    """What is refused stays float32 and the rest is near: layer norm in pieces, masked softmax."""
    source = build("""g (float[2,6,8] x, bool[6,6] m) => (float[2,6,8] y)
        <float[8,8] q = seeded, float[8,8] k = seeded, float two = {2}, float eps = {1e-12},
         float mask = {-3.4e38}, int64[1] last = {-1}> {
        [mean] mu = ReduceMean <axes = [-1]> (x)
        [dev] d = Sub (x, mu)
        [pow] s = Pow (d, two)
        [var] v = ReduceMean <axes = [-1]> (s)
        [eps] e = Add (v, eps)
        [root] r = Sqrt (e)
        [div] n = Div (d, r)
        [q] qq = MatMul (n, q)
        [k] kk = MatMul (n, k)
        [t] kt = Transpose <perm = [0, 2, 1]> (kk)
        [qk] w = MatMul (qq, kt)
        [where] wm = Where (m, w, mask)
        [soft] p = Softmax (wm)
        [pv] y = MatMul (p, n)
    }""")
    view = source.view()
    census = classify(view, get_target("cpu-x86"))
    able = [n.name for n in census.nodes if refuse_half(view, n) is None]
    assert worth_half(view, able) == {"q", "k", "t", "qk", "pv"}
    check(source, to_float16(source, able))


def test_constant_that_is_an_output(build) -> None:
    source = build("""g (float[1,4] x) => (float[1,4] y, float[2] k) <float[2] k = {1, 0.1}> {
        [a] y = Relu (x)
    }""")
    check(source, to_float16(source, ["a"]))
    made = to_float16(source, ["a"], keep_io=False)
    onnx.checker.check_model(serialize(made), full_check=True)
    found = Session(made).run({"x": np.ones((1, 4), np.float16)})
    np.testing.assert_array_equal(found["k"], np.array([1, 0.1], np.float16))


def test_source_is_not_touched(build) -> None:
    source = build(CHAIN)
    before = serialize(source)
    to_float16(source, all_nodes(source), keep_io=False)
    assert serialize(source) == before


def test_no_nodes_change_nothing(build) -> None:
    source = build(CHAIN)
    assert serialize(to_float16(source, [])) == serialize(source)


def test_small_constants_round_as_float16_does(build) -> None:
    """Subnormal float32 and all under half the least float16 (2^-25) become 0, and no other."""
    least = 2.0**-24
    values = [1e-45, 1e-39, 0.49 * least, -0.49 * least, 0.51 * least, least, 6e-5, 1.0]
    source = build(f"""g (float[{len(values)}] x) => (float[{len(values)}] y)
        <float[{len(values)}] w = {{{", ".join(map(str, values))}}}> {{ y = Mul (x, w) }}""")
    found = to_float16(source, all_nodes(source)).view().constant("w_float16")
    assert found is not None
    assert (found == 0).tolist() == [True] * 4 + [False] * 4
    given = source.view().constant("w")
    # half the least float16 below 2^-14, and 2^-11 of the value above
    assert np.all(np.abs(found.astype(np.float64) - given) <= np.maximum(least / 2, given / 2048))
