"""The rolling frontier: the same losses as running the whole model for every layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import Batch
from onnxq.graph import load
from onnxq.runtime import prepare
from onnxq.sensitivity.cuts import Cuts
from onnxq.sensitivity.frontier import Frontier, Part
from onnxq.sensitivity.spread import losses, naive
from onnxq.types import Precision

MODELS = Path(__file__).parents[2] / "models"
# Kernels that are fused in the whole model, and not across a cut, round the last place of float32
# otherwise. Where that makes a later rounding to integers fall the other way, a value moves by one
# step: one of 5,000 moves the noise of a hundred outputs by a few hundredths of its power.
SAME_DB = 0.25
# Its kernel for 4 bit weights rounds activations to 8 bits; a MatMul whose result is an output and
# read as well does not get that kernel, and does get it as the last one before a cut.
SAME_INT4_DB = 0.4
# ONNX Runtime computes float16 as float32 on the CPU, and leaves some of the rounding between two
# nodes out, but not at a cut. The noise is a ten-millionth of the signal there.
SAME_FP16_DB, BELOW_FP16 = 4.0, 60.0
HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'
NETS = {
    "chain": """g (float[N,3,8,8] x) => (float[N,32] y)
      <float[8,3,3,3] w = seeded, float[8] b = seeded, float[8,8,3,3] v = seeded,
       float[32,128] u = seeded, float lo = {0}, float hi = {1}> {
        c = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (c)
        d = Conv <pads = [1,1,1,1]> (r, v) q = Clip (d, lo, hi)
        p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (q)
        f = Flatten (p) y = Gemm <transB = 1> (f, u) }""",
    "branches": """g (float[N,8,8,8] x) => (float[N,8,8,8] y)
      <float[8,8,3,3] w = seeded, float[8,8,1,1] v = seeded, float[8,16,3,3] u = seeded> {
        a = Conv <pads = [1,1,1,1]> (x, w) b = Conv (x, v) s = Add (a, b) r = Relu (s)
        c = Conv (r, v) d = Concat <axis = 1> (r, c) t = Sigmoid (d) e = Mul (d, t)
        y = Conv <pads = [1,1,1,1]> (e, u) }""",
    # an output that is made early and read further on, one that is an input, one that is constant
    "ends": """g (float[N,64] x, float[N,64] z) => (float[N,64] m, float[N,64] y, float[64] k,
               int64[N] best)
      <float[64,64] w = seeded, float[64,64] v = seeded, float[64] k = seeded> {
        m = MatMul (x, w) r = Relu (m) s = Add (r, z) y = MatMul (s, v)
        best = ArgMax <axis = 1, keepdims = 0> (y) }""",
    "fixed": """g (float[2,64] x) => (float[2,64] y)
      <float[64,64] w = seeded, float[64,64] v = seeded, float[64] b = seeded> {
        a = MatMul (x, w) n = Add (a, b) t = Tanh (n) y = MatMul (t, v) }""",
    "bodies": """g (bool c, float[2,64] x) => (float[2,64] y)
      <float[64,64] w = seeded, float[64,64] v = seeded, int64 n = {3}, bool go = {1}> {
        [outside] t = MatMul (x, v)
        [choose] p = If (c) <
          then_branch = a () => (float[2,64] p1) { p1 = MatMul (t, w) },
          else_branch = b () => (float[2,64] q) { q = Neg (t) }>
        [loop] s = Loop (n, go, p) <body = b2 (int64 k, bool more, float[2,64] h)
          => (bool again, float[2,64] after) {
            again = Identity (more) i = MatMul (h, w) j = Add (i, t) after = Tanh (j) }>
        y = MatMul (s, v) }""",
}
EACH_NET = pytest.mark.parametrize("net", NETS)
EACH_PRECISION = pytest.mark.parametrize("precision", [p for p in Precision if p != "float"])


def same(one: float | None, other: float | None, precision: Precision) -> bool:
    if one == other:
        return True
    assert one is not None
    assert other is not None
    if precision is Precision.FP16:
        close = abs(one - other) <= SAME_FP16_DB
        return min(one, other) >= BELOW_FP16 and (close or min(one, other) >= 2 * BELOW_FP16)
    return abs(one - other) <= (SAME_INT4_DB if precision is Precision.INT4_WEIGHTS else SAME_DB)


def check(study, precision: Precision, every: int = 1) -> int:
    """Compare all variants, or some; returns how many there are."""
    count = 0
    for whole in study.rolls(study.work(precision)):
        roll = replace(whole, variants=whole.variants[::every])
        for variant, loss in losses(study.model, roll, study.evaluator):
            expected = naive(study.model, variant, study.evaluator)
            where = f"{variant.part} {variant.layer}: {loss} and {expected}"
            assert same(loss.sqnr_db, expected.sqnr_db, precision), where
            count += 1
    return count


@EACH_NET
@EACH_PRECISION
def test_exact_is_naive(build, study, net, precision) -> None:
    found = study(build(HEAD + NETS[net]), _batches(net, build))
    layers = found.work(precision).layers[precision]
    assert check(found, precision) >= 2 * len(layers)
    assert layers or (net, precision) == ("branches", Precision.INT8_DYNAMIC)  # Convs alone


def _batches(net: str, build) -> list[Batch]:
    model, rng = build(HEAD + NETS[net]), np.random.RandomState(1)
    made = []
    for first in (0, 2):
        feed = {
            spec.name: rng.standard_normal([2, *(spec.shape or ())[1:]]).astype(np.float32)
            for spec in model.view().inputs
            if spec.dtype != "bool"
        }
        feed |= {spec.name: np.array(True) for spec in model.view().inputs if spec.dtype == "bool"}
        made.append(Batch(feed, None, 2, np.arange(first, first + 2)))
    return made


@pytest.mark.parametrize("target", ["cpu-x86-avx2", "cpu-arm", "openvino", "tensorrt"])
def test_exact_is_naive_for_every_kind_of_target(build, study, target) -> None:
    """Pairs stand before int8 nodes alone on some of them, and sums vanish into layers."""
    model = build(HEAD + NETS["branches"])
    assert check(study(model, _batches("branches", build), target=target), Precision.INT8) > 9


@pytest.mark.parametrize("name", ["digits_cnn", "mnist_transformer"])
def test_exact_is_naive_on_shipped_models(study, noise, name) -> None:
    model = prepare(load(MODELS / f"{name}.onnx"))
    assert check(study(model, noise(model)), Precision.INT8, every=7) >= 4


@pytest.mark.parametrize("kept_bytes", [0, 5_000, 10_000])
def test_what_is_kept_fits_a_budget(build, study, kept_bytes) -> None:
    """Where a cut is larger, the frontier stays at an earlier one; the findings are the same."""
    found = study(build(HEAD + NETS["chain"]), _batches("chain", build))
    (roll,) = found.rolls(found.work(Precision.INT8, rest=False), kept_bytes=kept_bytes)
    cuts = Cuts(found.model, roll.steps, found.evaluator.expected[0])
    frontier = Frontier(found.model, None, cuts, roll.stops, found.evaluator)
    largest = 0
    for variant in roll.variants:
        loss = found.evaluator.judge(frontier.outputs(variant))
        expected = naive(found.model, variant, found.evaluator)
        assert same(loss.sqnr_db, expected.sqnr_db, variant.precision)
        if frontier.cut:
            held = sum(a.nbytes for values in frontier.values for a in values.values())
            largest = max(largest, held)
    assert largest <= kept_bytes
    assert len(roll.stops) == {0: 1, 5_000: 3, 10_000: 5}[kept_bytes]


def test_states_are_run_as_a_whole(build, study) -> None:
    """A sample depends on the one before it: nothing can be kept."""
    model = build("""g (float[1,64] x, float[1,64] h) => (float[1,64] y, float[1,64] after)
      <float[64,64] w = seeded, float[64,64] v = seeded> {
        a = MatMul (h, w) s = Add (x, a) after = Tanh (s) y = MatMul (after, v) }""")
    rng = np.random.RandomState(0)
    steps = [
        Batch({"x": rng.standard_normal((1, 64)).astype(np.float32)}, None, 1, np.array([i]))
        for i in range(6)
    ]
    found = study(model, steps, state={"after": "h"})
    report = found.analyze(Precision.INT8)
    assert {layer.name for layer in report.layers} == {"MatMul_0", "MatMul_3"}
    assert "the whole model ran for every layer" in report.notes[0]
    for roll in found.rolls(found.work(Precision.INT8)):
        for variant in roll.variants:
            if variant.part is Part.ONLY:
                layer = next(one for one in report.layers if one.name == variant.layer)
                assert layer.only == found.evaluator.loss(variant.build(model))
