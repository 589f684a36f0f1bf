"""Every operator has a role; every refusal has its code and its cause."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.ops import OPERATORS, Role, classify
from onnxq.targets import TARGETS, Kernel, get_target

TARGET = get_target("cpu-x86")
ROLES = {
    Role.COMPUTE: "Conv ConvTranspose Gemm MatMul LSTM GRU RNN com.microsoft::Attention "
    "com.microsoft::MultiHeadAttention",
    Role.ELEMENTWISE: "Add Mul Sub Div Min Max Sum",
    Role.JOIN: "Concat Where",
    Role.CLAMP: "Relu Clip",
    Role.ACTIVATION: "LeakyRelu PRelu Sigmoid Tanh HardSwish HardSigmoid Softmax Gelu",
    Role.POOL: "AveragePool GlobalAveragePool ReduceMean",
    Role.MOVE: "MaxPool Resize Pad Reshape Flatten Transpose Squeeze Unsqueeze Slice Gather "
    "Expand Tile DepthToSpace SpaceToDepth Split",
    Role.NORM: "LayerNormalization InstanceNormalization com.microsoft::EmbedLayerNormalization",
}


@pytest.fixture
def judge(build):
    """The census entry of the node called ``it``, in a graph of given inputs and body."""

    def one(inputs: str, body: str, initializers: str = "", *, out: str = "float y"):
        held = f"<{initializers}>" if initializers else ""
        model = build(f"g ({inputs}) => ({out}) {held} {{ {body} }}")
        (found,) = (n for n in classify(model.view(), TARGET).nodes if n.name == "it")
        return found

    return one


@pytest.mark.parametrize(
    ("op", "role"), [(op, role) for role, ops in ROLES.items() for op in ops.split()]
)
def test_operator_has_its_role(op, role) -> None:
    assert OPERATORS[op].role is role


def test_no_operator_is_unlisted_here() -> None:
    assert set(OPERATORS) == {op for ops in ROLES.values() for op in ops.split()}


def test_targets_speak_of_known_operators() -> None:
    for target in TARGETS.values():
        assert set(target.operators) <= set(OPERATORS)
        assert all(s.why for s in target.operators.values() if s.kernel is Kernel.FLOAT)


X = "float[1,2,4,4] x"
W = "float[2,2,1,1] w = {1, 2, 3, 4}"
QUANTIZABLE = {
    "conv": (X, "[it] y = Conv (x, w, b)", f"{W}, float[2] b = {{0, 1}}"),
    "gemm": ("float[1,4] x", "[it] y = Gemm (x, w)", "float[4,2] w = seeded"),
    "gemm bias of one row": (
        "float[1,4] x", "[it] y = Gemm (x, w, b)",
        "float[4,2] w = seeded, float[1,2] b = {0, 1}",
    ),
    "matmul": ("float[1,4] x", "[it] y = MatMul (x, w)", "float[4,2] w = seeded"),
    "two activations": ("float[4,4] x", "[it] y = MatMul (x, x)", ""),
    "add": (X, "[it] y = Add (x, c)", "float[1] c = {1}"),
    "where": (X, "t = Greater (x, c) [it] y = Where (t, x, c)", "float[1] c = {1}"),
    "clip of one side": (X, "[it] y = Clip (x, , c)", "float c = {1}"),
    "nearest": (X, "[it] y = Resize (x, , s)", "float[4] s = {1, 1, 2, 2}"),
    "maxpool": (X, "[it] y = MaxPool <kernel_shape = [2, 2]> (x)", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_ordinary_node_is_quantizable(judge, name) -> None:
    node = judge(*QUANTIZABLE[name])
    assert node.quantizable, node.reason


CLIP = "float low = {0}, float high = {6}"
REFUSED = {
    "unknown-operator": (X, "[it] y = Erf (x)", ""),
    "control-flow": (
        "bool c, float[1,2,4,4] x",
        "[it] y = If (c) <then_branch = a () => (float p) { p = Relu (x) },"
        "else_branch = b () => (float q) { q = Neg (x) }>",
        "",
    ),
    "fused-float": (
        X,
        "d = Div (x, c) e = Erf (d) [it] a = Add (e, c) m = Mul (x, a) y = Mul (m, c)",
        "float c = {1}",
    ),
    "no-int8-kernel": (X, "[it] y = Tanh (x)", ""),
    "no-int8-kernel of an interpolation": (
        X, '[it] y = Resize <mode = "linear"> (x, , s)', "float[4] s = {1, 1, 2, 2}",
    ),
    "not-float32": ("int64[4] x", "[it] y = Reshape (x, n)", "int64[2] n = {2, 2}"),
    "not-float32 of a double": ("double[4] x", "[it] y = Add (x, x)", ""),
    "constant-input": (X, "[it] t = Relu (w) y = Conv (x, t)", W),
    "weight-not-constant": (f"{X}, float[2,2,1,1] w", "[it] y = Conv (x, w)", ""),
    "weight-not-constant of a Gemm": (
        "float[1,4] x, float[4,2] w", "[it] y = Gemm (x, w)", "",
    ),
    "gemm-attributes": ("float[1,4] x", "[it] y = Gemm <alpha = 0.5> (x, w)",
                        "float[4,2] w = seeded"),
    "gemm-attributes beta": ("float[1,4] x", "[it] y = Gemm <beta = 0.5> (x, w)",
                             "float[4,2] w = seeded"),
    "gemm-attributes transA": ("float[4,1] x", "[it] y = Gemm <transA = 1> (x, w)",
                               "float[4,2] w = seeded"),
    "bias-not-constant": (f"{X}, float[2] b", "[it] y = Conv (x, w, b)", W),
    "bias-shape": ("float[1,4] x", "[it] y = Gemm (x, w, b)",
                   "float[4,2] w = seeded, float[1] b = {1}"),
    "constant-left": ("float[4,4] x", "[it] y = MatMul (w, x)", "float[4,4] w = seeded"),
    "vector-operand": ("float[4,4] x", "[it] y = MatMul (x, w)", "float[4] w = {1, 2, 3, 4}"),
    "limits-not-constant": (f"{X}, float high", "[it] y = Clip (x, , high)", ""),
    "indices": (X, "[it] y, i = MaxPool <kernel_shape = [2, 2]> (x)", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_has_its_code(judge, name) -> None:
    node = judge(*REFUSED[name])
    assert node.reason is not None
    assert node.reason.code == name.split()[0]
    assert node.reason.node == "it"
    assert node.reason.sentence


def not_finite(build, text: str, name: str, value: float):
    """Text cannot say infinity or NaN."""
    model = build(text)
    array = model.view().constant(name).copy()
    array.flat[0] = value
    model.ir.graph.initializers[name].const_value = ir.tensor(array, name=name)
    (node,) = classify(model.view(), TARGET).nodes
    return node


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    ("spoiled", "body", "code"),
    [
        ("w", "y = Conv (x, w, b)", "weight-not-finite"),
        ("b", "y = Conv (x, w, b)", "bias-not-finite"),
        ("w", "y = Add (x, w)", "constant-not-finite"),
        ("w", "y = Concat <axis = 0> (x, w)", "constant-not-finite"),
    ],
)
def test_infinities_in_constants_are_refused(build, value, spoiled, body, code) -> None:
    text = f"g (float[2,2,4,4] x) => (float y) <{W}, float[2] b = {{0, 1}}> {{ {body} }}"
    if "b" not in body.split("(")[1]:
        text = text.replace(", float[2] b = {0, 1}", "")
    assert not_finite(build, text, spoiled, value).reason.code == code


def test_empty_constant_operand_is_refused(judge) -> None:
    node = judge("float[1,4] x", "[it] y = Concat <axis = 0> (x, e)", "float[0,4] e = {}")
    assert node.reason.code == "empty-constant"


def test_empty_weight_is_refused(judge) -> None:
    node = judge("float[1,0] x", "[it] y = MatMul (x, w)", "float[0,2] w = {}")
    assert node.reason.code == "empty-weight"


def test_operator_of_another_domain_is_unknown(build) -> None:
    model = build("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[4] x) => (float[4] y) { y = com.microsoft.Gelu (x) }""")
    (node,) = classify(model.view(), TARGET).nodes
    assert (node.op, node.reason.code, node.role) == (
        "com.microsoft::Gelu", "unknown-operator", Role.OTHER,
    )  # fmt: skip


