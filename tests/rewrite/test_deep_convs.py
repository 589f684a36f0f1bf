"""Weights one lower, with the zero point -1: the same numbers to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace as with_fields

from onnxq.graph import Editor, Model
from onnxq.plan import Recipe
from onnxq.rewrite import rewrite
from onnxq.rewrite.deep_convs import shift_deep_weights
from onnxq.rewrite.qdq import to_qdq
from onnxq.runtime import Session
from onnxq.types import Form, Precision


def net(
    channels: int = 64,
    outputs: int = 64,
    *,
    size: int | str = 8,
    kernel: int = 3,
    stride: int = 1,
    group: int = 1,
    act: str = "",
) -> str:
    """A Relu, a Conv that reads it, and what makes ``y``: so the Conv is no stem."""
    made = "t" if act else "y"
    then = f"[act] y = {act} (t)" if act else ""
    pad = kernel // 2
    return f"""g (float[N,{channels},{size},{size}] x) => (float[N,{outputs},h,w] y)
        <float[{outputs},{channels // group},{kernel},{kernel}] w = seeded,
         float[{outputs}] b = seeded>
        {{ [conv] {made} = Conv <pads = {[pad] * 4}, strides = [{stride}, {stride}],
            group = {group}> (x, w, b) {then} }}"""


@pytest.fixture
def both(build, quantize):
    """A model with pairs, as it is and with lower weights."""

    def run(text: str) -> tuple[Model, Model]:
        made = quantize(build(text))
        paired = to_qdq(made.source, made.plan)
        return paired, shift_deep_weights(paired, set(made.plan.named(Precision.INT8)))

    return run


def feed(channels: int, size: int = 8) -> dict[str, np.ndarray]:
    values = np.random.RandomState(0).standard_normal((2, channels, size, size))
    return {"x": values.astype(np.float32)}


def filters(model: Model, conv: str = "conv") -> tuple[np.ndarray, np.ndarray]:
    """Stored weights and zero points of a Conv, as wide integers."""
    view = model.view()
    maker = view.producer(view.by_name[conv].inputs[1])
    return tuple(view.constant(maker.inputs[port]).astype(np.int64) for port in (0, 2))


def is_shifted(before: Model, after: Model, conv: str = "conv") -> bool:
    """Whether weights are one lower; nothing else may have become of them."""
    (old, zero), (new, lower) = filters(before, conv), filters(after, conv)
    moved = int(new.flat[0] - old.flat[0])
    assert moved in (0, -1)
    np.testing.assert_array_equal(new, old + moved)
    np.testing.assert_array_equal(lower, zero + moved)
    assert not zero.any()
    return moved == -1


@pytest.mark.parametrize("level", ["none", "all"])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (64, {}),
        (64, {"act": "Relu"}),
        (128, {"stride": 2, "size": 16}),
        (512, {"kernel": 1}),
        (64, {"kernel": 5}),
    ],
)
def test_outputs_are_the_same_to_the_last_bit(both, channels, options, level) -> None:
    before, after = both(net(channels, 64, **options))
    assert is_shifted(before, after)
    x = feed(channels, options.get("size", 8))
    found = [Session(one, level=level).run(x)["y"] for one in (before, after)]
    np.testing.assert_array_equal(*found)


# By output channels, channels, window, and pixels in a row and column of the output; and how many
# times as fast ONNX Runtime 1.31 computed it with lower weights, on one thread with AMX.
MEASURED = [
    (256, 256, 3, 14, 2.09), (64, 64, 3, 28, 1.26), (1024, 256, 3, 7, 2.11),
    (1024, 1024, 1, 14, 1.85), (256, 512, 1, 7, 1.65), (64, 256, 1, 14, 1.07),
    (64, 64, 1, 28, 0.70), (1024, 64, 1, 14, 0.53), (256, 128, 1, 28, 0.83),
    (32, 256, 3, 14, 0.99), (32, 64, 3, 14, 0.92), (256, 16, 3, 28, 0.84),
    (1024, 1024, 1, 2, 0.95), (32, 1024, 1, 1, 0.87),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "channels", "kernel", "size", "gain"), MEASURED)
def test_what_gained_by_measurement_is_shifted(both, outputs, channels, kernel, size, gain) -> None:
    found = both(net(channels, outputs, kernel=kernel, size=size))
    assert is_shifted(*found) is (gain > 1)


def test_what_is_no_deep_conv_stays(both) -> None:
    for text in (net(64, 64, group=64), net(256, 256, group=4), net(62, 256)):
        assert not is_shifted(*both(text))


@pytest.mark.parametrize(
    ("sizes", "kernel", "pads"),
    [([64], [9], [4, 4]), ([8, 8, 8], [3, 3, 3], [1] * 6)],
    ids=["1d", "3d"],
)
def test_convs_of_one_or_three_axes_stay(both, sizes, kernel, pads) -> None:
    axes, window = (",".join(map(str, values)) for values in (sizes, kernel))
    found = both(f"""g (float[N,64,{axes}] x) => (float[N,64,{axes}] y)
        <float[64,64,{window}] w = seeded> {{ [conv] y = Conv <pads = {pads}> (x, w) }}""")
    assert not is_shifted(*found)


def test_one_scale_for_all_channels(build, quantize) -> None:
    made = quantize(build(net()), Recipe(per_channel=False))
    paired = to_qdq(made.source, made.plan)
    after = shift_deep_weights(paired, {"conv"})
    assert is_shifted(paired, after)
    assert filters(after)[1].shape == ()
    found = [Session(one).run(feed(64))["y"] for one in (paired, after)]
    np.testing.assert_array_equal(*found)


def test_folded_stems_stay(build, quantize) -> None:
    """A window of 7x7 pixels holds 252 values of folded ones, and computes faster as it is."""
    made = quantize(build(net(3, 64, kernel=7, stride=2, size=64)))
    plain, amx = (
        rewrite(made.source, with_fields(made.plan, target=target))
        for target in ("cpu-x86", "cpu-x86-amx")
    )
    assert filters(plain)[0].shape[1] > 3  # it is folded
    assert not is_shifted(plain, amx)


def test_large_models_are_not_loaded(build, quantize, monkeypatch) -> None:
    made = quantize(build(net(64, 256)))
    plan = with_fields(made.plan, target="cpu-x86-amx")
    assert (filters(rewrite(made.source, plan))[1] == -1).all()
    monkeypatch.setattr(Model, "fits_one_file", False)
    assert not filters(rewrite(made.source, plan))[1].any()


def test_a_size_that_is_not_known_is_taken_for_a_usual_one(both) -> None:
    """For 32 pixels in a row and column: it pays for one Conv from there on, for one not yet."""
    for channels, pays in ((256, {16: False, 32: True, "s": True}),
                           (212, {32: False, 48: True, "s": False})):  # fmt: skip
        for size, expected in pays.items():
            found = both(net(channels, 8, kernel=1, size=size))
            assert is_shifted(*found) is expected


def test_float_convs_and_lowest_weights_stay(build, quantize) -> None:
    made = quantize(build(net()))
    paired = to_qdq(made.source, made.plan)
    assert not is_shifted(paired, shift_deep_weights(paired, set()))
    view, editor = paired.view(), Editor(paired)
    maker = view.producer(view.by_name["conv"].inputs[1])
    lowest = view.constant(maker.inputs[0]).copy()
    lowest.flat[7] = -128
    editor.redirect(maker.name, 0, editor.add_constant("lowest", lowest))
    paired = editor.finish()
    assert not is_shifted(paired, shift_deep_weights(paired, {"conv"}))


def test_weights_that_two_convs_share_are_stored_once(both) -> None:
    text = """g (float[N,64,8,8] x) => (float[N,64,8,8] y)
        <float[64,64,3,3] w = seeded, float[64] a = seeded, float[64] b = seeded>
        { [one] t = Conv <pads = [1, 1, 1, 1]> (x, w, a)
          [two] y = Conv <pads = [1, 1, 1, 1]> (t, w, b) }"""
    before, after = both(text)
    assert is_shifted(before, after, "one")
    assert is_shifted(before, after, "two")
    assert after.weight_bytes == before.weight_bytes
    found = [Session(one).run(feed(64))["y"] for one in (before, after)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("form", list(Form))
def test_the_target_decides(build, quantize, form) -> None:
    """For AMX weights are lower, in either form; it is one kernel still, with the same outputs."""
    made, found = quantize(build(net(act="Relu"))), {}
    for target in ("cpu-x86", "cpu-x86-amx"):
        found[target] = rewrite(made.source, with_fields(made.plan, target=target), form)
    plain, shifted = found.values()
    zeros = {name: _all_zeros(model) for name, model in found.items()}
    assert zeros == {"cpu-x86": {0}, "cpu-x86-amx": {-1}}
    outputs = [Session(one).run(feed(64))["y"] for one in (plain, shifted)]
    np.testing.assert_array_equal(*outputs)


def _all_zeros(model: Model) -> set[int]:
    """All values of int8 tensors of one axis, which are zero points of weights."""
    view = model.view()
    found = [view.constant(name) for name in view.names if view.is_constant(name)]
    return {int(v) for a in found if a.dtype == np.int8 and a.ndim == 1 for v in a}
