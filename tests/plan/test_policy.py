"""Which nodes compute in int8: one test for each rule, met and broken."""

from __future__ import annotations

from collections import deque

import pytest

from onnxq.graph import from_text
from onnxq.ops import classify
from onnxq.plan import Recipe, layer_settings
from onnxq.plan.policy import Regions, not_static
from onnxq.targets import get_target

TARGET = get_target("cpu-x86")
W = "float[4,4,1,1] w1 = seeded, float[4,4,1,1] w2 = seeded, float[4,4] v = seeded"


@pytest.fixture
def regions(build):
    """The regions of a body over x, float[1,4,4,4]; nodes called float* are kept so."""

    def plan(body: str, outputs: str = "float y", inputs: str = "float[1,4,4,4] x") -> Regions:
        model = build(f"g ({inputs}) => ({outputs}) <{W}> {{ {body} }}")
        census = classify(model.view(), TARGET)
        patterns = ("float*",) if "[float" in body else ()
        kept = not_static(census, layer_settings(census, Recipe(keep_float=patterns)))
        return Regions(model.view(), census, kept)

    return plan


MET = {
    "layer between float operators": "t = Tanh (x) [it] c = Conv (t, w1) y = Tanh (c)",
    "product of two int8 activations": "a = MatMul (x, v) b = MatMul (x, v) [it] y = MatMul (a, b)",
    "product of inputs": "[it] y = MatMul (x, x)",
    "clamp behind a Conv": "c = Conv (x, w1) [it] r = Relu (c) y = Tanh (r)",
    "clamp between Gemm-like layers": "a = MatMul (x, v) [it] r = Relu (a) y = MatMul (r, v)",
    "clamp behind an elementwise operator":
        "a = Conv (x, w1) b = Conv (x, w2) s = Add (a, b) [it] r = Relu (s) y = Conv (r, w1)",
    "elementwise between layers": "a = Conv (x, w1) b = Conv (x, w2) [it] s = Add (a, b) "
                                  "y = Conv (s, w1)",
    "mover of an input": "[it] p = MaxPool <kernel_shape = [2, 2]> (x) y = Conv (p, w1)",
    "activation between layers": "a = Conv (x, w1) [it] s = Sigmoid (a) y = Conv (s, w2)",
    "chain between layers": "a = Conv (x, w1) s = Sigmoid (a) [it] t = Transpose (s) "
                            "y = Conv (t, w2)",
    "behind a float mover of int8 data": "a = Conv (x, w1) [float] t = Transpose (a) "
                                         "[it] s = Sigmoid (t) y = Conv (s, w2)",
}  # fmt: skip
BROKEN = {
    "product with a float activation": (
        "a = MatMul (x, v) t = Tanh (x) [it] y = MatMul (a, t)",
        "one of its two activations is computed in float",
    ),
    "clamp behind a float layer": (
        "[float] c = Conv (x, w1) [it] r = Relu (c) y = Conv (r, w2)",
        "its input is computed in float",
    ),
    "clamp of an input": ("[it] r = Relu (x) y = Conv (r, w1)", "its input is computed in float"),
    "clamp whose input has another reader": (
        "c = Conv (x, w1) [it] r = Relu (c) s = Conv (r, w2) y = Add (s, c)",
        "used elsewhere too",
    ),
    "clamp behind a mover": (
        "c = Conv (x, w1) p = Transpose (c) [it] r = Relu (p) y = Conv (r, w2)",
        "only moves data",
    ),
    "clamp behind a MatMul with nothing behind": (
        "a = MatMul (x, v) [it] r = Relu (a) y = Tanh (r)",
        "nothing behind it computes in int8",
    ),
    "elementwise with a float side": (
        "a = Conv (x, w1) t = Tanh (x) [it] s = Add (a, t) y = Conv (s, w2)",
        "its input is computed in float",
    ),
    "elementwise of an input": (
        "a = Conv (x, w1) [it] s = Add (a, x) y = Conv (s, w2)",
        "its input is computed in float",
    ),
    "nothing behind": (
        "a = Conv (x, w1) [it] s = Sigmoid (a) y = Tanh (s)",
        "nothing behind it computes in int8",
    ),
    "mover to an output": (
        "a = Conv (x, w1) [it] y = Transpose (a)",
        "nothing behind it computes in int8",
    ),
    "chain with nothing behind its end": (
        "a = Conv (x, w1) [it] s = Sigmoid (a) t = Transpose (s) u = Transpose (t) y = Tanh (u)",
        "nothing behind it computes in int8",
    ),
    "chain with a float start": (
        "t = Tanh (x) p = Transpose (t) q = Transpose (p) [it] s = Sigmoid (q) y = Conv (s, w1)",
        "its input is computed in float",
    ),
    "behind a float mover of float data": (
        "t = Tanh (x) [float] p = Transpose (t) [it] s = Sigmoid (p) y = Conv (s, w2)",
        "its input is computed in float",
    ),
}


@pytest.mark.parametrize("name", MET)
def test_rule_is_met(regions, name) -> None:
    found = regions(MET[name])
    assert "it" in found.int8, found.reasons["it"].sentence
    assert "it" not in found.reasons


