"""Layer normalizations in pieces become LayerNormalization, and nothing else does."""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.graph import NORM_OPSET, deserialize, name_norms, serialize
from onnxq.runtime import Session, prepare

SHAPE = (2, 5, 8)
X = np.random.RandomState(0).normal(0.5, 2, SHAPE).astype(np.float32)
GAMMA = np.random.RandomState(1).uniform(-2, 2, 8).astype(np.float32)
BETA = np.random.RandomState(2).uniform(-2, 2, 8).astype(np.float32)
EPSILON = 1e-3  # large enough that a lost one shows
# Values of a few units, each rounded about ten times, in sums of 8: some 1e-6.
CLOSE = {"rtol": 0, "atol": 1e-5}

CONSTANTS = {
    "g": GAMMA, "b": BETA, "g3": GAMMA[None, None], "b3": BETA[None, None],
    "e": np.float32(EPSILON), "e1": np.array([EPSILON], np.float32), "one": np.float32(1),
    "two": np.float32(2), "half": np.float32(0.5), "mhalf": np.float32(-0.5),
    "rows": np.arange(1, 9, dtype=np.float32)[:, None], "axes": np.array([-1]),
}  # fmt: skip


def model(
    body: str,
    opset: int = NORM_OPSET,
    shape: str = "N,5,8",
    kind: str = "float",
    more="",
    constants=None,
):
    """A model of these nodes and the constants that they name, with shapes inferred."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({kind}[{shape}] x) => ({kind}[{shape}] y{more}) {{ {body} }}""")
    for name, values in (CONSTANTS | (constants or {})).items():
        typed = values.astype(np.float64) if kind == "double" and name != "axes" else values
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(typed), name))
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return deserialize(inferred.SerializeToString())


def normalized(scale=1.0, bias=0.0) -> np.ndarray:
    """The definition, in double precision."""
    x = X.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + bias


MEANS = {
    "pool": "GlobalAveragePool({})",
    "mean": "ReduceMean<axes = [-1]>({})",
    "mean over axis 2": "ReduceMean<axes = [2], keepdims = 1>({})",
}
SQUARES = {"product": "Mul(d, d)", "power": "Pow(d, two)"}
INVERSES = {
    "reciprocal": "r = Sqrt(s) i = Reciprocal(r)",
    "quotient of 1": "r = Sqrt(s) i = Div(one, r)",
    "power": "i = Pow(s, mhalf)",
    "root as power": "r = Pow(s, half) i = Reciprocal(r)",
}
# From x, its mean m, d = x - m and i = 1 / sqrt(variance + epsilon).
TAILS = {
    "scale and bias": ("n = Mul(d, i) k = Mul(n, g) [last] y = Add(k, b)", GAMMA, BETA),
    "commuted": ("n = Mul(i, d) k = Mul(g, n) [last] y = Add(b, k)", GAMMA, BETA),
    "scale first": ("k = Mul(i, g) n = Mul(d, k) [last] y = Add(n, b)", GAMMA, BETA),
    "scale only": ("n = Mul(d, i) [last] y = Mul(n, g)", GAMMA, 0),
    "bias only": ("n = Mul(d, i) [last] y = Add(n, b)", 1, BETA),
    "neither": ("[last] y = Mul(d, i)", 1, 0),
    "of rank 3": ("n = Mul(d, i) k = Mul(n, g3) [last] y = Add(k, b3)", GAMMA, BETA),
    "scalars": ("n = Mul(d, i) k = Mul(n, two) [last] y = Sub(k, half)", 2, -0.5),
    "subtracted from": ("n = Mul(d, i) k = Mul(n, g) [last] y = Sub(b, k)", -GAMMA, BETA),
    "batch norm": (
        "k = Mul(i, g) u = Mul(m, k) w = Sub(b, u) z = Mul(x, k) [last] y = Add(z, w)",
        GAMMA, BETA,
    ),
    "batch norm, commuted": (
        "k = Mul(g, i) u = Mul(k, m) z = Mul(k, x) w = Sub(b, u) [last] y = Add(w, z)",
        GAMMA, BETA,
    ),
    "batch norm without bias": (
        "k = Mul(i, g) u = Mul(m, k) z = Mul(x, k) [last] y = Sub(z, u)", GAMMA, 0
    ),
    "batch norm, scale on x": (
        "xg = Mul(x, g) mg = Mul(m, g) z = Mul(xg, i) u = Mul(mg, i) w = Sub(b, u) "
        "[last] y = Add(z, w)", GAMMA, BETA,
    ),
}  # fmt: skip


