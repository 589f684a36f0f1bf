"""Weights of float layers cost nothing at run time, and are the same numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxq.graph import Editor, from_text, load
from onnxq.rewrite.at_load import scale_at_load
from onnxq.runtime import Session

STORED = "int8[2,1,1,1] q = {-127, 5}, float s = {0.1}, float[2] c = {0.1, 0.3}"
OFFSET = "int8 none = {0}, int8[2] nones = {0, 0}, int8 some = {3}"
HEAD = f"g (float[1,1,3,3] x) => (float y) <{STORED}, {OFFSET}>"
X = np.random.RandomState(0).standard_normal((1, 1, 3, 3)).astype(np.float32)


def kernels(model, folder) -> set[str]:
    Session(model, write_optimized=folder / "optimized.onnx")
    return {node.op for node in load(folder / "optimized.onnx").view().nodes}


@pytest.mark.parametrize(
    "scaled", ["(q, s)", "(q, s, none)", "<axis = 0> (q, c)", "<axis = -4> (q, c, nones)"]
)
def test_same_numbers_without_a_kernel_for_them(build, tmp_path, scaled) -> None:
    model = build(f"{HEAD} {{ [dq] w = DequantizeLinear {scaled} [it] y = Conv (x, w) }}")
    made = scale_at_load(model, ["it"])
    assert "DequantizeLinear" in kernels(model, tmp_path)
    assert not kernels(made, tmp_path) & {"DequantizeLinear", "Cast", "Mul"}
    assert made.view().dtype("q") == "int8"
    # Other kernels sum in other orders: the weights themselves are looked at, as outputs.
    for one in (model, made):
        one.ir.graph.outputs.append(one.ir.graph.node("it").inputs[1])
    wanted, found = Session(model).run({"x": X}), Session(made).run({"x": X})
    np.testing.assert_array_equal(found["w"], wanted["w"])
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "w = DequantizeLinear (q, s, some) [it] y = Conv (x, w)",
        "w = DequantizeLinear (q, s) [it] t = Conv (x, w) y = Conv (t, w)",
        "p = QuantizeLinear (x, s, none) t = DequantizeLinear (p, s, none) [it] y = Neg (t)",
        "w = DequantizeLinear (q, s) y = Conv (x, w) [it] z = Neg (x)",
    ],
)
def test_other_weights_stay(build, body) -> None:
    """With an offset, with a reader of another kind, no weight at all, of another layer."""
    model = build(f"{HEAD} {{ {body} }}")
    made = scale_at_load(model, ["it"])
    assert [n.op for n in made.view().nodes] == [n.op for n in model.view().nodes]


def test_names_that_are_taken_are_not_taken_again(build) -> None:
    model = build(f"""{HEAD} {{ w = DequantizeLinear (q, s) w_cast = Neg (x)
        w_s = Neg (w_cast) [it] y = Conv (w_s, w) }}""")
    found = Session(scale_at_load(model, ["it"])).run({"x": X})["y"]
    np.testing.assert_allclose(found, Session(model).run({"x": X})["y"], rtol=1e-5, atol=1e-5)


def test_weights_of_4_bits() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[1,1,3,3] x) => (float[1,2,3,3] y) <float[2] s = {0.1, 0.3}>
        { [dq] w = DequantizeLinear <axis = 0> (x, s) [it] y = Conv (x, w) }""")
    editor = Editor(model)
    editor.add_constant("q", np.array([-8, 5], ml_dtypes.int4).reshape(2, 1, 1, 1))
    editor.redirect("dq", 0, "q")
    model = editor.finish()
    made = scale_at_load(model, ["it"])
    assert [n.op for n in made.view().nodes] == ["Cast", "Mul", "Conv"]
    assert made.view().dtype("q") == "int4"
    found = Session(made).run({"x": X})["y"]
    np.testing.assert_allclose(found, np.concatenate([-0.8 * X, 1.5 * X], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zeros", [None, np.array([[3], [-2]])])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_in_blocks(axis, zeros) -> None:
    """ONNX Runtime has no kernel for these but with MatMul and Gemm."""
    shape, blocks = [2, 32], [2, 2] if axis else [1, 32]
    inputs = "q, s" if zeros is None else "q, s, z"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2,32] x) => (float[2,32] y) <int8 q = {{0}}, float s = {{0}}, int8 z = {{0}}>
        {{ [dq] w = DequantizeLinear <axis = {axis}, block_size = {16 if axis else 2}> ({inputs})
          [it] y = Add (x, w) }}"""
    rng, editor = np.random.default_rng(0), Editor(from_text(text))
    parts = {
        "many": rng.integers(-8, 8, shape).astype(ml_dtypes.int4),
        "scales": rng.uniform(0.1, 1, blocks).astype(np.float32),
    }
    if zeros is not None:
        parts["zeros"] = np.broadcast_to(zeros[: blocks[0]], blocks).astype(ml_dtypes.int4)
    for port, (name, values) in enumerate(parts.items()):
        editor.redirect("dq", port, editor.add_constant(name, values))
    model = editor.finish()
    made = scale_at_load(model, ["it"])
    assert "DequantizeLinear" not in {n.op for n in made.view().nodes}
    feed = {"x": np.zeros(shape, np.float32)}
    np.testing.assert_allclose(
        Session(made).run(feed)["y"], Session(model).run(feed)["y"], rtol=1e-6, atol=0
    )


def test_a_shorter_last_block_stays() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[3] x) => (float[3] y) <int8[3] q = {1, 2, 3}, float[2] s = {0.1, 0.3}>
        { w = DequantizeLinear <axis = 0, block_size = 2> (q, s) [it] y = Add (x, w) }""")
    assert scale_at_load(model, ["it"]).view().by_name.keys() == model.view().by_name.keys()
