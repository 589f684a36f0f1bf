"""Weights move out of bodies, and the model computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.graph import serialize
from onnxq.graph.lift import LEAST_LIFTED, lift_constants
from onnxq.runtime import Session, prepare

W = "float[16,16] w = seeded"
BRANCHES = """g (bool c, float[2,16] x) => (float[2,16] y) {{
  [choose] y = If (c) <
    then_branch = t () => (float[2,16] p) <{then_held}> {{ {then_body} }},
    else_branch = e () => (float[2,16] q) <{else_held}> {{ {else_body} }}> }}"""


def branches(build, then, otherwise=("", "q = Neg (x)")):
    return build(
        BRANCHES.format(
            then_held=then[0], then_body=then[1], else_held=otherwise[0], else_body=otherwise[1]
        )
    )


def held(model) -> set[str]:
    """What the bodies hold themselves."""
    return {name for g in model.ir.graph.subgraphs() for name in g.initializers}


def assert_same(source, lifted) -> None:
    """To the last bit, in both branches; both are valid."""
    onnx.checker.check_model(onnx.ModelProto.FromString(serialize(lifted)), full_check=True)
    x = np.random.RandomState(0).standard_normal((2, 16)).astype(np.float32)
    for c in (True, False):
        feed = {"c": np.array(c), "x": x}
        expected, found = (Session(m, level="none").run(feed) for m in (source, lifted))
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_weight_of_a_branch_is_lifted(build) -> None:
    source = branches(build, (W, "p = MatMul (x, w)"))
    lifted = lift_constants(source)
    assert held(lifted) == set()
    assert lifted.view().is_constant("w")
    assert lifted.view().by_name["choose"].captures == ("x", "w")
    assert lifted.notes[-1] == "lifted 1 constants out of bodies (If, Loop, Scan)"
    assert held(source) == {"w"}
    assert_same(source, lifted)


def test_equal_weights_of_two_branches_become_one(build) -> None:
    source = branches(build, (W, "p = MatMul (x, w)"), (W, "n = Neg (x) q = MatMul (n, w)"))
    lifted = lift_constants(source)
    assert list(lifted.ir.graph.initializers) == ["w_1"]
    assert_same(source, lifted)


def test_branches_may_call_different_weights_the_same(build) -> None:
    source = branches(build, (W, "p = MatMul (x, w)"), (W, "q = MatMul (x, w)"))
    (other,) = (g for g in source.ir.graph.subgraphs() if g.name == "e")
    value = other.initializers["w"]
    value.const_value = ir.tensor(-2 * value.const_value.numpy(), name="w")
    lifted = lift_constants(source)
    assert set(lifted.ir.graph.initializers) == {"w_1", "w_2"}
    assert_same(source, lifted)


def test_name_that_another_body_gives_to_a_tensor_is_avoided(build) -> None:
    source = branches(build, (W, "p = MatMul (x, w)"), ("", "w = Neg (x) q = Neg (w)"))
    lifted = lift_constants(source)
    assert list(lifted.ir.graph.initializers) == ["w_1"]
    assert_same(source, lifted)


def test_nested_bodies_and_constant_nodes(build) -> None:
    numbers = ", ".join(str(n / 256) for n in range(256))
    source = branches(
        build,
        (
            "",
            f"""k = Constant <value = float[16,16] {{{numbers}}}> ()
            p = If (c) <
              then_branch = tt () => (float[2,16] r) <{W}> {{
                s = MatMul (x, w) r = MatMul (s, k) }},
              else_branch = ee () => (float[2,16] u) {{ u = Neg (x) }}>""",
        ),
    )
    lifted = lift_constants(source)
    assert held(lifted) == set()
    assert set(lifted.ir.graph.initializers) == {"w", "k"}
    assert not [op for _, _, op in lifted.operators() if op == "Constant"]
    assert_same(source, lifted)


@pytest.mark.parametrize(
    ("constant", "body"),
    [
        (f"float[{LEAST_LIFTED - 1}] w = seeded", "t = ReduceSum (w) p = Add (x, t)"),
        ("int64[2] w = {2, 16}", "p = Reshape (x, w)"),
        ("float[2,16] p = seeded", "n = Neg (x)"),
    ],
    ids=["small", "whole numbers", "handed out"],
)
def test_what_stays(build, constant, body) -> None:
    source = branches(build, (constant, body))
    assert lift_constants(source) is source


def test_large_constant_that_is_handed_out_stays(build) -> None:
    source = build("""g (bool c) => (float[16,16] y) {
        y = If (c) <
            then_branch = t () => (float[16,16] p) <float[16,16] p = seeded> { n = Neg (p) },
            else_branch = e () => (float[16,16] q) <float[16,16] k = seeded> { q = Neg (k) }> }""")
    lifted = lift_constants(source)
    assert held(lifted) == {"p"}
    for c in (True, False):
        feed = {"c": np.array(c)}
        np.testing.assert_array_equal(
            Session(lifted).run(feed)["y"], Session(source).run(feed)["y"]
        )


def test_what_folding_makes_inside_bodies_is_lifted_and_shared(build) -> None:
    """Both branches compute the same out of an outer constant, as exporters write LSTMs."""
    fold = "{n} = Transpose <perm = [1, 0]> (k)"
    source = build(
        BRANCHES.format(
            then_held="",
            then_body=fold.format(n="a") + " p = MatMul (x, a)",
            else_held="",
            else_body=fold.format(n="b") + " n = Neg (x) q = MatMul (n, b)",
        ).replace("(float[2,16] y) {", "(float[2,16] y) <float[16,16] k = seeded> {")
    )
    prepared = prepare(source)
    assert held(prepared) == set()
    assert len(prepared.ir.graph.initializers) == 1
    assert_same(source, prepared)
