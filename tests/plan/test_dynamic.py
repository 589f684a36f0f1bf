"""Which nodes compute dynamically, why others do not, and the scales of what they store."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.ops import classify
from onnxq.plan import Recipe, WeightSettings, make_plan
from onnxq.plan.dynamic import refuse_dynamic
from onnxq.targets import get_target
from onnxq.types import Precision, QType

TARGET = get_target("cpu-x86")
HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


def plan_of(model, **recipe):
    census = classify(model.view(), TARGET)
    recipe = Recipe(precision="int8-dynamic", **recipe)
    return make_plan(model.view(), census, {}, recipe, TARGET)


@pytest.fixture
def plan(build):
    """The plan of text: inputs, nodes and initializers of one graph."""

    def make(inputs: str, body: str, initializers: str = "", *, out: str = "float y", **recipe):
        held = f"<{initializers}>" if initializers else ""
        return plan_of(build(f"{HEAD} g ({inputs}) => ({out}) {held} {{ {body} }}"), **recipe)

    return make


def node_of(plan):
    (found,) = (node for node in plan.nodes if node.name == "it")
    return found


X, W = "float[4,64] x", "float[64,64] w = seeded"
IMAGE = "float[1,16,4,4] x"
LSTM = "float[1,256,16] w = seeded, float[1,256,64] r = seeded"
GRU = "float[1,192,16] w = seeded, float[1,192,64] r = seeded"
QKV = "float[64,192] w = seeded, float[192] b = seeded"
EMBEDDING = (
    "float[300,16] w = seeded, float[8,16] p = seeded, float[2,16] s = seeded, "
    "float[16] g = seeded, float[16] b = seeded"
)
SEQUENCE, TOKENS = "float[3,2,16] x", "int32[2,6] i, int32[2,6] j"
DYNAMIC = {
    "matmul": (X, "[it] y = MatMul (x, w)", W),
    "batched weight": (X, "[it] y = MatMul (x, w)", "float[3,64,64] w = seeded"),
    "gemm": (X, "[it] y = Gemm (x, w)", W),
    "gemm with a bias of the run": (f"{X}, float[64] b", "[it] y = Gemm (x, w, b)", W),
    "gemm, transposed": (X, "[it] y = Gemm <transB = 1> (x, w)", W),
    "lstm": (SEQUENCE, "[it] y = LSTM <hidden_size = 64> (x, w, r)", LSTM),
    "gather": ("int64[N] i", "[it] y = Gather (w, i)", W),
    "attention": (
        "float[2,6,64] x", "[it] y = com.microsoft.Attention <num_heads = 4> (x, w, b)", QKV,
    ),
    "embedding": (
        TOKENS, "[it] y, m = com.microsoft.EmbedLayerNormalization (i, j, w, p, s, g, b)",
        EMBEDDING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DYNAMIC)
def test_layer_computes_dynamically(plan, name) -> None:
    node = node_of(plan(*DYNAMIC[name]))
    assert (node.precision, node.reason) == (Precision.INT8_DYNAMIC, None)


STORED = {
    "gru": (SEQUENCE, "[it] y = GRU <hidden_size = 64> (x, w, r)", GRU),
    "rnn": (
        SEQUENCE, "[it] y = RNN <hidden_size = 64> (x, w, r)",
        "float[1,64,16] w = seeded, float[1,64,64] r = seeded",
    ),
    "bodies": (
        f"{X}, bool c",
        "[it] y = If (c) <then_branch = t () => (float p) { p = MatMul (x, w) },"
        " else_branch = e () => (float q) { q = Neg (x) }>", W,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_layer_without_a_kernel_says_that_it_computes_in_float(plan, name) -> None:
    """With the very scales that a dynamic layer would have, whatever is said of blocks."""
    made = plan(*STORED[name], weights=WeightSettings(block_size=32))
    node = node_of(made)
    assert (node.precision, node.reason) == (Precision.INT8_WEIGHTS, None)
    assert made.blocks == {}
    assert {params.qtype for params in made.tensors.values()} == {QType.INT8}


def test_choice_of_a_kernel_that_there_is_not_is_refused(build) -> None:
    model = build(
        f"g ({SEQUENCE}) => (float y) <{GRU}> {{ [it] y = GRU <hidden_size = 64> (x, w, r) }}"
    )
    (info,) = classify(model.view(), TARGET).nodes
    assert refuse_dynamic(model.view(), info).code == "no-dynamic-kernel"


REFUSED = {
    "no-dynamic-kernel of a Conv": (
        IMAGE, "[it] y = Conv (x, w)", "float[16,16,1,1] w = seeded",
    ),
    "no-dynamic-kernel of a ConvTranspose": (
        IMAGE, "[it] y = ConvTranspose (x, w)", "float[16,16,1,1] w = seeded",
    ),
    "no-dynamic-kernel of three projections": (
        "float[2,6,64] x", "[it] y = com.microsoft.MultiHeadAttention <num_heads = 4> (x)", "",
    ),
    "no-dynamic-kernel of an Add": (X, "[it] y = Add (x, x)", ""),
    "constant-left": ("float[64,4] x", "[it] y = MatMul (w, x)", W),
    "weight-not-constant": (X, "t = Transpose (x) [it] y = MatMul (x, t)", ""),
    "weight-not-constant of a Gemm": (f"{X}, float[64,64] w", "[it] y = Gemm (x, w)", ""),
    "weight-not-constant of one half": (
        f"{SEQUENCE}, float[1,256,64] r", "[it] y = LSTM <hidden_size = 64> (x, w, r)",
        "float[1,256,16] w = seeded",
    ),
    "weight-not-constant of a shape": (
        "int64[N] i", "[it] y = Gather (s, i)", "int64[3] s = {1, 2, 3}",
    ),
    "vector-operand": (X, "[it] y = MatMul (x, w)", "float[64] w = seeded"),
    "gemm-attributes": (X, "[it] y = Gemm <alpha = 0.5> (x, w)", W),
    "gemm-attributes transA": ("float[64,4] x", "[it] y = Gemm <transA = 1> (x, w)", W),
    "lstm-layout": (
        "float[2,3,16] x", "[it] y = LSTM <hidden_size = 64, layout = 1> (x, w, r)", LSTM,
    ),
    "short-rows": ("int64[N] i", "[it] y = Gather (w, i)", "float[1500,4] w = seeded"),
    "short-rows of an axis": (
        "int64[N] i", "[it] y = Gather <axis = -1> (w, i)", "float[4,1500] w = seeded",
    ),
    "attention-inputs": (
        "float[2,6,64] x", "[it] y = com.microsoft.Attention <num_heads = 4> (x, w)", QKV,
    ),
    "attention-inputs bias of the scores": (
        "float[2,6,64] x, float[2,4,6,6] a",
        "[it] y = com.microsoft.Attention <num_heads = 4> (x, w, b, , , a)", QKV,
    ),
    "attention-inputs other sizes": (
        "float[2,6,64] x",
        "[it] y = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [64, 64, 64]>"
        "(x, w, b)", QKV,
    ),
    "embedding-inputs": (
        f"{TOKENS}, int32[2,6] at",
        "[it] y, m = com.microsoft.EmbedLayerNormalization (i, j, w, p, s, g, b, , at)", EMBEDDING,
    ),
    "embedding-outputs": (
        TOKENS, "[it] y, m, e = com.microsoft.EmbedLayerNormalization (i, j, w, p, s, g, b)",
        EMBEDDING,
    ),
    "small-weight": (X, "[it] y = MatMul (x, w)", "float[64,63] w = seeded"),
    "small-weight of an LSTM": (
        SEQUENCE, "[it] y = LSTM <hidden_size = 56> (x, w, r)",
        "float[1,224,16] w = seeded, float[1,224,56] r = seeded",
    ),
    "empty-weight": ("float[4,0] x", "[it] y = MatMul (x, w)", "float[0,2] w = {}"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_layer_stays_float_with_its_reason(plan, name) -> None:
    made = plan(*REFUSED[name])
    node = node_of(made)
    assert node.precision is Precision.FLOAT
    assert node.reason is not None
    assert (node.reason.code, node.reason.node) == (name.split()[0], "it")
    assert made.tensors == {}


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weight_that_is_not_finite_stays(build, value) -> None:
    model = build(
        f"g ({SEQUENCE}) => (float y) <{LSTM}> {{ y = LSTM <hidden_size = 64> (x, w, r) }}"
    )
    array = model.view().constant("r").copy()
    array.flat[7] = value
    model.ir.graph.initializers["r"].const_value = ir.tensor(array, name="r")
    (node,) = plan_of(model).nodes
    assert node.reason.code == "weight-not-finite"


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("matmul", {"w": 1}),
        ("batched weight", {"w": None}),
        ("gemm, transposed", {"w": 0}),
        ("lstm", {"w": 1, "r": 1}),
        ("gather", {"w": 0}),
        ("attention", {"w": 1}),
        ("embedding", dict.fromkeys("wpsgb")),
    ],
)
def test_stored_weights_and_their_channels(plan, name, axes) -> None:
    made = plan(*DYNAMIC[name])
    assert {tensor: params.axis for tensor, params in made.tensors.items()} == axes
    assert all(set(params.zero_point) == {0} for params in made.tensors.values())
    plain = plan(*DYNAMIC[name], per_channel=False)
    assert all(params.axis is None for params in plain.tensors.values())


def test_scales_are_the_largest_of_a_channel_by_127(build) -> None:
    model = build(
        f"g ({SEQUENCE}) => (float y) <{LSTM}> {{ y = LSTM <hidden_size = 64> (x, w, r) }}"
    )
    for name, params in plan_of(model).tensors.items():
        largest = np.abs(model.view().constant(name)).max(axis=(0, 2))
        np.testing.assert_allclose(params.scale, largest / 127, rtol=1e-6)


@pytest.mark.parametrize(("attrs", "axis"), [("<transB = 1>", 0), ("", None)])
def test_shared_weight_has_channels_where_its_nodes_agree(plan, attrs, axis) -> None:
    made = plan("int64[N] i", f"t = Gather (w, i) [it] y = Gemm {attrs} (t, w)", W)
    assert made.tensors["w"].axis == axis


def test_node_that_is_kept_float_says_so(plan) -> None:
    node = node_of(plan(*DYNAMIC["matmul"], keep_float=("it",)))
    assert node.precision is Precision.FLOAT
