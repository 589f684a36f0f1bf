"""Dynamic layers compute what integers allow, in the kernels that ONNX Runtime has for them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from msgspec.structs import replace as with_fields

from onnxq.errors import SelfCheckError
from onnxq.graph import load
from onnxq.numerics import sqnr_db
from onnxq.ops import classify
from onnxq.plan import Recipe, make_plan
from onnxq.rewrite import rewrite
from onnxq.rewrite.dynamic import lower_dynamic
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session, default_target
from onnxq.targets import get_target
from onnxq.types import Precision

MICROSOFT = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
# Normal noise of about 8 standard deviations in 255 steps: 41 dB. Uniform weights in 254 steps:
# 48 dB, in 127 steps (processors without VNNI): 42 dB. Together 38 to 40 dB; the rest is margin
# for layers that follow each other.
ONE_LAYER_DB, SEVERAL_LAYERS_DB = 34.0, 28.0
# Weights alone, in 127 steps of a channel.
WEIGHTS_DB = 40.0


def planned(model, recipe=None):
    """The plan of a dynamic model for this machine."""
    target = get_target(default_target())
    recipe = recipe or Recipe(precision="int8-dynamic")
    return make_plan(model.view(), classify(model.view(), target), {}, recipe, target)


def dynamic(model, recipe=None):
    plan = planned(model, recipe)
    chosen = [n.name for n in plan.nodes if n.precision is Precision.INT8_DYNAMIC]
    return lower_dynamic(to_qdq(model, plan), chosen)


def kernels(model, folder) -> dict[str, str]:
    """What ONNX Runtime runs, by name."""
    Session(model, write_optimized=folder / "optimized.onnx")
    return {node.name: node.op for node in load(folder / "optimized.onnx").view().nodes}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def float_values(model) -> int:
    """How many float32 numbers the model holds."""
    held = [v.const_value for v in model.ir.graph.initializers.values()]
    return sum(v.size for v in held if v is not None and str(v.dtype) == "FLOAT")


# --- MatMul and Gemm -------------------------------------------------------------------------

MULTIPLICATIONS = {
    "matrix": ([5, 96], "MatMul (x, w)", "float[96,48] w = seeded"),
    "vector": ([96], "MatMul (x, w)", "float[96,48] w = seeded"),
    "batch": ([2, 5, 96], "MatMul (x, w)", "float[96,48] w = seeded"),
    "batches": ([2, 3, 5, 96], "MatMul (x, w)", "float[96,48] w = seeded"),
    "batched weight": ([3, 5, 96], "MatMul (x, w)", "float[3,96,48] w = seeded"),
    "one matrix by several": ([5, 96], "MatMul (x, w)", "float[3,96,48] w = seeded"),
    "gemm": ([5, 96], "Gemm (x, w)", "float[96,48] w = seeded"),
    "gemm, transposed": ([5, 96], "Gemm <transB = 1> (x, w)", "float[48,96] w = seeded"),
    "gemm with bias": ([5, 96], "Gemm (x, w, b)", "float[96,48] w = seeded, float[48] b = seeded"),
    "gemm with a row": (
        [5, 96], "Gemm <transB = 1> (x, w, b)", "float[48,96] w = seeded, float[1,48] b = seeded",
    ),
    "gemm with a column": (
        [5, 96], "Gemm (x, w, b)", "float[96,48] w = seeded, float[5,1] b = seeded",
    ),
    "gemm with one number": ([5, 96], "Gemm (x, w, b)", "float[96,48] w = seeded, float b = {3}"),
}  # fmt: skip


def quantized_input(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Integers less zero point, and scale, by the formulas of ONNX's DynamicQuantizeLinear."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero, 0, 255) - zero, scale


def by_hand(model, x: np.ndarray, params, bias) -> tuple[np.ndarray, np.ndarray]:
    """The product of integers in float64, and how far it may be from that of floats."""
    (node,) = model.view().nodes
    # As QuantizeLinear does: in float32, which says where a half goes. With 7 bits the largest
    # weight of a channel lies there, at 63.5 steps.
    weight, scale = model.view().constant("w"), np.array(params.scale, np.float32)
    if params.axis is not None:
        scale = np.expand_dims(scale, 1 - params.axis)
    stored = np.clip(np.rint(weight / scale), -127, 127).astype(np.float64)
    weight, scale = weight.astype(np.float64), scale.astype(np.float64)
    if node.attrs.get("transB", 0):
        weight, stored, scale = weight.T, stored.T, scale.T
    integers, x_scale = quantized_input(x)
    # Half a step of each value of x, and half a step of each weight.
    most = 0.5 * float(x_scale) * np.abs(stored * scale).sum(-2)
    if x.ndim > 1:
        most = most[..., np.newaxis, :]
    most = most + 0.5 * np.abs(x).sum(-1, keepdims=True) * scale
    return integers @ stored * (scale * float(x_scale)) + bias, most


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_product_is_that_of_integers(build, name, per_channel) -> None:
    """float32 rounds the two scales' product, the product with it, and the sum: 3 * 2^-24."""
    shape, body, held = MULTIPLICATIONS[name]
    sizes = ",".join(map(str, shape))
    model = build(f"g (float[{sizes}] x) => (float y) <{held}> {{ [it] y = {body} }}")
    recipe = Recipe(precision="int8-dynamic", per_channel=per_channel)
    x, bias = noise(*shape), model.view().constant("b")
    made = Session(dynamic(model, recipe)).run({"x": x})["y"]
    params = planned(model, recipe).tensors["w"]
    expected, most = by_hand(model, x, params, 0 if bias is None else bias)
    expected, most = expected.reshape(made.shape), most.reshape(made.shape)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    wanted = Session(model).run({"x": x})["y"]
    assert np.all(np.abs(made - wanted) <= most * 1.001)
    assert (params.axis is None) == (not per_channel or "3,96,48" in held)


