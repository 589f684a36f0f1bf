"""Scale and zero point: the formulas restated, and what a runtime makes of them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxq.numerics import channel_range, choose_qparams, dequantize, fake_quantize
from onnxq.types import QType

QTYPES = list(QType)
SMALL_TYPES = [QType.INT8, QType.UINT8, QType.INT16, QType.UINT16]
TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)

# Ends whose scale is far from underflow, where the formulas hold as written.
ends = st.floats(-1e30, 1e30).filter(lambda v: v == 0 or abs(v) > 1e-25)


@st.composite
def ordered_ends(draw):
    return tuple(sorted((draw(ends), draw(ends))))


def one_ulp(value: float) -> Fraction:
    return Fraction(float(np.spacing(np.float32(value))))


@settings(deadline=None)
@given(ordered_ends(), st.sampled_from(QTYPES))
def test_asymmetric_scale_is_the_extent_over_the_steps(lo_hi, qtype):
    lo, hi = min(lo_hi[0], 0.0), max(lo_hi[1], 0.0)
    params = choose_qparams(*lo_hi, qtype)
    (scale,), (zero_point,) = params.scale, params.zero_point
    assert scale == float(np.float32(scale))
    if lo == hi:
        assert (scale, zero_point) == (1.0, qtype.qmin)
        return
    # Rounding to float32 takes half an ulp, and up to two ulps more go where lo is 0.
    exact = (Fraction(hi) - Fraction(lo)) / (qtype.qmax - qtype.qmin)
    ulps = Fraction(5, 2) if lo == 0 else Fraction(1, 2)
    # float64 rounds the extent and the quotient first: far less than a thousandth of an ulp.
    assert abs(Fraction(scale) - exact) <= (ulps + Fraction(1, 1000)) * one_ulp(scale)


@settings(deadline=None)
@given(ordered_ends(), st.sampled_from(QTYPES))
def test_asymmetric_zero_point_is_the_rounded_offset(lo_hi, qtype):
    lo = min(lo_hi[0], 0.0)
    params = choose_qparams(*lo_hi, qtype)
    # Python's round() of a float is half to even.
    expected = qtype.qmin + round(-lo / params.scale[0])
    assert params.zero_point == (min(max(expected, qtype.qmin), qtype.qmax),)


@settings(deadline=None)
@given(ordered_ends(), st.sampled_from(QTYPES))
def test_symmetric_formula(lo_hi, qtype):
    params = choose_qparams(*lo_hi, qtype, symmetric=True)
    bits = qtype.bits
    absmax = max(abs(lo_hi[0]), abs(lo_hi[1]))
    expected = float(np.float32(absmax / (2 ** (bits - 1) - 1))) if absmax else 1.0
    assert params.scale == (expected,)
    assert params.zero_point == (0 if qtype.qmin < 0 else 2 ** (bits - 1),)


def test_symmetric_int8_divides_by_127():
    assert choose_qparams(-3.0, 254.0, QType.INT8, symmetric=True).scale == (2.0,)


@pytest.mark.parametrize(
    ("lo", "hi", "zero_point"),
    [(-0.5, 254.5, 0), (-1.5, 253.5, 2), (-2.5, 252.5, 2), (-3.5, 251.5, 4)],
)
def test_zero_point_rounds_half_to_even(lo, hi, zero_point):
    params = choose_qparams(lo, hi, QType.UINT8)
    assert (params.scale, params.zero_point) == ((1.0,), (zero_point,))


@settings(deadline=None)
@given(ordered_ends(), st.sampled_from(SMALL_TYPES), st.booleans())
def test_zero_is_exact_and_the_range_is_covered(lo_hi, qtype, symmetric):
    params = choose_qparams(*lo_hi, qtype, symmetric=symmetric)
    values = np.array([0.0, *lo_hi], np.float32)
    zero, *covered = fake_quantize(values, params)
    assert zero == 0
    # Rounding to a step costs half a step; at an end, the rounding of the zero point clips up to
    # half a step too, and not in addition. On top come the float32 roundings of the scale, the
    # quotient and the product, each 2^-24 of up to 2^16 steps.
    for value, back in zip(values[1:], covered, strict=True):
        assert abs(float(back) - float(value)) <= (0.5 + 4 * 2**-8) * params.scale[0]


def test_positive_and_negative_ranges_are_widened_to_zero():
    assert choose_qparams(2.0, 255.0, QType.UINT8) == choose_qparams(0.0, 255.0, QType.UINT8)
    assert choose_qparams(-255.0, -2.0, QType.UINT8) == choose_qparams(-255.0, 0.0, QType.UINT8)
    assert choose_qparams(-255.0, -2.0, QType.UINT8).zero_point == (255,)


@pytest.mark.parametrize("qtype", QTYPES)
def test_an_all_zero_range(qtype):
    params = choose_qparams(0.0, -0.0, qtype)
    assert (params.scale, params.zero_point) == ((1.0,), (qtype.qmin,))
    symmetric = choose_qparams(0.0, 0.0, qtype, symmetric=True)
    assert symmetric.scale == (1.0,)
    assert dequantize(np.array(symmetric.zero_point, qtype.dtype), symmetric) == [0.0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("lo", [0.0, -5e-324, -1e-45])
def test_a_scale_never_underflows(qtype, symmetric, lo):
    assert choose_qparams(lo, 1e-45, qtype, symmetric=symmetric).scale == (TINY,)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("qtype", QTYPES)
@pytest.mark.parametrize("lo", [0.0, -HUGE])
def test_the_largest_range_has_a_finite_scale(qtype, symmetric, lo):
    (scale,) = choose_qparams(lo, HUGE, qtype, symmetric=symmetric).scale
    assert 0 < scale < HUGE
    assert math.isfinite(float(np.float32(scale)))


@settings(deadline=None, max_examples=300)
@given(st.floats(1e-25, HUGE), st.sampled_from(SMALL_TYPES))
def test_a_range_from_zero_does_not_reach_beyond_its_end(hi, qtype):
    params = choose_qparams(0.0, hi, qtype)
    largest = dequantize(np.array([qtype.qmax], qtype.dtype), params)[0]
    assert largest <= np.float32(hi)
    # It is lowered no further than needed: the next larger scale but one would reach beyond.
    # (hi itself may lie half an ulp above float32(hi), hence one more.)
    levels = np.float32(qtype.qmax - qtype.qmin)
    larger = np.float32(params.scale[0])
    for _ in range(2):
        larger = np.nextafter(larger, np.float32(np.inf))
    with np.errstate(over="ignore"):
        assert larger * levels >= np.float32(hi)


def optimized_operators(hi: float, scale: float, zero_point: int, qtype: QType, tmp_path):
    """What remains of Neg, Clip(0, hi), QuantizeLinear, DequantizeLinear in ONNX Runtime.

    The Neg is there because a Clip of a graph input is never dropped.
    """
    constants = [
        numpy_helper.from_array(np.float32(0), "lo"),
        numpy_helper.from_array(np.float32(hi), "hi"),
        numpy_helper.from_array(np.float32(scale), "scale"),
        numpy_helper.from_array(np.array(zero_point, qtype.dtype), "zero_point"),
    ]
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Clip", ["n", "lo", "hi"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy")
    graph = helper.make_graph(nodes, "clip", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


# 255 * float32(hi / 255) exceeds hi for the last three.
@pytest.mark.parametrize("hi", [1.0, 6.0, 7.97, 15.94, 31.99])
@pytest.mark.parametrize("qtype", [QType.UINT8, QType.INT8])
def test_onnx_runtime_absorbs_a_clip_from_zero(hi, qtype, tmp_path):
    hi = float(np.float32(hi))
    params = choose_qparams(0.0, hi, qtype)
    operators = optimized_operators(hi, params.scale[0], params.zero_point[0], qtype, tmp_path)
    assert operators == ["Neg", "QuantizeLinear", "DequantizeLinear"]


def test_onnx_runtime_keeps_a_clip_when_the_scale_is_merely_rounded(tmp_path):
    hi = float(np.float32(31.99))
    assert "Clip" in optimized_operators(hi, hi / 255, 0, QType.UINT8, tmp_path)


def test_one_scale_per_channel():
    lo, hi = np.array([-1.0, 0.0, -128.0, 0.0]), np.array([1.0, 6.0, 127.0, 0.0])
    params = choose_qparams(lo, hi, QType.INT8, axis=1)
    alone = [choose_qparams(a, b, QType.INT8) for a, b in zip(lo, hi, strict=True)]
    assert params.scale == tuple(p.scale[0] for p in alone)
    assert params.zero_point == tuple(p.zero_point[0] for p in alone)
    assert params.axis == 1


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("lo", "hi", "axis"),
    [
        (math.nan, 1.0, None),
        (0.0, math.nan, None),
        (-math.inf, 0.0, None),
        (0.0, math.inf, None),
        (0.0, 1e39, None),  # beyond float32
        (1.0, 0.5, None),
        ([0.0, 1.0], [1.0, 0.0], 0),
        ([0.0], [1.0], None),
        (0.0, 1.0, 0),
        ([0.0], [1.0, 2.0], 0),
        ([[0.0]], [[1.0]], 0),
    ],
)
def test_unusable_ranges_are_refused(lo, hi, axis, symmetric):
    with pytest.raises(ValueError, match="range"):
        choose_qparams(lo, hi, QType.UINT8, symmetric=symmetric, axis=axis)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channel_range_equals_a_loop_over_channels(axis):
    w = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    lo, hi = channel_range(w, axis)
    channels = [w.take(i, axis) for i in range(w.shape[axis])]
    assert lo.tolist() == [c.min() for c in channels]
    assert hi.tolist() == [c.max() for c in channels]
    assert lo.dtype == hi.dtype == np.float32


def test_channel_range_of_a_whole_tensor_is_two_floats():
    lo, hi = channel_range(np.array([[1.5, -2.0], [0.0, 7.0]], np.float32), None)
    assert (lo, hi) == (-2.0, 7.0)
    assert type(lo) is type(hi) is float


def test_channel_range_of_a_vector_per_entry():
    w = np.array([3.0, -1.0], np.float32)
    lo, hi = channel_range(w, 0)
    assert lo.tolist() == hi.tolist() == [3.0, -1.0]


@pytest.mark.parametrize(("shape", "axis"), [((0,), None), ((0, 3), 0), ((3, 0), 0), ((2, 2), 2)])
def test_channel_range_refuses_what_has_none(shape, axis):
    with pytest.raises(ValueError, match=r"empty|axis|source"):
        channel_range(np.zeros(shape, np.float32), axis)


def test_a_nan_in_a_channel_is_told_by_its_range():
    lo, hi = channel_range(np.array([[np.nan, 1.0], [2.0, 3.0]], np.float32), 0)
    assert np.isnan([lo[0], hi[0]]).all()
    with pytest.raises(ValueError, match="finite"):
        choose_qparams(lo, hi, QType.INT8, axis=0)
