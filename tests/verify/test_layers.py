"""Where the error enters, against what NumPy makes of the same formulas."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from onnxq.graph import Model, with_constants
from onnxq.rewrite import rewrite
from onnxq.runtime import Session, TappedSession
from onnxq.types import Form
from onnxq.verify import Growth, compare_layers
from onnxq.verify import layers as subject
from onnxq.verify.match import sources

NET = """net (float[N,4] x) => (float[N,3] y)
<float[4,6] w1 = seeded, float[6,6] w2 = seeded, float[6,3] w3 = seeded>
{ [one] a = MatMul (x, w1) [two] b = MatMul (a, w2) [sin] c = Sin (b) [three] y = MatMul (c, w3) }
"""
# ONNX Runtime sums up in float32, NumPy in float64: both agree to 1e-5 of a signal, and the errors
# here are a tenth of it.
CLOSE = {"abs": 0.01}


class Samples:
    """Stands in for a reader of float data without labels."""

    def __init__(self, x: np.ndarray) -> None:
        self._x, self.size = x, len(x)

    def batches(self, size: int) -> Iterator[SimpleNamespace]:
        for start in range(0, self.size, size):
            part = self._x[start : start + size]
            yield SimpleNamespace(feed={"x": part}, labels=None, count=len(part))


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


def db(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(signal**2) / np.sum(noise**2)))


def by_tensor(growth: Growth) -> dict[str, object]:
    return {layer.tensor: layer for layer in growth.layers}


def test_figures(build: Callable[[str], Model], x: np.ndarray) -> None:
    """Two layers are disturbed: each has its own error, and the effect of that alone."""
    reference = build(NET)
    view = reference.view()
    w1, w2, w3 = (np.asarray(view.constant(n), np.float64) for n in ("w1", "w2", "w3"))
    v1, v3 = w1 * 1.1, w3 + 0.02
    other = with_constants(reference, {"w1": v1.astype("f4"), "w3": v3.astype("f4")})
    found = compare_layers(reference, other, Samples(x))
    a, k = x @ w1, x @ v1
    c, m = np.sin(a @ w2), np.sin(k @ w2)
    y, z = c @ w3, m @ v3
    layers = by_tensor(found)
    assert list(layers) == ["x", "a", "b", "c", "y"]
    assert layers["x"].sqnr_db == 200
    assert layers["a"].before_db == 200
    assert layers["a"].new_db == layers["a"].sqnr_db == pytest.approx(db(a, k - a), **CLOSE)
    assert layers["b"].new_db > 100  # only passes the error on
    assert layers["c"].before_db == layers["b"].sqnr_db == pytest.approx(db(a, k - a), **CLOSE)
    assert layers["c"].sqnr_db == pytest.approx(db(c, m - c), **CLOSE)
    assert layers["y"].new_db == pytest.approx(db(y, z - m @ w3), **CLOSE)
    assert layers["y"].sqnr_db == found.output_db == pytest.approx(db(y, z - y), **CLOSE)
    assert layers["a"].alone_db == pytest.approx(db(y, m @ w3 - y), **CLOSE)
    assert layers["y"].alone_db == pytest.approx(db(y, z - m @ w3), **CLOSE)
    assert layers["c"].alone_db is None
    assert found.worst == min((layers["a"], layers["y"]), key=lambda layer: layer.alone_db)
    share = found.share(layers["a"])
    assert share == pytest.approx(np.sum((m @ w3 - y) ** 2) / np.sum((z - y) ** 2), rel=0.01)


def test_names_of_its_own_collide_with_none(build: Callable[[str], Model], x: np.ndarray) -> None:
    """Names of tensors decide nothing, those that sound like its own inputs neither."""
    told = []
    for names in ("x a b c", "x x_read x_read_ x_read_read"):
        text = NET
        for old, new in zip("xabc", names.split(), strict=True):
            text = re.sub(rf"\b{old}\b", new, text)
        reference = build(text)
        w1 = reference.view().constant("w1")
        other = with_constants(reference, {"w1": w1 * np.float32(1.1)})
        layers = compare_layers(reference, other, Samples(x)).layers
        told.append([(layer.node, layer.sqnr_db, layer.new_db) for layer in layers])
    assert told[0] == told[1]
    assert [name for name, *_ in told[0]] == ["", "one", "two", "sin", "three"]


def test_names_behind_integers_collide_with_none(
    build: Callable[[str], Model], quantize: Callable, x: np.ndarray
) -> None:
    """Integers are compared by way of a DequantizeLinear, whose name a tensor may have already."""

    def growth(text: str) -> tuple[list[tuple[object, ...]], list[str]]:
        made = quantize(build(text))
        integers = rewrite(made.source, made.plan, Form.QOPERATOR)
        layers = compare_layers(made.source, integers, Samples(x)).layers
        nodes = [node for node in integers.view().nodes if node.op == "QLinearMatMul"]
        told = [(layer.node, layer.sqnr_db, layer.new_db) for layer in layers]
        return told, [tensor for node in nodes for tensor in node.outputs]

    plain, (first, *_) = growth(NET)
    assert [name for name, *_ in plain] == ["", "one", "two", "sin", "three"]
    for taken in (f"{first}_compared", f"{first}_compared_shape", "a_compared_shape"):
        assert growth(re.sub(r"\bc\b", taken, NET))[0] == plain


def test_amplifying_is_no_fault(build: Callable[[str], Model], x: np.ndarray) -> None:
    """A layer that takes the difference of two nearly equal tensors makes a small error large."""
    reference = build("""net (float[N,4] x) => (float[N,4] y)
    <float[4,4] w = seeded, float[4,4] u = seeded, float d = {0.01}>
    { [w] a = MatMul (x, w) [u] b = MatMul (x, u) [d] c = Mul (b, d) [s] e = Add (a, c)
      [sub] y = Sub (e, a) }""")
    w = reference.view().constant("u")
    other = with_constants(reference, {"u": (w * 1.2).astype("f4")})
    found = compare_layers(reference, other, Samples(x))
    layers = by_tensor(found)
    assert layers["e"].sqnr_db > 40 > layers["y"].sqnr_db  # 1 % of the sum, all of the difference
    assert found.worst.node == "u"
    assert layers["y"].new_db > 100


def test_pieces_change_nothing(
    build: Callable[[str], Model], x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor at a time, and a sample at a time, the same figures come out."""
    reference = build(NET)
    w = reference.view().constant("w2")
    other = with_constants(reference, {"w2": (w * 1.1).astype("f4")})
    whole = compare_layers(reference, other, Samples(x))
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(subject, "PIECE_BYTES", 1)
    run = subject.Run(batch_size=1, progress=lambda done, total: told.append((done, total)))
    pieces = compare_layers(reference, other, Samples(x), run)
    for one, same in zip(whole.layers, pieces.layers, strict=True):
        assert (one.tensor, one.node) == (same.tensor, same.node)
        # sums in another order: float64 rounds them, and float32 the products of other batches
        assert one.sqnr_db == pytest.approx(same.sqnr_db, abs=0.001)
    assert pieces.worst.node == "two"
    assert len(told) > 100  # five tensors of 20 samples, and the one that is tried
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_other_shapes_are_left_out(build: Callable[[str], Model], x: np.ndarray) -> None:
    text = (
        "net (float[N,4] x) => (float[N,1] y) { [t] a = Sin (x) [m] y = ReduceMax <axes=[1]> (a) }"
    )
    padded = """net (float[N,4] x) => (float[N,1] y) <float[1,1] o = {0}, int64[4] p = {0,0,0,1}>
    { [s] k = Sin (x) [p] a = Pad (k, p) [m] y = ReduceMax <axes=[1]> (a) }"""
    found = compare_layers(build(text), build(padded), Samples(np.abs(x)))
    assert [layer.tensor for layer in found.layers] == ["x", "y"]
    assert found.unmatched == 1