def test_bias_of_the_run_is_added(build) -> None:
    model = build("""g (float[5,96] x, float[48] b) => (float[5,48] y)
        <float[96,48] w = seeded> { [it] y = Gemm (x, w, b) }""")
    feed = {"x": noise(5, 96), "b": 100 * noise(48)}
    made, wanted = Session(dynamic(model)).run(feed)["y"], Session(model).run(feed)["y"]
    assert sqnr_db(wanted - feed["b"], made - feed["b"]) > ONE_LAYER_DB


@pytest.mark.parametrize(
    "body",
    ["MatMul (x, w)", "Gemm (x, w)", "Gemm (x, w, b)", "Gemm <transB = 1> (x, w, b)"],
)
def test_layer_becomes_one_kernel_of_its_name(build, tmp_path, body) -> None:
    model = build(f"""g (float[N,64] x) => (float[N,64] y)
        <float[64,64] w = seeded, float[64] b = seeded> {{ [it] y = {body} }}""")
    assert kernels(dynamic(model), tmp_path) == {"it": "DynamicQuantizeMatMul"}


def test_bias_of_an_add_joins_the_kernel(build, tmp_path) -> None:
    model = build("""g (float[N,64] x) => (float[N,64] y)
        <float[64,64] w = seeded, float[64] b = seeded> {
            [it] p = MatMul (x, w) y = Add (p, b) }""")
    assert kernels(dynamic(model), tmp_path) == {"it": "DynamicQuantizeMatMul"}


QKV = """g (float[N,S,64] x) => (float[N,S,64] q, float[N,S,64] k, float[N,S,64] v)
<float[64,64] wq = seeded, float[64,64] wk = seeded, float[64,64] wv = seeded> {
    [q] q = MatMul (x, wq) [k] k = MatMul (x, wk) [v] v = MatMul (x, wv) }"""


def test_tensor_is_quantized_once_for_all_its_readers(build, tmp_path) -> None:
    made = dynamic(build(QKV))
    assert Counter(node.op for node in made.view().nodes)["DynamicQuantizeLinear"] == 1
    found = kernels(made, tmp_path)
    assert {found.pop(name) for name in "qkv"} == {"MatMulIntegerToFloat"}
    assert list(found.values()) == ["DynamicQuantizeLinear"]


@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 7, 64), (2, 0, 64), (0, 4, 64)])
def test_axes_stay_dynamic(build, shape) -> None:
    model = build(QKV)
    made = dynamic(model)
    assert (made.view().inputs, made.view().outputs) == (model.view().inputs, model.view().outputs)
    feed = {"x": noise(*shape)}
    wanted, found = Session(model).run(feed), Session(made).run(feed)
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        assert value.size == 0 or sqnr_db(value, found[name]) > ONE_LAYER_DB


