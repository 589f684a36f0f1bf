"""Which tensor of one graph is which of another, where names tell and where they do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from onnxq.graph import Model
from onnxq.rewrite import rewrite
from onnxq.types import Form
from onnxq.verify.match import match_tensors, sources

FLOAT = """net (float[N,3,8,8] x) => (float[N,5] y)
<float[4,3,3,3] w1 = seeded, float[4] b1 = seeded, float[4] s = seeded, float[4] t = seeded,
 float[4] m = seeded, float[4] v = {1, 2, 1, 3}, float[4,5] w2 = seeded, float[5] b2 = seeded>
{
  [conv] a = Conv (x, w1, b1)
  [bn] b = BatchNormalization (a, s, t, m, v)
  [relu] c = Relu (b)
  [pool] d = GlobalAveragePool (c)
  [flat] e = Flatten (d)
  [fc] f = MatMul (e, w2)
  [bias] g = Add (f, b2)
  [end] y = Softmax (g)
}"""


def pairs(reference: Model, other: Model) -> dict[str, tuple[str, str]]:
    """By tensor: what the other graph calls it, and how that was found."""
    found = match_tensors(reference.view(), other.view()).found
    return {m.tensor: (m.reading.tensor, m.by) for m in found}


def renamed(text: str) -> str:
    """The graph with other names for all but its input and output."""
    names = r"(?<![\w.])(?:w1|w2|b1|b2|conv|bn|relu|pool|flat|fc|bias|end|[abcdefgstmv])(?!\w)"
    return re.sub(names, lambda found: f"other_{found[0]}", text)


def test_results_of_layers_are_matched_with_what_is_folded_into_them(
    build: Callable[[str], Model],
) -> None:
    model = build(FLOAT)
    found = pairs(model, model)
    assert found == {t: (t, "name") for t in ("x", "c", "d", "e", "g", "y")}


def test_other_names_are_matched_by_structure(build: Callable[[str], Model]) -> None:
    found = pairs(build(FLOAT), build(renamed(FLOAT)))
    by = "structure"
    assert found == {"x": ("x", "name"), "y": ("y", "name")} | {
        t: (f"other_{t}", by) for t in "cdeg"
    }


FOLDED = """net (float[N,3,8,8] x) => (float[N,5] y)
<float[4,3,3,3] w = seeded, float[4] k = seeded, float[4,5] u = seeded, float[5] z = seeded>
{
  [conv] NAME = Conv (x, w, k)
  [r] c1 = Relu (NAME)
  [pool] d1 = ReduceMean <axes = [2, 3]> (c1)
  [flat] e1 = Flatten (d1)
  [fc] g1 = Gemm (e1, u, z)
  [end] y = Softmax (g1)
}"""


@pytest.mark.parametrize("name", ["a", "b", "unknown"])
def test_folded_batch_norm_and_bias(name: str, build: Callable[[str], Model]) -> None:
    """Whatever the folded convolution is called: compared is what the activation makes."""
    found = pairs(build(FLOAT), build(FOLDED.replace("NAME", name)))
    assert {t: tensor for t, (tensor, _) in found.items()} == {
        "x": "x", "c": "c1", "d": "d1", "e": "e1", "g": "g1", "y": "y",
    }  # fmt: skip


def test_an_activation_that_a_range_implies(build: Callable[[str], Model]) -> None:
    """Integers under the name of what the activation read stand for what it makes."""
    other = build(
        """net (float[N,3,8,8] x) => (float[N,4,6,6] c)
    <float sx = {0.1}, uint8 z = {128}, int8[4,3,3,3] wq = {PLENTY}, float sw = {0.01},
     int8 zw = {0}, float sy = {0.05}, uint8 zy = {0}>
    {
      [q] xq = QuantizeLinear (x, sx, z)
      [conv] a_quantized = QLinearConv (xq, sx, z, wq, sw, zw, sy, zy)
      [dq] c = DequantizeLinear (a_quantized, sy, zy)
    }""".replace("PLENTY", ", ".join(["1"] * 108))
    )
    reference = build("""net (float[N,3,8,8] x) => (float[N,4,6,6] c)
    <float[4,3,3,3] w = seeded> { [conv] a = Conv (x, w) [relu] c = Relu (a) }""")
    found = {m.tensor: m.reading for m in match_tensors(reference.view(), other.view()).found}
    assert {t: (r.tensor, r.scale, r.zero_point) for t, r in found.items()} == {
        "x": ("xq", "sx", "z"),  # read rounded, as the layer behind it does
        "c": ("a_quantized", "sy", "zy"),
    }


@pytest.mark.parametrize("form", [Form.QDQ, Form.QOPERATOR])
def test_source_tensors_that_end_like_added_names(
    form: Form, build: Callable[[str], Model], quantize: Callable
) -> None:
    """Integers of ``attn`` cannot be called ``attn_q`` here, for that is what the source has."""
    made = quantize(
        build("""g (float[4,8] x) => (float[4,8] y)
    <float[8,8] w = seeded, float[8,8] v = seeded, float[8,8] u = seeded>
    {
      [one] attn = MatMul (x, w) [act] attn_q = Sigmoid (attn)
      [two] x_dq = MatMul (attn_q, v) [three] y = MatMul (x_dq, u)
    }""")
    )
    found = pairs(made.source, rewrite(made.source, made.plan, form))
    assert found == {
        "x": ("x_q", "name"),
        "attn": ("attn_q_", "name"),
        "attn_q": ("attn_q_q", "name"),
        "x_dq": ("x_dq_q", "name"),
        "y": ("y", "name"),
    }


def test_floats_that_end_like_added_names_are_none(build: Callable[[str], Model]) -> None:
    """The other graph calls another tensor what onnxq would call the integers of ``attn``."""
    reference = build("""net (float[N,4] x) => (float[N,4] y) <float[4,4] w = seeded>
    { [mm] attn = MatMul (x, w) [act] s = Tanh (attn) [end] y = Neg (s) }""")
    other = build("""net (float[N,4] x) => (float[N,4] y) <float[4,4] w = seeded>
    { [mm] k = MatMul (x, w) [act] attn_q = Tanh (k) [end] attn_dq = Neg (attn_q)
      [out] y = Identity (attn_dq) }""")
    assert pairs(reference, other) == {
        "x": ("x", "name"),
        "attn": ("k", "structure"),
        "s": ("attn_q", "structure"),
        "y": ("attn_dq", "name"),
    }


def test_layers_that_read_the_same_are_told_apart_by_order(
    build: Callable[[str], Model],
) -> None:
    text = """net (float[N,4] x) => (float[N,4] y)
    <float[4,4] w1 = seeded, float[4,4] w2 = seeded>
    { [one] a = MatMul (x, w1) [two] b = MatMul (x, w2) [sub] y = Sub (a, b) }"""
    found = pairs(build(text), build(text.replace(" a ", " k ").replace("(a,", "(k,")))
    assert found["a"] == ("k", "structure")
    assert found["b"] == ("b", "name")


def test_what_is_not_there_is_counted(build: Callable[[str], Model]) -> None:
    reference = build(
        "net (float[N,4] x) => (float[N,4] y) { a = Sin (x) b = Cos (a) y = Abs (b) }"
    )
    other = build("net (float[N,4] x) => (float[N,4] y) { p = Tan (x) y = Abs (p) }")
    matches = match_tensors(reference.view(), other.view())
    assert [m.tensor for m in matches.found] == ["x", "y"]
    assert matches.unmatched == 2
    assert sources(reference.view(), "y", {"x": 0, "y": 1}) == ("x",)


def test_sums_of_integers_are_their_layer(build: Callable[[str], Model]) -> None:
    """A dynamically quantized layer of other names: its result is behind the scaling and bias."""
    reference = build("""net (float[N,4] x) => (float[N,3] y)
    <float[4,3] w = seeded, float[3] b = seeded>
    { [fc] a = Gemm (x, w, b) [act] y = Relu (a) }""")
    other = build("""net (float[N,4] x) => (float[N,3] y)
    <int8[4,3] wq = {1,2,3,4,5,6,7,8,9,10,11,12}, float ws = {0.1}, float[3] b = seeded>
    {
      xq, xs, xz = DynamicQuantizeLinear (x)
      s = Mul (xs, ws)
      i = MatMulInteger (xq, wq, xz)
      f = Cast <to = 1> (i)
      g = Mul (f, s)
      h = Add (g, b)
      k = Relu (h)
      y = Identity (k)
    }""")
    found = {
        m.tensor: m.reading.tensor for m in match_tensors(reference.view(), other.view()).found
    }
    assert found == {"x": "x", "y": "k"}


def test_what_is_known_is_looked_up_and_never_walked(build: Callable[[str], Model]) -> None:
    """There is one call per tensor: a walk over all known ones in each makes squares."""

    class Unwalked(dict[str, int]):
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("walked over all known tensors")

        keys = values = items = __iter__  # type: ignore[assignment]

    view = build("""net (float[N,4] x, float[N,4] u) => (float[N,4] y)
    { a = Sin (x) b = Cos (u) c = Add (b, a) y = Abs (c) }""").view()
    position = Unwalked(x=0, u=1, a=2, b=3)
    assert sources(view, "y", position) == ("a", "b")
    assert sources(view, "b", position) == ("u",)
