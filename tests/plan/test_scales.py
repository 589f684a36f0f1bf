"""Scales of activations, weights and constants, and which tensors share them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.numerics import quantize as quantize_values
from onnxq.ops import classify
from onnxq.plan import Recipe, make_plan, tensors_to_observe
from onnxq.plan.scales import BIAS_LIMIT
from onnxq.targets import get_target
from onnxq.types import QType, TensorRange

TARGET = get_target("cpu-x86")
JOIN = """g (float[1,2,4,4] x) => (float y)
<float[2,2,1,1] w1 = seeded, float[2,2,1,1] w2 = seeded, float[2,4,1,1] w3 = seeded,
 float low = {0}, float high = {6}>
{ [left] a = Conv (x, w1) LEFT [right] b = Conv (x, w2) RIGHT
  [join] j = Concat <axis = 1> (r, s) [head] y = Conv (j, w3) }"""


def ranges(**ends: tuple[float, float]) -> dict[str, TensorRange]:
    return {t: TensorRange(lo, hi, lo, hi) for t, (lo, hi) in ends.items()}


@pytest.fixture
def plan(build):
    def make(text: str, given: dict[str, TensorRange] | None = None, target=TARGET, **recipe):
        view = build(text).view()
        census = classify(view, target)
        every = ranges(
            **dict.fromkeys(tensors_to_observe(view, census, Recipe(**recipe)), (-1.0, 1.0))
        ) | (given or {})
        return make_plan(view, census, every, Recipe(**recipe), target)

    return make


def join(
    left: str = "r = Transpose <perm = [0, 1, 3, 2]> (a)",
    right: str = "s = Transpose <perm = [0, 1, 3, 2]> (b)",
) -> str:
    return JOIN.replace("LEFT", left).replace("RIGHT", right)


# --- groups ----------------------------------------------------------------------------------


def test_movers_and_concat_share_one_scale(plan) -> None:
    small, large = (-1, 2), (-2, 2)
    found = plan(join(), ranges(a=large, r=large, b=small, s=small, j=(-2, 2.5)))
    (group,) = found.groups
    assert set(group) == {"a", "r", "b", "s", "j"}
    assert len({found.tensors[t] for t in group}) == 1
    # The widest range decides: -2 to 2.5 in 255 steps.
    assert found.tensors["j"].scale[0] == pytest.approx(4.5 / 255, rel=1e-6)
    assert found.tensors["x"] not in {found.tensors[t] for t in group}


def test_concat_of_different_ranges_keeps_own_scales(plan) -> None:
    found = plan(join(), ranges(a=(-1, 1), r=(-1, 1), b=(-3, 3), s=(-3, 3), j=(-3, 3)))
    assert sorted(map(sorted, found.groups)) == [["a", "r"], ["b", "s"]]


@pytest.mark.parametrize(("widest", "shared"), [(4.0, True), (4.001, False)])
def test_stretch_is_at_most_two(plan, widest, shared) -> None:
    small, large = (0.0, 2.0), (0.0, widest)
    given = ranges(a=small, r=small, b=large, s=large, j=large)
    assert (len(plan(join(), given).groups) == 1) is shared


def test_stretch_does_not_add_up_over_a_chain_of_concats(plan) -> None:
    """1 to 2 and 2 to 4 suit each Concat alone, but the first part would be stretched by 4."""
    text = """g (float[1,1,4,4] x) => (float y)
        <float[1,1,1,1] w = {1}, float[1,1,1,1] v = {2}, float[1,1,1,1] u = {3},
         float[1,3,1,1] h = {1, 2, 3}>
        { a = Conv (x, w) b = Conv (x, v) c = Conv (x, u) i = Concat <axis = 1> (a, b)
          j = Concat <axis = 1> (i, c) y = Conv (j, h) }"""
    found = plan(text, ranges(a=(0, 1), b=(0, 2), i=(0, 2), c=(0, 4), j=(0, 4)))
    assert list(map(set, found.groups)) == [{"a", "b", "i"}]


RELU, CLIP = "r = Relu (a)", "r = Clip (a, low, high)"


@pytest.mark.parametrize(
    ("left", "mine", "other", "shared"),
    [
        (RELU, (0, 2), (-1, 2), False),
        (RELU, (0, 2), (0, 3), True),
        (CLIP, (0, 6), (0, 8), False),
        (CLIP, (0, 6), (0, 5), True),
        (CLIP, (0, 6), (-1, 6), False),
        ("q = Relu (a) r = Transpose <perm = [0, 1, 3, 2]> (q)", (0, 2), (-1, 2), False),
    ],
)
def test_shared_scale_does_not_undo_a_clamp(plan, left, mine, other, shared) -> None:
    """A clamp vanishes only into a range that ends where it cuts."""
    both = min(mine[0], other[0]), max(mine[1], other[1])
    given = ranges(q=mine, r=mine, b=other, s=other, j=both)
    found = plan(join(left=left), given)
    assert (found.tensors["r"] == found.tensors["j"]) is shared
    if not shared:
        assert found.tensors["r"].zero_point == (0,)


@pytest.mark.parametrize("kept", [[], ["first"]], ids=["int8", "float"])
def test_range_behind_a_clamp_is_what_was_seen_whatever_computes_it(plan, kept) -> None:
    """An observer may choose a wider one, but a clamp lets nothing larger through."""
    wide = TensorRange(0, 48, 0, 6)
    found = plan(
        """g (float[1,2,4,4] x) => (float y)
        <float[2,2,1,1] w = seeded, float low = {0}, float high = {6}>
        { [first] a = Conv (x, w) r = Clip (a, low, high) [second] y = Conv (r, w) }""",
        {"r": wide},
        keep_float=kept,
    )
    assert found.precision()["first"].static is not bool(kept)
    assert found.tensors["r"].scale[0] == pytest.approx(6 / 255, rel=1e-6)


# --- activations -----------------------------------------------------------------------------


def test_activations_are_of_the_targets_type(plan) -> None:
    found = plan(
        "g (float[1,2,4,4] x) => (float y) <float[2,2,1,1] w = seeded> { y = Conv (x, w) }"
    )
    assert {found.tensors[t].qtype for t in "xy"} == {QType.UINT8}
    assert found.tensors["w"].qtype is QType.INT8


def test_constant_operand_has_the_activations_type(plan) -> None:
    found = plan("""g (float[1,2,4,4] x) => (float y)
        <float[2,2,1,1] w = seeded, float[2,1,1] c = {-1, 3}>
        { a = Conv (x, w) b = Mul (a, c) y = Conv (b, w) }""")
    assert found.tensors["c"].qtype is QType.UINT8
    assert found.tensors["c"].scale[0] == pytest.approx(4 / 255, rel=1e-6)


# --- weights and biases ----------------------------------------------------------------------

CONV = """g (float[1,2,4,4] x) => (float y)
<float[2,2,1,1] w = {1, -2, 0.25, 0.5}, float[2] b = {0, BIAS}> { [conv] y = Conv (x, w, b) }"""


def test_weights_have_a_scale_for_each_channel(plan) -> None:
    weight = plan(CONV.replace("BIAS", "0")).tensors["w"]
    assert weight.axis == 0
    np.testing.assert_allclose(weight.scale, [2 / 127, 0.5 / 127], rtol=1e-6)
    assert weight.zero_point == (0, 0)


def test_weights_may_have_one_scale(plan) -> None:
    weight = plan(CONV.replace("BIAS", "0"), per_channel=False).tensors["w"]
    assert weight.axis is None
    assert weight.scale == pytest.approx([2 / 127], rel=1e-6)


def test_saturating_target_uses_half_the_range(plan) -> None:
    target = get_target("cpu-x86-avx2")
    weight = plan(CONV.replace("BIAS", "0"), target=target).tensors["w"]
    values = np.array([1, -2, 0.25, 0.5], np.float32).reshape(2, 2, 1, 1)
    assert np.abs(quantize_values(values, weight).astype(int)).max() <= 64


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [1e3, 1e5, 1e9])
def test_bias_fits_into_int32(plan, bias, per_channel) -> None:
    """Only the channel of a huge bias gets a coarser scale."""
    found = plan(CONV.replace("BIAS", str(bias)), per_channel=per_channel)
    step = np.array(found.tensors["w"].scale) * found.tensors["x"].scale[0]
    # Scales are rounded to float32, which may lift the quotient by its last place.
    assert np.all(np.array([0, bias]) / step <= BIAS_LIMIT * (1 + 1e-6))
    ordinary = plan(CONV.replace("BIAS", "0"), per_channel=per_channel).tensors["w"].scale
    assert found.tensors["w"].scale[-1] >= ordinary[-1]
    if per_channel:
        assert found.tensors["w"].scale[0] == ordinary[0]
    if bias == 1e9:
        assert found.tensors["w"].scale[-1] > ordinary[-1]


def test_product_of_scales_is_a_float32(plan) -> None:
    """Inputs and weights so small that s_x * s_w would round to 0 as a float32."""
    text = CONV.replace("{1, -2, 0.25, 0.5}", "{1e-37, -2e-37, 1e-38, 0}").replace("BIAS", "0")
    found = plan(text, ranges(x=(-1e-7, 1e-7)))
    step = np.array(found.tensors["w"].scale, np.float32) * np.float32(found.tensors["x"].scale[0])
    assert np.all(step >= np.finfo(np.float32).tiny)


def test_bias_beyond_every_scale_keeps_the_node_float(plan) -> None:
    """1e10 / (2^29 * 1.2e-38) times 127 is more than a float32 can be."""
    found = plan(CONV.replace("BIAS", "1e10"), ranges(x=(-1e-37, 1e-37)))
    assert found.nodes[0].reason.code == "bias-too-large"
    assert found.empty


def test_nodes_that_disagree_on_the_axis_share_one_scale(plan) -> None:
    """One matrix, used once as it is and once transposed: its channels are two different axes."""
    text = """g (float[2,4] x) => (float y, float z) <float[4,4] w = seeded>
        { y = Gemm (x, w) z = Gemm <transB = 1> (x, w) }"""
    assert plan(text).tensors["w"].axis is None
    same = text.replace("z = Gemm <transB = 1> (x, w)", "z = MatMul (x, w)")
    assert plan(same).tensors["w"].axis == 1


# --- ranges that cannot be used ---------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["x", "c"])
def test_range_with_infinities_keeps_the_node_float(plan, tensor) -> None:
    text = """g (float[1,2,4,4] x) => (float y) <float[2,2,1,1] w = seeded>
        { [first] c = Conv (x, w) [second] y = Conv (c, w) }"""
    bad = {tensor: TensorRange(-1, 1, -1, 1, finite=False)}
    found = {n.name: n.reason for n in plan(text, bad).nodes}
    assert found["first"].code == "not-finite"
    assert f"'{tensor}' holds infinities" in found["first"].sentence
    assert (found["second"] is None) is (tensor == "x")


def test_tensor_that_was_not_observed_keeps_the_node_float(build) -> None:
    view = build("""g (float[1,2,4,4] x) => (float y) <float[2,2,1,1] w = seeded>
        { [conv] y = Conv (x, w) }""").view()
    found = make_plan(view, classify(view, TARGET), ranges(x=(-1, 1)), Recipe(), TARGET)
    assert found.nodes[0].reason.code == "not-observed"
    assert "'y'" in found.nodes[0].reason.sentence
    assert found.empty
    assert found.tensors == {}