@pytest.mark.parametrize("name", BROKEN)
def test_rule_is_broken(regions, name) -> None:
    body, sentence = BROKEN[name]
    found = regions(body)
    assert "it" not in found.int8
    assert found.reasons["it"].code == "no-gain"
    assert sentence in found.reasons["it"].sentence


def test_clamp_whose_input_is_an_output_stays_float(regions) -> None:
    body = "c = Conv (x, w1) [it] r = Relu (c) y = Conv (r, w2)"
    assert "it" in regions(body).int8
    found = regions(body, "float[1,4,4,4] c, float y")
    assert "used elsewhere too" in found.reasons["it"].sentence


def test_every_node_is_int8_or_has_a_reason(regions) -> None:
    for body in (*MET.values(), *(body for body, _ in BROKEN.values())):
        found = regions(body)
        assert not found.int8 & set(found.reasons)
        assert found.int8 | set(found.reasons) == set(found._infos)


def test_tensors_that_carry_a_pair(regions) -> None:
    """Not the one between a layer and its clamp, and not the output of a last dense layer."""
    found = regions("c = Conv (x, w1) r = Relu (c) a = MatMul (r, v) y = MatMul (a, v)")
    assert list(found.tensors()) == ["x", "r", "a"]


def test_float_readers_do_not_keep_a_conv_from_its_pair(regions) -> None:
    assert list(regions("c = Conv (x, w1) y = Tanh (c)").tensors()) == ["x", "c"]


@pytest.mark.parametrize(("bias", "pair"), [("v", True), ("x", False)])
def test_dense_layer_before_a_bias_has_a_pair(regions, bias, pair) -> None:
    found = regions(f"m = MatMul (x, v) y = Add (m, {bias})")
    assert ("m" in found.tensors()) is pair


# --- what the user keeps float ---------------------------------------------------------------

TWO = "[conv_1] c = Conv (x, w1) [conv_2] d = Conv (c, w2) [act] y = Relu (d)"


def test_kept_node_is_float_in_the_plan(build, quantize) -> None:
    model = build(f"g (float[1,4,4,4] x) => (float y) <{W}> {{ {TWO} }}")
    made = quantize(model, Recipe(keep_float=("conv_2",)))
    assert made.reasons() == {"conv_2": "kept-float", "act": "no-gain"}


# --- cost ------------------------------------------------------------------------------------

LENGTH = 20_000
LONG = {
    "all int8": ("c = Conv (x, w1)", "Transpose", "y = Conv (LAST, w2)"),
    "dropped from the end": ("c = Conv (x, w1)", "Transpose", "y = Tanh (LAST)"),
    "dropped from the start": ("c = Tanh (x)", "Sigmoid", "y = Conv (LAST, w2)"),
    "dropped from both ends": ("c = Tanh (x)", "Transpose", "y = Tanh (LAST)"),
}


@pytest.mark.parametrize("name", LONG)
def test_cost_is_linear(monkeypatch, name) -> None:
    """Each node is looked at once at first, and again when its one reader or its one producer was
    dropped: at most three times."""
    first, op, last = LONG[name]
    chain = [f"t{i} = {op} ({f't{i - 1}' if i else 'c'})" for i in range(LENGTH)]
    # Without shape inference, which is no part of this, every type is written down.
    types = ", ".join(f"float[1,4,4,4] {t}" for t in ("c", *(f"t{i}" for i in range(LENGTH))))
    weights = "float[1,1,1,1] w1 = {1}, float[1,1,1,1] w2 = {1}"
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,4,4] x) => (float[1,4,4,4] y) <{weights}, {types}>
        {{ {first} {" ".join(chain)} {last.replace("LAST", f"t{LENGTH - 1}")} }}""")
    looks = 0

    class Queue(deque):
        def popleft(self):
            nonlocal looks
            looks += 1
            return super().popleft()

    monkeypatch.setattr("onnxq.plan.policy.deque", Queue)
    found = Regions(model.view(), classify(model.view(), TARGET), {})
    assert LENGTH <= looks <= 3 * (LENGTH + 2)
    inner = {n.name for n in model.view().nodes[1:-1]}
    assert inner <= (found.int8 if name == "all int8" else set(found.reasons))


def test_nothing_is_paired_before_a_mover_that_a_body_reads(build) -> None:
    """ONNX Runtime 1.31.1 ends the process when it loads such a model."""
    model = build(f"""g (float[1,4,4,4] x, bool c) => (float[1,4,4,4] y, float z) <{W}> {{
        [before] a = Conv (x, w1)
        [mover] t = Transpose <perm = [0, 1, 3, 2]> (a)
        [other] y = Conv (a, w2)
        [if] z = If (c) <then_branch = p () => (float u) {{ u = ReduceMax <keepdims = 0> (t) }},
          else_branch = q () => (float v) {{ v = ReduceMin <keepdims = 0> (t) }}>
    }}""")
    census = classify(model.view(), TARGET)
    found = Regions(model.view(), census, {})
    assert found.int8 == {"other"}
    assert {found.reasons[name].code for name in ("before", "mover")} == {"before-body"}
