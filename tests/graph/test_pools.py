"""Means over whole images become GlobalAveragePool, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.graph import from_text, name_pools, serialize
from onnxq.runtime import Session

X = np.random.RandomState(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
OLD, NEW = 17, 18  # axes of ReduceMean are an attribute, and an input


def model(body: str, opset: int = OLD, shape: str = "N,3,4,5", held: str = ""):
    held = f"<{held}>" if held else ""
    return from_text(f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{shape}] x) => (float y) {held} {{ {body} }}""")


SAME = {
    "pool": ("[n] y = AveragePool <kernel_shape = [4, 5]> (x)", OLD, ""),
    "mean": ("[n] y = ReduceMean <axes = [2, 3]> (x)", OLD, ""),
    "mean from the end": ("[n] y = ReduceMean <axes = [-1, -2]> (x)", OLD, ""),
    "mean without its axes": ("[n] y = ReduceMean <axes = [2, 3], keepdims = 0> (x)", OLD, ""),
    "mean of a new opset": (
        "[n] y = ReduceMean <keepdims = 0> (x, a)", NEW, "int64[2] a = {2, 3}"
    ),
}  # fmt: skip
LEFT = {
    "window": ("y = AveragePool <kernel_shape = [2, 5]> (x)", "N,3,4,5"),
    "padded": ("y = AveragePool <kernel_shape = [4, 5], pads = [1, 1, 1, 1]> (x)", "N,3,4,5"),
    "unknown size": ("y = AveragePool <kernel_shape = [4, 5]> (x)", "N,3,H,W"),
    "other axes": ("y = ReduceMean <axes = [1, 2]> (x)", "N,3,4,5"),
    "one axis": ("y = ReduceMean <axes = [3]> (x)", "N,3,4,5"),
    "all axes": ("y = ReduceMean (x)", "N,3,4,5"),
    "a sequence": ("y = ReduceMean <axes = [1]> (x)", "N,4,5"),
}


@pytest.mark.parametrize(("body", "opset", "held"), SAME.values(), ids=SAME)
def test_computes_the_same(body, opset, held) -> None:
    before = model(body, opset, held=held)
    after = name_pools(before)
    assert after.view().nodes[0].op == "GlobalAveragePool"
    assert "n" in after.view().by_name
    (expected,) = ReferenceEvaluator(serialize(before)).run(None, {"x": X})
    found = Session(after).run({"x": X})["y"]
    # a sum of 20 float32 values in another order
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("body", "shape"), LEFT.values(), ids=LEFT)
def test_other_means_are_left(body, shape) -> None:
    before = model(body, shape=shape)
    assert name_pools(before) is before


@pytest.mark.parametrize("dtype", ["int32", "int64", "double"])
def test_means_that_no_pool_computes_are_left(dtype) -> None:
    """GlobalAveragePool takes no integers, and has no kernel for float64."""
    before = from_text(f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({dtype}[N,3,4,5] x) => ({dtype} y) {{ y = ReduceMean <axes = [2, 3]> (x) }}""")
    Session(before)  # what is left can be run
    assert name_pools(before) is before


def test_it_is_told() -> None:
    assert "1 mean over whole images" in name_pools(model(SAME["mean"][0])).notes[-1]


def test_what_a_squeeze_reads_has_a_type() -> None:
    """A part of the model may begin there."""
    view = name_pools(model(SAME["mean without its axes"][0])).view()
    (squeeze,) = [node for node in view.nodes if node.op == "Squeeze"]
    pooled = squeeze.inputs[0]
    assert (view.dtype(pooled), view.shape(pooled)) == ("float32", ("N", 3, 1, 1))
