"""Quantize and dequantize: bit for bit what ONNX Runtime and the ONNX reference compute."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxq.numerics import choose_qparams, dequantize, fake_quantize, quantize
from onnxq.types import QParams, QType

ONNX_TYPES = {
    QType.INT8: TensorProto.INT8,
    QType.UINT8: TensorProto.UINT8,
    QType.INT16: TensorProto.INT16,
    QType.UINT16: TensorProto.UINT16,
}
TINY = float(np.finfo(np.float32).tiny)


def one_operator(op_type: str, qtype: QType, axis: int | None, opset: int):
    """A model of one operator, with the parameters as inputs."""
    stored, real = ONNX_TYPES[qtype], TensorProto.FLOAT
    x_type, y_type = (real, stored) if op_type == "QuantizeLinear" else (stored, real)
    attributes = {} if axis is None else {"axis": axis}
    node = helper.make_node(op_type, ["x", "scale", "zero_point"], ["y"], **attributes)
    inputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in (("x", x_type), ("scale", real), ("zero_point", stored))
    ]
    outputs = [helper.make_tensor_value_info("y", y_type, None)]
    return helper.make_model(
        helper.make_graph([node], op_type, inputs, outputs),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


@lru_cache
def runtime(op_type: str, qtype: QType, axis: int | None) -> onnxruntime.InferenceSession:
    # 16 bits came with opset 21; 8 bits are tested at the first opset with an axis.
    opset = 13 if qtype.dtype.itemsize == 1 else 21
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = one_operator(op_type, qtype, axis, opset)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@lru_cache
def reference(op_type: str, qtype: QType, axis: int | None) -> ReferenceEvaluator:
    # The reference implements no DequantizeLinear below opset 19.
    return ReferenceEvaluator(one_operator(op_type, qtype, axis, 21))


def feed(x: np.ndarray, params: QParams) -> dict[str, np.ndarray]:
    shape = () if params.axis is None else (-1,)
    return {
        "x": x,
        "scale": np.array(params.scale, np.float32).reshape(shape),
        "zero_point": np.array(params.zero_point, params.qtype.dtype).reshape(shape),
    }


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


@st.composite
def scales(draw, ordinary: bool):
    bounds = (2**-20, 2**20) if ordinary else (TINY, 2.0**100)
    return draw(st.floats(*bounds, width=32))


@st.composite
def cases(draw, ordinary: bool = False):
    """Values, and parameters that fit them; lengths on both sides of a vector register's.

    Ordinary ones stay below 2^31 steps: beyond, the ONNX reference wraps around in int32.
    """
    qtype = draw(st.sampled_from(sorted(ONNX_TYPES)))
    axis = draw(st.sampled_from([None, 0, 1, 2, -1]))
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    count = 1 if axis is None else shape[axis]
    zero_point = st.integers(qtype.qmin, qtype.qmax)
    params = QParams(
        qtype,
        tuple(draw(scales(ordinary)) for _ in range(count)),
        tuple(draw(zero_point) for _ in range(count)),
        axis,
    )
    bound = 2.0**10 if ordinary else None
    number = st.floats(
        min_value=None if bound is None else -bound,
        max_value=bound,
        width=32,
        allow_nan=False,
        allow_infinity=not ordinary,
    )
    return draw(hnp.arrays(np.float32, shape, elements=number)), params


@settings(deadline=None, max_examples=300)
@given(cases())
def test_quantize_equals_onnx_runtime(case):
    x, params = case
    session = runtime("QuantizeLinear", params.qtype, params.axis)
    assert_same_bits(quantize(x, params), session.run(None, feed(x, params))[0])


@settings(deadline=None, max_examples=200)
@given(cases(ordinary=True))
def test_quantize_equals_the_onnx_reference(case):
    x, params = case
    evaluator = reference("QuantizeLinear", params.qtype, params.axis)
    assert_same_bits(quantize(x, params), evaluator.run(None, feed(x, params))[0])


@settings(deadline=None, max_examples=200)
@given(cases(ordinary=True), st.randoms(use_true_random=False))
def test_dequantize_equals_both_runtimes(case, random):
    x, params = case
    bytes_ = random.randbytes(x.size * params.qtype.dtype.itemsize)
    q = np.frombuffer(bytes_, params.qtype.dtype).reshape(x.shape)
    actual = dequantize(q, params)
    for make in (runtime, reference):
        evaluator = make("DequantizeLinear", params.qtype, params.axis)
        assert_same_bits(actual, evaluator.run(None, feed(q, params))[0])


@pytest.mark.parametrize("scale", [0.03125, 0.0371, 3.3])
@pytest.mark.parametrize("qtype", ONNX_TYPES)
def test_many_values_at_once_equal_onnx_runtime(qtype, scale):
    # Long enough for every unrolled vector loop. Two thirds of the values are halves of steps, as
    # well as float32 can tell: with the odd scales, multiplying by a reciprocal would round some of
    # them to the other side.
    rng = np.random.default_rng(0)
    spread = (qtype.qmax - qtype.qmin) * scale
    x = rng.uniform(-spread, spread, 9999)
    x[::3] = (np.rint(x[::3] / scale) + 0.5) * scale
    x = x.astype(np.float32)
    x[1::3] = np.nextafter(x[::3], np.float32(0))
    params = QParams(qtype, (float(np.float32(scale)),), (qtype.qmin + 100,))
    session = runtime("QuantizeLinear", qtype, None)
    q = quantize(x, params)
    assert_same_bits(q, session.run(None, feed(x, params))[0])
    assert {qtype.qmin, qtype.qmax} <= set(q.tolist())


def test_halves_round_to_even():
    params = QParams(QType.INT8, (0.5,), (0,))
    x = np.array([-1.25, -0.75, -0.25, 0.25, 0.75, 1.25])  # odd multiples of half a step
    assert quantize(x, params).tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("qtype", list(QType))
def test_saturation(qtype):
    params = QParams(qtype, (1e-3,), (qtype.qmin + 3,))
    x = np.array([-np.inf, -3e38, 3e38, np.inf, -1e300, 1e300])  # float64: the last overflow
    low, high = qtype.qmin, qtype.qmax
    assert quantize(x, params).tolist() == [low, low, high, high, low, high]


def test_the_ends_of_int32_are_exact():
    params = QParams(QType.INT32, (1.0,), (0,))
    assert quantize(np.float32(2.0**31), params) == 2**31 - 1
    assert quantize(np.float32(2.0**31 - 128), params) == 2**31 - 128
    wide = QParams(QType.INT32, (1.0,), (-(2**31),))
    assert dequantize(np.array([2**31 - 1], np.int32), wide).tolist() == [2.0**32]


@settings(deadline=None)
@given(cases(ordinary=True))
def test_zero_is_represented_exactly(case):
    x, params = case
    assert not fake_quantize(np.zeros_like(x), params).any()


@settings(deadline=None)
@given(cases(ordinary=True))
def test_fake_quantize_is_a_fixed_point(case):
    x, params = case
    once = fake_quantize(x, params)
    assert_same_bits(fake_quantize(once, params), once)


@settings(deadline=None)
@given(cases(ordinary=True))
def test_per_axis_is_per_tensor_of_every_channel(case):
    x, params = case
    if params.axis is None:
        return
    whole = np.moveaxis(quantize(x, params), params.axis, 0)
    parts = zip(whole, np.moveaxis(x, params.axis, 0), params.scale, params.zero_point, strict=True)
    for q, channel, scale, zero_point in parts:
        alone = QParams(params.qtype, (scale,), (zero_point,))
        assert q.tolist() == quantize(channel, alone).tolist()


def test_a_scalar_gives_an_array_without_axes():
    params = choose_qparams(-1.0, 1.0, QType.INT8, symmetric=True)
    q = quantize(1.0, params)
    assert isinstance(q, np.ndarray)
    assert (q.shape, q.dtype, int(q)) == ((), np.int8, 127)
    assert isinstance(dequantize(q, params), np.ndarray)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([0.0, np.nan]), choose_qparams(0.0, 1.0, QType.UINT8))


@pytest.mark.parametrize(("count", "axis"), [(1, 0), (3, 0), (2, 1), (2, 2), (2, -3)])
def test_channels_that_do_not_fit_are_refused(count, axis):
    params = QParams(QType.INT8, (1.0,) * count, (0,) * count, axis)
    with pytest.raises(ValueError, match="do not fit axis"):
        quantize(np.zeros((2, 3)), params)
    with pytest.raises(ValueError, match="do not fit axis"):
        dequantize(np.zeros((2, 3), np.int8), params)


def test_integers_of_another_type_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        dequantize(np.zeros(3, np.uint8), choose_qparams(0.0, 1.0, QType.INT8))
