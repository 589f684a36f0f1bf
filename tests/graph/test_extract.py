"""``extract``: a part of a model computes what the whole does there."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import extract
from onnxq.runtime import Session, TappedSession

CHAIN = """g (float[N,16] x) => (float[N,16] y, float[N,16] z)
  <float[16,16] w = seeded, float[16,16] v = seeded> {
    a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) y = Add (c, x) z = Tanh (b) }"""
LOOP = """g (float[2,16] x) => (float[2,16] y)
  <float[16,16] w = seeded, int64 n = {3}, bool go = {1}> {
    a = Relu (x)
    [loop] s = Loop (n, go, x) <body = b (int64 k, bool more, float[2,16] h)
      => (bool again, float[2,16] after) {
        again = Identity (more) i = MatMul (h, w) after = Add (i, a) }>
    y = Tanh (s) }"""


def taps(model, tensors, x) -> dict[str, np.ndarray]:
    return TappedSession(model, tensors).read({"x": x})


@pytest.mark.parametrize(
    ("net", "inputs", "outputs"),
    [
        (CHAIN, ["x"], ["b"]),
        (CHAIN, ["b", "x"], ["y", "z"]),
        (CHAIN, ["x", "c"], ["y"]),
        (LOOP, ["x", "a"], ["y"]),  # the body captures a
        (LOOP, ["x"], ["s"]),
        (LOOP, ["s"], ["y"]),
    ],
)
def test_a_part_computes_what_the_whole_does(build, net, inputs, outputs) -> None:
    model = build(net)
    x = np.random.RandomState(0).standard_normal((2, 16)).astype(np.float32)
    known = taps(model, [*inputs, *outputs], x)
    part = extract(model, inputs, outputs)
    assert [spec.name for spec in part.view().inputs] == inputs
    assert [spec.name for spec in part.view().outputs] == outputs
    found = Session(part).run({name: known[name] for name in inputs})
    for name in outputs:
        np.testing.assert_allclose(found[name], known[name], rtol=1e-5, atol=1e-6)


def test_inputs_are_typed_and_constants_shared(build) -> None:
    model = build(CHAIN)
    part = extract(model, ["b", "x"], ["y"])
    assert [(s.dtype, s.shape) for s in part.view().inputs] == [("float32", ("N", 16))] * 2
    assert set(part.ir.graph.initializers) == {"v"}
    shared = (m.ir.graph.initializers["v"].const_value for m in (model, part))
    assert next(shared) is next(shared)
    assert {node.op for node in part.view().nodes} == {"MatMul", "Add"}


def test_the_model_stays_as_it_is(build) -> None:
    model = build(CHAIN)
    extract(model, ["b", "x"], ["y"])
    assert len(model.view().nodes) == 5
    assert model.ir.graph.initializers["v"].uses()


def test_an_output_needs_its_inputs(build) -> None:
    with pytest.raises(ValueError, match="not properly bounded"):
        extract(build(CHAIN), ["b"], ["y"])
