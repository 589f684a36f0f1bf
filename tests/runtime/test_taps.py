"""Taps: inner tensors come out as they are."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.errors import RuntimeFailure, UsageError
from onnxq.graph import Editor, serialize
from onnxq.runtime import TappedSession
from onnxq.runtime.session import Session


def plain_values(model, tensors, feed) -> dict[str, np.ndarray]:
    """The tensors by ONNX Runtime's BASIC level, without onnxq's session."""
    editor = Editor(model)
    for tensor in tensors:
        editor.add_output(tensor)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(
        serialize(editor.finish()), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(tensors, session.run(list(tensors), feed), strict=True))


CONVS = """g (float[N,3,16,16] x) => (float[N,4] y)
    <float[8,3,3,3] w = seeded, float[8] b = seeded, float[4,8,3,3] v = seeded>
    {
      c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      r = Relu (c)
      d = Conv <pads = [1, 1, 1, 1]> (r, v)
      s = Sigmoid (d)
      m = Mul (d, s)
      p = GlobalAveragePool (m)
      y = Flatten (p)
    }"""
GELU = """g (float[N,8] x) => (float[N,4] y)
    <float[8,4] w = seeded, float[4] b = seeded, float root = {1.4142135}, float one = {1.0},
     float half = {0.5}>
    {
      h = MatMul (x, w)
      a = Add (h, b)
      d = Div (a, root)
      e = Erf (d)
      o = Add (e, one)
      q = Mul (a, o)
      y = Mul (q, half)
    }"""


@pytest.mark.parametrize(
    ("text", "shape", "tensors"),
    [(CONVS, (2, 3, 16, 16), "crdsmp"), (GELU, (5, 8), "hadeoq")],
)
def test_values_are_those_of_the_model(build, text, shape, tensors) -> None:
    """Also where a fusion loses an inner tensor: then the session falls back."""
    model = build(text)
    feed = {"x": np.random.RandomState(0).standard_normal(shape).astype(np.float32)}
    found = TappedSession(model, tensors).read(feed)
    expected = plain_values(model, tensors, feed)
    assert list(found) == list(tensors)
    for tensor in tensors:
        # Other kernels add in another order: some 100 terms of size 1, each rounded to 6e-8.
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tensor", "adeoq")
def test_gelu_with_one_inner_tensor(build, tensor) -> None:
    model = build(GELU)
    feed = {"x": np.random.RandomState(0).standard_normal((5, 8)).astype(np.float32)}
    expected = plain_values(model, [tensor], feed)[tensor]
    found = TappedSession(model, [tensor]).read(feed)[tensor]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # as above


def test_a_lost_tensor_falls_back_to_fewer_optimisations(build, monkeypatch) -> None:
    """Whatever the installed ONNX Runtime fuses: the first refusal is answered by BASIC."""
    levels = []

    def refusing(model, *, provider, threads, level="all"):
        levels.append(level)
        if level == "all":
            raise RuntimeFailure("a fusion lost a tensor")
        return Session(model, provider=provider, threads=threads, level=level)

    monkeypatch.setattr("onnxq.runtime.taps.Session", refusing)
    x = np.ones((1, 4), np.float32)
    model = build("g (float[N,4] x) => (float[N,4] y) { t = Neg (x) y = Neg (t) }")
    assert (TappedSession(model, ["t"]).read({"x": x})["t"] == -1).all()
    assert levels == ["all", "basic"]


@pytest.mark.parametrize("taps", [["x"], ["y"], ["x", "t", "y"], ["y", "x"], []])
def test_inputs_and_outputs(build, taps) -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { t = Relu (x) y = Neg (t) }")
    x = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)
    found = TappedSession(model, taps).read({"x": x})
    values = {"x": x, "t": np.maximum(x, 0), "y": -np.maximum(x, 0)}
    assert list(found) == taps
    for tensor in taps:
        np.testing.assert_array_equal(found[tensor], values[tensor])


def test_input_that_is_an_output(build) -> None:
    model = build("g (float[N,4] x) => (float[N,4] x, float[N,4] y) { y = Neg (x) }")
    x = np.ones((2, 4), np.float32)
    found = TappedSession(model, ["x", "y"]).read({"x": x})
    assert (found["x"] == 1).all()
    assert (found["y"] == -1).all()


def test_the_model_keeps_its_outputs(build) -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { t = Relu (x) y = Neg (t) }")
    TappedSession(model, ["t"])
    assert model.view().output_names == ("y",) or list(model.view().output_names) == ["y"]


@pytest.mark.parametrize("value", [3.0, -2.5, math.nan, math.inf, -3.4e38])
def test_scalar(build, value) -> None:
    x = np.array(value, np.float32)
    found = TappedSession(build("g (float x) => (float t) { t = Identity (x) }"), ["t"])
    np.testing.assert_array_equal(found.read({"x": x})["t"], x)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_empty_tensor(build, shape) -> None:
    model = build("g (float[N,C] x) => (float[N,C] y) { t = Relu (x) y = Neg (t) }")
    found = TappedSession(model, ["x", "t"]).read({"x": np.zeros(shape, np.float32)})
    assert found["t"].shape == found["x"].shape == shape


def test_other_shapes_from_run_to_run(build) -> None:
    model = build("g (float[N,S] x) => (float[N,S] y) { t = Relu (x) y = Neg (t) }")
    session = TappedSession(model, ["t"])
    for shape in ((1, 3), (4, 1), (2, 9)):
        assert session.read({"x": np.ones(shape, np.float32)})["t"].shape == shape


def test_tensors_beside_a_subgraph(build) -> None:
    model = build("""g (float[N,9] x, bool c) => (float[N,9] y) {
        t = Relu (x)
        u = Neg (t)
        y = If (c) <
            then_branch = one () => (z) { z = Neg (u) },
            else_branch = two () => (v) { v = Neg (t) }>
    }""")
    x = np.full((1, 9), 2, np.float32)
    found = TappedSession(model, ["t", "u"]).read({"x": x, "c": np.array(True)})
    assert (found["t"] == 2).all()
    assert (found["u"] == -2).all()


def test_a_bad_feed_is_one_line(build) -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { t = Relu (x) y = Neg (t) }")
    with pytest.raises(RuntimeFailure) as caught:
        TappedSession(model, ["t"]).read({"x": np.ones((1, 5), np.float32)})
    assert "\n" not in str(caught.value)


RUNNING = """g (float[1,2] x, float[1,2] h) => (float[1,2] y, float[1,2] h_out)
    { y = Add (x, h) h_out = Identity (y) }"""


def test_states_are_fed_back(build) -> None:
    session = TappedSession(build(RUNNING), ["h", "y"], state={"h_out": "h"})
    one = np.ones((1, 2), np.float32)
    read = [session.read({"x": one}) for _ in range(4)]
    assert [found["y"][0, 0] for found in read] == [1, 2, 3, 4]
    assert [found["h"][0, 0] for found in read] == [0, 1, 2, 3]


def test_a_sequence_has_its_own_states(build) -> None:
    session = TappedSession(build(RUNNING), ["y"], state={"h_out": "h"})
    one = {"x": np.ones((1, 2), np.float32)}
    first, second = session.sequence(), session.sequence()
    found = [s.read(one)["y"][0, 0] for s in (first, second, first, second, first)]
    assert found == [1, 1, 2, 2, 3]
    assert first.sequence().read(one)["y"][0, 0] == 1


@pytest.mark.parametrize("state", [{"nothing": "h"}, {"h_out": "nothing"}])
def test_unknown_states_are_refused(build, state) -> None:
    with pytest.raises(UsageError, match="'nothing'; known: ") as caught:
        TappedSession(build(RUNNING), ["y"], state=state)
    assert "\n" not in str(caught.value)