def test_nan_is_the_worst_error(build: Callable[[str], Model], x: np.ndarray) -> None:
    reference = build(NET)
    w = np.array(reference.view().constant("w2"))
    w[0, 0] = np.nan
    found = compare_layers(reference, with_constants(reference, {"w2": w}), Samples(x))
    layers = by_tensor(found)
    assert layers["a"].sqnr_db == 200
    assert layers["b"].sqnr_db == layers["b"].new_db == -200
    assert found.worst.node == "two"


def test_a_node_of_several_outputs(build: Callable[[str], Model], x: np.ndarray) -> None:
    """An error in one half of a split leaves the other half alone."""
    text = """net (float[N,4] x) => (float[N,2] y) <float[4,4] w = seeded, int64[2] n = {2, 2},
    float[4] o = {0.1, 0.1, 0, 0}>
    { [one] h = MatMul (x, w) OFFSET [cut] a, b = Split <axis = 1> (H, n) [sin] c = Sin (b)
      [add] y = Add (a, c) }"""
    reference = build(text.replace("OFFSET", "").replace("H, n", "h, n").replace(
        "float[4] o = {0.1, 0.1, 0, 0}", "float o = {0}"))  # fmt: skip
    other = build(text.replace("OFFSET", "[off] k = Add (h, o)").replace("H, n", "k, n"))
    found = compare_layers(reference, other, Samples(x))
    layers = by_tensor(found)
    w = np.asarray(reference.view().constant("w"), np.float64)
    a, b = np.split(x @ w, 2, axis=1)
    assert layers["h"].new_db > 100
    assert layers["a"].new_db == pytest.approx(db(a, np.full_like(a, 0.1)), **CLOSE)
    assert layers["a"].alone_db == pytest.approx(db(a + np.sin(b), np.full_like(a, 0.1)), **CLOSE)
    assert layers["b"].new_db > 100


