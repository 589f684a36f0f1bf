"""Weights in blocks: against a loop that says the same, ONNX Runtime, and ONNX's reference."""

from __future__ import annotations

import tracemalloc
from functools import lru_cache

import ml_dtypes  # noqa: F401 - NumPy types of 4 bits
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxq.numerics import LEAST_SHRINK, block_range, dequantize_blocks, quantize_blocks
from onnxq.numerics import blocks as module
from onnxq.types import QType, WeightBlocks

SMALL = [QType.INT4, QType.UINT4, QType.INT8, QType.UINT8]
KINDS = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "int8": TensorProto.INT8,
         "uint8": TensorProto.UINT8}  # fmt: skip
TINY = float(np.finfo(np.float32).tiny)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Values with a few outliers, as weights have."""
    rng = np.random.RandomState(seed)
    return (rng.standard_t(4, shape) * rng.uniform(0.01, 3, shape[-1:])).astype(np.float32)


def blocks_of(values: np.ndarray, scheme: WeightBlocks):
    """Every block by its place among the scales, and where it lies."""
    rows = np.moveaxis(values, scheme.axis, -1)
    for place in np.ndindex(rows.shape[:-1]):
        for block, start in enumerate(range(0, rows.shape[-1], scheme.size)):
            yield (*place, block), (*place, slice(start, start + scheme.size))


def naive_rtn(values: np.ndarray, scheme: WeightBlocks):
    """Round to nearest, one block after the other, from the definition."""
    qmin, qmax = scheme.qtype.qmin, scheme.qtype.qmax
    rows = np.moveaxis(values, scheme.axis, -1)
    count = -(-rows.shape[-1] // scheme.size)
    stored = np.empty(rows.shape, int)
    scales = np.empty((*rows.shape[:-1], count), np.float32)
    zeros = np.empty(scales.shape, int)
    for place, where in blocks_of(values, scheme):
        x = [float(v) for v in rows[where]]
        lo, hi = min(0.0, *x), max(0.0, *x)
        middle = (qmin + qmax + 1) // 2
        if scheme.symmetric:
            wide = max(hi / (qmax - middle), -lo / (middle - qmin))
            choices = [(wide, middle), (max(hi, -lo) / (qmax - middle), middle)]
        else:
            choices = [((hi - lo) / (qmax - qmin), None)]
        best = None
        for step, given_zero in choices:
            scale = np.float32(max(step, TINY)) if step else np.float32(1)
            zero = given_zero
            if zero is None:
                zero = min(max(round(qmin - lo / float(scale)), qmin), qmax)
            found = [min(max(round(float(np.float32(v) / scale)) + zero, qmin), qmax) for v in x]
            pairs = zip(x, found, strict=True)
            error = sum((v - (q - zero) * float(scale)) ** 2 for v, q in pairs)
            if best is None or error < best[0]:
                best = (error, scale, zero, found)
        _, scales[place], zeros[place], stored[where] = best
    return tuple(np.moveaxis(a, -1, scheme.axis) for a in (stored, scales, zeros))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("qtype", SMALL)
@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [((70, 6), 0, 32), ((6, 70), 1, 32), ((3, 40, 5), 1, 16), ((33,), 0, 16), ((4, 10), 1, 16)],
)
def test_rtn_is_the_naive_loop(shape, axis, size, qtype, symmetric) -> None:
    scheme = WeightBlocks(qtype, axis, size, symmetric)
    values = drawn(*shape)
    found = quantize_blocks(values, scheme)
    stored, scales, zeros = naive_rtn(values, scheme)
    np.testing.assert_array_equal(found.scale, scales)
    np.testing.assert_array_equal(found.zero_point.astype(int), zeros)
    np.testing.assert_array_equal(found.stored.astype(int), stored)
    assert found.stored.dtype == found.zero_point.dtype == qtype.dtype


@lru_cache
def runtime(kind: str, axis: int, size: int) -> tuple:
    """DequantizeLinear in ONNX Runtime and in ONNX's reference, the stored values as an input."""
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis, block_size=size)
    types = {"q": KINDS[kind], "s": TensorProto.FLOAT, "z": KINDS[kind]}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, one, None) for name, one in types.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    imports = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("qtype", SMALL)
