"""Which nodes can compute in float16, and why others cannot."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Model
from onnxq.ops import classify
from onnxq.plan import Recipe, make_plan
from onnxq.plan.half import refuse_half, worth_half
from onnxq.targets import get_target
from onnxq.types import Precision

TARGET = get_target("cpu-x86")


def reasons(model: Model) -> dict[str, str]:
    """Code of the reason by node, for those that stay float32."""
    view = model.view()
    found = {n.name: refuse_half(view, n) for n in classify(view, TARGET).nodes}
    return {name: reason.code for name, reason in found.items() if reason}


def sentence(model: Model, node: str) -> str:
    view = model.view()
    info = next(n for n in classify(view, TARGET).nodes if n.name == node)
    reason = refuse_half(view, info)
    assert reason is not None
    assert reason.node == node
    return reason.sentence


def unary(build, node: str, head: str = "") -> Model:
    return build(f"g (float[4,2000] x) => (float[N,M] y) {head} {{ [n] y = {node} }}")


@pytest.mark.parametrize(
    "node",
    ["Relu (x)", "Sigmoid (x)", "Softmax (x)", "Erf (x)", "Sqrt (x)", "Transpose (x)",
     "Mul (x, c)", "Div (x, c)", "Pow (x, c)", "ReduceMean <axes = [0]> (x)", "Clip (x, c, big)",
     "Min (x, big)"],
)  # fmt: skip
def test_ordinary_operators_can(build, node) -> None:
    assert reasons(unary(build, node, "<float c = {0.5}, float big = {3e38}>")) == {}


@pytest.mark.parametrize(
    "node",
    ["Exp (x)", "Log (x)", "Reciprocal (x)", "Sin (x)", "Floor (x)", "CumSum (x, axis)",
     "Mul (x, x)", "Pow (x, two)", "Pow (x, x)", "Pow (x, minus)", "Div (two, x)",
     "ReduceMean (x)", "ReduceSum (x)", "ReduceL2 (x)", "RandomNormalLike (x)"],
)  # fmt: skip
def test_operators_that_leave_the_range(build, node) -> None:
    head = "<float two = {2}, float minus = {-0.5}, int64 axis = {1}>"
    model = unary(build, node, head)
    assert reasons(model) == {"n": "float16-range"}
    assert sentence(model, "n")


@pytest.mark.parametrize(("axes", "refused"), [("[0]", False), ("[1]", True), ("[-1]", True)])
def test_long_sums_are_refused(build, axes, refused) -> None:
    """4 values are few, 2,000 are many."""
    found = reasons(unary(build, f"ReduceMean <axes = {axes}> (x)"))
    assert bool(found) is refused
    if refused:
        assert "2000 values" in sentence(unary(build, f"ReduceMean <axes = {axes}> (x)"), "n")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("65504", None),
        ("65505", "float16-overflow"),
        ("-1e5", "float16-overflow"),
        ("1e-4", None),
        ("1e-12", "float16-underflow"),
        ("1e-8", "float16-underflow"),  # nearer to 0 than to 2^-24
        ("0", None),
    ],
)
def test_constants_must_fit(build, value, code) -> None:
    model = unary(build, "Add (x, c)", f"<float c = {{{value}}}>")
    assert reasons(model) == ({"n": code} if code else {})
    if code:
        assert "'c'" in sentence(model, "n")


def test_constant_of_a_few_tiny_values_fits(build) -> None:
    """What vanishes beside large values changes nothing that rounding does not change more."""
    values = np.full((16, 4), 0.1)
    for tiny, refused in ((8, False), (16, True)):
        values[:tiny] = 1e-9
        numbers = ", ".join(str(v) for v in values.ravel())
        text = f"g (float[2,16] x) => (float[2,4] y) <float[16,4] w = {{{numbers}}}>"
        found = reasons(build(f"{text} {{ [n] y = MatMul (x, w) }}"))
        assert bool(found) is refused


def test_divisor_must_not_become_zero(build) -> None:
    model = unary(build, "Div (x, c)", "<float[2000] c = {1" + ", 1" * 1998 + ", 1e-9}>")
    assert reasons(model) == {"n": "float16-underflow"}


def test_infinite_constants_fit(build) -> None:
    assert reasons(unary(build, "Add (x, c)", "<float c = {-inf}>")) == {}


def test_integers_are_no_candidates(build) -> None:
    model = build("""g (int64[4] i, float[4] x) => (int64[4] j, int64[1] s, int64[4] k) {
        [add] j = Add (i, i)
        [shape] s = Shape (x)
        [cast] k = Cast <to = 7> (x)
    }""")
    assert reasons(model) == dict.fromkeys(("add", "shape", "cast"), "not-float32")
    assert sentence(model, "add") == "computes on integers"


@pytest.mark.parametrize(("dtype", "refused"), [("int64", True), ("bool", False), ("uint8", False)])
def test_cast_from_large_integers_stays(build, dtype, refused) -> None:
    model = build(f"g ({dtype}[4] i) => (float[4] y) {{ [n] y = Cast <to = 1> (i) }}")
    assert bool(reasons(model)) is refused


def test_control_flow_quantization_and_strangers_stay(build) -> None:
    model = build("""<ir_version: 8, opset_import: ["" : 17, "some" : 1]>
        g (bool k, float[4] x) => (float[4] y, float[4] z, float[4] w)
        <float s = {0.1}, uint8 p = {128}> {
        [if] y = If (k) <
            then_branch = a () => (float[4] o) { o = Neg (x) },
            else_branch = b () => (float[4] i) { i = Identity (x) }
        >
        [q] t = QuantizeLinear (x, s, p)
        [dq] z = DequantizeLinear (t, s, p)
        [strange] w = some.Thing (x)
    }""")
    assert reasons(model) == {
        "if": "control-flow",
        "q": "float16-range",
        "dq": "float16-range",
        "strange": "no-float16-kernel",
    }


def test_layer_normalization_in_pieces_stays(build) -> None:
    """All from the deviation to the quotient, with Div or with Reciprocal and Mul."""
    model = build("""g (float[2,8] x) => (float[2,8] y, float[2,8] z)
        <float two = {2}, float eps = {1e-5}, float[8] gamma = seeded> {
        [mean] mu = ReduceMean <axes = [-1]> (x)
        [dev] d = Sub (x, mu)
        [pow] s = Pow (d, two)
        [var] v = ReduceMean <axes = [-1]> (s)
        [eps] e = Add (v, eps)
        [root] r = Sqrt (e)
        [div] n = Div (d, r)
        [gamma] y = Mul (n, gamma)
        [inverse] i = Reciprocal (r)
        [product] z = Mul (d, i)
    }""")
    assert set(reasons(model)) == {node.name for node in model.view().nodes} - {"gamma"}


def test_mask_stays_up_to_the_softmax(build) -> None:
    model = build(
        """g (float[1,4] m, float[4,4] x) => (float[4,4] y)
        <float one = {1}, float huge = {-3.4e38}> {
        [not] n = Sub (one, m)
        [scale] b = Mul (n, huge)
        [move] c = Unsqueeze (b, axes)
        [flat] d = Squeeze (c, axes)
        [add] s = Add (x, d)
        [soft] p = Softmax (s)
        [last] y = MatMul (p, x)
    }""".replace("huge = {-3.4e38}", "huge = {-3.4e38}, int64[1] axes = {0}")
    )
    assert reasons(model) == {
        "scale": "float16-overflow",
        **dict.fromkeys(("move", "flat", "add", "soft"), "float16-range"),
    }


def test_spectrum_before_a_logarithm_stays(build) -> None:
    """Also its layers; not those of a network behind an activation that ends in a Log."""
    model = build("""g (float[2,8] x) => (float[2,4] y) <float[8,8] w = seeded,
        float[8,4] mel = seeded, float[4,4] v = seeded, float low = {0.01}> {
        [dft] f = MatMul (x, w)
        [power] s = Mul (f, f)
        [mel] m = MatMul (s, mel)
        [limit] l = Max (m, low)
        [log] k = Log (l)
        [layer] h = MatMul (k, v)
        [act] a = Sigmoid (h)
        [end] y = Log (a)
    }""")
    assert set(reasons(model)) == {"dft", "power", "mel", "limit", "log", "end"}


def test_polynomial_stays(build) -> None:
    """Gelu by tanh: x^3 leaves the range from 41 on, whether by Pow or by products."""
    model = build("""g (float[2,8] u) => (float[2,8] y) <float c = {0.044}, float d = {0.8}> {
        [before] x = Sigmoid (u)
        [scaled] a = Mul (x, c)
        [square] b = Mul (x, a)
        [cube] e = Mul (b, x)
        [sum] f = Add (x, e)
        [factor] h = Mul (f, d)
        [tanh] t = Tanh (h)
        [gate] y = Mul (x, t)
    }""")
    assert set(reasons(model)) == {"square", "cube", "sum", "factor", "tanh"}


def test_product_with_an_activation_can(build) -> None:
    model = build("""g (float[2,8] x) => (float[2,8] y) {
        [sigmoid] s = Sigmoid (x)
        [silu] y = Mul (x, s)
    }""")
    assert reasons(model) == {}


def test_movers_follow_their_neighbours(build) -> None:
    model = build("""g (float[4,4] x) => (float[4,4] y, float[4,4] z)
        <float[4,4] w = seeded> {
        [before] a = Transpose (x)
        [mul] b = MatMul (a, w)
        [after] c = Transpose (b)
        [exp] y = Exp (c)
        [lonely] d = Transpose (x)
        [chained] e = Transpose (d)
        [log] z = Exp (e)
    }""")
    view = model.view()
    able = [n.name for n in view.nodes if n.op != "Exp"]
    assert worth_half(view, able) == {"before", "mul", "after"}
    assert worth_half(view, []) == frozenset()


def test_mover_to_an_output_or_to_both_types_stays(build) -> None:
    model = build("""g (float[4,4] x) => (float[4,4] o, float[4,4] y, float[4,4] z)
        <float[4,4] w = seeded> {
        [out] o = Transpose (x)
        [mul] y = MatMul (o, w)
        [both] b = Transpose (x)
        [more] m = MatMul (b, w)
        [exp] e = Exp (b)
        [add] z = Add (m, e)
    }""")
    view = model.view()
    able = [n.name for n in view.nodes if n.op != "Exp"]
    assert worth_half(view, able) == {"mul", "more", "add"}


def test_plan_says_fp16_or_why_not(build) -> None:
    model = build("""g (float[2,8] x) => (float[2,8] y) <float[8,8] w = seeded> {
        [mul] t = MatMul (x, w)
        [exp] y = Exp (t)
    }""")
    view = model.view()
    census = classify(view, TARGET)
    plan = make_plan(view, census, {}, Recipe(precision="fp16"), TARGET)
    assert plan.precision() == {"mul": Precision.FP16, "exp": Precision.FLOAT}
    assert {n.name: n.reason.code for n in plan.nodes if n.reason} == {"exp": "float16-range"}