def test_sizes_that_depend_on_values(build: Callable[[str], Model]) -> None:
    """Alike on the first sample, of other lengths later: there is no entry to hold against one."""
    text = """net (float[N,4] x) => (float[N,4] y, float[1,k] z) <float t = {T}>
    { [big] m = Greater (x, t) i = NonZero (m) r, s = Split <axis = 0, num_outputs = 2> (i)
      [c] q = Cast <to = 1> (r) [n] z = Neg (q) [w] v = Where (m, x, t) [y] y = Sin (v) }"""
    text = f'<ir_version: 8, opset_import: ["" : 18]>\n{text}'
    x = np.array([[1, 1, 1, 1], [1, 1, 0.2, 1]], np.float32)
    models = (build(text.replace("{T}", f"{{{t}}}")) for t in (0.1, 0.3))
    found = compare_layers(*models, Samples(x), subject.Run(batch_size=1))
    layers = by_tensor(found)
    assert layers["z"].sqnr_db == found.output_db == -200
    assert layers["y"].sqnr_db > 10


def test_sources_of_a_half(build: Callable[[str], Model]) -> None:
    model = build("""net (float[N,4] x) => (float[N,2] y) <int64[2] n = {2, 2}>
    { a, b = Split <axis = 1> (x, n) y = Add (a, b) }""")
    assert sources(model.view(), "y", {"x": 0, "a": 1}) == ("x", "a")
    assert sources(model.view(), "y", {"x": 0, "a": 1, "b": 2}) == ("a", "b")