@pytest.mark.parametrize(("shape", "axis"), [((70, 6), 0), ((6, 70), 1), ((3, 40, 5), 1)])
def test_dequantize_is_that_of_the_runtime_to_the_bit(shape, axis, qtype, method) -> None:
    scheme = WeightBlocks(qtype, axis, 16, symmetric=False, method=method)
    found = quantize_blocks(drawn(*shape), scheme)
    mine = dequantize_blocks(found, scheme)
    model = runtime(qtype.value, axis, 16)
    constants = {"q": found.stored, "s": found.scale, "z": found.zero_point}
    # ONNX Runtime takes no 4 bit inputs from NumPy: they become initializers.
    for name, values in constants.items():
        model.graph.initializer.append(ir.to_proto(ir.tensor(values, name=name)))
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (theirs,) = session.run(None, {})
        (reference,) = ReferenceEvaluator(model).run(None, {})
    finally:
        del model.graph.initializer[:]
    np.testing.assert_array_equal(mine.view(np.uint32), theirs.view(np.uint32))
    np.testing.assert_array_equal(mine, reference)


schemes = st.builds(
    WeightBlocks,
    st.sampled_from(SMALL),
    st.integers(0, 1),
    st.sampled_from([16, 32, 256]),
    st.booleans(),
    st.sampled_from(["rtn", "hqq"]),
)
finite = st.floats(-(2.0**127), 2.0**127, width=32)