def test_inputs_are_told_apart(judge) -> None:
    conv = judge(X, "[it] y = Conv (x, w, b)", f"{W}, float[2] b = {{0, 1}}")
    assert (conv.data, conv.weight, conv.bias) == (((0, "x"),), (1, "w"), (2, "b"))
    assert (conv.outputs, conv.constants) == (("y",), ())
    add = judge(X, "[it] y = Add (c, x)", "float[1] c = {1}")
    assert (add.data, add.constants, add.weight) == (((1, "x"),), ((0, "c"),), None)
    product = judge("float[4,4] x, float[4,4] z", "[it] y = MatMul (x, z)")
    assert (product.data, product.weight) == (((0, "x"), (1, "z")), None)
    choice = judge(X, "t = Greater (x, c) [it] y = Where (t, x, c)", "float[1] c = {1}")
    assert (choice.data, choice.constants) == (((1, "x"),), ((2, "c"),))


@pytest.mark.parametrize(
    ("body", "weight", "axis"),
    [
        ("Conv (x, w)", "float[2,2,1,1] w = seeded", 0),
        ("Conv <group = 2> (x, w)", "float[4,1,1,1] w = seeded", 0),
        ("ConvTranspose (x, w)", "float[2,3,1,1] w = seeded", 1),
        ("ConvTranspose <group = 2> (x, w)", "float[2,3,1,1] w = seeded", None),
        ("Gemm (x, w)", "float[4,2] w = seeded", 1),
        ("Gemm <transB = 1> (x, w)", "float[2,4] w = seeded", 0),
        ("MatMul (x, w)", "float[4,2] w = seeded", 1),
        ("MatMul (x, w)", "float[2,4,2] w = seeded", None),
    ],
)
def test_channel_axis(judge, body, weight, axis) -> None:
    shape = "float[1,4] x" if "Gemm" in body else X
    assert judge(shape, f"[it] y = {body}", weight).channel_axis == axis


