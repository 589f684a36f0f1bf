"""The plan as a value: complete, serialisable, and right for weights alone."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import serialize
from onnxq.ops import classify
from onnxq.plan import QuantPlan, Recipe, make_plan
from onnxq.plan.weights import LEAST_WEIGHT
from onnxq.rewrite import rewrite
from onnxq.targets import get_target
from onnxq.types import Precision

TARGET = get_target("cpu-x86")
NET = """g (float[1,4,6,6] x) => (float y)
<float[8,4,3,3] large = seeded, float[2,8,1,1] small = seeded>
{ [first] c = Conv (x, large) [act] r = Relu (c)
  [second] d = Conv (r, small) [end] y = Tanh (d) }"""
WEIGHTS = Recipe(precision="int8-weights")


@pytest.fixture
def weights_plan(build):
    def plan(text: str, recipe: Recipe = WEIGHTS) -> QuantPlan:
        view = build(text).view()
        return make_plan(view, classify(view, TARGET), {}, recipe, TARGET)

    return plan


def test_plan_tells_of_every_node_in_order(build, quantize) -> None:
    plan = quantize(build(NET)).plan
    assert [n.name for n in plan.nodes] == ["first", "act", "second", "end"]
    assert [n.precision for n in plan.nodes] == ["int8", "int8", "int8", "float"]
    assert [n.reason is None for n in plan.nodes] == [True, True, True, False]
    assert plan.count(Precision.INT8) == 3
    assert plan.count(Precision.INT8, Precision.FLOAT) == 4
    assert not plan.empty


def test_saved_plan_makes_the_same_model(build, quantize) -> None:
    made = quantize(build(NET))
    again = msgspec.json.decode(msgspec.json.encode(made.plan), type=QuantPlan)
    assert again == made.plan
    assert serialize(rewrite(made.source, again)) == serialize(made.model)


def test_edited_plan_is_obeyed(build, quantize) -> None:
    made = quantize(build(NET))
    nodes = tuple(
        msgspec.structs.replace(n, precision=Precision.FLOAT) if n.name == "second" else n
        for n in made.plan.nodes
    )
    edited = rewrite(made.source, msgspec.structs.replace(made.plan, nodes=nodes))
    second = edited.view().by_name["second"]
    assert edited.view().is_constant(second.inputs[1])


def test_weights_alone_need_no_ranges(weights_plan) -> None:
    plan = weights_plan(NET)
    reasons = {n.name: n.reason.code for n in plan.nodes if n.reason}
    assert plan.precision()["first"] is Precision.INT8_WEIGHTS
    assert reasons == {"act": "no-weight", "second": "small-weight", "end": "no-weight"}
    assert set(plan.tensors) == {"large"}
    assert plan.groups == ()


@pytest.mark.parametrize(("size", "stored"), [(LEAST_WEIGHT - 1, False), (LEAST_WEIGHT, True)])
def test_small_weights_stay_float(weights_plan, size, stored) -> None:
    plan = weights_plan(f"""g (float[1,{size}] x) => (float y) <float[{size},1] w = seeded>
        {{ y = MatMul (x, w) }}""")
    assert ("w" in plan.tensors) is stored


def test_weights_of_float_operators_are_stored_too(weights_plan) -> None:
    plan = weights_plan("""g (float[1,8,4,4] x) => (float y) <float[8,8,2,2] w = seeded>
        { y = ConvTranspose (x, w) }""")
    assert plan.tensors["w"].axis == 1


def test_weights_mode_obeys_keep_float(weights_plan) -> None:
    recipe = Recipe(precision="int8-weights", keep_float=("first",))
    assert weights_plan(NET, recipe).empty


def test_weight_that_is_not_finite_stays_float(build) -> None:
    model = build(NET).copy()
    values = model.view().constant("large").copy()
    values.flat[0] = np.inf
    model.ir.graph.initializers["large"].const_value = ir.tensor(values, name="large")
    plan = make_plan(model.view(), classify(model.view(), TARGET), {}, WEIGHTS, TARGET)
    assert plan.nodes[0].reason.code == "weight-not-finite"