def test_layer_that_a_body_and_an_output_read(build) -> None:
    """The tensor keeps its name, and all that read it get what comes out in the end."""
    model = build("""g (float[4,64] x, bool c) => (float[4,64] t, float[4,64] y)
        <float[64,64] w = seeded, float[64,64] v = seeded> {
            [first] t = MatMul (x, w)
            b = If (c) <then_branch = yes () => (float[4,64] p) { p = Neg (t) },
                else_branch = no () => (float[4,64] r) { r = Abs (t) }>
            [second] s = MatMul (t, v)
            y = Add (b, s) }""")
    made = dynamic(model)
    for flag in (True, False):
        feed = {"x": noise(4, 64), "c": np.array(flag)}
        wanted, found = Session(model).run(feed), Session(made).run(feed)
        assert all(sqnr_db(wanted[n], found[n]) > SEVERAL_LAYERS_DB for n in ("t", "y"))


def test_names_that_are_taken_are_not_taken_again(build) -> None:
    model = build("""g (float[4,64] x) => (float[4,64] y) <float[64,64] w = seeded> {
        m_dynamic_s = Neg (x) y_before_Mul = Abs (m_dynamic_s)
        it_s = Neg (y_before_Mul) w_q_transposed = Neg (it_s)
        m = Sub (x, w_q_transposed) [it] y = Gemm <transB = 1> (m, w) }""")
    feed = {"x": noise(4, 64)}
    made = Session(dynamic(model)).run(feed)["y"]
    assert sqnr_db(Session(model).run(feed)["y"], made) > ONE_LAYER_DB


@pytest.mark.parametrize("made", ["Neg (f)", "DequantizeLinear (q, s, z)"])
def test_weight_that_is_not_symmetric_int8_is_refused(build, made) -> None:
    model = build(f"""g (float[4,2] x) => (float y)
        <float[2,2] f = seeded, int8[2,2] q = {{1, 2, 3, 4}}, float s = {{1}}, int8 z = {{1}}>
        {{ w = {made} [it] y = MatMul (x, w) }}""")
    with pytest.raises(SelfCheckError, match="input 1 of node 'it' is not stored as int8"):
        lower_dynamic(model, ["it"])


def test_only_named_nodes_change(build) -> None:
    stored = to_qdq(model := build(QKV), planned(model))
    ops = {n.name: n.op for n in lower_dynamic(stored, ["k"]).view().nodes}
    assert (ops["q"], ops["k"], ops["v"]) == ("MatMul", "MatMulInteger", "MatMul")


# --- recurrent layers ------------------------------------------------------------------------


def recurrent(op: str, gates: int, directions: int, extra: str = "", attrs: str = "") -> str:
    """A layer of 24 inputs and 64 units; ``extra`` are further operands."""
    attributes = f"hidden_size = 64{attrs and ', '}{attrs}"
    if directions == 2:
        attributes += ', direction = "bidirectional"'
    cell = ", c" if op == "LSTM" else ""
    d, rows = directions, 64 * gates
    return f"""g (float[S,B,24] x, int32[B] steps, float[{d},B,64] h0, float[{d},B,64] c0)
        => (float y, float h{cell and ", float c"})
    <float[{d},{rows},24] w = seeded, float[{d},{rows},64] r = seeded,
     float[{d},{2 * rows}] b = seeded, float[{d},{rows - 64}] p = seeded>
    {{ [it] y, h{cell} = {op} <{attributes}> (x, w, r{extra}) }}"""


FEED = {
    "x": noise(9, 3, 24),
    "steps": np.array([9, 4, 7], np.int32),
    "h0": 0.3 * noise(2, 3, 64, seed=1),
    "c0": 0.3 * noise(2, 3, 64, seed=2),
}


def feed_of(directions: int) -> dict[str, np.ndarray]:
    return {name: v[:directions] if name in ("h0", "c0") else v for name, v in FEED.items()}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("directions", "extra", "attrs"),
    [
        (1, "", ""),
        (2, "", ""),
        (1, ", b", "clip = 0.8"),
        (1, ", b, steps", 'direction = "reverse"'),
        (1, ", b", 'activations = ["Sigmoid", "Softsign", "Tanh"]'),
        (1, ", b, steps, h0, c0", ""),
        (2, ", b, steps, h0, c0", ""),
        (2, ", b, , h0, c0, p", ""),
    ],
)
def test_lstm_follows_the_float_one(build, directions, per_channel, extra, attrs) -> None:
    model = build(recurrent("LSTM", 4, directions, extra, attrs))
    made = dynamic(model, Recipe(precision="int8-dynamic", per_channel=per_channel))
    (node,) = made.view().nodes
    assert (node.name, node.op) == ("it", "DynamicQuantizeLSTM")
    assert {made.view().dtype(tensor) for tensor in node.inputs[1:3]} == {"int8"}
    feed = feed_of(directions)
    wanted, found = Session(model).run(feed), Session(made).run(feed)
    assert min(sqnr_db(wanted[name], found[name]) for name in "yhc") > SEVERAL_LAYERS_DB


