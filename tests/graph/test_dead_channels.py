"""Channels that are constant or never read go away, others stay, and outputs are the same."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.graph import deserialize, drop_dead_channels, serialize
from onnxq.runtime import Session, prepare, synthetic_feed

# Of 40 channels the last 30 are dead: 10 are alive, and 16 stay, since kernels take 16 at a time.
CHANNELS, ALIVE, STAY = 40, 10, 16
# Sums of some hundred products of a few units, in another order: some 1e-5.
CLOSE = {"rtol": 1e-5, "atol": 1e-4}
DEAD = np.arange(CHANNELS) >= ALIVE


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32)


def rows(array: np.ndarray, value: float = 0.0) -> np.ndarray:
    """The same with ``value`` for the rows of the dead channels."""
    return np.where(DEAD.reshape(-1, *[1] * (array.ndim - 1)), np.float32(value), array)


def columns(array: np.ndarray) -> np.ndarray:
    return np.where(DEAD[:, None, None], np.float32(0), array)


CONSTANTS = {
    "w": weights(CHANNELS, 3, 3, 3), "w0": rows(weights(CHANNELS, 3, 3, 3), 1e-30),
    "b": weights(CHANNELS, seed=1), "low": rows(weights(CHANNELS, seed=1), -0.5),
    "high": rows(weights(CHANNELS, seed=1), 0.5), "zero": rows(weights(CHANNELS, seed=1)),
    "d": weights(CHANNELS, 1, 3, 3, seed=2),
    "v": weights(4, CHANNELS, 3, 3, seed=3), "v0": columns(weights(4, CHANNELS, 3, 3, seed=3)),
    "u": weights(4, CHANNELS, 1, 1, seed=4), "c": weights(4, seed=5),
    "m": weights(CHANNELS, 4, seed=6), "mt": weights(4, CHANNELS, seed=6),
    "wide": weights(6, 4, seed=7), "half": weights(4, CHANNELS // 2, 1, 1, seed=8),
    "same": rows(weights(CHANNELS, CHANNELS, 3, 3, seed=9)),
    "busy": weights(CHANNELS, CHANNELS, 3, 3, seed=9), "up": weights(CHANNELS, 4, 1, 1, seed=10),
    "none": np.float32(0), "six": np.float32(6),
    "flat": np.array([1, CHANNELS]), "axes": np.array([2, 3]), "yes": np.array(True),
}  # fmt: skip


def model(body: str, opset: int = 17, outputs: str = "float[] y", shape: str = "1,3,6,6"):
    """A model of these nodes and the constants that they name, with shapes inferred."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{shape}] x) => ({outputs}) {{ {body} }}""")
    for name in sorted(set(re.findall(r"\w+", body)) & CONSTANTS.keys()):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(CONSTANTS[name]), name))
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return deserialize(inferred.SerializeToString())


def check_same(before, after, names=("y",)) -> None:
    feed = {
        s.name: np.random.RandomState(3).standard_normal([d or 1 for d in s.shape])
        for s in before.view().inputs
    }
    feed = {name: values.astype(np.float32) for name, values in feed.items()}
    expected, found = (
        ReferenceEvaluator(serialize(m)).run(list(names), feed) for m in (before, after)
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, **CLOSE)


def made(after, node: str = "n") -> int:
    """How many channels a convolution makes."""
    view = after.view()
    return view.shape(view.by_name[node].inputs[1])[0]


