"""A fourth channel changes nothing but the kernel that ONNX Runtime takes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Model
from onnxq.rewrite import rewrite
from onnxq.rewrite.pad_channels import pad_channels
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session
from onnxq.types import Form, Precision

MULTIPLE = 4


def net(channels: int, group: int = 1) -> str:
    return f"""g (float[N,{channels},6,6] x) => (float[N,8,6,6] y)
        <float[8,{channels // group},3,3] w = seeded, float[8] b = seeded>
        {{ [conv] y = Conv <pads = [1, 1, 1, 1], group = {group}> (x, w, b) }}"""


@pytest.fixture
def both(build, quantize):
    """A model with pairs, without and with padded channels."""

    def run(text: str) -> tuple[Model, Model]:
        made = quantize(build(text))
        paired = to_qdq(made.source, made.plan)
        return paired, pad_channels(paired, set(made.plan.named(Precision.INT8)), MULTIPLE)

    return run


def image(channels: int) -> dict[str, np.ndarray]:
    return {"x": np.random.RandomState(0).standard_normal((2, channels, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("level", ["none", "all"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_outputs_are_the_same_to_the_last_bit(both, channels, level) -> None:
    before, after = both(net(channels))
    assert [node.op for node in after.view().nodes].count("Pad") == 1
    found = [Session(one, level=level).run(image(channels))["y"] for one in (before, after)]
    np.testing.assert_array_equal(*found)


def test_layer_still_runs_as_int8(both, executed) -> None:
    _, after = both(net(3))
    assert executed(after)["QLinearConv"] == 1


def test_weights_are_padded_with_zeros(both) -> None:
    before, after = (model.view() for model in both(net(3)))
    stored = before.constant("w_q")
    wider = after.constant("w_q_padded")
    np.testing.assert_array_equal(wider[:, :3], stored)
    assert not wider[:, 3].any()
    assert "w_q" not in after.names  # the weight is not stored twice


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (net(4), "it reads a multiple of four"),
        (net(5), "copying so many channels costs more than it saves"),
        (net(2, group=2), "groups have kernels of their own"),
    ],
)
def test_what_is_left_as_it_is(both, text, why) -> None:
    before, after = both(text)
    assert [node.op for node in after.view().nodes] == [node.op for node in before.view().nodes]


def test_a_layer_behind_an_integer_one_is_left(both) -> None:
    """The pair between the two vanishes into their kernels; a Pad would keep it alive."""
    _, after = both("""g (float[1,4,6,6] x) => (float[1,8,6,6] y)
        <float[3,4,1,1] v = seeded, float[8,3,3,3] w = seeded>
        { [first] t = Conv (x, v) [second] y = Conv <pads = [1, 1, 1, 1]> (t, w) }""")
    assert "Pad" not in [node.op for node in after.view().nodes]


def test_two_layers_share_one_pad(both) -> None:
    _, after = both("""g (float[1,3,6,6] x) => (float[1,8,6,6] y, float[1,8,6,6] z)
        <float[8,3,1,1] v = seeded, float[8,3,1,1] w = seeded>
        { [one] y = Conv (x, v) [two] z = Conv (x, w) }""")
    assert [node.op for node in after.view().nodes].count("Pad") == 1


def test_integer_operators_read_it_too(build, quantize) -> None:
    made = quantize(build(net(3)))
    plain, lowered = (rewrite(made.source, made.plan, form) for form in (Form.QDQ, Form.QOPERATOR))
    assert {"Pad", "QLinearConv"} <= {node.op for node in lowered.view().nodes}
    # both round the same sums with the same scales, in another order of float operations
    found, wanted = (Session(one).run(image(3))["y"] for one in (lowered, plain))
    step = made.plan.tensors["y"].scale[0]
    assert np.abs(found - wanted).max() <= step * 1.001
