"""What the first convolution reads is arranged anew: the numbers are the same to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Editor, Model
from onnxq.rewrite import rewrite
from onnxq.rewrite.qdq import to_qdq
from onnxq.rewrite.stems import widen_stems
from onnxq.runtime import Session
from onnxq.types import Form, Precision

MULTIPLE = 4


def net(
    channels: int = 3,
    *,
    width: int | str = 8,  # and height
    kernel: tuple[int, int] = (3, 3),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    stride: int = 1,
    group: int = 1,
    outputs: int = 8,
    more: str = "",
    act: str = "",
) -> str:
    """A Conv that reads the input, ``x``, and makes ``y``."""
    made = "t" if act else "y"
    then = f"[act] y = {act} (t)" if act else ""
    return f"""g (float[N,{channels},{width},{width}] x) => (float[N,{outputs},h,w] y)
        <float[{outputs},{channels // group},{kernel[0]},{kernel[1]}] w = seeded,
         float[{outputs}] b = seeded>
        {{ [conv] {made} = Conv <pads = {list(pads)}, strides = [{stride}, {stride}],
            group = {group} {more}> (x, w, b) {then} }}"""


@pytest.fixture
def both(build, quantize):
    """A model with pairs, as it is and with a wide stem."""

    def run(text: str) -> tuple[Model, Model]:
        made = quantize(build(text))
        paired = to_qdq(made.source, made.plan)
        return paired, widen_stems(paired, set(made.plan.named(Precision.INT8)), MULTIPLE)

    return run


def image(channels: int, width: int = 8) -> dict[str, np.ndarray]:
    values = np.random.RandomState(0).standard_normal((2, channels, width, width))
    return {"x": values.astype(np.float32)}


def ops(model: Model) -> list[str]:
    return [node.op for node in model.view().nodes]


def same(both: tuple[Model, Model], feed: dict[str, np.ndarray], level: str) -> None:
    found = [Session(one, level=level).run(feed)["y"] for one in both]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("level", ["none", "all"])
@pytest.mark.parametrize("act", ["", "Relu"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("width", "kernel", "pads", "stride"),
    [
        (8, (3, 3), (1, 1, 1, 1), 1),
        (40, (3, 3), (1, 1, 1, 1), 1),  # a pixel is added in front of the image
        (10, (3, 3), (1, 1, 1, 1), 2),  # no whole number of cells
        (16, (3, 3), (1, 1, 1, 1), 2),  # windows lie well as they are
        (12, (5, 5), (2, 2, 2, 2), 1),
        (16, (7, 7), (3, 3, 3, 3), 2),
        (11, (3, 4), (1, 0, 1, 0), 1),  # the kernel is wider than high, and nothing is padded
        (8, (3, 3), (0, 0, 2, 2), 1),  # padded at the end only
        (9, (3, 3), (1, 1, 1, 1), 4),  # a cell makes one pixel
        (17, (3, 3), (0, 0, 0, 0), 4),  # the last pixels are not read: padded
    ],
)
def test_outputs_are_the_same_to_the_last_bit(
    both, channels, width, kernel, pads, stride, act, level
) -> None:
    text = net(channels, width=width, kernel=kernel, pads=pads, stride=stride, act=act)
    made = both(text)
    assert ops(made[0]) != ops(made[1])
    same(made, image(channels, width), level)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_folded_layers_run_as_int8_without_a_transpose_behind(both, executed, stride) -> None:
    folded = both(net(1, width=16, stride=stride))[1]
    assert "Reshape" in ops(folded)
    found = executed(folded)
    assert found["QLinearConv"] == 1
    assert found["Transpose"] <= 2  # channels last at the input, and back at the output


def test_layers_behind_a_fold_stay_int8_with_channels_last(both, executed) -> None:
    text = """g (float[N,3,8,8] x) => (float[N,8,8,8] y)
        <float[8,3,3,3] w = seeded, float[8,8,3,3] v = seeded>
        { [stem] t = Conv <pads = [1, 1, 1, 1]> (x, w) [act] u = Relu (t)
          [next] y = Conv <pads = [1, 1, 1, 1]> (u, v) }"""
    found = executed(both(text)[1])
    assert "Reshape" in found
    assert found["QLinearConv"] == 2
    assert found["Transpose"] <= 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (net(3, width="W"), "the width is not known"),
        (net(3, more=", dilations = [1, 2]"), "the window has holes"),
        (
            net(3, width=32, outputs=128),
            "so many filters, mostly of zeros, cost more than is saved",
        ),
        (net(3, width=9), "cells make four pixels, and nine are wanted"),
        (net(3, stride=3, width=12), "three does not divide a cell"),
    ],
)
def test_what_cannot_be_folded_is_padded(both, executed, text, why) -> None:
    before, after = both(text)
    assert ops(after).count("Pad") == 1, why
    assert "Reshape" not in ops(after)
    width = {"9": 9, "12": 12, "32": 32}.get(text.split("]")[0].split(",")[-1], 8)
    same((before, after), image(3, width), "all")
    assert executed(after)["QLinearConv"] == 1


def test_weights_are_padded_with_zeros(both) -> None:
    before, after = (model.view() for model in both(net(3, width="W")))
    stored, wider = before.constant("w_q"), after.constant("w_q_wide")
    np.testing.assert_array_equal(wider[:, :3], stored)
    assert not wider[:, 3].any()
    assert "w_q" not in after.names  # the weight is not stored twice


def test_filters_are_shifted_by_a_pixel_each(both) -> None:
    """Against the definition: filter ``j`` of a cell meets pixel ``j + k`` with column ``k``."""
    before, after = (model.view() for model in both(net(2, width=40)))
    stored, wide = before.constant("w_q"), after.constant("w_q_wide")
    assert wide.shape == (4 * 8, 4 * 2, 3, 2)  # two cells of four pixels cover 4 + 3 - 1 pixels
    pixels = wide.reshape(4, 8, 4, 2, 3, 2)  # made, output, pixel, channel, row, cell
    for made in range(4):
        row = pixels[made].transpose(0, 2, 3, 4, 1).reshape(8, 2, 3, 8)
        np.testing.assert_array_equal(row[..., made : made + 3], stored)
        assert not np.delete(row, range(made, made + 3), axis=3).any()


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
    assert ops(after) == ops(before), why


def test_a_layer_behind_an_integer_one_is_left(both) -> None:
    """The pair between the two vanishes into their kernels; a Pad would keep it alive."""
    _, after = both("""g (float[1,4,8,8] x) => (float[1,8,8,8] y)
        <float[3,4,1,1] v = seeded, float[8,3,3,3] w = seeded>
        { [first] t = Conv (x, v) [second] y = Conv <pads = [1, 1, 1, 1]> (t, w) }""")
    assert not {"Pad", "Reshape"} & set(ops(after))


@pytest.mark.parametrize(("width", "op"), [("W", "Pad"), (8, "Reshape")])
def test_two_layers_share_what_they_read(both, width, op) -> None:
    text = f"""g (float[1,3,7,{width}] x) => (float[1,8,7,w] y, float[1,8,7,w] z)
        <float[8,3,1,3] v = seeded, float[8,3,1,3] w = seeded>
        {{ [one] y = Conv <pads = [0, 1, 0, 1]> (x, v)
           [two] z = Conv <pads = [0, 1, 0, 1]> (x, w) }}"""
    before, after = both(text)
    widened = [node for node in after.view().nodes if node.op == op and "x" in node.name]
    assert len(widened) == 1
    for output in ("y", "z"):
        found = [
            Session(one).run({"x": image(3)["x"][:1, :, :7]})[output] for one in (before, after)
        ]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("text", [net(3), net(3, act="Relu"), net(3, width="W"), net(1, stride=2)])
def test_integer_operators_read_it_too(build, quantize, text) -> None:
    made = quantize(build(text))
    plain, lowered = (rewrite(made.source, made.plan, form) for form in (Form.QDQ, Form.QOPERATOR))
    assert "QLinearConv" in ops(lowered)
    assert "Conv" not in ops(lowered)
    # both round the same sums with the same scales, in another order of float operations
    feed = image(made.source.view().shape("x")[1])
    found, wanted = (Session(one).run(feed)["y"] for one in (lowered, plain))
    step = made.plan.tensors["y"].scale[0]
    assert np.abs(found - wanted).max() <= step * 1.001


@pytest.mark.parametrize("reads", ["output", "node"])
def test_what_others_read_before_it_is_quantized_is_not_folded(both, reads) -> None:
    """Cells are no pixels: where the float output of a Conv is read, it must stay as it is."""
    editor = Editor(both(net(1, act="Relu"))[0])
    if reads == "node":
        editor.add_node("Identity", ["t"], ["other"], name="other")
    editor.add_output("t" if reads == "output" else "other")
    before = editor.finish()
    after = widen_stems(before, {"conv", "act"}, MULTIPLE)
    assert "Pad" in ops(after)
    assert "Reshape" not in ops(after)
    found = [Session(one).run(image(1)) for one in (before, after)]
    for name, values in found[0].items():
        np.testing.assert_array_equal(found[1][name], values)


def test_an_empty_batch_stays_one(both) -> None:
    for model in both(net(1)):
        empty = np.zeros((0, 1, 8, 8), np.float32)
        assert Session(model).run({"x": empty})["y"].shape == (0, 8, 8, 8)


@pytest.mark.parametrize(
    "text",
    [
        """g (float[N,1,8,8] x) => (float[N,8,8,8] y)
        <float[8,1,3,3] w = seeded> { y = Conv <auto_pad = "SAME_UPPER"> (x, w) }""",
        """g (float[N,1,8,8] x) => (float[N,8,4,4] y)
        <float[8,1,3,3] w = seeded>
        { y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w) }""",
        # one weight and one bias in two layers
        """g (float[N,1,8,8] x) => (float[N,8,8,8] y)
        <float[8,1,3,3] w = seeded, float[8] b = seeded>
        { s = Conv <pads = [1, 1, 1, 1]> (x, w, b) t = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          y = Add (s, t) }""",
        # one image, read by layers that pad it differently
        """g (float[N,1,8,8] x) => (float[N,8,8,8] y)
        <float[8,1,3,3] v = seeded, float[8,1,5,5] w = seeded>
        { s = Conv <pads = [1, 1, 1, 1]> (x, v) t = Conv <pads = [2, 2, 2, 2]> (x, w)
          y = Add (s, t) }""",
    ],
)
def test_rarer_layers_compute_the_same(both, text) -> None:
    for level in ("none", "all"):
        same(both(text), image(1), level)