FIRST = "[n] a = Conv (x, w0, low) r = Relu (a) "
PADDED, BARE = "<pads = [1, 1, 1, 1]>", ""
APART = f"<group = {CHANNELS}, pads = [1, 1, 1, 1]>"
GONE = {
    "zero behind Relu": FIRST + f"y = Conv {PADDED} (r, v, c)",
    "zero without Relu": f"[n] a = Conv (x, w0, zero) y = Conv {PADDED} (a, v, c)",
    "zero by automatic pads": FIRST + 'y = Conv <auto_pad = "SAME_UPPER"> (r, v, c)',
    "a constant": "[n] a = Conv (x, w0, high) y = Conv (a, v, c)",
    "a constant, and no bias yet": "[n] a = Conv (x, w0, high) y = Conv (a, v)",
    "a constant of every kind": "[n] a = Conv (x, w0, high) b1 = Sigmoid (a) b2 = Tanh (b1) "
    "b3 = HardSwish (b2) b4 = Clip (b3, none, six) b5 = Clip (b4, , six) b6 = Identity (b5) "
    "y = Conv (b6, v, c)",
    "a constant that is clipped to zero": "[n] a = Conv (x, w0, low) r = Clip (a, none, six) "
    f"y = Conv {PADDED} (r, v, c)",
    "zero, through a layer that keeps channels apart": FIRST
    + f"e = Conv {APART} (r, d, b) s = Relu (e) y = Conv (s, u, c)",
    "never read": f"[n] a = Conv (x, w, b) r = Relu (a) y = Conv {PADDED} (r, v0, c)",
    "never read, and constant at no edge": "[n] a = Conv (x, w0, high) "
    f"e = Conv {APART} (a, d, b) y = Conv {PADDED} (e, v0, c)",
    "largest and mean of a constant": "[n] a = Conv (x, w0, high) "
    "p = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (a) "
    "q = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (p) y = Conv (q, u, c)",
    "zero, and edges that count": FIRST
    + "q = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (r) "
    "y = Conv (q, u, c)",
    "a sum": FIRST + f"e = Conv {PADDED} (r, same, low) s = Add (r, e) y = Conv (s, u, c)",
    "a product": FIRST + "g1 = GlobalAveragePool (r) g2 = Conv (g1, u, c) g3 = Relu (g2) "
    "g4 = Conv (g3, up, b) g5 = Sigmoid (g4) s = Mul (r, g5) y = Conv (s, v0, c)",
    "a Gemm": FIRST + "p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, m, c)",
    "a constant into a Gemm": "[n] a = Conv (x, w0, high) p = GlobalAveragePool (a) "
    "f = Squeeze (p, axes) y = Gemm <transB = 1> (f, mt, c)",
    "a constant into a Gemm, and no bias yet": "[n] a = Conv (x, w0, high) "
    "p = GlobalMaxPool (a) f = Reshape (p, flat) y = Gemm (f, m)",
    "a MatMul": FIRST + "p = GlobalAveragePool (r) f = Reshape (p, flat) y = MatMul (f, m)",
}
LEFT = {
    "nothing is dead": f"[n] a = Conv (x, w, b) y = Conv {PADDED} (a, v, c)",
    "a constant, at edges": f"[n] a = Conv (x, w0, high) y = Conv {PADDED} (a, v, c)",
    "a constant, at automatic edges": "[n] a = Conv (x, w0, high) "
    'y = Conv <auto_pad = "SAME_LOWER"> (a, v, c)',
    "at edges of a layer that keeps channels apart": "[n] a = Conv (x, w0, high) "
    f"e = Conv {APART} (a, d, b) y = Conv (e, u, c)",
    "at edges of a mean": "[n] a = Conv (x, w0, high) q = AveragePool <kernel_shape = [2, 2], "
    "pads = [1, 1, 1, 1], count_include_pad = 1> (a) y = Conv (q, u, c)",
    "a sum with what varies": FIRST
    + f"e = Conv {PADDED} (r, busy, b) s = Add (r, e) y = Conv (s, u, c)",
    "no constant kernel": "[n] a = Conv (x, w0, low) r = Softplus (a) y = Conv (r, u, c)",
    "over channels": "[n] a = Conv (x, w0, low) r = Softmax <axis = 1> (a) y = Conv (r, u, c)",
    "in groups": FIRST + "y = Conv <group = 2> (r, two_groups, c)",
    "a constant into a MatMul": "[n] a = Conv (x, w0, high) p = GlobalAveragePool (a) "
    "f = Flatten (p) y = MatMul (f, m)",
    "a Gemm of a factor": FIRST + "p = GlobalAveragePool (r) f = Flatten (p) "
    "y = Gemm <alpha = 2.0> (f, m, c)",
    "many values a channel": FIRST + "y = Flatten (r)",
    "along the last axis": FIRST + "y = MatMul (r, last)",
    "with an axis more": FIRST + "y = Add (r, x4)",
}
CONSTANTS |= {
    "two_groups": weights(4, CHANNELS // 2, 1, 1, seed=8), "last": weights(4, 5, seed=7),
    "x4": weights(1, 1, CHANNELS, 4, 4, seed=8),
}  # fmt: skip


@pytest.mark.parametrize("body", GONE.values(), ids=GONE)
def test_dead_channels_go(body) -> None:
    before = model(body)
    after = drop_dead_channels(before)
    assert made(after) == STAY
    assert "took out 24 channels" in " ".join(after.notes)
    check_same(before, after)


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_channels_that_something_needs_stay(body) -> None:
    before = model(body)
    assert drop_dead_channels(before) is before


def test_channels_of_an_output_stay() -> None:
    body = FIRST + "y = Conv (r, u, c)"
    assert made(drop_dead_channels(model(body))) == STAY
    before = model(body, outputs="float[] y, float[] r")
    assert drop_dead_channels(before) is before


def test_channels_that_a_body_reads_stay() -> None:
    body = (
        FIRST
        + """y = Conv (r, u, c)
        z = If (yes) <then_branch = t () => (float[1,40,4,4] o) { o = Identity (r) },
                      else_branch = e () => (float[1,40,4,4] q) { q = Neg (r) }>"""
    )
    before = model(body, outputs="float[] y, float[] z")
    assert drop_dead_channels(before) is before


def test_shapes_are_told_anew() -> None:
    """What plans layers reads them, and a part of the model may begin anywhere."""
    after = drop_dead_channels(model(GONE["a MatMul"]))
    view = after.view()
    assert [view.shape(t) for t in ("a", "r", "p", "f")] == [
        (1, STAY, 4, 4), (1, STAY, 4, 4), (1, STAY, 1, 1), (1, STAY)
    ]  # fmt: skip
    onnx.checker.check_model(serialize(after), full_check=True)


def test_a_free_batch_stays_free() -> None:
    before = model(GONE["a MatMul"].replace("Reshape (p, flat)", "Flatten (p)"), shape="N,3,6,6")
    after = drop_dead_channels(before)
    assert after.view().shape("f") == ("N", STAY)
    feed = {"x": weights(5, 3, 6, 6)}
    expected, found = (ReferenceEvaluator(serialize(m)).run(None, feed)[0] for m in (before, after))
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_an_empty_batch_stays_possible() -> None:
    CONSTANTS["free"] = np.array([-1, CHANNELS])
    body = FIRST + "p = GlobalAveragePool (r) f = Reshape (p, free) y = Gemm (f, m)"
    before = model(body, shape="N,3,6,6")
    after = drop_dead_channels(before)
    assert made(after) == STAY
    with Session(after) as session:
        assert session.run({"x": weights(0, 3, 6, 6)})["y"].shape == (0, 4)
        assert session.run({"x": weights(2, 3, 6, 6)})["y"].shape == (2, 4)


def test_bounds_of_old_operator_sets_are_not_overlooked() -> None:
    before = model(
        "[n] a = Conv (x, w0, high) r = Clip <max = 0.25> (a) y = Conv (r, u, c)", opset=10
    )
    assert drop_dead_channels(before) is before


@pytest.mark.parametrize("wild", [np.inf, np.nan])
def test_wild_weights_take_nothing_with_them(wild) -> None:
    CONSTANTS["wild"] = CONSTANTS["w"].copy()
    CONSTANTS["wild"][0, 0, 0, 0] = wild
    before = model("[n] a = Conv (x, wild, b) y = Conv (a, v, c)")
    assert drop_dead_channels(before) is before


def test_what_dies_behind_the_dead_goes_too() -> None:
    """A filter that reads nothing but zeros is as constant as one of zeros."""
    only = np.where(DEAD[None, :, None, None], weights(CHANNELS, CHANNELS, 1, 1), np.float32(0))
    CONSTANTS["only"] = only.astype(np.float32)
    before = model(FIRST + "[second] e = Conv (r, only, b) s = Relu (e) [last] y = Conv (s, u, c)")
    after = drop_dead_channels(before)
    assert [made(after, node) for node in ("n", "second")] == [STAY, STAY]
    check_same(before, after)


def test_what_only_the_dead_read_goes_too() -> None:
    """Filters before a layer that loses those that read them."""
    reads = np.where(
        DEAD[:, None, None, None] & DEAD[None, :, None, None], weights(40, 40, 1, 1), 0
    )
    CONSTANTS["reads"] = reads.astype(np.float32) + np.float32(0.5) * ~DEAD[None, :, None, None]
    body = (
        "[n] a = Conv (x, w, b) r = Relu (a) [second] e = Conv (r, reads, b) s = Relu (e) "
        f"y = Conv {PADDED} (s, v0, c)"
    )
    before = model(body)
    after = drop_dead_channels(before)
    assert made(after, "second") == STAY
    assert made(after) == STAY
    check_same(before, after)


def test_weights_that_two_layers_share_are_cut_for_each() -> None:
    before = model(
        FIRST + "[o] a2 = Conv (x, w0, high) y1 = Conv (r, v, c) "
        f"y2 = Conv {PADDED} (a2, v, c) y = Add (y1, y1)",
        outputs="float[] y, float[] y2",
    )
    after = drop_dead_channels(before)
    assert (made(after), made(after, "o")) == (STAY, CHANNELS)
    check_same(before, after, ("y", "y2"))


def test_layers_that_share_weights_still_do() -> None:
    """Heads that look at several scales: the file holds what is left of their weights once."""
    before = model(FIRST + "y1 = Conv (r, v, c) y2 = Conv (r, v, c) "
                   "y = Add (y1, y2)")  # fmt: skip
    after = drop_dead_channels(before)
    view = after.view()
    assert len({node.inputs[1:] for node in view.nodes if "v_alive" in node.inputs}) == 1
    assert sum(name.startswith("v_alive") for name in view.constant_names) == 1
    check_same(before, after)


def test_prepare_takes_them_out() -> None:
    """With BatchNorm folded, whose factor of a dead filter is what is zero."""
    body = "[n] a = Conv (x, w) s = BatchNormalization (a, zero, low, b, one) r = Relu (s) "
    CONSTANTS["one"] = np.ones(CHANNELS, np.float32)
    before = model(body + f"y = Conv {PADDED} (r, v, c)")
    after = prepare(before)
    assert made(after) == STAY
    assert after.notes[-2:] == (
        "took out 24 channels that are constant or never read", "folded 4 nodes to 3"
    )  # fmt: skip
    check_same(before, after)


# Random networks.

KINDS = ("Conv", "apart", "Relu", "Sigmoid", "Add", "Mul", "MaxPool", "AveragePool", "Concat")


def random_model(seed: int):
    """Layers of 20 channels, most of them dead, in any order, each behind one before it."""
    rng, nodes, constants, tensors = np.random.RandomState(seed), [], {}, ["x"]

    def held(*shape: int) -> str:
        name = f"k{len(constants)}"
        values = rng.uniform(-1, 1, shape).astype(np.float32)
        if len(shape) > 1:
            values[rng.uniform(size=shape[0]) < rng.choice([0, 0.5, 0.9])] = 0
            values[:, rng.uniform(size=shape[1]) < rng.choice([0, 0.5, 0.9])] = 0
        else:
            values[rng.uniform(size=shape[0]) < 0.3] = 0
        constants[name] = values
        return name

    def conv(source: str, group: int = 1) -> str:
        size, pad = [(1, 0), (3, 1)][rng.randint(2)]
        inputs = 20 if source != "x" else 3
        bias = f", {held(20)}" if rng.randint(4) else ""
        return (
            f"Conv <group = {group}, pads = [{pad}, {pad}, {pad}, {pad}]> "
            f"({source}, {held(20, inputs // group, size, size)}{bias})"
        )

    def written(kind: str, step: int, source: str, other: str) -> str:
        pool = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
        if kind in ("Conv", "apart"):
            return conv(source, 1 if kind == "Conv" else 20)
        if kind == "Concat":
            nodes.append(f"c{step} = Concat <axis = 1> ({source}, {other})")
            return f"Conv (c{step}, {held(20, 40, 1, 1)})"
        if kind == "MaxPool":
            return f"MaxPool <{pool}> ({source})"
        if kind == "AveragePool":
            return f"AveragePool <{pool}, count_include_pad = {rng.randint(2)}> ({source})"
        return f"{kind} ({source}, {other})" if kind in ("Add", "Mul") else f"{kind} ({source})"

    for step in range(12):
        source = tensors[rng.randint(max(0, len(tensors) - 3), len(tensors))]
        other = tensors[rng.randint(len(tensors))]
        kind = KINDS[rng.randint(len(KINDS))] if "x" not in (source, other) else "Conv"
        nodes.append(f"t{step} = {written(kind, step, source, other)}")
        tensors.append(f"t{step}")
    nodes.append(f"y = {conv(tensors[-1])}")
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,6,6] x) => (float[] y) {{ {" ".join(nodes)} }}""")
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return deserialize(inferred.SerializeToString())


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_compute_the_same(seed, monkeypatch) -> None:
    monkeypatch.setattr("onnxq.graph.dead_channels._LANES", 1)
    before = random_model(seed)
    after = drop_dead_channels(before)
    feed = synthetic_feed(before.view().inputs, seed)
    expected, found = (ReferenceEvaluator(serialize(m)).run(None, feed)[0] for m in (before, after))
    scale = max(float(np.abs(expected).max()), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_most_random_networks_lose_channels(monkeypatch) -> None:
    monkeypatch.setattr("onnxq.graph.dead_channels._LANES", 1)
    models = [random_model(seed) for seed in range(40)]
    assert sum(drop_dead_channels(found) is not found for found in models) >= 20
