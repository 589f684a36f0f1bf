"""Concats that are sliced again go away, and two classes are told apart without Softmax."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from onnxq.graph import Model, infer_shapes
from onnxq.rewrite import rewrite
from onnxq.rewrite.shortcuts import _Concats, take_shortcuts
from onnxq.runtime import Session

# Sigmoid and Softmax of float32 each round to about one unit of 1.2e-7; together to two.
ROUNDING = 3e-7
A, B = (
    np.random.RandomState(seed).standard_normal((1, 70, 2)).astype(np.float32) for seed in (0, 1)
)


@pytest.fixture
def both(build):
    """A model as it is, and with shortcuts."""

    def run(text: str) -> tuple[Model, Model]:
        model = build(text)
        return model, take_shortcuts(model)

    return run


def net(nodes: str, *constants: str, sizes: str = "1,70,2", y: str = "float y") -> str:
    held = ", ".join(["int64[1] zero = {0}", "int64[1] two = {2}", *constants])
    return f"g (float[{sizes}] a, float[{sizes}] b) => ({y}) <{held}> {{ {nodes} }}"


def same(models: tuple[Model, Model]) -> None:
    for level in ("none", "all"):
        wanted, found = (Session(model, level=level).run({"a": A, "b": B}) for model in models)
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values)


def operators(model: Model) -> list[str]:
    return [node.op for node in model.view().nodes]


# --- Slices of a Concat ----------------------------------------------------------------------

AXES = "int64[1] first = {0}, int64[1] last = {2}, int64[1] minus = {-1}, int64[1] four = {4}"
END = "int64[1] end = {9223372036854775807}, int64[1] one = {1}"
CORNERS = """[centre] c = Neg (a) [cat] t = Concat <axis = 2> (c, b)
    [xy] u = Slice (t, zero, two, last) [wh] v = Slice (t, two, end, last, one)
    [lo] w = Sub (u, v) [hi] z = Add (u, v) [all] y = Concat <axis = -1> (w, z)"""


def test_box_corners_read_box_centres(both) -> None:
    models = both(net(CORNERS, AXES, END))
    assert operators(models[1]) == ["Neg", "Sub", "Add", "Concat"]
    assert models[1].view().by_name["lo"].inputs == ("c", "b")
    same(models)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param("u, v = Split <axis = -1> (t, parts) y = Sub (u, v)", id="Split"),
        pytest.param("u = Slice (t, zero, two, minus) y = Neg (u)", id="negative axis"),
        pytest.param(
            "u = Slice (t, zero, two, last) s = Concat <axis = 2> (u, b) "
            "v = Slice (s, zero, two, last) y = Neg (v)",
            id="twice",
        ),
    ],
)
def test_parts_are_the_inputs(both, nodes) -> None:
    text = net(f"t = Concat <axis = 2> (a, b) {nodes}", AXES, END, "int64[2] parts = {2, 2}")
    models = both(text)
    assert not {"Slice", "Split", "Concat"} & set(operators(models[1]))
    same(models)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param("t = Concat <axis = 2> (a, b) y = Slice (t, zero, two, last)", id="an output"),
        pytest.param(
            "t = Concat <axis = 2> (a, b) u = Slice (t, one, two, last) y = Neg (u)", id="a part"
        ),
        pytest.param(
            "t = Concat <axis = 2> (a, b) u = Slice (t, zero, four, last) y = Neg (u)", id="both"
        ),
        pytest.param(
            "t = Concat <axis = 1> (a, b) u = Slice (t, zero, two, last) y = Neg (u)",
            id="another axis",
        ),
        pytest.param(
            "t = Concat <axis = 2> (a, b) u = Slice (t, zero, two, last, two) y = Neg (u)",
            id="steps",
        ),
        pytest.param(
            "t = Concat <axis = 2> (a, b) u = Slice (t, zeros, twos, both) y = Neg (u)",
            id="two axes",
        ),
        pytest.param(
            "t = Concat <axis = 2> (a, b) s = Shape <start = 2> (a) u = Slice (t, zero, s, last) "
            "y = Neg (u)",
            id="computed",
        ),
        pytest.param(
            "t = Concat <axis = 2> (a, b) u, v = Split <axis = 2> (t, parts) y = Neg (v)",
            id="other parts",
        ),
    ],
)
def test_other_slices_stay(both, nodes) -> None:
    more = "int64[2] zeros = {0, 0}, int64[2] twos = {2, 2}, int64[2] both = {1, 2}"
    models = both(net(nodes, AXES, END, more, "int64[2] parts = {1, 3}"))
    assert models[1].view().nodes == models[0].view().nodes
    same(models)


def test_constants_of_other_nodes_are_no_spans(both) -> None:
    """Such as the infinity of a mask, which is no whole number."""
    models = both(net("t = Where (c, a, low) y = Neg (t)", "bool c = {1}", "float low = {-inf}"))
    same(models)


def test_slices_stay_for_a_body(both) -> None:
    nodes = """t = Concat <axis = 2> (a, b) u = Slice (t, zero, two, last)
        y = If (c) <then_branch = yes () => (float[1,70,2] d) { d = Neg (u) },
            else_branch = no () => (float[1,70,2] e) { e = Abs (u) }>"""
    models = both(net(nodes, AXES, "bool c = {1}"))
    assert operators(models[1]) == ["Concat", "Slice", "If"]
    same(models)


# --- Softmax over two classes ----------------------------------------------------------------


def softmax(then: str = "y = Identity (p)", *, sizes: str = "1,70,2", axis: int = -1) -> str:
    text = net(f"[soft] p = Softmax <axis = {axis}> (a) {then}", sizes=sizes)
    return text.replace(f", float[{sizes}] b", "")


@pytest.mark.parametrize("axis", [-1, 2])
@pytest.mark.parametrize("scale", [0.1, 1, 30, 1e4])
def test_two_classes_are_told_apart_by_their_difference(both, axis, scale) -> None:
    """Against the formula in float64."""
    models = both(softmax(axis=axis))
    assert operators(models[1]) == ["MatMul", "Sigmoid", "Identity"]
    assert models[1].view().by_name["soft"].op == "Sigmoid"
    found = Session(models[1]).run({"a": A * np.float32(scale)})["y"]
    logits = (A * np.float32(scale)).astype(np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(
        found, shifted / shifted.sum(-1, keepdims=True), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(softmax(sizes="1,70,3"), id="three classes"),
        pytest.param(softmax(sizes="1,63,2"), id="few rows"),
        pytest.param(softmax(sizes="n,2"), id="unknown rows"),
        pytest.param(softmax(sizes="1,2,70", axis=1), id="another axis"),
        pytest.param(softmax("y = Log (p)"), id="logarithms"),
        pytest.param(softmax("q = Identity (p) y = Log (q)"), id="logarithms of a copy"),
        pytest.param(softmax("y = Reciprocal (p)"), id="quotients"),
        pytest.param(
            softmax(
                "c = Constant <value = bool {1}> () "
                "y = If (c) <then_branch = yes () => (float[1,70,2] d) { d = Log (p) }, "
                "else_branch = no () => (float[1,70,2] e) { e = Identity (p) }>"
            ),
            id="logarithms in a body",
        ),
        pytest.param(softmax().replace("float", "double"), id="double"),
        pytest.param(f'<ir_version: 8, opset_import: ["" : 12]> {softmax()}', id="old opset"),
    ],
)
def test_other_softmax_stays(both, text) -> None:
    model, after = both(text)
    assert after.view().nodes == model.view().nodes


def test_infinite_logits_have_probabilities(both) -> None:
    """Where one is sure, so that Softmax makes no number of it."""
    _, after = both(softmax())
    logits = A.copy()
    logits[0, :2] = [[np.inf, 0], [0, -np.inf]]
    found = Session(after).run({"a": logits})["y"]
    np.testing.assert_allclose(found[0, :2], [[1, 0], [1, 0]], rtol=0, atol=ROUNDING)


def test_many_slices_of_a_wide_concat_are_found_in_linear_time(both) -> None:
    """Counted, not timed: the sizes of the inputs are looked at once, not once per slice."""
    count = 40
    names = [f"t{i}" for i in range(count)]
    makers = " ".join(f"{name} = Neg (a)" for name in names)
    slices = " ".join(f"u{i} = Slice (t, s{i}, s{i + 1}, last)" for i in range(count))
    sums = f"y = Sum ({', '.join(f'u{i}' for i in range(count))})"
    held = ", ".join(f"int64[1] s{i} = {{{2 * i}}}" for i in range(count + 1))
    joined = f"t = Concat <axis = 2> ({', '.join(names)})"
    model, _ = both(net(f"{makers} {joined} {slices} {sums}", AXES, held))
    view, asked = infer_shapes(model).view(), Counter[str]()
    shape = view.shape
    view.shape = lambda tensor: asked.update([tensor]) or shape(tensor)
    concats = _Concats(view)
    assert all(concats.parts(node) for node in view.nodes if node.op == "Slice")
    assert max(asked.values()) == 1


def test_rewrite_takes_both(build, quantize) -> None:
    """Behind an int8 layer, whose output both read."""
    text = """g (float[1,70,4] a) => (float[1,70,2] p, float[1,70,4] y)
        <float[4,2] w = seeded, int64[1] zero = {0}, int64[1] two = {2}, int64[1] last = {2},
         int64[1] end = {4}>
        { [layer] l = MatMul (a, w) [soft] p = Softmax (l) [act] m = Neg (l)
          [cat] t = Concat <axis = 2> (m, l) [one] u = Slice (t, zero, two, last)
          [other] v = Slice (t, two, end, last) [sum] s = Add (u, v)
          [join] y = Concat <axis = 2> (s, u) }"""
    made = quantize(build(text))
    found = [node.op for node in rewrite(made.source, made.plan).view().nodes]
    assert "Softmax" not in found and "Slice" not in found
    assert found.count("Concat") == 1
