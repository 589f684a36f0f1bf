"""Leading axes of 1 go away with what only changed them: no bit of the outputs changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import Model, infer_shapes
from onnxq.plan import Recipe
from onnxq.rewrite import rewrite
from onnxq.rewrite.leading_ones import drop_leading_ones, shortened
from onnxq.runtime import Session
from onnxq.types import Form, Precision

# What exporters of Keras models write for one head of attention on one sequence of 6 tokens.
ATTENTION = """
    [down_q] q2 = Reshape (x, flat) [q] q = MatMul (q2, wq) [up_q] q4 = Reshape (q, heads)
    [down_k] k2 = Reshape (x, flat) [k] k = MatMul (k2, wk) [up_k] k4 = Reshape (k, heads)
    [turn] kt = Transpose <perm = [0, 1, 3, 2]> (k4) [scores] s = MatMul (q4, kt)
    [soft] p = Softmax <axis = 3> (s) [mix] a = MatMul (p, q4) [down_a] a2 = Reshape (a, flat)
    [out] o = MatMul (a2, wo) [up_o] o3 = Reshape (o, tokens) [sum] r = Add (x, o3)
    [norm] n = LayerNormalization <axis = 2> (r, scale, bias) [down_n] n2 = Reshape (n, flat)
    [ff] f = Gemm (n2, wf, bf) [up_f] f3 = Reshape (f, tokens) [act] y = Relu (f3)"""
WEIGHTS = """<float[8,8] wq = seeded, float[8,8] wk = seeded, float[8,8] wo = seeded,
    float[8,8] wf = seeded, float[8] bf = seeded, float[8] scale = seeded, float[8] bias = seeded,
    int64[2] flat = {-1, 8}, int64[4] heads = {1, 1, 6, 8}, int64[3] tokens = {1, 6, 8}>"""
BLOCK = f"g (float[1,6,8] x) => (float[1,6,8] y) {WEIGHTS} {{ {ATTENTION} }}"
# Of numbers below 10: a product fused with a Transpose adds up in another order, in units of 1e-6.
FUSED = 5e-6
FEED = {"x": np.random.RandomState(0).standard_normal((1, 6, 8)).astype(np.float32)}


@pytest.fixture
def both(build):
    """A model as it is, and without leading ones."""

    def run(text: str) -> tuple[Model, Model]:
        model = build(text)
        return model, drop_leading_ones(model)

    return run


def same(both: tuple[Model, Model], feed: dict[str, np.ndarray], *, atol: float = 0.0) -> None:
    """The outputs are the same, as written to the last bit, and as ONNX Runtime optimizes it."""
    for level, allowed in (("none", 0.0), ("all", atol)):
        wanted, found = (Session(model, level=level).run(feed) for model in both)
        for name, values in wanted.items():
            assert found[name].shape == values.shape
            np.testing.assert_allclose(found[name], values, rtol=0, atol=allowed)


def operators(model: Model) -> Counter[str]:
    return Counter(node.op for node in model.view().nodes)


def small(nodes: str, *constants: str, x: str = "1,6,8", y: str = "float[a,b,c] y") -> str:
    return f"g (float[{x}] x) => ({y}) <{', '.join(constants)}> {{ {nodes} }}"


def test_shortened_keeps_two_axes() -> None:
    assert shortened((1, 1, 6, 8)) == (6, 8)
    assert shortened((1, 1, 1, 8)) == (1, 8)
    assert shortened((1, 6, 1, 8)) == (6, 1, 8)
    assert shortened((2, 1, 8)) == (2, 1, 8)
    assert shortened((1, 8)) == (1, 8)
    assert shortened((1,)) == (1,)
    assert shortened(()) == ()


def test_block_keeps_two_of_eight_reshapes(both) -> None:
    """One takes the axis off the input, one puts it back before the output."""
    models = both(BLOCK)
    assert [operators(model)["Reshape"] for model in models] == [8, 2]
    view = infer_shapes(models[1]).view()
    assert {view.rank(tensor) for node in view.nodes for tensor in node.outputs} == {2, 3}
    assert view.by_name["turn"].attrs["perm"] == (1, 0)
    assert view.by_name["soft"].attrs["axis"] == view.by_name["norm"].attrs["axis"] == 1
    assert view.outputs == models[0].view().outputs
    same(models, FEED, atol=FUSED)


def test_what_was_apart_is_fused(both, executed) -> None:
    """A MatMul, an Add and a Relu become one Gemm, once all have two axes."""
    nodes = """[down] a = Reshape (x, flat) [mm] b = MatMul (a, w) [up] c = Reshape (b, tokens)
        [add] d = Add (c, bias) [act] e = Relu (d) [end] y = Reshape (e, flat)"""
    text = small(
        nodes,
        *("float[8,8] w = seeded", "float[8] bias = seeded"),
        *("int64[2] flat = {6, 8}", "int64[3] tokens = {1, 6, 8}"),
        y="float[6,8] y",
    )
    models = both(text)
    assert [operators(model)["Reshape"] for model in models] == [3, 2]
    assert [executed(model)["FusedGemm"] for model in models] == [0, 1]


@pytest.mark.parametrize(
    ("nodes", "constants", "left"),
    [
        pytest.param(
            "t = Unsqueeze (x, axes) u = Relu (t) z = Squeeze (u, axes) y = Neg (z)",
            ["int64[2] axes = {0, 1}"],
            ["Relu", "Neg"],
            id="one operator",
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u = Add (t, c) v = Squeeze (u, axes) y = Neg (v)",
            ["int64[1] axes = {0}", "float[1,1,8] c = seeded"],
            ["Add", "Neg"],
            id="constant with more axes",
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u, v = Split <axis = 1> (t, halves) "
            "w = Concat <axis = -2> (v, u, c) z = Squeeze (w, axes) y = Neg (z)",
            ["int64[1] axes = {0}", "int64[2] halves = {2, 4}", "float[1,2,8] c = seeded"],
            ["Split", "Concat", "Neg"],
            id="split and joined",
        ),
        pytest.param(
            "t = Reshape (x, s4) u = Where (c, t, k) v = Mul (u, m) w = Reshape (v, s3) "
            "z = Flatten <axis = 2> (w) y = Neg (z)",
            [
                *("int64[4] s4 = {1, 1, 6, -1}", "int64[3] s3 = {0, -1, 8}"),
                *("bool[1,1,6,1] c = {1,0,1,1,0,1}", "float k = {2}", "float[6,1] m = seeded"),
            ],
            ["Where", "Mul", "Neg"],
            id="sizes of 0 and -1",
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u = MatMul (t, w) v = Softmax (u) z = Squeeze (v, axes) "
            "y = Neg (z)",
            ["int64[1] axes = {0}", "float[1,8,5] w = seeded"],
            ["MatMul", "Softmax", "Neg"],
            id="product with more axes",
        ),
    ],
)
def test_runs_without_them(both, nodes, constants, left) -> None:
    models = both(small(nodes, *constants, x="6,8", y="float y"))
    assert [node.op for node in models[1].view().nodes] == left
    same(models, {"x": FEED["x"][0]})


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            "t = Reshape (x, s) y = Sigmoid (t)", ["int64[3] s = {2, 3, 8}"], id="regroups"
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u = Softmax <axis = 1> (t) y = Squeeze (u, axes)",
            ["int64[1] axes = {0}"],
            id="works along a leading one",
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u = Transpose <perm = [2, 1, 0, 3]> (t) y = Squeeze (u, last)",
            ["int64[1] axes = {0}", "int64[1] last = {2}"],
            id="moves a leading one",
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u = CumSum (t, third) y = Squeeze (u, axes)",
            ["int64[1] axes = {0}", "int64 third = {2}"],
            id="counts axes",
        ),
        pytest.param(
            "t = Unsqueeze (x, axes) u = Add (t, c) y = Neg (u)",
            ["int64[1] axes = {0}", "float[2,1,6,8] c = seeded"],
            id="leading one that grows",
        ),
    ],
)
def test_stays(both, nodes, constants) -> None:
    models = both(small(nodes, *constants, y="float y"))
    assert models[1].view().nodes == models[0].view().nodes
    same(models, FEED)


def test_unknown_sizes_stay(both) -> None:
    nodes = "t = Unsqueeze (x, axes) u = Relu (t) v = Squeeze (u, axes) y = Neg (v)"
    model, after = both(small(nodes, "int64[1] axes = {0}", x="1,n,8"))
    assert after.view().nodes == model.view().nodes


def test_no_rows_stay(both) -> None:
    """A size of 0 tells a Reshape to take the size that it finds there."""
    nodes = """none = Slice (x, zero, zero, zero) t = Unsqueeze (none, zero) u = CumSum (t, third)
        v = Relu (u) w = Squeeze (v, zero) z = Unsqueeze (w, zero) a = Neg (z)
        b = Squeeze (a, zero) y = Abs (b)"""
    constants = ["int64[1] zero = {0}", "int64 third = {2}"]
    model, after = both(small(nodes, *constants, x="6,8", y="float[0,8] y"))
    assert after.view().nodes == model.view().nodes


def test_outputs_keep_names_and_axes(both) -> None:
    """What a Reshape makes, what is read with all axes as well, and what an inner node makes."""
    nodes = """t = Reshape (x, flat) u = MatMul (t, w) up = Reshape (u, tokens) v = Relu (up)
        back = Reshape (v, flat) z = MatMul (back, w) y = Reshape (z, tokens)"""
    text = small(
        nodes,
        *("float[8,8] w = seeded", "int64[2] flat = {6, 8}", "int64[3] tokens = {1, 6, 8}"),
        y="float[1,6,8] up, float[6,8] back, float[1,6,8] v, float[1,6,8] y",
    )
    model, after = both(text)
    assert after.view().outputs == model.view().outputs
    same((model, after), FEED)


def test_bodies_read_what_they_read_before(both) -> None:
    """The body of an If captures what a Reshape makes, with two axes and with three."""
    nodes = """t = Reshape (x, flat) u = MatMul (t, w) up = Reshape (u, tokens) v = Relu (up)
        down = Squeeze (v, axes) z = MatMul (down, w) e = Reshape (z, tokens) f = Add (e, x)
        g2 = Reshape (f, flat) h = Neg (g2) i = Reshape (h, tokens)
        j = If (c) <then_branch = yes () => (float[1,6,8] a) { a = Add (up, x) },
            else_branch = no () => (float[1,6,8] b)
                { r = Neg (down) b = Unsqueeze (r, axes) }>
        y = Add (i, j)"""
    constants = ["float[8,8] w = seeded", "int64[2] flat = {6, 8}", "int64[3] tokens = {1, 6, 8}"]
    text = small(nodes, *constants, "bool c = {0}", "int64[1] axes = {0}")
    models = both(text)
    assert operators(models[1])["Reshape"] < operators(models[0])["Reshape"]
    same(models, FEED)


def test_defaults_of_inputs_stay(both) -> None:
    """A constant that a caller may replace has the shape that the caller gives it."""
    text = """g (float[6,8] x, float[1,1,8] c) => (float[6,8] y)
        <float[1,1,8] c = seeded, int64[2] flat = {6, 8}, int64[3] tokens = {1, 6, 8}>
        { t = Reshape (x, tokens) w = Add (t, c) z = Reshape (w, flat) y = Neg (z) }"""
    model, after = both(text)
    assert after.view().nodes == model.view().nodes


def test_text_stays(both) -> None:
    """A constant of text is no array of numbers that could be cut."""
    text = """g (string[1,1,1,2] x) => (bool[1,2] y)
        <string[1,1,2] w = {"a", "b"}, int64[3] three = {1, 1, 2}, int64[2] two = {1, 2}>
        { a = Reshape (x, three) b = Equal (a, w) c = Reshape (b, two) y = Not (c) }"""
    model, after = both(text)
    assert after.view().nodes == model.view().nodes


def test_sequences_keep_their_type(build) -> None:
    """Inference of types does not take a sequence for one of its tensors."""
    model = build("""g (float[3,4] x) => (float[3,4] y) <int64 i = {0}>
        { s = SequenceConstruct (x, x) u = SequenceAt (s, i) y = Relu (u) }""")
    Session(infer_shapes(model)).run({"x": np.ones((3, 4), np.float32)})


def test_outputs_keep_what_they_declare(build) -> None:
    """Neither symbols become numbers nor does a shape come where none was."""
    for declared in ("float", "float[a,b]"):
        model = build(f"g (float[2,3] x) => ({declared} y) {{ y = Relu (x) }}")
        assert infer_shapes(model).view().outputs == model.view().outputs


def test_reshape_between_pairs_stays(both) -> None:
    """It runs on integers, and without it one pair would stand behind the other."""
    nodes = """q = QuantizeLinear (x, s, zp) d = DequantizeLinear (q, s, zp)
        t = Reshape (d, tokens) r = QuantizeLinear (t, s, zp) e = DequantizeLinear (r, s, zp)
        u = Reshape (e, flat) y = Relu (u)"""
    constants = ["float s = {0.1}", "uint8 zp = {3}"]
    constants += ["int64[2] flat = {6, 8}", "int64[3] tokens = {1, 6, 8}"]
    models = both(small(nodes, *constants, x="6,8", y="float[6,8] y"))
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert [node.op for node in models[1].view().nodes] == [*pair, "Reshape", *pair, "Relu"]
    same(models, {"x": FEED["x"][0]})


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_DYNAMIC])
def test_rewrite_leaves_them_out(quantize, build, form, precision) -> None:
    """Layers of a block run as they were planned, with fewer nodes around them."""
    made = quantize(build(BLOCK), Recipe(precision=precision.value))
    written = rewrite(made.source, made.plan, form)
    before, after = operators(made.source), operators(written)
    assert after["Reshape"] < before["Reshape"]
    assert written.view().outputs == made.source.view().outputs
    Session(written).run(FEED)


def test_compilers_get_the_graph_as_it_was(quantize, build) -> None:
    made = quantize(build(BLOCK))
    written = rewrite(made.source, with_fields(made.plan, target="openvino"))
    assert operators(written)["Reshape"] == operators(made.source)["Reshape"]
