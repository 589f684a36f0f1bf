"""Sessions of large models: weights that are lent compute what weights in the file compute."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

from onnxq.graph import Editor, Model, from_text, lend, load, save, serialize
from onnxq.runtime import Session, session
from onnxq.types import Array, Feed

CONVS = """g (float[N,3,16,16] x) => (float[N,4] y)
    <float[16,3,3,3] w = seeded, float[4,16] v = seeded>
    {
      c = Conv <pads = [1, 1, 1, 1]> (x, w)
      r = Relu (c)
      p = GlobalAveragePool (r)
      f = Flatten (p)
      y = Gemm <transB = 1> (f, v)
    }"""
# ``w`` comes from outside.
STORED = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,64] x) => (float[N,64] y) <float[1] w = {0.0}>
    { [cast] d = Cast <to = 1> (w) [product] y = MatMul (x, d) }"""
# A weight of a branch is no initializer of the main graph.
BRANCH = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[2,64] x, bool b) => (float[2,64] y) {
      y = If (b) <
        then_branch = t () => (float[2,64] a) <float[64,64] w = {WEIGHTS}> { a = MatMul (x, w) },
        else_branch = e () => (float[2,64] c) { c = Neg (x) }
      > }"""


@pytest.fixture
def lent(monkeypatch) -> list[str]:
    """Every model is large; the names of all weights that were lent."""
    names: list[str] = []

    def lend_and_tell(model: Model) -> tuple[bytes, dict[str, Array]]:
        graph, arrays = lend(model)
        names.extend(arrays)
        return graph, arrays

    monkeypatch.setattr(session, "IN_MEMORY_LIMIT", 0)
    monkeypatch.setattr(session, "lend", lend_and_tell)
    return names


def plainly(model: Model, feed: Feed) -> np.ndarray:
    """What ONNX Runtime computes from one file in memory."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    made = ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    return made.run(["y"], feed)[0]


def feed_of(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.RandomState(0).standard_normal(shape).astype(np.float32)}


def test_small_weights_are_not_worth_it(build, lent) -> None:
    model, feed = build(CONVS), feed_of(2, 3, 16, 16)
    np.testing.assert_array_equal(Session(model).run(feed)["y"], plainly(model, feed))
    assert lent == ["w"]


@pytest.mark.parametrize(
    ("dtype", "is_lent"),
    [
        (np.float32, True), (np.float16, True), (np.int8, True), (np.uint8, True),
        (np.int64, False), (np.float64, False), (ml_dtypes.int4, False),
    ],
)  # fmt: skip
def test_weights_of_every_type(lent, dtype, is_lent) -> None:
    """Types that NumPy lacks, or that are rare, stay in the graph."""
    editor = Editor(from_text(STORED))
    values = np.random.RandomState(1).randint(0, 7, (64, 64)).astype(dtype)
    editor.redirect("cast", 0, editor.add_constant("stored", values))
    editor.sweep()
    model, feed = editor.finish(), feed_of(3, 64)
    np.testing.assert_array_equal(Session(model).run(feed)["y"], plainly(model, feed))
    assert lent == (["stored"] if is_lent else [])


@pytest.mark.parametrize("reads", ["", "w"])
def test_unused_weights_are_not_lent(build, lent, reads) -> None:
    """ONNX Runtime drops them before it is given what is lent, and would not find them."""
    text = CONVS.replace("(float[N,4] y)", f"(float[N,4] y, float[16,3,3,3] {reads})" if reads else
                         "(float[N,4] y)")  # fmt: skip
    model = build(text.replace("<float[16,", "<float[500] u = seeded, float[16,"))
    feed = feed_of(2, 3, 16, 16)
    np.testing.assert_array_equal(Session(model).run(feed)["y"], plainly(model, feed))
    assert lent == ["w"]


def test_sizes_that_shapes_follow_from(lent) -> None:
    """ONNX Runtime reads them when it infers shapes."""
    sizes, parts = ", ".join(["1"] * 150), ", ".join(f"p{i}" for i in range(149))
    model = from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[150] x) => (float[1] y) <int64[150] sizes = {{{sizes}}}>
        {{ {parts}, y = Split <axis = 0> (x, sizes) }}""")
    feed = feed_of(150)
    np.testing.assert_array_equal(Session(model).run(feed)["y"], feed["x"][-1:])
    assert lent == []


def test_weights_of_a_branch_stay_in_it(lent) -> None:
    weights = ", ".join(map(str, np.random.RandomState(1).uniform(-1, 1, 64 * 64)))
    model = from_text(BRANCH.replace("WEIGHTS", weights))
    feed = feed_of(2, 64) | {"b": np.array(True)}
    np.testing.assert_array_equal(Session(model).run(feed)["y"], plainly(model, feed))
    assert lent == []


def test_a_session_outlives_the_model_and_its_file(build, lent, tmp_path) -> None:
    """Weights in external data are mapped; the session holds on to them until it is closed."""
    made, feed = build(CONVS), feed_of(2, 3, 16, 16)
    save(made, tmp_path / "m.onnx", external=True)
    opened = Session(load(tmp_path / "m.onnx"))
    for file in tmp_path.iterdir():
        file.unlink()
    np.testing.assert_array_equal(opened.run(feed)["y"], plainly(made, feed))
    assert lent == ["w"]
    opened.close()


def test_a_graph_that_is_written_has_its_weights(build, lent, tmp_path) -> None:
    """Then the session is opened from a file."""
    model, feed = build(CONVS), feed_of(2, 3, 16, 16)
    with Session(model, write_optimized=tmp_path / "m.onnx", level="basic"):
        written = load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(plainly(written, feed), plainly(model, feed))
    assert lent == []