@settings(deadline=None, max_examples=150)
@given(st.data(), schemes)
def test_every_value_is_as_near_as_is_promised(data, scheme) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    some = data.draw(st.lists(finite, min_size=1, max_size=40))
    values = np.resize(np.array(some, np.float32), shape)
    found = quantize_blocks(values, scheme)
    assert (found.scale > 0).all()
    back = dequantize_blocks(found, scheme).astype(np.float64)
    size, axis = scheme.size, scheme.axis
    lo, hi = (np.asarray(end, np.float64) for end in block_range(values, axis, size))

    def spread(per_block: np.ndarray) -> np.ndarray:
        return per_block.repeat(size, axis=axis)[: shape[0], : shape[1]]

    gap = np.abs(values.astype(np.float64) - back)
    allowed = spread(found.scale.astype(np.float64)) / 2
    if scheme.method == "hqq":  # what lies beyond half of the range may be cut off there
        far = np.maximum(
            values - LEAST_SHRINK * spread(np.maximum(hi, 0)),
            LEAST_SHRINK * spread(np.minimum(lo, 0)) - values,
        )
        allowed = np.maximum(allowed, far)
    # The division and the product are rounded to float32: 2^-24 each, of at most 256 steps.
    assert (gap <= allowed * (1 + 1e-4)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("qtype", SMALL)
@pytest.mark.parametrize("size", [16, 32, 128])
def test_hqq_has_the_least_squared_error_in_every_block(qtype, symmetric, size) -> None:
    """By construction: of all that the splitting visits, rtn among it, the least is kept."""
    values = drawn(200, 24)
    squares = {}
    for method in ("rtn", "hqq"):
        scheme = WeightBlocks(qtype, 0, size, symmetric, method)
        gap = values - dequantize_blocks(quantize_blocks(values, scheme), scheme).astype(float)
        starts = np.arange(0, 200, size)
        squares[method] = np.add.reduceat(gap * gap, starts, axis=0)
    # dequantize rounds products to float32
    assert (squares["hqq"] <= squares["rtn"] * (1 + 1e-5)).all()
    if qtype.bits == 4:  # and something is gained even with a zero point, where it is least
        assert squares["hqq"].sum() < 0.98 * squares["rtn"].sum()


def test_hqq_gains_what_a_search_over_scales_gains() -> None:
    """Against the best of 64 scales in every block; symmetric, so that a scale is all there is."""
    values = drawn(128, 60)
    scheme = WeightBlocks(QType.INT4, 0, 128, symmetric=True, method="hqq")
    found = dequantize_blocks(quantize_blocks(values, scheme), scheme)
    best = np.inf
    for share in np.linspace(0.5, 1, 64):
        scale = share * np.abs(values).max(axis=0) / 7
        gap = np.clip(np.rint(values / scale), -8, 7) * scale - values
        best = np.minimum(best, (gap * gap).sum(axis=0))
    # A twentieth of a dB: the splitting finds a near minimum, and not always the least.
    assert ((found - values) ** 2).sum() <= best.sum() * 10**0.02


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize(("shape", "axis"), [((300, 7), 0), ((7, 300), 1), ((5, 70, 9), 1)])
def test_result_does_not_depend_on_the_pieces(monkeypatch, shape, axis, method) -> None:
    values, scheme = drawn(*shape), WeightBlocks(QType.UINT4, axis, 32, False, method)
    whole = quantize_blocks(values, scheme)
    monkeypatch.setattr(module, "PIECE", 64)
    parts = quantize_blocks(values, scheme)
    for one, other in zip(
        (whole.stored, whole.scale, whole.zero_point),
        (parts.stored, parts.scale, parts.zero_point),
        strict=True,
    ):
        np.testing.assert_array_equal(one.astype(float), other.astype(float))
    again = dequantize_blocks(parts, scheme)
    monkeypatch.undo()
    np.testing.assert_array_equal(again, dequantize_blocks(whole, scheme))


def test_zeros_stay_zeros_and_tails_have_a_scale_of_their_own() -> None:
    values = np.zeros((40, 3), np.float32)
    values[32:, 1] = 7.0
    scheme = WeightBlocks(QType.INT4, 0, 32, symmetric=True)
    found = quantize_blocks(values, scheme)
    assert found.scale.shape == found.zero_point.shape == (2, 3)
    np.testing.assert_array_equal(found.scale, [[1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(dequantize_blocks(found, scheme), values)


def test_symmetric_blocks_use_the_whole_range_where_that_is_better() -> None:
    negative, even = np.array([-8, 3, 1, 5], np.float32), np.array([-7, 7, 1, 2], np.float32)
    scheme = WeightBlocks(QType.INT4, 0, 4, symmetric=True)
    found = quantize_blocks(np.concatenate([negative, even]), scheme)
    assert found.scale.tolist() == [1.0, 1.0]
    assert found.stored.astype(int).tolist() == [-8, 3, 1, 5, -7, 7, 1, 2]


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_memory_is_that_of_a_piece(method) -> None:
    values = np.ones((4096, 1024), np.float32)  # 16 MB: 16 pieces
    scheme = WeightBlocks(QType.INT4, 0, 32, symmetric=True, method=method)
    if method == "hqq":
        values = values[:1024]
    tracemalloc.start()
    found = quantize_blocks(values, scheme)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = found.stored.nbytes + found.scale.nbytes + found.zero_point.nbytes
    assert peak - result < 64 * module.PIECE


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad) -> None:
    scheme = WeightBlocks(QType.INT4, 0, 16, symmetric=True)
    with pytest.raises(ValueError, match="NaN and infinity"):
        quantize_blocks(np.array([1, bad], np.float32), scheme)


def test_wrong_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="no axis 2"):
        quantize_blocks(np.ones((2, 2), np.float32), WeightBlocks(QType.INT4, 2, 16, True))
    with pytest.raises(ValueError, match="unknown method 'gptq'"):
        quantize_blocks(np.ones(2, np.float32), WeightBlocks(QType.INT4, 0, 16, True, "gptq"))
