"""Fake quantization against NumPy, PyTorch's own operators, and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics import choose_qparams, dequantize_blocks, fake_quantize, quantize_blocks
from onnxq.types import QParams, QType, WeightBlocks

torch = pytest.importorskip("torch", reason="torch is in the extra 'qat'")

from onnxq.qat import fake_quant as fq  # noqa: E402

RNG = np.random.default_rng(7)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


@given(
    lo=st.floats(-1e3, 0), hi=st.floats(1e-3, 1e3), symmetric=st.booleans(),
    qtype=st.sampled_from([QType.INT8, QType.UINT8, QType.INT4, QType.UINT4, QType.UINT16]),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_values_are_those_of_quantize_and_dequantize(lo, hi, symmetric, qtype, seed):
    params = choose_qparams(lo, hi, qtype, symmetric=symmetric)
    x = np.random.default_rng(seed).uniform(2 * lo - 1, 2 * hi, 200).astype(np.float32)
    found = fq.TensorQuantizer(params)(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), fake_quantize(x, params))


@pytest.mark.parametrize("axis", [0, 1])
def test_values_per_channel_are_those_of_quantize_and_dequantize(axis):
    weight = RNG.normal(size=(4, 4, 3)).astype(np.float32) * np.arange(1, 5)[:, None, None]
    weight = np.moveaxis(weight, 0, axis).astype(np.float32)
    bound = np.abs(weight).max(tuple(n for n in range(3) if n != axis))
    params = choose_qparams(-bound, bound, QType.INT8, symmetric=True, axis=axis)
    quantizer = fq.WeightQuantizer(params, tensor(weight))
    assert quantizer.result(tensor(weight)) == params  # the scale follows by the same formula
    found = quantizer(tensor(weight)).numpy()
    np.testing.assert_array_equal(found, fake_quantize(weight, params))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis", "size"), [((5, 64), 1, 16), ((70, 3), 0, 32), ((2, 40, 3), 1, 16)]
)
def test_blocks_are_those_of_numpy(shape, axis, size, symmetric):
    qtype = QType.INT4 if symmetric else QType.UINT4
    scheme = WeightBlocks(qtype, axis, size, symmetric)
    weight = RNG.normal(size=shape).astype(np.float32)
    weight[0] = 0  # a block of zeros has a scale all the same
    expected = dequantize_blocks(quantize_blocks(weight, scheme), scheme)
    found = fq.BlockQuantizer(scheme)(tensor(weight)).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("learned", [True, False])
def test_headroom_of_the_target_stays(learned):
    """Half of the range of int8, where products of two would saturate."""
    weight = RNG.normal(size=(3, 80)).astype(np.float32)
    bound = 2 * np.abs(weight).max(1)
    params = choose_qparams(-bound, bound, QType.INT8, symmetric=True, axis=0)
    quantizer = fq.WeightQuantizer(params, tensor(weight), learned=learned, headroom=2.0)
    # one rounding to float32 more than the plan's own
    np.testing.assert_allclose(quantizer.result(tensor(weight)).scale, params.scale, rtol=3e-7)
    larger = tensor(3 * weight)
    scale = np.array(quantizer.result(larger).scale)[:, None]
    integers = np.abs(quantizer(larger).detach().numpy() / scale)
    assert 62 < integers.max() <= 64.001


@pytest.mark.parametrize("learned", [True, False])
def test_no_scale_falls_below_its_floor(learned):
    """Else an int32 bias in units of the products of scales would overflow."""
    weight = tensor(np.array([[1e-20, -1e-20], [0.5, -0.5]]))
    params = choose_qparams([-1.0, -0.5], [1.0, 0.5], QType.INT8, symmetric=True, axis=0)
    quantizer = fq.WeightQuantizer(params, weight, learned=learned)
    if learned:
        with torch.no_grad():
            quantizer.log_factor -= 5
    quantizer.set_floor(torch.tensor([1e-3, 1e-6]))
    scale = quantizer.result(weight).scale
    assert scale[0] == pytest.approx(1e-3, rel=1e-5)
    assert scale[1] > 1e-6
    assert quantizer.result(1e6 * weight).scale[1] < 1e6  # a floor, and no factor


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_fewer_bits_than_the_type_has(bits):
    weight = RNG.normal(size=(4, 50)).astype(np.float32)
    params = choose_qparams(-np.abs(weight).max(1), np.abs(weight).max(1), QType.INT8,
                            symmetric=True, axis=0)  # fmt: skip
    quantizer = fq.WeightQuantizer(params, tensor(weight), bits)
    found = quantizer(tensor(weight)).numpy()
    assert max(len(np.unique(row)) for row in found) <= 2**bits - 1
    result = quantizer.result(tensor(weight))
    np.testing.assert_allclose(
        result.scale, np.abs(weight).max(1) / (2 ** (bits - 1) - 1), rtol=1e-6
    )
    # and the stored type holds the same values
    clipped = quantizer.clipped(tensor(weight)).numpy()
    np.testing.assert_array_equal(fake_quantize(clipped, result), found)


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
def test_gradient_is_that_of_pytorch(zero_point):
    x = tensor(RNG.uniform(-20, 20, 400)).requires_grad_()
    again = x.detach().clone().requires_grad_()
    upstream = tensor(RNG.normal(size=400))
    scale, zero = torch.tensor([0.07]), torch.tensor([float(zero_point)])
    (fq.fake_quantize(x, scale, zero, 0, 255) * upstream).sum().backward()
    made = torch.fake_quantize_per_tensor_affine(again, 0.07, zero_point, 0, 255)
    (made * upstream).sum().backward()
    assert torch.equal(x.grad, again.grad)
    assert 0 < int((x.grad == 0).sum()) < 400


def test_gradient_per_channel_is_that_of_pytorch():
    x = tensor(RNG.normal(size=(3, 40))).requires_grad_()
    again = x.detach().clone().requires_grad_()
    scale = torch.tensor([0.001, 0.01, 0.1])
    zero = torch.zeros(3)
    fq.fake_quantize(x, scale[:, None], zero[:, None], -127, 127).square().sum().backward()
    made = torch.fake_quantize_per_channel_affine(again, scale, zero.int(), 0, -127, 127)
    made.square().sum().backward()
    # PyTorch multiplies by 1 / scale, one rounding more
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-5, atol=1e-6)


def test_gradient_is_the_slope_of_the_clip_without_its_steps():
    """Rounding is taken for the identity: what is left is ``clip(x, lo, hi)``."""
    scale, lo, hi, h = 0.05, -100, 155, 1e-3
    x = RNG.uniform(-12, 12, 300)
    x = x[np.minimum(np.abs(x - lo * scale), np.abs(x - hi * scale)) > scale]  # off the corners
    ends = lo * scale, hi * scale
    smooth = (np.clip(x + h, *ends) - np.clip(x - h, *ends)) / (2 * h)
    found = tensor(x).requires_grad_()
    fq.fake_quantize(found, torch.tensor([scale]), torch.tensor([100.0]), 0, 255).sum().backward()
    np.testing.assert_allclose(found.grad.numpy(), smooth, atol=1e-6)


def test_gradient_of_the_scale_is_the_slope_with_the_rounding_error_held():
    """``round(x/s) = x/s + c`` with ``c`` held: inside ``x + c s``, outside ``end * s``."""
    x, s, h = RNG.uniform(-20, 20, 500), 0.11, 1e-4
    c = np.rint(x / s) - x / s
    inside = (np.rint(x / s) >= -128) & (np.rint(x / s) <= 127)

    def smooth(scale: float) -> np.ndarray:
        return np.where(inside, (x / scale + c) * scale, np.clip(np.rint(x / s), -128, 127) * scale)

    slope = (smooth(s + h) - smooth(s - h)).sum() / (2 * h)
    scale = torch.tensor([s], requires_grad=True)
    fq.fake_quantize(tensor(x), scale, torch.zeros(1), -128, 127).sum().backward()
    factor = (500 * 127.5) ** -0.5
    # float32 sums of 500 values up to 128
    assert float(scale.grad) == pytest.approx(slope * factor, rel=1e-4, abs=1e-4)


def test_gradient_of_the_scale_is_that_of_pytorch():
    x, upstream = tensor(RNG.uniform(-30, 30, 1000)), tensor(RNG.normal(size=1000))
    ours = torch.tensor([0.13], requires_grad=True)
    theirs = torch.tensor([0.13], requires_grad=True)
    (fq.fake_quantize(x, ours, torch.zeros(1), -128, 127) * upstream).sum().backward()
    factor = (1000 * 127.5) ** -0.5
    made = torch._fake_quantize_learnable_per_tensor_affine(
        x, theirs, torch.zeros(1), -128, 127, factor
    )
    (made * upstream).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_learned_scale_moves_to_where_the_error_is_least():
    x = tensor(RNG.normal(size=2000))
    best = min(
        (
            float(
                ((fq.fake_quantize(x, torch.tensor([s]), torch.zeros(1), -8, 7) - x) ** 2).mean()
            ),
            s,
        )
        for s in np.linspace(0.1, 1.0, 91)
    )
    quantizer = fq.TensorQuantizer(QParams(QType.INT4, (1.0,), (0,)), learned=True)
    optimizer = torch.optim.Adam([quantizer.log_factor], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        ((quantizer(x) - x) ** 2).mean().backward()
        optimizer.step()
    error = float(((quantizer(x).detach() - x) ** 2).mean())
    assert error < 1.05 * best[0]  # its gradient is an estimate: near, not at, the minimum


def test_a_ceiling_holds_a_learned_scale():
    quantizer = fq.TensorQuantizer(QParams(QType.UINT8, (0.02,), (0,)), learned=True, ceiling=0.02)
    with torch.no_grad():
        quantizer.log_factor += 1.0
    quantizer.project()
    assert quantizer.result().scale[0] == pytest.approx(0.02, rel=1e-6)
    # and it is held, not stuck: what wants it smaller moves it
    x = tensor(RNG.uniform(0, 1, 500))
    ((quantizer(x) - x) ** 2).mean().backward()
    assert float(quantizer.log_factor.grad) != 0


def test_dynamic_values_are_those_of_the_operator():
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for values in (RNG.normal(size=300), RNG.uniform(1, 2, 50), np.zeros(4)):
        x = values.astype(np.float32)
        (expected,) = session.run(None, {"x": x})
        np.testing.assert_allclose(
            fq.dynamic_quantize(torch.from_numpy(x)).numpy(), expected, rtol=1e-6
        )