def test_directions_keep_their_order(build) -> None:
    """Weights of one direction a hundredth of the other's: mixed up, nothing would be alike."""
    model = build(recurrent("LSTM", 4, 2))
    for name in "wr":
        values = model.view().constant(name).copy()
        values[1] *= 0.01
        model.ir.graph.initializers[name].const_value = ir.tensor(values, name=name)
    feed = feed_of(2)
    wanted, found = Session(model).run(feed)["y"], Session(dynamic(model)).run(feed)["y"]
    assert sqnr_db(wanted[:, 0], found[:, 0]) > SEVERAL_LAYERS_DB


def test_layers_of_one_and_of_two_directions_in_one_model(build) -> None:
    """Zero points of equal layers are one constant; those of other shapes are another."""
    model = build("""g (float[S,B,24] x) => (float h, float k)
        <float[2,256,24] w = seeded, float[2,256,64] r = seeded,
         float[1,256,24] v = seeded, float[1,256,64] s = seeded> {
            [two] , h = LSTM <hidden_size = 64, direction = "bidirectional"> (x, w, r)
            [one] , k = LSTM <hidden_size = 64> (x, v, s) }""")
    made = dynamic(model)
    assert [node.op for node in made.view().nodes] == ["DynamicQuantizeLSTM"] * 2
    feed = {"x": FEED["x"]}
    wanted, found = Session(model).run(feed), Session(made).run(feed)
    assert min(sqnr_db(wanted[name], found[name]) for name in "hk") > SEVERAL_LAYERS_DB


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_layer_without_a_kernel_computes_in_float(build, tmp_path, op, gates, directions) -> None:
    """Rounded weights are all that differs, and nothing runs beside the layer."""
    model = build(recurrent(op, gates, directions, ", b, steps, h0"))
    made = rewrite(model, planned(model))
    assert kernels(made, tmp_path) == {"it": op}
    assert float_values(made) < float_values(model) / 4
    feed = feed_of(directions)
    wanted, found = Session(model).run(feed), Session(made).run(feed)
    assert min(sqnr_db(wanted[name], found[name]) for name in "yh") > WEIGHTS_DB - 6


# --- tables ----------------------------------------------------------------------------------