def form(mean="mean", square="product", inverse="reciprocal", tail="scale and bias", add="v, e"):
    first, second = MEANS[mean].format("x"), MEANS[mean].format("q")
    return (
        f"m = {first} d = Sub(x, m) q = {SQUARES[square]} v = {second} s = Add({add}) "
        f"{INVERSES[inverse]} {TAILS[tail][0]}"
    )


FORMS = {
    **{
        f"{m}, {s}, {i}, {t}": (form(m, s, i, t), *TAILS[t][1:])
        for m, s, i, t in (
            *itertools.product(MEANS, SQUARES, ("reciprocal",), ("scale and bias", "batch norm")),
            *itertools.product(("mean",), ("product",), INVERSES, TAILS),
        )
    },
    "as PyTorch exports it": (
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>"
        "(q) s = Add(v, e) r = Sqrt(s) n = Div(d, r) k = Mul(n, g) [last] y = Add(k, b)",
        GAMMA, BETA,
    ),
    "divided without scale": (
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>"
        "(q) s = Add(e, v) r = Pow(s, half) [last] y = Div(d, r)", 1, 0,
    ),
    "squared the other way round": (
        "m = GlobalAveragePool(x) o = Sub(m, x) q = Mul(o, o) v = GlobalAveragePool(q) s = Add(v, "
        "e1) r = Sqrt(s) d = Sub(x, m) n = Div(d, r) k = Mul(n, g) [last] y = Add(k, b)",
        GAMMA, BETA,
    ),
    "two equal means": (
        "m = ReduceMean<axes = [-1]>(x) mm = ReduceMean<axes = [-1]>(x) d = Sub(x, m) "
        "dd = Sub(x, mm) q = Mul(dd, dd) v = ReduceMean<axes = [-1]>(q) s = Add(v, e) r = Sqrt(s) "
        "[last] y = Div(d, r)", 1, 0,
    ),
}  # fmt: skip


def assert_named(before, scale, bias) -> None:
    after = name_norms(before)
    (node,) = after.view().nodes
    assert (node.op, node.name, node.attrs["axis"]) == ("LayerNormalization", "last", -1)
    assert node.attrs["epsilon"] == pytest.approx(EPSILON)
    assert after.opset >= NORM_OPSET
    assert after.ir.ir_version >= 8
    onnx.checker.check_model(serialize(after), full_check=True)
    assert len(node.inputs) == (3 if np.any(bias) else 2)
    assert "wrote 1 layer normalization by name" in after.notes
    (expected,) = ReferenceEvaluator(serialize(before)).run(None, {"x": X})
    np.testing.assert_allclose(expected, normalized(scale, bias), **CLOSE)  # the case is right
    np.testing.assert_allclose(Session(after).run({"x": X})["y"], expected, **CLOSE)
    (found,) = ReferenceEvaluator(serialize(after)).run(None, {"x": X})
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(("body", "scale", "bias"), FORMS.values(), ids=FORMS)
def test_computes_the_same(body, scale, bias) -> None:
    assert_named(model(body), scale, bias)


def test_axes_of_a_new_opset() -> None:
    body = form().replace("<axes = [-1]>(x)", "(x, axes)").replace("<axes = [-1]>(q)", "(q, axes)")
    assert_named(model(body, opset=18), GAMMA, BETA)


@pytest.mark.parametrize("opset", [13, 15])
def test_old_opset_is_raised(opset) -> None:
    before = model(form("pool", tail="batch norm"), opset)
    assert_named(before, GAMMA, BETA)
    assert name_norms(before).opset == NORM_OPSET
    assert f"raised the opset from {opset} to {NORM_OPSET}" in name_norms(before).notes


def test_constants_keep_their_names() -> None:
    named = name_norms(model(form()))
    assert named.view().nodes[0].inputs == ("x", "g", "b")
    assert set(named.view().constant_names) == {"g", "b"}