def test_weight_of_a_float_layer_can_still_be_stored(judge) -> None:
    node = judge(X, "[it] y = ConvTranspose (x, w)", "float[2,3,1,1] w = seeded")
    assert not node.quantizable
    assert [s.tensor for s in node.stored] == ["w"]


RECURRENT = "float[1,8,4] w = seeded, float[1,8,2] r = seeded"
EMBEDDING = (
    "float[9,4] w = seeded, float[9,4] p = seeded, float[2,4] s = seeded, "
    "float[4] g = seeded, float[4] b = seeded"
)
STORED = {
    "conv": (X, "Conv (x, w, b)", f"{W}, float[2] b = {{0, 1}}", {"w": (1, 0)}),
    "gemm": ("float[1,4] x", "Gemm <transB = 1> (x, w)", "float[2,4] w = seeded", {"w": (1, 0)}),
    "left": ("float[4,4] x", "MatMul (w, x)", "float[4,4] w = seeded", {}),
    "lstm": (
        "float[3,1,4] x", "LSTM <hidden_size = 2> (x, w, r)", RECURRENT,
        {"w": (1, 1), "r": (2, 1)},
    ),
    "half a gru": (
        "float[3,1,4] x, float[1,6,2] r", "GRU <hidden_size = 2> (x, w, r)",
        "float[1,6,4] w = seeded", {},
    ),
    "table": ("int64[3] i", "Gather (w, i)", "float[4,2] w = seeded", {"w": (0, 0)}),
    "columns": ("int64[3] i", "Gather <axis = -1> (w, i)", "float[4,2] w = seeded", {"w": (0, -1)}),
    "whole numbers": ("int64[3] i", "Gather (w, i)", "int64[2] w = {1, 2}", {}),
    "attention": (
        "float[1,3,4] x", "com.microsoft.Attention <num_heads = 2> (x, w, b)",
        "float[4,12] w = seeded, float[12] b = seeded", {"w": (1, 1)},
    ),
    "embedding": (
        "int32[1,3] i", "com.microsoft.EmbedLayerNormalization (i, , w, p, , g, b)", EMBEDDING,
        {"w": (2, None), "p": (3, None), "g": (5, None), "b": (6, None)},
    ),
    "projected": (
        "float[1,3,4] x", "com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x)", "", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_constants_that_can_be_stored_as_integers(build, name) -> None:
    inputs, body, held, expected = STORED[name]
    held = f"<{held}>" if held else ""
    model = build(f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g ({inputs}) => (float y) {held} {{ y = {body} }}""")
    (node,) = classify(model.view(), TARGET).nodes
    assert {s.tensor: (s.port, s.axis) for s in node.stored} == expected


@pytest.mark.parametrize("name", ["lstm", "attention", "embedding", "projected"])
def test_layer_without_a_static_kernel_says_so(build, name) -> None:
    inputs, body, held, _ = STORED[name]
    held = f"<{held}>" if held else ""
    model = build(f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g ({inputs}) => (float y) {held} {{ y = {body} }}""")
    (node,) = classify(model.view(), TARGET).nodes
    assert node.reason.code == "no-int8-kernel"


# --- patterns --------------------------------------------------------------------------------

ERF_GELU = """
    d = Div (x, root) e = Erf (d) [one] a = Add (e, c1)
    [scale] m = Mul (x, a) [half] y = Mul (m, c05)"""
CONSTANTS = "float c1 = {1}, float c05 = {0.5}, float root = {1.41421}, float c3 = {3}, "
CONSTANTS += "float k = {0.044715}, float r = {0.79788}, float eps = {0.00001}, "
CONSTANTS += "float[4] gain = {1, 2, 3, 4}, float[4] shift = {1, 2, 3, 4}"
PATTERNS = {
    "erf gelu": (ERF_GELU, "one scale half"),
    "erf gelu, half first": (
        """[half] h = Mul (x, c05) d = Div (x, root) e = Erf (d) [one] a = Add (e, c1)
        [scale] y = Mul (h, a)""",
        "half one scale",
    ),
    "tanh gelu": (
        """p = Pow (x, c3) [cubic] q = Mul (p, k) [sum] s = Add (x, q) [root] u = Mul (s, r)
        t = Tanh (u) [one] a = Add (t, c1) [scale] m = Mul (x, a) [half] y = Mul (m, c05)""",
        "cubic sum root one scale half",
    ),
    "tanh gelu, cube as products": (
        """[square] p2 = Mul (x, x) [cube] p3 = Mul (x, p2) [cubic] q = Mul (k, p3)
        [sum] s = Add (x, q) [root] u = Mul (s, r) t = Tanh (u) [one] a = Add (t, c1)
        [half] h = Mul (x, c05) [scale] y = Mul (h, a)""",
        "cubic sum root one half scale",
    ),
    "layer norm": (
        """mean = ReduceMean <axes = [-1]> (x) centred = Sub (x, mean) sq = Pow (centred, c3)
        var = ReduceMean <axes = [-1]> (sq) [epsilon] v = Add (var, eps) sd = Sqrt (v)
        n = Div (centred, sd) [gain] g2 = Mul (n, gain) [shift] y = Add (g2, shift)""",
        "epsilon gain shift",
    ),
}


def fused(build, body: str) -> set[str]:
    model = build(f"g (float[2,4] x) => (float[2,4] y) <{CONSTANTS}> {{ {body} }}")
    nodes = classify(model.view(), TARGET).nodes
    return {n.name for n in nodes if n.reason and n.reason.code == "fused-float"}


@pytest.mark.parametrize("name", PATTERNS)
def test_float_pattern_is_left_whole(build, name) -> None:
    """At least these nodes, which would be quantized one by one, belong to the pattern."""
    body, members = PATTERNS[name]
    assert set(members.split()) <= fused(build, body)


@pytest.mark.parametrize(
    "body",
    [
        "[sigmoid] s = Sigmoid (x) [mul] y = Mul (s, s)",
        "[sigmoid] s = Sigmoid (x) [add] y = Add (x, s)",
        "[tanh] t = Tanh (x) [mul] y = Mul (x, t)",
        "[root] s = Sqrt (x) [mul] y = Mul (s, gain)",
        "[add] v = Add (x, eps) [root] s = Sqrt (v) [mul] y = Mul (s, gain)",
    ],
)
def test_what_only_looks_like_a_pattern_is_not_one(build, body) -> None:
    assert fused(build, body) == set()


def test_pattern_leaves_its_neighbours_alone(build) -> None:
    found = fused(build, f"[before] b = Add (x, shift) {ERF_GELU.replace('x,', 'b,')}".replace(
        "y = Mul (m, c05)", "z = Mul (m, c05) [after] y = Add (z, shift)"
    ))  # fmt: skip
    assert "half" in found
    assert not {"before", "after"} & found


# --- bodies ----------------------------------------------------------------------------------

HELD_OUTSIDE = (
    "float[4,4] w = seeded, float[1,8,4] k = seeded, float[1,8,2] r = seeded, "
    "float[2,2,3,3] c = seeded, float[4,4] bad = {nan, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}"
)
# What the body of an If does with what lies outside: (axis of channels, axis of blocks) by name.
IN_BODIES = {
    "matmul": ("p = MatMul (x, w)", {"w": (1, 0)}),
    "gemm": ("p = Gemm (x, w)", {"w": (1, 0)}),
    "gemm transposed": ("p = Gemm <transB = 1> (x, w)", {"w": (0, 1)}),
    "table": ("p = Gather (w, i)", {"w": (0, 1)}),
    "lstm": (
        "s = Unsqueeze (x, one) p, h = LSTM <hidden_size = 2> (s, k, r)",
        {"k": (1, 2), "r": (1, 2)},
    ),
    "conv": ("s = Reshape (x, image) p = Conv (s, c)", {"c": (0, None)}),
    "tied table": ("e = Gather (w, i) p = Gemm <transB = 1> (e, w)", {"w": (0, 1)}),
    "uses that disagree": ("t = MatMul (x, w) p = Gemm <transB = 1> (t, w)", {"w": (None, None)}),
    "left operand": ("p = MatMul (w, x)", {}),
    "also no weight": ("t = MatMul (x, w) p = Add (t, w)", {}),
    "only passed through an operator": ("p = Transpose (w)", {}),
    "not finite": ("p = MatMul (x, bad)", {}),
    "made at run time": ("p = MatMul (x, x)", {}),
}  # fmt: skip
IF = """g (bool b, float[4,4] x, int64[4] i) => (float y)
<{held}, int64[1] one = {{1}}, int64[4] image = {{1, 2, 2, 4}}> {{
[it] y = If (b) <then_branch = t () => (float p) {{ {body} }},
                 else_branch = e () => (float q) {{ q = Neg (x) }}> }}"""


@pytest.mark.parametrize("name", IN_BODIES)
def test_constants_that_are_weights_in_bodies_can_be_stored(build, name) -> None:
    body, expected = IN_BODIES[name]
    (node,) = classify(build(IF.format(held=HELD_OUTSIDE, body=body)).view(), TARGET).nodes
    assert {s.tensor: (s.axis, s.summed) for s in node.stored} == expected
    assert {s.port for s in node.stored} <= {-1}
    assert node.reason.code == "control-flow"
    assert node.reason.sentence == "the nodes inside the bodies of If compute in float"


def test_nested_bodies_count_but_not_what_has_the_same_name_there(build) -> None:
    """The inner w is added, which would keep the outer one from being stored."""
    body = """p = If (b) <
        then_branch = tt () => (float r) { r = MatMul (x, w) },
        else_branch = ee () => (float s) <float[1] w = {1}> { s = Add (x, w) }>"""
    (node,) = classify(build(IF.format(held=HELD_OUTSIDE, body=body)).view(), TARGET).nodes
    assert [s.tensor for s in node.stored] == ["w"]
