"""Weights alone: what is stored how, and why other weights stay float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.ops import classify
from onnxq.plan import LayerRule, QuantPlan, Recipe, WeightSettings, make_plan, needed_opset
from onnxq.plan.weights import INT4_BLOCK, LEAST_WEIGHT
from onnxq.targets import get_target
from onnxq.types import Precision, QType, WeightBlocks

NETS = {
    "MatMul": """g (float[2,40] x) => (float[2,30] y) <float[40,30] w = seeded>
        { [n] y = MatMul (x, w) }""",
    "Gemm": """g (float[2,40] x) => (float[2,30] y) <float[40,30] w = seeded>
        { [n] y = Gemm (x, w) }""",
    "Gemm, transposed": """g (float[2,40] x) => (float[2,30] y) <float[30,40] w = seeded>
        { [n] y = Gemm <transB = 1> (x, w) }""",
    "Gather": """g (int64[5] x) => (float[5,40] y) <float[30,40] w = seeded>
        { [n] y = Gather (w, x) }""",
    "batched": """g (float[3,2,40] x) => (float[3,2,30] y) <float[3,40,30] w = seeded>
        { [n] y = MatMul (x, w) }""",
    "LSTM": """g (float[2,1,40] x) => (float[2,1,1,8] y)
        <float[1,32,40] w = seeded, float[1,32,8] r = seeded>
        { [n] y = LSTM <hidden_size = 8> (x, w, r) }""",
    "Conv": """g (float[1,8,6,6] x) => (float y) <float[8,8,3,3] w = seeded>
        { [n] y = Conv (x, w) }""",
    "ConvTranspose": """g (float[1,8,6,6] x) => (float y) <float[8,4,3,3] w = seeded>
        { [n] y = ConvTranspose (x, w) }""",
}
INT4 = Recipe(precision="int4-weights")
INT8 = Recipe(precision="int8-weights")


@pytest.fixture
def planned(build):
    def plan(text: str, recipe: Recipe, target: str = "cpu-x86") -> QuantPlan:
        view = build(text).view()
        chosen = get_target(target)
        return make_plan(view, classify(view, chosen), {}, recipe, chosen)

    return plan


def settings(precision: str, **weights) -> Recipe:
    return Recipe(precision=precision, weights=WeightSettings(**weights))


@pytest.mark.parametrize(
    ("net", "axis"),
    [("MatMul", 0), ("Gemm", 0), ("Gemm, transposed", 1), ("Gather", 1), ("batched", 1),
     ("LSTM", 2)],
)  # fmt: skip
def test_four_bits_are_in_blocks_along_what_is_summed(planned, net, axis) -> None:
    plan = planned(NETS[net], INT4)
    assert plan.precision() == {"n": Precision.INT4_WEIGHTS}
    assert plan.blocks["w"] == WeightBlocks(QType.INT4, axis, INT4_BLOCK, symmetric=True)
    assert not plan.tensors


@pytest.mark.parametrize(("net", "axis"), [("Conv", 0), ("ConvTranspose", 1)])
@pytest.mark.parametrize("target", ["cpu-x86", "cpu-x86-avx2"])
def test_four_bits_of_a_conv_are_by_channel(planned, net, axis, target) -> None:
    """With the whole range of 4 bits, also where 8 bit weights leave half of theirs."""
    params = planned(NETS[net], INT4, target).tensors["w"]
    assert (params.qtype, params.axis, len(params.scale)) == (QType.INT4, axis, 8 // (axis + 1))
    assert max(params.scale) == pytest.approx(np.sqrt(3 / (72 if axis == 0 else 36)) / 7, rel=0.1)


@pytest.mark.parametrize(("net", "axis"), [("MatMul", 1), ("Gemm, transposed", 0), ("Gather", 0)])
def test_eight_bits_are_by_channel_unless_a_size_is_given(planned, net, axis) -> None:
    params = planned(NETS[net], INT8).tensors["w"]
    assert (params.qtype, params.axis, len(params.scale)) == (QType.INT8, axis, 30)
    blocks = planned(NETS[net], settings("int8-weights", block_size=16)).blocks["w"]
    assert blocks == WeightBlocks(QType.INT8, 1 - axis, 16, symmetric=True)


@pytest.mark.parametrize(("precision", "bits"), [("int4-weights", 4), ("int8-weights", 8)])
def test_settings_of_blocks_are_obeyed(planned, precision, bits) -> None:
    recipe = settings(precision, block_size=128, symmetric=False, method="hqq")
    blocks = planned(NETS["MatMul"], recipe).blocks["w"]
    assert blocks == WeightBlocks(QType(f"uint{bits}"), 0, 128, symmetric=False, method="hqq")


def test_settings_of_layers_are_obeyed(planned) -> None:
    text = """g (float[2,32] x) => (float[2,32] y)
        <float[32,32] v = seeded, float[32,32] w = seeded>
        { [a] t = MatMul (x, v) [b] y = MatMul (t, w) }"""
    rules = (LayerRule(name="b", bits=4, block_size=16),)
    plan = planned(text, Recipe(precision="int8-weights", layers=rules))
    assert plan.precision() == {"a": Precision.INT8_WEIGHTS, "b": Precision.INT4_WEIGHTS}
    assert set(plan.tensors) == {"v"}
    assert plan.blocks == {"w": WeightBlocks(QType.INT4, 0, 16, symmetric=True)}


SHARED = """g (int64[5] i, float[5,32] x) => (float[5,32] y, float[5,32] z)
    <float[32,32] w = seeded> { [table] y = Gather (w, i) [product] z = MatMul (x, w) }"""


@pytest.mark.parametrize(
    ("rules", "stored"),
    [
        ({}, WeightBlocks(QType.INT4, 0, 32, symmetric=True)),
        ({"product": {"precision": "float"}}, WeightBlocks(QType.INT4, 1, 32, symmetric=True)),
        ({"table": {"bits": 8, "block_size": 16}}, WeightBlocks(QType.INT8, 1, 16, symmetric=True)),
        ({"table": {"bits": 8}}, QType.INT8),
    ],
)
def test_shared_weight_is_stored_once_as_the_widest_says(planned, rules, stored) -> None:
    """Among equals as the node that computes with it says."""
    layers = tuple(LayerRule(name=name, **said) for name, said in rules.items())
    plan = planned(SHARED, Recipe(precision="int4-weights", layers=layers))
    if isinstance(stored, QType):
        assert not plan.blocks
        assert plan.tensors["w"].qtype is stored
    else:
        assert plan.blocks == {"w": stored}
        assert not plan.tensors


@pytest.mark.parametrize("precision", ["int4-weights", "int8-weights"])
@pytest.mark.parametrize(("size", "reason"), [(LEAST_WEIGHT - 1, "small-weight"), (256, None)])
def test_small_weights_stay_float(planned, precision, size, reason) -> None:
    text = f"""g (float[1,{size}] x) => (float y) <float[{size},1] w = seeded>
        {{ [n] y = MatMul (x, w) }}"""
    (node,) = planned(text, Recipe(precision=precision)).nodes
    assert (node.reason.code if node.reason else None) == reason


@pytest.mark.parametrize("precision", ["int4-weights", "int8-weights"])
def test_weight_that_is_not_finite_stays_float(build, precision) -> None:
    model = build(NETS["MatMul"]).copy()
    values = model.view().constant("w").copy()
    values.flat[7] = np.nan
    model.ir.graph.initializers["w"].const_value = ir.tensor(values, name="w")
    target = get_target("cpu-x86")
    recipe = Recipe(precision=precision)
    plan = make_plan(model.view(), classify(model.view(), target), {}, recipe, target)
    assert plan.nodes[0].reason.code == "weight-not-finite"
    assert plan.empty


def test_operator_without_blocks_or_channels_is_refused(planned) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[1,4,16] x) => (float y) <float[16,48] w = seeded, float[48] b = seeded>
        { [n] y = com.microsoft.Attention <num_heads = 2> (x, w, b) }"""
    (node,) = planned(text, INT4).nodes
    assert node.reason.code == "no-int4"


@pytest.mark.parametrize(
    ("recipe", "opset"),
    [
        (Recipe(), 13),
        (INT8, 13),
        (INT4, 21),
        (Recipe(precision="int16"), 21),
        (settings("int8-weights", block_size=32), 21),
        (settings("int8", block_size=32), 13),
        (Recipe(precision="int8-weights", layers=(LayerRule(op="MatMul", bits=4),)), 21),
        (Recipe(precision="int8-weights", layers=(LayerRule(op="Gemm", block_size=16),)), 21),
    ],
)
def test_opset_is_the_least_that_says_it_all(recipe, opset) -> None:
    assert needed_opset(recipe) == opset