def chain(build: Callable[[str], Model], length: int) -> Model:
    names = ["x", *(f"t{place}" for place in range(length - 1)), "y"]
    nodes = " ".join(f"{out} = Sin ({name})" for name, out in pairwise(names))
    return build(f"net (float[N,4] x) => (float[N,4] y) {{ {nodes} }}")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What sessions are opened, by kind and how many tensors are read of each."""
    found: list[tuple[str, int]] = []

    def counted(kind: str, start: type) -> Callable[..., object]:
        def open_one(model: Model, *given: object, **named: object) -> object:
            read = given[0] if given else model.view().outputs
            found.append((kind, len(read)))
            return start(model, *given, **named)

        return open_one

    monkeypatch.setattr(subject, "Session", counted("layers", Session))
    monkeypatch.setattr(subject, "TappedSession", counted("model", TappedSession))
    return found


def test_a_long_chain_is_opened_no_more_often(
    build: Callable[[str], Model], x: np.ndarray, opened: list[tuple[str, int]]
) -> None:
    """Each model once for the shapes and once for the tensors, and the layers all at once."""
    for length in (20, 600):
        opened.clear()
        found = compare_layers(chain(build, length), chain(build, length), Samples(x))
        assert [layer.sqnr_db for layer in found.layers] == [200] * (length + 1)
        all_of_it = ("model", length + 1)
        assert opened == [all_of_it] * 4 + [("layers", length)]


def test_what_is_read_at_once_is_bounded(
    build: Callable[[str], Model],
    x: np.ndarray,
    opened: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """First fewer samples are run at once, and only then fewer tensors."""
    model, fed = chain(build, 9), []
    read = TappedSession.read

    def counted(session: object, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fed.append(len(feed["x"]))
        return read(session, feed)

    monkeypatch.setattr(TappedSession, "read", counted)
    row = 16  # bytes of one sample of one tensor, of which there are ten
    for room, samples, tensors in ((1000, 6, 10), (200, 1, 10), (50, 1, 3)):
        opened.clear()
        fed.clear()
        monkeypatch.setattr(subject, "PIECE_BYTES", room)
        compare_layers(model, model, Samples(x))
        assert max(fed) == samples
        parts = [count for kind, count in opened if kind == "layers"]
        assert sum(parts) == 9
        assert max(parts) == min(tensors, 9)
        assert samples * tensors * row <= room


def test_halves_in_other_parts(
    build: Callable[[str], Model], x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One half is known, but the node that makes it is needed for the other, which is not."""
    text = """net (float[N,4] x) => (float[N,2] y)
    <int64[2] n = {2, 2}, int64[1] p = {0}, int64[1] q = {2}, int64[1] r = {4}, int64[1] i = {1}>
    { HALVES [sin] c = Sin (a) [y] y = Add (c, b) }"""
    reference = build(text.replace("HALVES", "[cut] a, b = Split <axis = 1> (x, n)"))
    sliced = "[a] a = Slice (x, p, q, i) [k] k = Slice (x, q, r, i)"
    other = build(text.replace("HALVES", sliced).replace("(c, b)", "(c, k)"))
    whole = compare_layers(reference, other, Samples(x))
    assert [layer.tensor for layer in whole.layers] == ["x", "a", "c", "y"]
    monkeypatch.setattr(subject, "PIECE_BYTES", 1)
    assert compare_layers(reference, other, Samples(x)) == whole
    assert {layer.new_db for layer in whole.layers} == {200}


def test_a_body_reads_what_the_other_model_reads(
    build: Callable[[str], Model], x: np.ndarray
) -> None:
    """What a body captures is an input of the layer as well."""
    text = """net (float[N,4] x) => (float[N,4] y) <float s = {S}, bool yes = {1}>
    { [scale] a = Mul (x, s) [if] b = If (yes) <
        then_branch = one () => (float[N,4] u) { u = Sin (a) },
        else_branch = two () => (float[N,4] v) { v = Cos (a) }> [y] y = Neg (b) }"""
    models = (build(text.replace("{S}", f"{{{scale}}}")) for scale in (1.0, 1.5))
    found = compare_layers(*models, Samples(x))
    layers = by_tensor(found)
    assert found.worst.node == "scale"
    assert layers["b"].sqnr_db < 20
    assert layers["b"].new_db > 100