TABLES = {
    "rows": ("float[200,24] w = seeded", "", 0),
    "columns": ("float[24,200] w = seeded", "<axis = 1>", 1),
    "columns, counted from the end": ("float[24,200] w = seeded", "<axis = -1>", 1),
    "matrices": ("float[200,4,6] w = seeded", "", 0),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("indices", [np.array(3), np.array([[0, 39, -1], [7, 7, -40]])])
@pytest.mark.parametrize("name", TABLES)
def test_rows_are_those_of_the_rounded_table(build, name, indices, per_channel) -> None:
    """The formula of DequantizeLinear, to the last bit, at the rows that are asked for."""
    held, attrs, axis = TABLES[name]
    sizes = ",".join(map(str, indices.shape))
    kind = f"int64[{sizes}]" if sizes else "int64[]"
    model = build(f"g ({kind} i) => (float y) <{held}> {{ [it] y = Gather {attrs} (w, i) }}")
    recipe = Recipe(precision="int8-dynamic", per_channel=per_channel)
    params = planned(model, recipe).tensors["w"]
    table = model.view().constant("w")
    scale = np.array(params.scale, np.float32).reshape(
        [-1 if a == axis and per_channel else 1 for a in range(table.ndim)]
    )
    rounded = np.rint(table / scale).astype(np.float32) * scale
    made = Session(dynamic(model, recipe)).run({"i": indices})["y"]
    np.testing.assert_array_equal(made, np.take(rounded, indices, axis))


def test_table_is_never_dequantized_as_a_whole(build, tmp_path) -> None:
    model = build("""g (int64[N] i) => (float[N,24] y) <float[200,24] w = seeded>
        { [it] y = Gather (w, i) }""")
    made = dynamic(model)
    assert float_values(made) == 200  # one scale a row
    assert Counter(kernels(made, tmp_path).values()) == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert kernels(made, tmp_path)["it"] == "Gather"


def test_table_and_layer_share_a_weight(build) -> None:
    """A language model whose last layer is its table of words, transposed."""
    model = build("""g (int64[N] i) => (float[N,200] y) <float[200,24] w = seeded>
        { [look] e = Gather (w, i) [last] y = Gemm <transB = 1> (e, w) }""")
    made, feed = dynamic(model), {"i": np.arange(9)}
    assert sqnr_db(Session(model).run(feed)["y"], Session(made).run(feed)["y"]) > ONE_LAYER_DB
    assert float_values(made) == 400  # the scales as a row and as a column


# --- fused layers of transformers ------------------------------------------------------------

ATTENTION = {
    "plain": ("num_heads = 4", "x, w, b"),
    "causal": ("num_heads = 4, unidirectional = 1", "x, w, b"),
    "lengths": ("num_heads = 4", "x, w, b, lengths"),
    "scaled": ("num_heads = 2, scale = 0.05", "x, w, b"),
    "masked with a number of its own": ("num_heads = 4, mask_filter_value = -2.0", "x, w, b, mask"),
    "past": ("num_heads = 4, unidirectional = 1", "x, w, b, , past"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_follows_the_float_one(build, tmp_path, name) -> None:
    attrs, operands = ATTENTION[name]
    outputs = "y, present" if "past" in operands else "y"
    told = "float y, float present" if "past" in operands else "float y"
    model = build(f"""{MICROSOFT} g (float[2,6,64] x, int32[2] lengths, int32[2,6] mask,
        float[2,2,4,5,16] past) => ({told})
        <float[64,192] w = seeded, float[192] b = seeded>
        {{ [it] {outputs} = com.microsoft.Attention <{attrs}> ({operands}) }}""")
    mask = np.ones((2, 6), np.int32)
    mask[1, 4:] = 0
    feed = {
        "x": noise(2, 6, 64), "lengths": np.array([6, 4], np.int32), "mask": mask,
        "past": noise(2, 2, 4, 5, 16, seed=1),
    }  # fmt: skip
    made = dynamic(model)
    assert kernels(made, tmp_path)["it"] == "QAttention"
    wanted, found = Session(model).run(feed), Session(made).run(feed)
    assert min(sqnr_db(wanted[n], found[n]) for n in wanted) > SEVERAL_LAYERS_DB


@pytest.mark.parametrize("operands", ["i, j, w, p, s, g, b, mask", "i, , w, p, , g, b"])
def test_embedding_follows_the_float_one(build, tmp_path, operands) -> None:
    """Tables and gain have one scale each: 35 dB for the widest table, 127 steps for all rows."""
    model = build(f"""{MICROSOFT} g (int32[2,6] i, int32[2,6] j, int32[2,6] mask)
        => (float[2,6,32] y, int32[2] m)
        <float[150,32] w = seeded, float[8,32] p = seeded, float[2,32] s = seeded,
         float[32] g = seeded, float[32] b = seeded>
        {{ [it] y, m = com.microsoft.EmbedLayerNormalization <epsilon = 0.2> ({operands})
        }}""")
    ids = np.random.RandomState(0).randint(0, 150, (2, 6)).astype(np.int32)
    feed = {"i": ids, "j": ids % 2, "mask": np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32)}
    made = dynamic(model)
    assert kernels(made, tmp_path) == {"it": "QEmbedLayerNormalization"}
    assert float_values(made) == len([1 for t in operands.split(", ") if t in set("wpsgb")])
    wanted, found = Session(model).run(feed), Session(made).run(feed)
    np.testing.assert_array_equal(found["m"], wanted["m"])
    assert sqnr_db(wanted["y"], found["y"]) > SEVERAL_LAYERS_DB


# --- whole models ----------------------------------------------------------------------------

BLOCK = """g (int64[N,S] ids) => (float[N,S,64] y)
<float[64,64] words = seeded, float[64,64] wq = seeded, float[64,64] wk = seeded,
 float[64,64] wv = seeded, float[64,64] wo = seeded, float[64,128] w1 = seeded,
 float[128] b1 = seeded, float[128,64] w2 = seeded, float[64] b2 = seeded, float[64] gain = seeded,
 float[64] shift = seeded, int64[4] split = {0, 0, 4, 16}, int64[3] join = {0, 0, 64},
 float root = {4}, float one = {1}, float half = {0.5}, float sqrt2 = {1.414214}> {
    [words] x = Gather (words, ids)
    [q] q0 = MatMul (x, wq) [k] k0 = MatMul (x, wk) [v] v0 = MatMul (x, wv)
    q1 = Reshape (q0, split) k1 = Reshape (k0, split) v1 = Reshape (v0, split)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1) k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    s0 = MatMul (q2, k2) s1 = Div (s0, root) s2 = Softmax <axis = -1> (s1) a0 = MatMul (s2, v2)
    a1 = Transpose <perm = [0, 2, 1, 3]> (a0) a2 = Reshape (a1, join)
    [o] a3 = MatMul (a2, wo) r = Add (a3, x)
    n = LayerNormalization <axis = -1> (r, gain, shift)
    [up] f0 = MatMul (n, w1) f1 = Add (f0, b1)
    g0 = Div (f1, sqrt2) g1 = Erf (g0) g2 = Add (g1, one) g3 = Mul (f1, g2) g4 = Mul (g3, half)
    [down] f2 = MatMul (g4, w2) f3 = Add (f2, b2) y = Add (f3, n) }"""


def test_block_of_a_transformer(build, tmp_path) -> None:
    model = build(BLOCK)
    made = dynamic(model)
    found = kernels(made, tmp_path)
    assert {found[name] for name in ("q", "k", "v")} == {"MatMulIntegerToFloat"}
    assert {found[name] for name in ("o", "up", "down")} == {"DynamicQuantizeMatMul"}
    assert found["words"] == "Gather"
    for shape in ((1, 3), (4, 11)):
        feed = {"ids": np.random.RandomState(0).randint(0, 64, shape)}
        wanted, made_of = Session(model).run(feed)["y"], Session(made).run(feed)["y"]
        assert sqnr_db(wanted, made_of) > SEVERAL_LAYERS_DB


def test_recurrent_classifier(build) -> None:
    """Words, an LSTM in both directions, and a layer on its last states."""
    model = build("""g (int64[S,B] ids) => (float[B,40] y)
        <float[200,24] words = seeded, float[2,256,24] w = seeded, float[2,256,64] r = seeded,
         float[2,512] b = seeded, float[40,128] v = seeded, float[40] c = seeded,
         int64[2] flat = {-1, 128}> {
            [words] x = Gather (words, ids)
            [lstm] , h = LSTM <hidden_size = 64, direction = "bidirectional"> (x, w, r, b)
            t = Transpose <perm = [1, 0, 2]> (h) f = Reshape (t, flat)
            [head] y = Gemm <transB = 1> (f, v, c) }""")
    made = dynamic(model)
    ops = {n.name: n.op for n in made.view().nodes}
    assert [ops[n] for n in ("words", "lstm", "head")] == [
        "Gather", "DynamicQuantizeLSTM", "MatMulInteger",
    ]  # fmt: skip
    feed = {"ids": np.random.RandomState(0).randint(0, 200, (12, 3))}
    assert sqnr_db(Session(model).run(feed)["y"], Session(made).run(feed)["y"]) > SEVERAL_LAYERS_DB


def test_static_and_dynamic_layers_in_one_model(build, ranges_of, tmp_path) -> None:
    """A Conv between pairs, and a MatMul behind it that quantizes what the pair lets through."""
    model = build("""g (float[1,3,8,8] x) => (float[1,4,8,512] y)
        <float[4,3,3,3] k = seeded, float[8,512] w = seeded> {
            c = Conv <pads = [1, 1, 1, 1]> (x, k) r = Relu (c) [it] y = MatMul (r, w) }""")
    feed = {"x": noise(1, 3, 8, 8)}
    target = get_target(default_target())
    recipe, census = Recipe(precision="int8", keep_float=("it",)), classify(model.view(), target)
    ranges = ranges_of(model, tuple("xcr"), feed)
    static, moving = make_plan(model.view(), census, ranges, recipe, target), planned(model)
    mixed = with_fields(
        static,
        nodes=(*static.nodes[:-1], moving.nodes[-1]),
        tensors=static.tensors | {"w": moving.tensors["w"]},
    )
    made = lower_dynamic(to_qdq(model, mixed), ["it"])
    found = kernels(made, tmp_path)
    assert found["it"] == "DynamicQuantizeMatMul"
    assert "QLinearConv" in found.values()
    assert sqnr_db(Session(model).run(feed)["y"], Session(made).run(feed)["y"]) > SEVERAL_LAYERS_DB