def test_nodes_around_keep_their_names() -> None:
    body = form().replace("[last] y", "[last] z").replace("(x", "(a").replace("Sub(x", "Sub(a")
    before = model(f"[first] a = Neg(x) {body} [behind] y = Tanh(z)")
    after = name_norms(before)
    assert [n.name for n in after.view().nodes] == ["first", "last", "behind"]
    feed = {"x": X}
    np.testing.assert_allclose(
        Session(after).run(feed)["y"], Session(before).run(feed)["y"], **CLOSE
    )


def test_one_normalization_for_two_layers() -> None:
    """Each has a scale of its own, and stays as it is."""
    body = form(tail="neither").replace("[last] y", "[last] n")
    before = model(f"{body} a = Mul(n, g) c = Mul(n, b) y = Mul(a, c)")
    after = name_norms(before)
    assert [n.op for n in after.view().nodes] == ["LayerNormalization", "Mul", "Mul", "Mul"]
    feed = {"x": X}
    np.testing.assert_allclose(
        Session(after).run(feed)["y"], Session(before).run(feed)["y"], **CLOSE
    )


def test_two_normalizations_of_one_tensor() -> None:
    first = form().replace("[last] y", "[last] z")
    other = re.sub(r"\b([mdqvsrink])\b", r"\1\1", form().replace("[last] y", "[other] w"))
    before = model(f"{first} {other.replace('g)', 'b)')} y = Mul(z, w)")
    after = name_norms(before)
    assert sorted(n.op for n in after.view().nodes) == ["LayerNormalization"] * 2 + ["Mul"]
    assert {"last", "other"} <= set(after.view().by_name)
    assert "wrote 2 layer normalizations by name" in after.notes
    (expected,) = ReferenceEvaluator(serialize(before)).run(None, {"x": X})
    # products of two such values
    np.testing.assert_allclose(Session(after).run({"x": X})["y"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", ["x", "rows"])
def test_scale_that_is_not_one_per_channel(scale) -> None:
    """It stays behind the normalization, also where there are as many rows as channels."""
    before = model(form().replace("n, g", f"n, {scale}"), shape="N,8,8")
    after = name_norms(before)
    assert [n.op for n in after.view().nodes] == ["LayerNormalization", "Mul", "Add"]
    feed = {"x": np.resize(X, (2, 8, 8))}
    (expected,) = ReferenceEvaluator(serialize(before)).run(None, feed)
    # up to 8 times as large as elsewhere
    np.testing.assert_allclose(Session(after).run(feed)["y"], expected, rtol=0, atol=1e-4)


def test_sum_of_two_scales_is_one_scale() -> None:
    body = form(tail="neither").replace("[last] y", "n")
    assert_named(model(f"{body} a = Mul(n, g) c = Mul(n, b) [last] y = Add(c, a)"), GAMMA + BETA, 0)


def test_a_long_chain_behind_is_left() -> None:
    """A normalization has a dozen nodes: it is not looked for in more than some."""
    steps = " ".join(f"c{i + 1} = Mul(c{i}, one)" for i in range(300))
    body = form().replace("[last] y", "c0")
    after = name_norms(model(f"{body} {steps} [last] y = Neg(c300)"))
    ops = [n.op for n in after.view().nodes]
    assert ops[0] == "LayerNormalization"
    assert 200 < ops.count("Mul") <= 300
    np.testing.assert_allclose(Session(after).run({"x": X})["y"], -normalized(GAMMA, BETA), **CLOSE)


def test_what_follows_a_normalization_is_left() -> None:
    """Polynomials of its result have no end."""
    body = form().replace("[last] y", "[last] z")
    after = name_norms(model(f"{body} c = Mul(z, z) c3 = Mul(c, z) p = Add(z, c3) y = Mul(p, z)"))
    assert [n.op for n in after.view().nodes] == ["LayerNormalization", "Mul", "Mul", "Add", "Mul"]


PLAIN = form()
LEFT = {
    "a part is read elsewhere": (PLAIN.replace("[last] y", "z") + " y = Add(z, d)", {}),
    "a part is an output": (PLAIN, {"more": ", float[N,5,1] r"}),
    "a body reads a part": (
        PLAIN.replace("[last] y", "z") + """ c = Cast<to = 9>(one) w = If(c)
        <then_branch = t() => (float[N,5,1] p) { p = Neg(r) },
         else_branch = f() => (float[N,5,1] q1) { q1 = Neg(r) }> y = Add(z, w)""", {},
    ),
    "mean over another axis": (PLAIN.replace("[-1]", "[1]"), {"shape": "N,8,8"}),
    "mean over two axes": (PLAIN.replace("[-1]", "[1, 2]"), {}),
    "variance over another axis": (PLAIN.replace("[-1]>(q)", "[1]>(q)"), {"shape": "N,8,8"}),
    "mean without its axis": (
        PLAIN.replace("[-1]", "[-1], keepdims = 0"), {"shape": "8,8"},
    ),
    "pool over images": (form("pool"), {"shape": "N,5,3,8"}),
    "epsilon per channel": (PLAIN.replace("v, e", "v, g"), {}),
    "epsilon that is computed": (
        PLAIN.replace("v, e", "v, ee").replace(" s =", " ee = Tanh(v) s ="), {}
    ),
    "no epsilon": (PLAIN.replace("Add(v, e)", "Mul(v, one)"), {}),
    "subtracted epsilon": (PLAIN.replace("Add(v, e)", "Sub(v, e)"), {}),
    "a third root": (form(inverse="power").replace("mhalf", "e"), {}),
    "no root": (PLAIN.replace("Sqrt(s)", "Neg(s)"), {}),
    "third power": (form(square="power").replace("two", "e"), {}),
    "two scales": (form(tail="batch norm").replace("z = Mul(x, k)", "z = Mul(x, i)"), {}),
    "signs": (form(tail="batch norm").replace("Sub(b, u)", "Add(b, u)"), {}),
    "double": (PLAIN, {"kind": "double"}),
    "unknown channels": (form(tail="neither"), {"shape": "N,5,C"}),
    "power of a constant": ("m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) a = Add(d, two) "
                            "k = Sub(a, d) p = Pow(half, k) y = Mul(d, p)", {}),
}  # fmt: skip


@pytest.mark.parametrize(("body", "how"), LEFT.values(), ids=LEFT)
def test_others_are_left(body, how) -> None:
    before = model(body, **how)
    assert name_norms(before) is before


ROI_IN_A_BODY = """ [choose] w = If(c)
    <then_branch = t() => (float[1,1,1,1] p) {
        [deep] p = RoiAlign<output_height = 1, output_width = 1>(images, rois, which) },
     else_branch = f() => (float[1,1,1,1] q1) { q1 = Neg(images) }>
    w3 = Squeeze(w, which) y = Add(z, w3)"""


def test_opset_that_cannot_be_raised() -> None:
    """RoiAlign means something else since opset 16, and bodies are not converted."""
    constants = {
        "c": np.array(True), "images": np.ones((1, 1, 1, 1), np.float32),
        "rois": np.zeros((1, 4), np.float32), "which": np.array([0]),
    }  # fmt: skip
    nodes = PLAIN.replace("[last] y", "[last] z") + ROI_IN_A_BODY
    before = model(nodes, 15, constants=constants)
    after = name_norms(before)
    assert after.opset == 15
    assert [n.name for n in after.view().nodes] == [n.name for n in before.view().nodes]
    assert "left 1 layer normalization in pieces" in after.notes[-1]
    assert "node 'deep' (RoiAlign)" in after.notes[-1]
    prepare(before, {"x": X})  # and goes on


@pytest.mark.parametrize("opset", [13, 17])
def test_preparing_names_them_and_keeps_the_outputs(opset) -> None:
    before = model(form("pool", tail="batch norm"), opset)
    prepared = prepare(before, {"x": X})
    assert [n.op for n in prepared.view().nodes] == ["LayerNormalization"]
    assert [n.name for n in prepared.view().nodes] == ["last"]
    assert prepared.view().inputs == before.view().inputs
    twice = prepare(prepared, {"x": X})
    assert serialize(twice) == serialize(prepared)
